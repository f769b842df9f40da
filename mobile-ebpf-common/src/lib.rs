//! What the eBPF programs and the agent agree on: map keys, values and names.
#![no_std]

pub mod account;
pub mod address;
pub mod event;
pub mod retries;

pub use account::{Account, TrackedConnection};
pub use address::{Address, RedirectedQuery};
pub use event::CountedEvent;

/// The programs, under the names they have in the object and in `pin_dir`.
pub mod program {
    /// Marks a socket of a mobile process when it is created.
    pub const SOCK_CREATE: &str = "mobile_sock_create";
    /// Chooses the route of an IPv4 connect().
    pub const CONNECT4: &str = "mobile_connect4";
    /// Chooses the route of an IPv6 (or IPv4-mapped) connect().
    pub const CONNECT6: &str = "mobile_connect6";
    /// Chooses the route of an unconnected IPv4 datagram.
    pub const SENDMSG4: &str = "mobile_sendmsg4";
    /// Chooses the route of an unconnected IPv6 (or IPv4-mapped) datagram.
    pub const SENDMSG6: &str = "mobile_sendmsg6";

    /// Names the resolver that was asked as the sender of an IPv4 datagram.
    pub const RECVMSG4: &str = "mobile_recvmsg4";
    /// Names the resolver that was asked as the sender of an IPv6 (or IPv4-mapped) datagram.
    pub const RECVMSG6: &str = "mobile_recvmsg6";
    /// Names the resolver that was asked as the peer of an IPv4 socket.
    pub const GETPEERNAME4: &str = "mobile_getpeername4";
    /// Names the resolver that was asked as the peer of an IPv6 socket.
    pub const GETPEERNAME6: &str = "mobile_getpeername6";
    /// Leaves our bits of a mark as they are when a program sets SO_MARK.
    pub const SETSOCKOPT: &str = "mobile_setsockopt";
    /// Adds up what the TCP connections of mobile processes carried.
    pub const ACCOUNT: &str = "mobile_account";
    /// Drops what marked sockets of any cgroup send beside the tunnel.
    pub const EGRESS: &str = "mobile_egress";
    /// The same for the sockets of the mobile cgroup, also on kernels where [`EGRESS`] cannot tell network namespaces apart.
    pub const EGRESS_OWN: &str = "mobile_egress_own";
    /// Drops packets that come to a persistent address by another device than the tunnel's, where
    /// nftables does not work.
    pub const INGRESS: &str = "mobile_ingress";

    /// The programs that are asked about calls, of every process, in the order they are attached: who redirects a query has to
    /// be able to translate its answer.
    pub const SOCKET_CALLS: [&str; 9] =
        [RECVMSG4, RECVMSG6, GETPEERNAME4, GETPEERNAME6, SOCK_CREATE, CONNECT4, CONNECT6, SENDMSG4, SENDMSG6];
}

/// The maps, under the names they have in the object and in `pin_dir`.
pub mod map {
    /// Array of one [`ProgramConfig`](crate::ProgramConfig).
    pub const CONFIG: &str = "CONFIG";
    /// Array of one `u64`: until when mobile processes go by the tunnel, in nanoseconds of CLOCK_MONOTONIC. The agent puts it
    /// off while there is a session; [`NO_DEADLINE`] where they are to wait for one.
    pub const DEADLINE: &str = "DEADLINE";
    /// Value of [`DEADLINE`]: there is none.
    pub const NO_DEADLINE: u64 = u64::MAX;
    /// Per-CPU array of `u64`, indexed by [`MarkVerdict`](crate::MarkVerdict).
    pub const VERDICTS: &str = "VERDICTS";
    /// Entries of [`VERDICTS`]: more than there are verdicts, so that a later program with more of them
    /// can go on counting in the map an earlier one left behind.
    pub const VERDICTS_ENTRIES: u32 = 32;
    /// Per-CPU array of `u64`, indexed by [`CountedEvent`](crate::CountedEvent).
    pub const EVENTS: &str = "EVENTS";
    /// Entries of [`EVENTS`], for the same reason.
    pub const EVENTS_ENTRIES: u32 = 32;
    /// Hash of the [addresses](crate::Address) that the ingress filter guards; the values are
    /// unused.
    pub const GUARDED: &str = "GUARDED";
    /// The entries of [`GUARDED`]: the persistent addresses, and those that are about to be
    /// replaced.
    pub const GUARDED_ENTRIES: u32 = 64;
    /// Per-CPU array of one `u64`: packets that the ingress filter dropped.
    pub const INGRESS_DROPPED: &str = "DROPPED";
    /// Hash from [`IPV4`] or [`IPV6`] to the [`Address`](crate::Address) of the resolver for that family.
    pub const RESOLVERS: &str = "RESOLVERS";
    /// Hash from [`IPV4`] or [`IPV6`] to the persistent [`Address`](crate::Address) of that family.
    pub const PERSISTENT: &str = "PERSISTENT";
    /// Key of [`RESOLVERS`] and [`PERSISTENT`].
    pub const IPV4: u32 = 4;
    /// Key of [`RESOLVERS`] and [`PERSISTENT`].
    pub const IPV6: u32 = 6;
    /// Trie of the networks that mobile processes reach directly, as [`Address`](crate::Address) prefixes.
    pub const BYPASS: &str = "BYPASS";
    /// Entries of [`BYPASS`]. A list this long was made by a program; an entry costs memory only when there is one.
    pub const BYPASS_ENTRIES: u32 = 65_536;
    /// Storage at sockets: what each socket last [asked](crate::RedirectedQuery) of a resolver.
    pub const QUERIES: &str = "QUERIES";
    /// Storage at the sockets of MPTCP connections, present if the connection is a mobile
    /// process's.
    pub const MPTCP_CONNECTIONS: &str = "MPTCP_CONNECTIONS";
    /// Array of one `u64`: not 0 once a connection was in [`MPTCP_CONNECTIONS`]. Until then no
    /// socket is checked for being a subflow.
    pub const ANY_MPTCP: &str = "ANY_MPTCP";
    /// Storage at sockets: the [`TrackedConnection`](crate::TrackedConnection) of each TCP connection on the MOBILE route. It goes with its socket.
    pub const OWNERS: &str = "OWNERS";
    /// Hash from process id to [`Account`](crate::Account).
    pub const ACCOUNTS: &str = "ACCOUNTS";
    /// Entries of [`ACCOUNTS`]: mobile processes, and those that have ended since the agent last looked. An entry costs memory
    /// only when there is one.
    pub const ACCOUNTS_ENTRIES: u32 = 32_768;
}

/// What the programs need to know, written by the agent before they are attached; of the slice, also later.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramConfig {
    /// The network namespace that has the MOBILE route. Sockets of other namespaces are left alone.
    pub netns_cookie: u64,
    /// Kernel id of the mobile cgroup: a task has the MOBILE attribute if this is its ancestor.
    pub cgroup_id: u64,
    /// That of `mobile.slice`, 0 while there is none. systemd makes and removes it as it likes.
    pub slice_id: u64,
    /// The secret that the agent puts behind a mark when it sets one, by which the programs let it
    /// change our bits.
    pub key: u64,
    /// Depth of the mobile cgroup below the root of the hierarchy.
    pub cgroup_level: u32,
    /// The bits to set on the sockets of mobile processes; none outside `mark_mask`.
    pub mark: u32,
    /// The bits of a socket's mark that are ours.
    pub mark_mask: u32,
    /// Non-zero: a log message for every decision that changes a mark.
    pub log: u32,
    /// The interface index of the host virtual device.
    pub device: u32,
    /// Depth of `mobile.slice` below the root of the hierarchy.
    pub slice_level: u32,
}

impl ProgramConfig {
    /// `old` with our bits set.
    #[inline(always)]
    #[must_use]
    pub const fn marked(&self, old: u32) -> u32 {
        (old & !self.mark_mask) | (self.mark & self.mark_mask)
    }

    /// `old` without our bits.
    #[inline(always)]
    #[must_use]
    pub const fn cleared(&self, old: u32) -> u32 {
        old & !self.mark_mask
    }

    /// Whether `mark` carries our bits.
    #[inline(always)]
    #[must_use]
    pub const fn is_marked(&self, mark: u32) -> bool {
        mark & self.mark_mask == self.mark & self.mark_mask
    }
}

// SAFETY: repr(C), of integers only, and 4 * 8 + 6 * 4 bytes leave no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ProgramConfig {}

/// What a program decided about one call. The numbers are indices into [`map::VERDICTS`], which outlives the
/// programs: a number is never given a second meaning.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MarkVerdict {
    /// No MOBILE attribute and no mark of ours: the ordinary route, untouched. Not counted: most calls of a machine are such, and
    /// nothing is to be seen in their number.
    Ordinary = 0,
    /// A mobile process: the mark was set.
    Marked = 1,
    /// A mobile process whose socket had the mark already.
    Kept = 2,
    /// A socket with our mark in the hands of a process without the attribute: the mark was taken off.
    Cleared = 3,
    /// A mobile process in a network namespace that has no MOBILE route: untouched.
    OtherNamespace = 4,
    /// The mark should have changed and the kernel refused.
    Failed = 5,
    /// A mobile process while the deadline is over: no mark, the ordinary route.
    Direct = 6,
    /// A mobile process whose socket is bound to another device than the tunnel's, or has a datagram for the old route: the call
    /// fails.
    Refused = 7,
}

impl MarkVerdict {
    /// Every verdict that is counted.
    pub const COUNTED: [Self; 7] = [
        Self::Marked,
        Self::Kept,
        Self::Cleared,
        Self::OtherNamespace,
        Self::Failed,
        Self::Direct,
        Self::Refused,
    ];

    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Marked => "marked",
            Self::Kept => "kept",
            Self::Cleared => "cleared",
            Self::OtherNamespace => "other_namespace",
            Self::Failed => "failed",
            Self::Direct => "direct",
            Self::Refused => "refused",
        }
    }

    /// The index in [`map::VERDICTS`].
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: ProgramConfig = ProgramConfig {
        cgroup_id: 1,
        key: 0,
        slice_id: 0,
        netns_cookie: 1,
        cgroup_level: 1,
        mark: 0x4d00_0000,
        mark_mask: 0xff00_0000,
        log: 0,
        device: 1,
        slice_level: 1,
    };

    #[test]
    fn the_mask_keeps_other_peoples_bits() {
        assert_eq!(CONFIG.marked(0x1200_cafe), 0x4d00_cafe);
        assert_eq!(CONFIG.cleared(0x4d00_cafe), 0x0000_cafe);
        assert!(CONFIG.is_marked(0x4d00_cafe));
        assert!(!CONFIG.is_marked(0x4c00_cafe));
    }

    #[test]
    fn counted_verdicts_have_indices_of_their_own_that_fit_the_map() {
        for (before, verdict) in MarkVerdict::COUNTED.iter().enumerate() {
            assert_eq!(verdict.index() as usize, before + 1);
            assert!(verdict.index() < map::VERDICTS_ENTRIES);
        }
    }

    #[test]
    fn config_has_no_padding() {
        assert_eq!(size_of::<ProgramConfig>(), 56);
    }
}

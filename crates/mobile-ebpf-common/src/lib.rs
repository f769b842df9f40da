//! Definitions shared by the eBPF programs and the agent.
//!
//! The programs in `mobile-ebpf` run in the kernel. The agent in `mobile-agent` loads and attaches
//! them, writes their configuration into maps, and reads their counters. Both sides have to agree
//! on the names of programs and maps, on the layout of keys and values, and on the meaning of every
//! number. This crate is `no_std`, so that it compiles for both targets.
//!
//! - [`program`] and [`map`]: the names of the programs and maps, as in the object file and in the
//!   directory where they are pinned.
//! - [`ProgramConfig`]: the configuration that the agent writes.
//! - [`MarkVerdict`] and [`CountedEvent`]: the indices of the counters that the programs maintain.
//! - [`Address`] and [`RedirectedQuery`] (module [`address`]): addresses in the form in which the
//!   programs compare them.
//! - [`account`]: the traffic of the TCP connections of mobile processes, as a pure function of the
//!   packets that leave.
//! - [`retries`]: the retransmission timeouts of mobile sockets.
//!
//! Pinned maps outlive the programs, and the agent of a later version may find those of an earlier
//! one. So a number in a map never gets a second meaning, and the types have no padding.
//!
//! The feature `user` implements `aya::Pod` for the types that the agent reads and writes.
#![no_std]

pub mod account;
pub mod address;
pub mod event;
pub mod retries;

pub use account::{Account, TrackedConnection};
pub use address::{Address, RedirectedQuery};
pub use event::CountedEvent;

/// The names of the eBPF programs, in the object file and in `pin_dir`, the directory where they
/// are pinned.
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

    /// Replaces the relay's resolver, as the sender of an IPv4 datagram, by the one that was
    /// queried.
    pub const RECVMSG4: &str = "mobile_recvmsg4";
    /// Replaces the relay's resolver, as the sender of an IPv6 (or IPv4-mapped) datagram, by the
    /// one that was queried.
    pub const RECVMSG6: &str = "mobile_recvmsg6";
    /// Replaces the relay's resolver, as the peer of an IPv4 socket, by the one that was queried.
    pub const GETPEERNAME4: &str = "mobile_getpeername4";
    /// Replaces the relay's resolver, as the peer of an IPv6 socket, by the one that was queried.
    pub const GETPEERNAME6: &str = "mobile_getpeername6";
    /// Keeps the agent's bits of a socket's mark unchanged when a process sets SO_MARK.
    pub const SETSOCKOPT: &str = "mobile_setsockopt";
    /// Adds up the traffic of the TCP connections of mobile processes.
    pub const ACCOUNT: &str = "mobile_account";
    /// Drops packets that marked sockets of any cgroup send outside the tunnel.
    pub const EGRESS: &str = "mobile_egress";
    /// Drops packets that marked sockets of the mobile cgroup send outside the tunnel, also on
    /// kernels where [`EGRESS`] cannot tell network namespaces apart.
    pub const EGRESS_OWN: &str = "mobile_egress_own";
    /// Drops packets that arrive for a persistent address on another device than the tunnel's, on
    /// hosts where nftables does not work.
    pub const INGRESS: &str = "mobile_ingress";

    /// The eBPF programs that run at socket system calls of all processes, in the order of their
    /// attachment: those that translate DNS answers come before those that redirect the queries.
    pub const SOCKET_CALLS: [&str; 9] =
        [RECVMSG4, RECVMSG6, GETPEERNAME4, GETPEERNAME6, SOCK_CREATE, CONNECT4, CONNECT6, SENDMSG4, SENDMSG6];
}

/// The names of the eBPF maps, in the object file and in `pin_dir`, the directory where they are
/// pinned.
pub mod map {
    /// Array with one [`ProgramConfig`](crate::ProgramConfig).
    pub const CONFIG: &str = "CONFIG";
    /// Array with one `u64`: the time until which mobile processes use the tunnel, in nanoseconds
    /// of CLOCK_MONOTONIC. The agent extends it while there is a session. It is [`NO_DEADLINE`] if
    /// mobile processes have to wait for a session.
    pub const DEADLINE: &str = "DEADLINE";
    /// Value of [`DEADLINE`] with which mobile processes always wait for the tunnel.
    pub const NO_DEADLINE: u64 = u64::MAX;
    /// Per-CPU array of counters (`u64`), indexed by [`MarkVerdict`](crate::MarkVerdict).
    pub const VERDICTS: &str = "VERDICTS";
    /// Number of entries of [`VERDICTS`]: more than there are verdicts, so that later versions of
    /// the eBPF programs, with more verdicts, can continue to count in the same map.
    pub const VERDICTS_ENTRIES: u32 = 32;
    /// Per-CPU array of counters (`u64`), indexed by [`CountedEvent`](crate::CountedEvent).
    pub const EVENTS: &str = "EVENTS";
    /// Number of entries of [`EVENTS`]: more than there are events, so that later versions of the
    /// eBPF programs, with more events, can continue to count in the same map.
    pub const EVENTS_ENTRIES: u32 = 32;
    /// Hash of the [addresses](crate::Address) that the ingress filter protects; the values are
    /// unused.
    pub const GUARDED: &str = "GUARDED";
    /// Maximum number of entries of [`GUARDED`]: the persistent addresses, and those that are about
    /// to be replaced.
    pub const GUARDED_ENTRIES: u32 = 64;
    /// Per-CPU array with one `u64`: the number of packets that the ingress filter dropped.
    pub const INGRESS_DROPPED: &str = "DROPPED";
    /// Hash from [`IPV4`] or [`IPV6`] to the [`Address`](crate::Address) of the relay's resolver of
    /// that family.
    pub const RESOLVERS: &str = "RESOLVERS";
    /// Hash from [`IPV4`] or [`IPV6`] to the persistent [`Address`](crate::Address) of that family.
    pub const PERSISTENT: &str = "PERSISTENT";
    /// Key of [`RESOLVERS`] and [`PERSISTENT`] for IPv4.
    pub const IPV4: u32 = 4;
    /// Key of [`RESOLVERS`] and [`PERSISTENT`] for IPv6.
    pub const IPV6: u32 = 6;
    /// Trie of the networks that mobile processes reach directly, as prefixes of
    /// [`Address`](crate::Address).
    pub const BYPASS: &str = "BYPASS";
    /// Maximum number of entries of [`BYPASS`], enough for generated lists. Memory is allocated
    /// only for entries in use.
    pub const BYPASS_ENTRIES: u32 = 65_536;
    /// Socket storage (a value kept with each socket): the last [redirected
    /// query](crate::RedirectedQuery) of each socket.
    pub const QUERIES: &str = "QUERIES";
    /// Socket storage of MPTCP connections, present if the connection belongs to a mobile process.
    pub const MPTCP_CONNECTIONS: &str = "MPTCP_CONNECTIONS";
    /// Array with one `u64`, not 0 once a connection was in [`MPTCP_CONNECTIONS`]. Until then no
    /// socket is checked for being a subflow of a mobile MPTCP connection.
    pub const ANY_MPTCP: &str = "ANY_MPTCP";
    /// Socket storage: the [`TrackedConnection`](crate::TrackedConnection) of each TCP connection
    /// on the MOBILE route. Each entry is freed with its socket.
    pub const OWNERS: &str = "OWNERS";
    /// Hash from process id to [`Account`](crate::Account).
    pub const ACCOUNTS: &str = "ACCOUNTS";
    /// Maximum number of entries of [`ACCOUNTS`]: mobile processes, and those that have ended since
    /// the agent's last sweep. Memory is allocated only for entries in use.
    pub const ACCOUNTS_ENTRIES: u32 = 32_768;
}

/// The configuration of the eBPF programs. The agent writes it before it attaches the programs, and
/// later updates the fields of the systemd slice `mobile.slice`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramConfig {
    /// Cookie of the network namespace that has the MOBILE route. Sockets of other namespaces are
    /// ignored.
    pub netns_cookie: u64,
    /// Kernel id of the mobile cgroup: a task with this ancestor has the MOBILE attribute.
    pub cgroup_id: u64,
    /// Kernel id of `mobile.slice`, or 0 while it does not exist. systemd creates and removes it as
    /// needed.
    pub slice_id: u64,
    /// Secret that the agent appends to the mark in its own SO_MARK calls, so that the eBPF
    /// programs let it change the bits of `mark_mask`.
    pub key: u64,
    /// Depth of the mobile cgroup below the root of the hierarchy.
    pub cgroup_level: u32,
    /// Bits to set in the mark of mobile sockets, all within `mark_mask`.
    pub mark: u32,
    /// Bits of a socket's mark that belong to the agent and its eBPF programs.
    pub mark_mask: u32,
    /// Non-zero to log every decision that changes a mark.
    pub log: u32,
    /// Interface index of the host virtual device.
    pub device: u32,
    /// Depth of `mobile.slice` below the root of the hierarchy.
    pub slice_level: u32,
}

impl ProgramConfig {
    /// Returns the socket mark `old` with the agent's mark set in its bits.
    #[inline(always)]
    #[must_use]
    pub const fn marked(&self, old: u32) -> u32 {
        (old & !self.mark_mask) | (self.mark & self.mark_mask)
    }

    /// Returns the socket mark `old` with the agent's bits cleared.
    #[inline(always)]
    #[must_use]
    pub const fn cleared(&self, old: u32) -> u32 {
        old & !self.mark_mask
    }

    /// Returns whether the agent's mark is set in the socket mark `mark`.
    #[inline(always)]
    #[must_use]
    pub const fn is_marked(&self, mark: u32) -> bool {
        mark & self.mark_mask == self.mark & self.mark_mask
    }
}

// SAFETY: repr(C), of integers only, and 4 * 8 + 6 * 4 bytes leave no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ProgramConfig {}

/// The decision of an eBPF program about a socket's mark at one system call.
///
/// The discriminants are indices into [`map::VERDICTS`], which outlives the eBPF programs, so a
/// number never gets a second meaning.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MarkVerdict {
    /// Neither the process has the MOBILE attribute nor the socket the mark: the ordinary route.
    /// Not counted, because most calls on a host are of this kind.
    Ordinary = 0,
    /// A mobile process: the mark was set.
    Marked = 1,
    /// A mobile process whose socket already had the mark.
    Kept = 2,
    /// A socket with the mark in a process without the MOBILE attribute: the mark was cleared.
    Cleared = 3,
    /// A mobile process in a network namespace without a MOBILE route: the mark is left as it is.
    OtherNamespace = 4,
    /// The decision could not be carried out, for instance because the kernel refused to change the
    /// mark.
    Failed = 5,
    /// A mobile process after the time in [`map::DEADLINE`]: no mark, so the ordinary route.
    Direct = 6,
    /// A mobile process whose socket is bound to another device than the tunnel's, or whose
    /// datagram would still take the ordinary route: the call fails.
    Refused = 7,
}

impl MarkVerdict {
    /// All verdicts that are counted.
    pub const COUNTED: [Self; 7] = [
        Self::Marked,
        Self::Kept,
        Self::Cleared,
        Self::OtherNamespace,
        Self::Failed,
        Self::Direct,
        Self::Refused,
    ];

    /// Returns the verdict's name in metrics.
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

    /// Returns the index in [`map::VERDICTS`].
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
    fn the_mask_keeps_the_other_bits_of_a_mark() {
        assert_eq!(CONFIG.marked(0x1200_cafe), 0x4d00_cafe);
        assert_eq!(CONFIG.cleared(0x4d00_cafe), 0x0000_cafe);
        assert!(CONFIG.is_marked(0x4d00_cafe));
        assert!(!CONFIG.is_marked(0x4c00_cafe));
    }

    #[test]
    fn counted_verdicts_have_distinct_indices_that_fit_the_map() {
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

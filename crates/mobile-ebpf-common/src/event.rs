//! Events that the eBPF programs count, besides their decisions about socket marks.

/// An event at a DNS query, a packet or a system call.
///
/// The discriminants are indices into [`map::EVENTS`](crate::map::EVENTS), which outlives the eBPF
/// programs, so a number never gets a second meaning.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CountedEvent {
    /// A DNS query was sent to the relay's resolver.
    DnsRedirected = 0,
    /// A DNS query was not redirected: the relay has no resolver of its address family, or its
    /// resolver is bypassed, or the query is bound to a link already.
    DnsLeft = 1,
    /// A DNS query was not redirected because its original resolver could not be stored.
    DnsFailed = 2,
    /// A DNS answer kept the address of the relay's resolver as its sender, because the original
    /// resolver is unknown.
    DnsForgotten = 3,
    /// A packet of a mobile socket that would have left outside the tunnel was refused.
    EgressRefused = 4,
    /// A datagram that would have left outside the tunnel was dropped, because its route was chosen
    /// before its socket was mobile.
    EgressLate = 5,
    /// A connection is missing from its process's account: the map of accounts was full, or memory
    /// was exhausted.
    Unaccounted = 6,
    /// A process set SO_MARK on a mobile socket, and the agent's bits of the mark were kept.
    MarkKept = 7,
    /// A process was refused a SO_MARK that would have set the agent's mark on a socket without it.
    MarkRefused = 8,
}

impl CountedEvent {
    /// All events, in the order of their indices.
    pub const ALL: [Self; 9] = [
        Self::DnsRedirected,
        Self::DnsLeft,
        Self::DnsFailed,
        Self::DnsForgotten,
        Self::EgressRefused,
        Self::EgressLate,
        Self::Unaccounted,
        Self::MarkKept,
        Self::MarkRefused,
    ];

    /// Returns the event's name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DnsRedirected => "dns_redirected",
            Self::DnsLeft => "dns_left",
            Self::DnsFailed => "dns_failed",
            Self::DnsForgotten => "dns_forgotten",
            Self::EgressRefused => "egress_refused",
            Self::EgressLate => "egress_late",
            Self::Unaccounted => "unaccounted",
            Self::MarkKept => "mark_kept",
            Self::MarkRefused => "mark_refused",
        }
    }

    /// Returns the index in [`map::EVENTS`](crate::map::EVENTS).
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map;

    #[test]
    fn events_equal_their_indices_and_fit_the_map() {
        for (index, event) in CountedEvent::ALL.iter().enumerate() {
            assert_eq!(event.index() as usize, index);
        }
        assert!((CountedEvent::ALL.len() as u32) < map::EVENTS_ENTRIES);
    }
}

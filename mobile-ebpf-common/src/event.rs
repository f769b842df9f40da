//! What the programs count besides their decisions about marks.

/// Something that happened to a query or a packet. The numbers are indices into [`map::EVENTS`](crate::map::EVENTS), which
/// outlives the programs: a number is never given a second meaning.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CountedEvent {
    /// A query was sent to the relay's resolver.
    DnsRedirected = 0,
    /// A query could not be: the relay has no resolver of its family, or the socket cannot be led away from its link.
    DnsLeft = 1,
    /// A query was not redirected because it could not be remembered.
    DnsFailed = 2,
    /// An answer kept the address of the relay's resolver as its sender, because what its socket
    /// had asked is not known.
    DnsForgotten = 3,
    /// A packet of a mobile socket that was leaving beside the tunnel was refused.
    EgressRefused = 4,
    /// The same, of a datagram whose route was chosen before its socket was mobile: it was dropped.
    EgressLate = 5,
    /// A connection is missing from its process's account: there was no place in the map, or no memory.
    Unaccounted = 6,
    /// A program's SO_MARK left our bits of a mobile socket's mark unchanged.
    MarkKept = 7,
    /// A program's SO_MARK would have given our mark to a socket without it, and was refused.
    MarkRefused = 8,
}

impl CountedEvent {
    /// Every event, in the order of the map.
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

    /// The name in metrics.
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

    /// The index in [`map::EVENTS`](crate::map::EVENTS).
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
    fn events_are_their_indices_and_fit_the_map() {
        for (index, event) in CountedEvent::ALL.iter().enumerate() {
            assert_eq!(event.index() as usize, index);
        }
        assert!((CountedEvent::ALL.len() as u32) < map::EVENTS_ENTRIES);
    }
}

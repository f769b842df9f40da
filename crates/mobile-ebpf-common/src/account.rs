//! The traffic of the TCP connections of a mobile process, added up from the packets that leave the
//! host: the header and the socket of each show how far both directions have come.
//!
//! The kernel counts sequence numbers, which are bytes except for the SYN and the FIN of each
//! direction. This module determines which of them are not bytes.

/// The process that owns a connection, and the part of the connection's traffic that the process's
/// [`Account`] already includes; the value of [`map::OWNERS`](crate::map::OWNERS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackedConnection {
    /// When the process connected, in nanoseconds of CLOCK_BOOTTIME.
    pub since: u64,
    /// The id of the process that connected (its tgid, the pid of user space).
    pub process: u32,
    /// Whether the owner's account includes the connection yet: one of the constants of [`stage`].
    pub stage: u32,
    /// Bytes sent that the owner's account includes.
    pub sent: u64,
    /// Bytes received that the owner's account includes.
    pub received: u64,
    /// The sequence number of the next new byte to be sent.
    pub next: u32,
    /// Explicit padding, always 0.
    pub unused: u32,
}

/// Values of `stage` in [`TrackedConnection`]: whether the owner's
/// account includes the connection yet.
pub mod stage {
    /// No packet of the connection was seen yet.
    pub const NEW: u32 = 0;
    /// A packet has shown the first sequence number; the account does not include the connection
    /// yet.
    pub const BEGUN: u32 = 1;
    /// The connection was established, but the map of accounts had no room for its process.
    pub const MISSING: u32 = 2;
    /// The account includes the connection.
    pub const COUNTED: u32 = 3;
}

/// The traffic of the connections of a process, the value of
/// [`map::ACCOUNTS`](crate::map::ACCOUNTS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// When the process made its first connection, in nanoseconds of CLOCK_BOOTTIME. A process that
    /// started later has reused the id of an ended one.
    pub since: u64,
    /// The number of connections made.
    pub connections: u64,
    /// Bytes sent, without retransmissions.
    pub sent: u64,
    /// Bytes received in order.
    pub received: u64,
}

// SAFETY: repr(C), of integers only, without padding: see the test.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Account {}

/// The fields that the account needs of a TCP segment that leaves the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingSegment {
    /// The sequence number of the segment's first byte.
    pub seq: u32,
    /// The number of data bytes.
    pub length: u32,
    /// Whether the segment has SYN, which requests the connection.
    pub syn: bool,
    /// Whether the segment has FIN, which ends the local direction.
    pub fin: bool,
}

/// The amounts to add to the account of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Increment {
    /// 1 if the account does not include the connection yet, otherwise 0.
    pub connections: u64,
    /// Bytes to add as sent.
    pub sent: u64,
    /// Bytes to add as received.
    pub received: u64,
}

impl TrackedConnection {
    /// Returns what a segment that leaves the host adds to the owner's account, or `None` if
    /// nothing. The connection is in the TCP state `state`, and the kernel has counted `received`
    /// sequence numbers from the peer. The caller then [commits](Self::commit) the increment.
    #[inline(always)]
    pub fn on_outgoing(&mut self, segment: OutgoingSegment, state: u32, received: u64) -> Option<Increment> {
        if self.stage == stage::NEW || segment.syn {
            self.next = segment.seq.wrapping_add(u32::from(segment.syn));
            self.stage = stage::BEGUN;
        }
        if segment.syn {
            return None;
        }
        let is_new = self.stage != stage::COUNTED;
        // Data sent before this packet precedes it. The first packet may follow data of the SYN; a
        // later one without data may follow the local FIN.
        let sent = segment.seq.wrapping_add(segment.length).wrapping_sub(self.next).cast_signed();
        let increment = Increment {
            connections: u64::from(is_new),
            sent: if sent > 0 && (is_new || segment.length > 0) { sent as u64 } else { 0 },
            received: self.newly_received(state, segment.fin, received),
        };
        (increment != Increment::default()).then_some(increment)
    }

    /// Returns how many of the received bytes the account does not include yet.
    ///
    /// While the local direction ends, one new sequence number is assumed to be the peer's FIN: the
    /// packet that acknowledges the FIN is the last that leaves, so it must be right, whereas an
    /// earlier count is corrected by the next packet. If the FIN never arrives, the count is one
    /// byte too low.
    #[inline(always)]
    const fn newly_received(&self, state: u32, fin: bool, received: u64) -> u64 {
        let is_ending = match state {
            state::FIN_WAIT1 => !fin,
            state::FIN_WAIT2 | state::CLOSE => true,
            _ => false,
        };
        received.saturating_sub(self.received + (is_ending || peer_has_ended(state)) as u64)
    }

    /// Records that an increment was added to the owner's account.
    #[inline(always)]
    pub fn commit(&mut self, increment: Increment) {
        self.stage = stage::COUNTED;
        self.sent += increment.sent;
        self.received += increment.received;
        self.next = self.next.wrapping_add(increment.sent as u32);
    }

    /// Returns what the owner's account lacks of a connection that is open in the TCP state
    /// `state`, according to the kernel's counters of acknowledged and received sequence numbers.
    #[must_use]
    pub const fn uncounted(&self, state: u32, acked: u64, received: u64) -> Increment {
        if !was_established(state) {
            return Increment { connections: 0, sent: 0, received: 0 };
        }
        // The local SYN is not a byte, and in this state the FIN is not either.
        let acked = acked.saturating_sub(1 + (state == state::FIN_WAIT2) as u64);
        Increment {
            connections: (self.stage != stage::COUNTED) as u64,
            sent: acked.saturating_sub(self.sent),
            received: received.saturating_sub(self.received + peer_has_ended(state) as u64),
        }
    }
}

/// States of a TCP connection that matter here (`enum` in the kernel's tcp_states.h).
pub mod state {
    /// The local SYN is in flight.
    pub const SYN_SENT: u32 = 2;
    /// Both sides have sent a SYN.
    pub const SYN_RECV: u32 = 3;
    /// The local FIN is in flight.
    pub const FIN_WAIT1: u32 = 4;
    /// The local FIN is acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// The connection is closed.
    pub const CLOSE: u32 = 7;
    /// The peer's FIN has arrived.
    pub const CLOSE_WAIT: u32 = 8;
    /// The local FIN was sent after the peer's FIN had arrived.
    pub const LAST_ACK: u32 = 9;
    /// The peer's FIN arrived after the local FIN was sent.
    pub const CLOSING: u32 = 11;
}

/// Returns whether a connection in this state was ever established.
const fn was_established(state: u32) -> bool {
    state != state::SYN_SENT && state != state::SYN_RECV
}

/// Returns whether the peer's FIN is certainly among the received sequence numbers of a connection
/// in this state.
#[inline(always)]
const fn peer_has_ended(state: u32) -> bool {
    matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u32 = 1;
    const DATA: OutgoingSegment = OutgoingSegment { seq: 0, length: 0, syn: false, fin: false };
    /// The first sequence number, close enough to 2^32 that the connection wraps around.
    const BEGIN: u32 = u32::MAX - 50;

    /// Returns the connections, bytes sent and bytes received that are counted for a sequence of
    /// packets, each given as (offset, length, fin, state, received bytes).
    fn carried(packets: &[(u32, u32, bool, u32, u64)]) -> (u64, u64, u64) {
        let mut connection = TrackedConnection::default();
        assert_eq!(
            connection.on_outgoing(OutgoingSegment { seq: BEGIN - 1, syn: true, ..DATA }, state::SYN_SENT, 0),
            None
        );
        let mut total = Increment::default();
        for &(from, length, fin, state, received) in packets {
            let segment = OutgoingSegment { seq: BEGIN.wrapping_add(from), length, fin, ..DATA };
            if let Some(increment) = connection.on_outgoing(segment, state, received) {
                connection.commit(increment);
                total.connections += increment.connections;
                total.sent += increment.sent;
                total.received += increment.received;
            }
            // Handled a second time, as by the programs of the next agent.
            assert_eq!(connection.on_outgoing(segment, state, received), None);
        }
        assert_eq!((connection.sent, connection.received), (total.sent, total.received));
        (total.connections, total.sent, total.received)
    }

    #[test]
    fn bytes_are_counted_once_and_syn_and_fin_are_not() {
        use state::{CLOSE, CLOSE_WAIT, CLOSING, FIN_WAIT1, FIN_WAIT2, LAST_ACK};
        let established = (0, 0, false, ESTABLISHED, 0);
        assert_eq!(carried(&[established]), (1, 0, 0));
        let sent = [established, (0, 70, false, ESTABLISHED, 0), (70, 30, false, ESTABLISHED, 50)];
        assert_eq!(carried(&sent), (1, 100, 50));
        // A retransmission that includes new data.
        let again = (60, 50, false, ESTABLISHED, 50);
        assert_eq!(carried(&[&sent[..], &[again]].concat()), (1, 110, 50));
        for end in [
            // The local end closes, and acknowledges what arrived before with its FIN.
            &[(100, 5, true, FIN_WAIT1, 55)][..],
            &[(100, 5, true, FIN_WAIT1, 54), (106, 0, false, FIN_WAIT2, 56)],
            // The peer answers after the local FIN, in two packets, then closes.
            &[
                (100, 5, true, FIN_WAIT1, 50),
                (106, 0, false, FIN_WAIT2, 53),
                (106, 0, false, FIN_WAIT2, 55),
                (106, 0, false, FIN_WAIT2, 56),
            ],
            // The peer closes first.
            &[(100, 5, false, CLOSE_WAIT, 56), (105, 0, true, LAST_ACK, 56)],
            &[(100, 5, true, LAST_ACK, 56), (100, 5, true, LAST_ACK, 56)],
            // Both ends close at the same time.
            &[(100, 5, true, FIN_WAIT1, 55), (106, 0, false, FIN_WAIT1, 56), (105, 0, true, CLOSING, 56)],
            // The local end resets the connection.
            &[(100, 5, false, ESTABLISHED, 55), (105, 0, false, CLOSE, 56)],
        ] {
            assert_eq!(carried(&[&sent[..], end].concat()), (1, 105, 55), "{end:?}");
        }
    }

    #[test]
    fn data_of_a_first_packet_is_counted_when_it_was_taken() {
        assert_eq!(carried(&[(20, 0, false, ESTABLISHED, 0)]), (1, 20, 0));
    }

    #[test]
    fn an_open_connection_adds_what_no_packet_has_shown_yet() {
        let connection = TrackedConnection {
            stage: stage::COUNTED,
            sent: 100,
            received: 50,
            ..TrackedConnection::default()
        };
        let increment = |connections, sent, received| Increment { connections, sent, received };
        assert_eq!(connection.uncounted(ESTABLISHED, 91, 60), increment(0, 0, 10));
        assert_eq!(connection.uncounted(state::CLOSE_WAIT, 101, 61), increment(0, 0, 10));
        let missing = TrackedConnection { stage: stage::MISSING, ..TrackedConnection::default() };
        assert_eq!(missing.uncounted(state::FIN_WAIT2, 102, 50), increment(1, 100, 50));
        assert_eq!(TrackedConnection::default().uncounted(state::SYN_SENT, 0, 0), Increment::default());
    }

    #[test]
    fn the_types_have_no_padding() {
        assert_eq!((size_of::<TrackedConnection>(), size_of::<Account>()), (40, 32));
    }
}

//! What the TCP connections of a mobile process carry: added up from the packets that leave, each of which says how far both
//! directions have come.
//!
//! The kernel counts sequence numbers, which are bytes but for the SYN and the FIN of each direction. Here it is told which
//! of them were.

/// Whose a socket is, and what of it is on the account: the value of [`map::OWNERS`](crate::map::OWNERS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackedConnection {
    /// When it connected, in nanoseconds of CLOCK_BOOTTIME.
    pub since: u64,
    /// The process that connected it: what user space calls its pid.
    pub process: u32,
    /// How far it has come: one of [`stage`].
    pub stage: u32,
    /// Bytes that are on the account as sent.
    pub sent: u64,
    /// And as received.
    pub received: u64,
    /// The sequence number that the next new byte will have.
    pub next: u32,
    /// No padding.
    pub unused: u32,
}

/// How far a connection has come, for its account.
pub mod stage {
    /// Nothing of it was seen yet.
    pub const NEW: u32 = 0;
    /// It is known where it begins.
    pub const BEGUN: u32 = 1;
    /// It was made, and there was no place for the account.
    pub const MISSING: u32 = 2;
    /// It is on the account.
    pub const COUNTED: u32 = 3;
}

/// What a process's connections have carried: the value of [`map::ACCOUNTS`](crate::map::ACCOUNTS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// When the first of them had connected, in nanoseconds of CLOCK_BOOTTIME: a process that has the number of an ended one is
    /// younger.
    pub since: u64,
    /// How many there were.
    pub connections: u64,
    /// Bytes that left for the first time.
    pub sent: u64,
    /// Bytes that came, in order.
    pub received: u64,
}

// SAFETY: repr(C), of integers only, without padding: see the test.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Account {}

/// A packet of a connection that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingSegment {
    /// The sequence number of its first byte.
    pub seq: u32,
    /// How many bytes it has.
    pub length: u32,
    /// Whether it asks for the connection.
    pub syn: bool,
    /// Whether it ends our direction.
    pub fin: bool,
}

/// What is to be added to an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Increment {
    /// 1 if the connection is new.
    pub connections: u64,
    /// Bytes.
    pub sent: u64,
    /// Bytes.
    pub received: u64,
}

impl TrackedConnection {
    /// A packet leaves: what it adds, if anything, while the connection is in `state` and the kernel counts so much received.
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
        // What was sent before is behind it. The first one may have data of the SYN before it, a later one without data our FIN.
        let sent = segment.seq.wrapping_add(segment.length).wrapping_sub(self.next).cast_signed();
        let more = Increment {
            connections: u64::from(is_new),
            sent: if sent > 0 && (is_new || segment.length > 0) { sent as u64 } else { 0 },
            received: self.newly_received(state, segment.fin, received),
        };
        (more != Increment::default()).then_some(more)
    }

    /// How many of the bytes received are new.
    ///
    /// While our direction ends, what is new may be the other end's FIN. It is taken to be: the packet that acknowledges it is the
    /// last that leaves, and those before are made up for by the next. If it never comes, this is a byte too little.
    #[inline(always)]
    const fn newly_received(&self, state: u32, fin: bool, received: u64) -> u64 {
        let is_ending = match state {
            state::FIN_WAIT1 => !fin,
            state::FIN_WAIT2 | state::CLOSE => true,
            _ => false,
        };
        received.saturating_sub(self.received + (is_ending || has_ended(state)) as u64)
    }

    /// It is on the account.
    #[inline(always)]
    pub fn commit(&mut self, more: Increment) {
        self.stage = stage::COUNTED;
        self.sent += more.sent;
        self.received += more.received;
        self.next = self.next.wrapping_add(more.sent as u32);
    }

    /// What a connection that is open in `state` adds to what is on the account, by the kernel's counts.
    #[must_use]
    pub const fn uncounted(&self, state: u32, acked: u64, received: u64) -> Increment {
        if !is_made(state) {
            return Increment { connections: 0, sent: 0, received: 0 };
        }
        // Its SYN, and in this state its FIN.
        let acked = acked.saturating_sub(1 + (state == state::FIN_WAIT2) as u64);
        Increment {
            connections: (self.stage != stage::COUNTED) as u64,
            sent: acked.saturating_sub(self.sent),
            received: received.saturating_sub(self.received + has_ended(state) as u64),
        }
    }
}

/// The states of a TCP connection that matter here (`enum` in the kernel's tcp_states.h).
pub mod state {
    /// A SYN of ours is under way.
    pub const SYN_SENT: u32 = 2;
    /// Both sides have sent one.
    pub const SYN_RECV: u32 = 3;
    /// Our FIN is under way.
    pub const FIN_WAIT1: u32 = 4;
    /// Our FIN is acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// It is over.
    pub const CLOSE: u32 = 7;
    /// The other end's FIN has come.
    pub const CLOSE_WAIT: u32 = 8;
    /// Then ours was sent.
    pub const LAST_ACK: u32 = 9;
    /// Ours was sent, then the other end's came.
    pub const CLOSING: u32 = 11;
}

/// Whether a connection in this state was ever made.
const fn is_made(state: u32) -> bool {
    state != state::SYN_SENT && state != state::SYN_RECV
}

/// Whether the other end's FIN is among what a connection in this state has received.
#[inline(always)]
const fn has_ended(state: u32) -> bool {
    matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u32 = 1;
    const DATA: OutgoingSegment = OutgoingSegment { seq: 0, length: 0, syn: false, fin: false };
    /// So that it comes to 0 within the connection.
    const BEGIN: u32 = u32::MAX - 50;

    /// What packets add, one after another: each of so many bytes from there, in this state, with so much received.
    fn carried(packets: &[(u32, u32, bool, u32, u64)]) -> (u64, u64, u64) {
        let mut owner = TrackedConnection::default();
        assert_eq!(
            owner.on_outgoing(OutgoingSegment { seq: BEGIN - 1, syn: true, ..DATA }, state::SYN_SENT, 0),
            None
        );
        let mut total = Increment::default();
        for &(from, length, fin, state, received) in packets {
            let segment = OutgoingSegment { seq: BEGIN.wrapping_add(from), length, fin, ..DATA };
            if let Some(more) = owner.on_outgoing(segment, state, received) {
                owner.commit(more);
                total.connections += more.connections;
                total.sent += more.sent;
                total.received += more.received;
            }
            // Once more, by the programs of the next agent.
            assert_eq!(owner.on_outgoing(segment, state, received), None);
        }
        assert_eq!((owner.sent, owner.received), (total.sent, total.received));
        (total.connections, total.sent, total.received)
    }

    #[test]
    fn bytes_are_counted_once_and_what_is_no_byte_is_not() {
        use state::{CLOSE, CLOSE_WAIT, CLOSING, FIN_WAIT1, FIN_WAIT2, LAST_ACK};
        let made = (0, 0, false, ESTABLISHED, 0);
        assert_eq!(carried(&[made]), (1, 0, 0));
        let sent = [made, (0, 70, false, ESTABLISHED, 0), (70, 30, false, ESTABLISHED, 50)];
        assert_eq!(carried(&sent), (1, 100, 50));
        // Sent again, in part with what is new.
        let again = (60, 50, false, ESTABLISHED, 50);
        assert_eq!(carried(&[&sent[..], &[again]].concat()), (1, 110, 50));
        for end in [
            // We end, and what came before is acknowledged with that.
            &[(100, 5, true, FIN_WAIT1, 55)][..],
            &[(100, 5, true, FIN_WAIT1, 54), (106, 0, false, FIN_WAIT2, 56)],
            // They answer when we have ended, in two packets, then end.
            &[
                (100, 5, true, FIN_WAIT1, 50),
                (106, 0, false, FIN_WAIT2, 53),
                (106, 0, false, FIN_WAIT2, 55),
                (106, 0, false, FIN_WAIT2, 56),
            ],
            // They end.
            &[(100, 5, false, CLOSE_WAIT, 56), (105, 0, true, LAST_ACK, 56)],
            &[(100, 5, true, LAST_ACK, 56), (100, 5, true, LAST_ACK, 56)],
            // Both do.
            &[(100, 5, true, FIN_WAIT1, 55), (106, 0, false, FIN_WAIT1, 56), (105, 0, true, CLOSING, 56)],
            // We reset it.
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
    fn what_is_open_adds_what_no_packet_has_told_yet() {
        let owner = TrackedConnection {
            stage: stage::COUNTED,
            sent: 100,
            received: 50,
            ..TrackedConnection::default()
        };
        let more = |connections, sent, received| Increment { connections, sent, received };
        assert_eq!(owner.uncounted(ESTABLISHED, 91, 60), more(0, 0, 10));
        assert_eq!(owner.uncounted(state::CLOSE_WAIT, 101, 61), more(0, 0, 10));
        let missing = TrackedConnection { stage: stage::MISSING, ..TrackedConnection::default() };
        assert_eq!(missing.uncounted(state::FIN_WAIT2, 102, 50), more(1, 100, 50));
        assert_eq!(TrackedConnection::default().uncounted(state::SYN_SENT, 0, 0), Increment::default());
    }

    #[test]
    fn there_is_no_padding() {
        assert_eq!((size_of::<TrackedConnection>(), size_of::<Account>()), (40, 32));
    }
}

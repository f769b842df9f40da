//! The check before anything is learnt from a segment delivered to the local end of an inner TCP
//! flow: whether the local end, by its own sequence numbers, accepts or refuses the segment (RFC
//! 9293, 3.10.7.4).

use crate::segment::{Segment, before};

/// Maximum distance, behind or ahead, of a segment from the sequence number that the local end
/// expects: 8 MiB, more than most receive windows. A guessed number is within this range once in
/// 256 times.
pub(crate) const MAX_DISTANCE: u32 = 1 << 23;

/// The largest shift of the window scale option (RFC 7323, 2.3).
const MAX_SHIFT: u8 = 14;

/// The judgement of the local end on a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// The segment overlaps or adjoins the receive window: the local end processes it.
    Current,
    /// The segment ends before the sequence number that the local end expects. The local end
    /// refuses it as a repetition and ignores its acknowledgement.
    Old,
    /// The segment is beyond the window or too far behind it, so it does not come from the other
    /// end.
    Outside,
}

/// The receive window of a local end, derived from the segments that it sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiveWindow {
    /// The last acknowledgement that the local end sent: RCV.NXT, or a little less (as `rcv_wup` in
    /// Linux).
    next: u32,
    /// The end of the window: RCV.NXT + RCV.WND of the segment that advertised it.
    edge: u32,
    /// The window shift that the local end's SYN offered, the largest possible one; `None` if the
    /// handshake was not seen.
    shift: Option<u8>,
}

impl ReceiveWindow {
    /// Returns the window that a segment of the local end advertises.
    pub(crate) fn from_segment(segment: &Segment, shift: Option<u8>) -> Self {
        let window = Self { next: segment.ack, edge: segment.ack, shift };
        Self { edge: window.edge_of(segment), ..window }
    }

    /// Updates the window from a segment of the local end.
    pub(crate) fn update(&mut self, segment: &Segment) {
        let behind = self.next.wrapping_sub(segment.ack);
        if (1..=MAX_DISTANCE).contains(&behind) {
            // A later segment overtook this one.
            return;
        }
        self.next = segment.ack;
        let edge = self.edge_of(segment);
        // A receiver does not shrink its window (RFC 9293, 3.8.6). An end that is too far away
        // never belonged to this receiver.
        let keeps = before(edge, self.edge) && self.edge.wrapping_sub(self.next) <= MAX_DISTANCE;
        if !keeps {
            self.edge = edge;
        }
    }

    /// Returns the acknowledgement that the local end sent last.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Judges a segment by its sequence numbers as the local end does; `end` is the number after
    /// its last one.
    ///
    /// The rules are RFC 9293's with two allowances, as in Linux's `tcp_sequence()`: a repetition
    /// may end where new data would start, and a segment may start at the very end of the window,
    /// as an acknowledgement does when the window is full.
    pub(crate) fn judge(&self, seq: u32, end: u32) -> Acceptance {
        let behind = self.next.wrapping_sub(end);
        let width = self.edge.wrapping_sub(self.next);
        if (1..=MAX_DISTANCE).contains(&behind) {
            Acceptance::Old
        } else if before(end, self.next) {
            Acceptance::Outside
        } else if before(seq, self.next) || seq.wrapping_sub(self.next) <= width {
            Acceptance::Current
        } else {
            Acceptance::Outside
        }
    }

    /// Returns whether the byte with this sequence number is in the window.
    pub(crate) fn contains(&self, seq: u32) -> bool {
        seq.wrapping_sub(self.next) < self.edge.wrapping_sub(self.next)
    }

    fn edge_of(&self, segment: &Segment) -> u32 {
        // Without the handshake, the window is assumed to be the largest possible, but not beyond
        // the range that is considered.
        let shift = self.shift.unwrap_or(MAX_SHIFT).min(MAX_SHIFT);
        segment.ack.wrapping_add((u32::from(segment.window) << shift).min(MAX_DISTANCE))
    }
}

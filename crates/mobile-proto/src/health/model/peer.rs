//! The modelled receiver.

use super::link::Link;

/// The peer's kernel, which acknowledges segments, and the program behind it.
pub(in crate::health) struct Peer {
    /// Whether the peer's program answers with a PONG each second; otherwise only its kernel
    /// acknowledges segments.
    pub(in crate::health) program_answers: bool,
    /// Whether the peer retransmits segments without end, because nothing reaches it.
    pub(in crate::health) retransmits: bool,
    received_below: u64,
    received: Vec<u64>,
    delayed_ack_at: Option<u64>,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            program_answers: true,
            retransmits: false,
            received_below: 0,
            received: Vec::new(),
            delayed_ack_at: None,
        }
    }

    /// Receives what has arrived by the time `ms`, and acknowledges it.
    pub(super) fn receive(&mut self, ms: u64, link: &mut Link) {
        let mut at_once = false;
        for sequence in link.arrived_up(ms) {
            let in_order = sequence == self.received_below && self.received.is_empty();
            if sequence >= self.received_below && !self.received.contains(&sequence) {
                self.received.push(sequence);
            }
            while let Some(index) = self.received.iter().position(|it| *it == self.received_below) {
                self.received.swap_remove(index);
                self.received_below += 1;
            }
            // Every second segment is acknowledged at once, and every one out of order.
            at_once |= !in_order || self.delayed_ack_at.is_some();
            self.delayed_ack_at.get_or_insert(ms + 20);
        }
        at_once |= self.delayed_ack_at.is_some_and(|at| at <= ms);
        if self.retransmits && ms.is_multiple_of(50) {
            at_once = true;
        }
        if at_once {
            self.delayed_ack_at = None;
            link.send_down(ms, self.received_below, &self.received);
        }
    }
}

//! Packets on their way to a device, datagrams joined where its kernel cuts them again.

use std::cell::Cell;

use mobile_proto::{CoalescedSegment, Packet, SegmentCoalescer};

thread_local! {
    /// Of whoever writes: it is empty between two polls of a driver, so thousands of idle ones hold none.
    static SPARE: Cell<Option<SegmentCoalescer>> = const { Cell::new(None) };
}

/// What one session writes to its device.
#[derive(Debug)]
pub struct Joining {
    joins: bool,
    joiner: Option<SegmentCoalescer>,
}

impl Joining {
    /// Joins datagrams if `joins`, which [`Tun::joins`](crate::tun::Tun::joins) says.
    #[must_use]
    pub fn new(joins: bool) -> Self {
        Self { joins, joiner: None }
    }

    /// Hands a packet on, or keeps it for a while. `write` is told what each was made of.
    pub fn send(&mut self, packet: Packet<'_>, write: &mut dyn FnMut(Packet<'_>, CoalescedSegment)) {
        if !self.joins {
            return write(packet, CoalescedSegment::single(packet));
        }
        let joiner = self.joiner.get_or_insert_with(|| SPARE.take().unwrap_or_default());
        if joiner.push(packet) {
            return;
        }
        // In the order they came.
        if let Some((joined, made)) = joiner.take() {
            write(joined, made);
        }
        if !joiner.push(packet) {
            write(packet, CoalescedSegment::single(packet));
        }
    }

    /// Hands on what was kept.
    pub fn flush(&mut self, write: &mut dyn FnMut(Packet<'_>, CoalescedSegment)) {
        let Some(mut joiner) = self.joiner.take() else { return };
        if let Some((joined, made)) = joiner.take() {
            write(joined, made);
        }
        SPARE.set(Some(joiner));
    }
}

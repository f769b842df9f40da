//! Packets on their way to a device, datagrams joined where its kernel cuts them again.

use std::cell::Cell;

use mobile_proto::{CoalescedSegment, Packet, SegmentCoalescer};

thread_local! {
    /// Of whoever writes: it is empty between two polls of a driver, so thousands of idle ones hold none.
    static SPARE: Cell<Option<SegmentCoalescer>> = const { Cell::new(None) };
}

/// What one session writes to its device.
#[derive(Debug)]
pub struct CoalescingWriter {
    coalesces: bool,
    joiner: Option<SegmentCoalescer>,
}

impl CoalescingWriter {
    /// Joins datagrams if `coalesces`, which [`Tun::coalesces`](crate::tun::Tun::coalesces_datagrams) says.
    #[must_use]
    pub fn new(coalesces: bool) -> Self {
        Self { coalesces, joiner: None }
    }

    /// Hands a packet on, or keeps it for a while. `write` is told what each was made of.
    pub fn send(&mut self, packet: Packet<'_>, write: &mut dyn FnMut(Packet<'_>, CoalescedSegment)) {
        if !self.coalesces {
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

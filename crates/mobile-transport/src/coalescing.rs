//! Coalesces the UDP datagrams of a session into large packets before they are written to its TUN
//! device; the kernel segments them again.

use std::cell::Cell;

use mobile_proto::{CoalescedSegment, InnerPacket, SegmentCoalescer};

thread_local! {
    /// The segment coalescer that no session on this thread uses at the moment.
    ///
    /// A coalescer is empty between two polls of a driver, so thousands of idle sessions share one
    /// per thread.
    static SPARE: Cell<Option<SegmentCoalescer>> = const { Cell::new(None) };
}

/// Writes one session's packets to its TUN device, coalescing UDP datagrams where possible.
#[derive(Debug)]
pub struct CoalescingWriter {
    coalesces: bool,
    joiner: Option<SegmentCoalescer>,
}

impl CoalescingWriter {
    /// Creates a writer that coalesces datagrams if `coalesces` is true; the device must support
    /// that, see [`Tun::coalesces_datagrams`](crate::tun::Tun::coalesces_datagrams).
    #[must_use]
    pub fn new(coalesces: bool) -> Self {
        Self { coalesces, joiner: None }
    }

    /// Passes `packet` to `write`, or keeps it until [`flush`](Self::flush), to append later
    /// datagrams.
    ///
    /// `write` receives each packet to write, and the number and size of the packets that were
    /// coalesced into it.
    pub fn send(
        &mut self,
        packet: InnerPacket<'_>,
        write: &mut dyn FnMut(InnerPacket<'_>, CoalescedSegment),
    ) {
        if !self.coalesces {
            return write(packet, CoalescedSegment::single(*packet));
        }
        let joiner = self.joiner.get_or_insert_with(|| SPARE.take().unwrap_or_default());
        if joiner.push(packet) {
            return;
        }
        // Write the earlier packets first, to keep the order.
        if let Some((joined, made)) = joiner.take() {
            write(joined, made);
        }
        if !joiner.push(packet) {
            write(packet, CoalescedSegment::single(*packet));
        }
    }

    /// Passes the packets that [`send`](Self::send) has kept, coalesced into one, to `write`.
    pub fn flush(&mut self, write: &mut dyn FnMut(InnerPacket<'_>, CoalescedSegment)) {
        let Some(mut joiner) = self.joiner.take() else { return };
        if let Some((joined, made)) = joiner.take() {
            write(joined, made);
        }
        SPARE.set(Some(joiner));
    }
}

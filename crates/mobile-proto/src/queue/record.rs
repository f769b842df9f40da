//! A packet that waits to be sent or to be acknowledged, with its metadata.

use std::time::Instant;

use super::thinning::BareAckHeader;
use crate::{Offload, Packet, PacketBuf};

/// The sequence range of a segment of a tracked inner TCP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRange {
    /// The flow's id in the flow table.
    pub(crate) flow: u32,
    pub(crate) seq: u32,
    /// The length in sequence numbers; 0 for a bare acknowledgement.
    pub(crate) length: u32,
}

impl SegmentRange {
    /// Returns whether this range contains all of `other`.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let offset = other.seq.wrapping_sub(self.seq);
        self.flow == other.flow && offset <= self.length && other.length <= self.length - offset
    }
}

/// The part of a packet's headers that the queue needs, so that the packet is not parsed again
/// while it waits. [`SendQueue::classify`](super::SendQueue::classify) returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PacketClass {
    /// The index of the packet's flow queue.
    pub(super) bucket: u16,
    /// The header of a bare acknowledgement, if the packet is one.
    pub(super) bare_ack: Option<BareAckHeader>,
}

/// An inner packet that waits to be sent or to be acknowledged.
#[derive(Debug)]
pub(crate) struct Record {
    /// The packet, which is empty only in a record that was given up.
    pub(crate) packet: Vec<u8>,
    pub(crate) offload: Offload,
    /// When the packet was read from the TUN.
    pub(crate) received_at: Instant,
    /// The sequence range if the packet is a segment of a tracked TCP flow; such a record never
    /// expires.
    pub(crate) range: Option<SegmentRange>,
    /// The part of the packet's headers that the queue needs later.
    pub(crate) class: PacketClass,
    /// The position in the order of arrival, assigned by the queue.
    pub(super) arrival: i64,
}

impl Record {
    pub(crate) fn new(
        packet: Vec<u8>,
        offload: Offload,
        received_at: Instant,
        range: Option<SegmentRange>,
        class: PacketClass,
    ) -> Self {
        Self { packet, offload, received_at, range, class, arrival: 0 }
    }

    pub(crate) fn packet(&self) -> Packet<'_> {
        Packet { bytes: &self.packet, offload: self.offload }
    }

    pub(crate) fn into_packet(self) -> PacketBuf {
        PacketBuf { bytes: self.packet.into_boxed_slice(), offload: self.offload }
    }

    /// Returns the index of the packet's flow queue.
    pub(crate) fn bucket(&self) -> u16 {
        self.class.bucket
    }

    /// Returns whether the record can expire. Segments of tracked TCP flows never do, and a record
    /// that was given up has nothing left to expire.
    pub(crate) fn can_expire(&self) -> bool {
        self.range.is_none() && !self.packet.is_empty()
    }

    /// Returns the memory that the record holds in bytes, as counted by the limits.
    pub(crate) fn cost(&self) -> usize {
        self.packet.capacity() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests that the class of a packet fits into the padding of its record, because the size of
    /// each held record counts against the limits of its session.
    #[test]
    fn a_record_is_small() {
        assert_eq!(size_of::<PacketClass>(), 4);
        assert!(size_of::<Record>() <= 72);
    }
}

//! Packets that wait to be sent for the first time. A plain FIFO behind the interface that a fair,
//! delay-controlled queue needs: push, pop, the next one's cost, expiry, drain.

use std::collections::VecDeque;
use std::time::Instant;

use crate::{Offload, Packet, PacketBuf};

/// One inner packet on its way.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) packet: Vec<u8>,
    pub(crate) offload: Offload,
    /// When it came from the TUN.
    pub(crate) since: Instant,
}

impl Record {
    pub(crate) fn packet(&self) -> Packet<'_> {
        Packet { bytes: &self.packet, offload: self.offload }
    }

    pub(crate) fn into_packet(self) -> PacketBuf {
        PacketBuf { bytes: self.packet.into_boxed_slice(), offload: self.offload }
    }

    /// The memory it holds, which is what bounds are about.
    pub(crate) fn cost(&self) -> usize {
        self.packet.capacity() + size_of::<Self>()
    }
}

/// The queue before the tunnel.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    records: VecDeque<Record>,
    cost: usize,
    bytes: usize,
}

impl Queue {
    /// Takes a packet as the newest.
    pub(crate) fn push(&mut self, record: Record) {
        self.add(&record);
        self.records.push_back(record);
    }

    /// Takes a packet before all others.
    pub(crate) fn push_front(&mut self, record: Record) {
        self.add(&record);
        self.records.push_front(record);
    }

    /// The packet to send next.
    pub(crate) fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front();
        self.subtract(record)
    }

    /// Gives up the newest packet.
    pub(crate) fn pop_newest(&mut self) -> Option<Record> {
        let record = self.records.pop_back();
        self.subtract(record)
    }

    /// What [`Self::pop`] would return costs.
    pub(crate) fn next_cost(&self) -> Option<usize> {
        self.records.front().map(Record::cost)
    }

    /// When the oldest packet came.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.records.front().map(|record| record.since)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Memory held.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// Bytes of the packets alone.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All packets, in the order of sending.
    pub(crate) fn into_records(self) -> impl Iterator<Item = Record> {
        self.records.into_iter()
    }

    /// Gives back memory that a burst left behind.
    pub(crate) fn trim(&mut self) {
        self.records.shrink_to_fit();
    }

    fn add(&mut self, record: &Record) {
        self.cost += record.cost();
        self.bytes += record.packet.len();
    }

    fn subtract(&mut self, record: Option<Record>) -> Option<Record> {
        if let Some(record) = &record {
            self.cost -= record.cost();
            self.bytes -= record.packet.len();
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(packet: &[u8]) -> Record {
        Record { packet: packet.to_vec(), offload: Offload::None, since: Instant::now() }
    }

    #[test]
    fn first_in_first_out_and_every_byte_accounted() {
        let mut queue = Queue::default();
        queue.push(record(b"bb"));
        queue.push(record(b"ccc"));
        queue.push_front(record(b"a"));
        assert_eq!(queue.bytes(), 6);
        assert!(queue.cost() > 3 * size_of::<Record>());
        assert_eq!(queue.next_cost(), Some(record(b"a").cost()));
        assert_eq!(queue.pop().unwrap().packet, b"a");
        assert_eq!(queue.pop_newest().unwrap().packet, b"ccc");
        assert_eq!(queue.pop().unwrap().packet, b"bb");
        assert!(queue.pop().is_none() && queue.is_empty());
        assert_eq!((queue.cost(), queue.bytes()), (0, 0));
    }
}

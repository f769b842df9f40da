//! Packets that wait to be sent for the first time. A plain FIFO behind the interface that a fair,
//! delay-controlled queue needs: push, pop, the next one's cost, expiry, drain. It keeps the segments of known TCP
//! flows apart from all else, because an outage treats them differently: the former are what lets a flow resume,
//! the latter grow stale.

use std::collections::VecDeque;
use std::time::Instant;

use crate::{Offload, Packet, PacketBuf};

/// Where the data of a segment of a known TCP flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The flow's name.
    pub(crate) flow: u32,
    pub(crate) seq: u32,
    /// How far it reaches; nothing for an acknowledgement.
    pub(crate) length: u32,
}

impl Place {
    /// Whether all of `other` is in it.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let offset = other.seq.wrapping_sub(self.seq);
        self.flow == other.flow && offset <= self.length && other.length <= self.length - offset
    }
}

/// One inner packet on its way.
#[derive(Debug)]
pub(crate) struct Record {
    /// Never empty, but of a record that was given up.
    pub(crate) packet: Vec<u8>,
    pub(crate) offload: Offload,
    /// When it came from the TUN.
    pub(crate) since: Instant,
    /// A segment of a known TCP flow: it has no age.
    pub(crate) place: Option<Place>,
    /// Its turn, given by the queue.
    turn: i64,
}

impl Record {
    pub(crate) fn new(packet: Vec<u8>, offload: Offload, since: Instant, place: Option<Place>) -> Self {
        Self { packet, offload, since, place, turn: 0 }
    }

    pub(crate) fn packet(&self) -> Packet<'_> {
        Packet { bytes: &self.packet, offload: self.offload }
    }

    pub(crate) fn into_packet(self) -> PacketBuf {
        PacketBuf { bytes: self.packet.into_boxed_slice(), offload: self.offload }
    }

    /// Whether it can grow too old: everything but segments of known TCP flows, and what was given up already.
    pub(crate) fn ages(&self) -> bool {
        self.place.is_none() && !self.packet.is_empty()
    }

    /// The memory it holds, which is what bounds are about.
    pub(crate) fn cost(&self) -> usize {
        self.packet.capacity() + size_of::<Self>()
    }
}

/// The queue before the tunnel.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Segments of known TCP flows.
    lasting: Lane,
    /// All else.
    ageing: Lane,
    /// The turns of the first packet and behind the last one.
    first: i64,
    end: i64,
}

#[derive(Debug, Default)]
struct Lane {
    records: VecDeque<Record>,
    cost: usize,
    bytes: usize,
}

impl Queue {
    /// Takes a packet as the newest.
    pub(crate) fn push(&mut self, mut record: Record) {
        record.turn = self.end;
        self.end += 1;
        let lane = self.lane(&record);
        lane.add(&record);
        lane.records.push_back(record);
    }

    /// Takes a packet before all others.
    pub(crate) fn push_front(&mut self, mut record: Record) {
        self.first -= 1;
        record.turn = self.first;
        let lane = self.lane(&record);
        lane.add(&record);
        lane.records.push_front(record);
    }

    /// The packet to send next.
    pub(crate) fn pop(&mut self) -> Option<Record> {
        let lane = if self.next_lasts()? { &mut self.lasting } else { &mut self.ageing };
        lane.pop()
    }

    /// Gives up the newest packet.
    pub(crate) fn pop_newest(&mut self) -> Option<Record> {
        let turn = |lane: &Lane| lane.records.back().map(|record| record.turn);
        let lane =
            if turn(&self.lasting) > turn(&self.ageing) { &mut self.lasting } else { &mut self.ageing };
        let record = lane.records.pop_back();
        lane.subtract(record)
    }

    /// The oldest packet that grows stale.
    pub(crate) fn pop_ageing(&mut self) -> Option<Record> {
        self.ageing.pop()
    }

    /// What [`Self::pop`] would return costs.
    pub(crate) fn next_cost(&self) -> Option<usize> {
        let lane = if self.next_lasts()? { &self.lasting } else { &self.ageing };
        lane.records.front().map(Record::cost)
    }

    /// When the oldest packet came that grows stale.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.ageing.records.front().map(|record| record.since)
    }

    /// Gives up the segments that are `doomed`.
    pub(crate) fn give_up(&mut self, mut doomed: impl FnMut(&Record) -> bool, mut done: impl FnMut(Record)) {
        for record in std::mem::take(&mut self.lasting).records {
            if doomed(&record) {
                done(record);
            } else {
                self.lasting.add(&record);
                self.lasting.records.push_back(record);
            }
        }
    }

    /// The first held segment for which `wanted` is true.
    pub(crate) fn find(&self, wanted: impl Fn(&Place) -> bool) -> Option<usize> {
        self.lasting.records.iter().position(|record| record.place.as_ref().is_some_and(&wanted))
    }

    /// The place of a held segment.
    pub(crate) fn place(&self, at: usize) -> Option<Place> {
        self.lasting.records.get(at)?.place
    }

    /// Puts another packet into the place of a held segment, and returns the old one.
    pub(crate) fn replace(&mut self, at: usize, packet: Vec<u8>, offload: Offload) -> Option<Vec<u8>> {
        let record = self.lasting.records.get_mut(at)?;
        let old_cost = record.cost();
        let old = std::mem::replace(&mut record.packet, packet);
        record.offload = offload;
        self.lasting.cost = self.lasting.cost - old_cost + record.cost();
        self.lasting.bytes = self.lasting.bytes - old.len() + record.packet.len();
        Some(old)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lasting.records.is_empty() && self.ageing.records.is_empty()
    }

    /// Memory held.
    pub(crate) fn cost(&self) -> usize {
        self.lasting.cost + self.ageing.cost
    }

    /// Memory held by segments of known TCP flows.
    pub(crate) fn lasting_cost(&self) -> usize {
        self.lasting.cost
    }

    /// Bytes of the packets alone.
    pub(crate) fn bytes(&self) -> usize {
        self.lasting.bytes + self.ageing.bytes
    }

    /// All packets, in the order of sending.
    pub(crate) fn into_records(mut self) -> impl Iterator<Item = Record> {
        std::iter::from_fn(move || self.pop())
    }

    /// Gives back memory that a burst left behind.
    pub(crate) fn trim(&mut self) {
        self.lasting.records.shrink_to_fit();
        self.ageing.records.shrink_to_fit();
    }

    fn lane(&mut self, record: &Record) -> &mut Lane {
        if record.place.is_some() { &mut self.lasting } else { &mut self.ageing }
    }

    /// Whether it is the turn of a segment of a known flow.
    fn next_lasts(&self) -> Option<bool> {
        let turn = |lane: &Lane| lane.records.front().map(|record| record.turn);
        match (turn(&self.lasting), turn(&self.ageing)) {
            (None, None) => None,
            (Some(lasting), Some(ageing)) => Some(lasting < ageing),
            (lasting, _) => Some(lasting.is_some()),
        }
    }
}

impl Lane {
    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front();
        self.subtract(record)
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
        Record::new(packet.to_vec(), Offload::None, Instant::now(), None)
    }

    fn segment(packet: &[u8], seq: u32, length: u32) -> Record {
        Record { place: Some(Place { flow: 1, seq, length }), ..record(packet) }
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

    #[test]
    fn two_lanes_are_one_queue() {
        let mut queue = Queue::default();
        queue.push(record(b"b"));
        queue.push(segment(b"c", 0, 1));
        queue.push(record(b"d"));
        queue.push(segment(b"e", 1, 1));
        queue.push_front(segment(b"a", 9, 1));
        assert_eq!(queue.replace(1, b"CC".to_vec(), Offload::Checksum), Some(b"c".to_vec()));
        assert_eq!(queue.bytes(), 6);
        assert_eq!(queue.pop_newest().unwrap().packet, b"e");
        assert_eq!(queue.pop_ageing().unwrap().packet, b"b");
        let rest: Vec<_> = queue.into_records().map(|record| record.packet).collect();
        assert_eq!(rest, [b"a".to_vec(), b"CC".to_vec(), b"d".to_vec()]);
    }

    #[test]
    fn a_place_covers_what_lies_in_it_also_where_numbers_go_round() {
        let place = |seq, length| Place { flow: 1, seq, length };
        let held = place(u32::MAX - 9, 20);
        for (seq, length, covered) in [
            (u32::MAX - 9, 20, true),
            (0, 10, true),
            (0, 11, false),
            (u32::MAX - 10, 5, false),
            (10, 0, true),
            (11, 0, false),
        ] {
            assert_eq!(held.covers(&place(seq, length)), covered, "{seq} {length}");
        }
        assert!(!held.covers(&Place { flow: 2, ..held }));
    }
}

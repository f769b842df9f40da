//! Packets that wait to be sent for the first time: fair between flows and without standing delay (FQ-CoDel, RFC 8290),
//! so that a keystroke passes a bulk transfer, and the latter learns how fast the path is.
//!
//! Flows take turns by bytes (deficit round robin); one that has nothing waiting goes before those that have, for one
//! turn. A packet is dropped for its delay alone only while a path carries what is sent; the queue of an outage keeps what
//! it has. Segments of known TCP flows are told apart from all else, because an outage treats them differently: the former
//! are what lets a flow resume, the latter grow stale. The order within a flow never changes.
//!
//! All of it is one set of records, each in two lists: its flow's, and its kind's in order of arrival.

mod codel;
mod flow;
mod shelf;
#[cfg(test)]
mod tests;
mod thinning;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::{Offload, Packet, PacketBuf};
use flow::Flow;
use shelf::{Chain, List, Shelf};

/// What a flow may send at a turn: a full-sized packet of most uplinks (RFC 8290, 5.2.1). One of the kernel's large packets
/// takes many turns in advance: were a turn that large, everybody would wait 50 ms for each bulk transfer on 10 Mbit/s.
const QUANTUM: i64 = 1514;

/// Less than this behind a packet is no queue (MAXPACKET in RFC 8289, 4.4).
const LEAST_QUEUE: usize = 1514;

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
    /// When it came to the queue, as a number, and its flow's place there; given by the queue.
    turn: i64,
    flow: u16,
}

impl Record {
    pub(crate) fn new(packet: Vec<u8>, offload: Offload, since: Instant, place: Option<Place>) -> Self {
        Self { packet, offload, since, place, turn: 0, flow: 0 }
    }

    pub(crate) fn packet(&self) -> Packet<'_> {
        Packet { bytes: &self.packet, offload: self.offload }
    }

    pub(crate) fn into_packet(self) -> PacketBuf {
        PacketBuf { bytes: self.packet.into_boxed_slice(), offload: self.offload }
    }

    /// The place of its flow, once it has been in the queue.
    pub(crate) fn flow(&self) -> u16 {
        self.flow
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
    /// None: flows are not told apart.
    seed: Option<[u8; 16]>,
    /// A longer delay is too long.
    target: Duration,
    shelf: Shelf,
    /// Segments of known TCP flows.
    lasting: Lane,
    /// All else.
    ageing: Lane,
    /// By place; none until the first packet.
    flows: Vec<Flow>,
    /// Flows that had nothing waiting when their packet came, and then those that have had a turn. The first of the
    /// former, else of the latter, is next: it has a packet and credits.
    new: VecDeque<u16>,
    old: VecDeque<u16>,
    /// The turns of the first packet and behind the last one.
    first: i64,
    end: i64,
    /// What came until then is not dropped for its delay.
    spared: Option<Instant>,
    /// Nothing is dropped for its delay now.
    growing: bool,
    slow: bool,
    /// The flow of what was sent last, if it had nothing waiting before.
    sparse: Option<u16>,
}

#[derive(Debug, Default)]
struct Lane {
    list: List,
    cost: usize,
    bytes: usize,
}

impl Queue {
    /// An empty queue. Who does not know `seed` cannot aim at the place of somebody else's flow.
    pub(crate) fn fair(seed: [u8; 16], target: Duration) -> Self {
        Self { seed: Some(seed), target, ..Self::default() }
    }

    /// An empty queue in which all packets are of one flow, and none waits for too long.
    pub(crate) fn fifo() -> Self {
        Self { target: Duration::MAX, ..Self::default() }
    }

    /// Takes a packet as the newest.
    pub(crate) fn push(&mut self, mut record: Record) {
        record.turn = self.end;
        self.end += 1;
        self.put(record, Shelf::push_back);
    }

    /// Takes a bare acknowledgement's packet in the place of the last packet of its flow, if that is one which it makes
    /// needless, and returns that packet.
    pub(crate) fn supersede(&mut self, record: &mut Record) -> Option<Vec<u8>> {
        let at = self.superseded(record)?;
        self.replace(at, std::mem::take(&mut record.packet), record.offload)
    }

    fn superseded(&self, record: &Record) -> Option<usize> {
        let place = record.place.filter(|place| place.length == 0)?;
        let at = self.flows.get(usize::from(self.flow_of(&record.packet)))?.list.last()?;
        let last = self.shelf.get(at)?;
        let alike = last.place.is_some_and(|last| last.flow == place.flow);
        (alike && thinning::supersedes(&record.packet, &last.packet)).then_some(at)
    }

    /// Takes a packet before all others, of its flow and in age.
    pub(crate) fn push_front(&mut self, mut record: Record) {
        self.first -= 1;
        record.turn = self.first;
        self.put(record, Shelf::push_front);
    }

    /// The packet to send next, if it costs at most `room`, of which [`Self::next_cost`] speaks. What is dropped on the way
    /// to it, because its flow's queue stands, goes to `dropped`.
    pub(crate) fn pop(
        &mut self,
        now: Instant,
        room: usize,
        mut dropped: impl FnMut(Record),
    ) -> Option<Record> {
        loop {
            let next = self.next()?;
            let record = self.shelf.get(next)?;
            if record.cost() > room {
                return None;
            }
            let (flow, delay) = (usize::from(record.flow), now.saturating_duration_since(record.since));
            if self.is_unwanted(now, next, delay, room) {
                self.take(next).into_iter().for_each(&mut dropped);
                continue;
            }
            self.sparse = self.new.front().copied();
            let record = self.take(next)?;
            // A packet's length is below 2^17.
            self.flows[flow].credits -= record.packet.len() as i64;
            self.slow = delay > self.target;
            self.settle();
            return Some(record);
        }
    }

    /// What came until now waited for a path, which says nothing of the rate to come.
    pub(crate) fn spare(&mut self, now: Instant) {
        self.spared = Some(now);
    }

    /// The path will be faster soon, and what waits says nothing of the rate to come.
    pub(crate) fn set_growing(&mut self, growing: bool) {
        self.growing = growing;
    }

    /// Whether what was sent last had waited for longer than is good. Then it is this queue in which packets have to wait:
    /// anywhere before it the newest would be the last.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Whether what was sent last is of a flow that had nothing waiting before, and next is another flow, that had.
    pub(crate) fn is_turn_over(&self) -> bool {
        self.new.is_empty()
            && self.old.front().is_some_and(|&next| self.sparse.is_some_and(|flow| flow != next))
    }

    /// Gives up the newest packet.
    pub(crate) fn pop_newest(&mut self) -> Option<Record> {
        let turn = |lane: &Lane| Some(self.shelf.get(lane.list.last()?)?.turn);
        let lane = if turn(&self.lasting) > turn(&self.ageing) { &self.lasting } else { &self.ageing };
        self.remove(lane.list.last()?)
    }

    /// Gives up the newest packet of the flow that has the most waiting, unless `packet` is of that flow, or none has
    /// more than its length.
    pub(crate) fn pop_fattest(&mut self, packet: &[u8]) -> Option<Record> {
        let own = usize::from(self.flow_of(packet));
        let (fattest, flow) = self.flows.iter().enumerate().max_by_key(|(_, flow)| flow.bytes)?;
        if fattest == own || flow.bytes <= packet.len() {
            return None;
        }
        self.remove(flow.list.last()?)
    }

    /// The oldest packet that grows stale.
    pub(crate) fn pop_ageing(&mut self) -> Option<Record> {
        self.remove(self.ageing.list.first()?)
    }

    /// What the packet to send next costs.
    pub(crate) fn next_cost(&self) -> Option<usize> {
        self.shelf.get(self.next()?).map(Record::cost)
    }

    /// When the oldest packet came that grows stale.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.shelf.get(self.ageing.list.first()?).map(|record| record.since)
    }

    /// Gives up the segments that are `doomed`, the oldest first.
    pub(crate) fn give_up(&mut self, mut doomed: impl FnMut(&Record) -> bool, mut done: impl FnMut(Record)) {
        let mut next = self.lasting.list.first();
        while let Some(at) = next {
            next = self.shelf.after(Chain::Lane, at);
            if self.shelf.get(at).is_some_and(&mut doomed) {
                self.remove(at).into_iter().for_each(&mut done);
            }
        }
    }

    /// The oldest held segment for which `wanted` is true. It is there until a packet is taken out.
    pub(crate) fn find(&self, wanted: impl Fn(&Place) -> bool) -> Option<usize> {
        let behind = |at: &usize| self.shelf.after(Chain::Lane, *at);
        std::iter::successors(self.lasting.list.first(), behind)
            .find(|&at| self.place(at).is_some_and(|place| wanted(&place)))
    }

    /// The place of a held segment.
    pub(crate) fn place(&self, at: usize) -> Option<Place> {
        self.shelf.get(at)?.place
    }

    /// Puts another packet into the place of a held segment, and returns the old one.
    pub(crate) fn replace(&mut self, at: usize, packet: Vec<u8>, offload: Offload) -> Option<Vec<u8>> {
        let record = self.shelf.get_mut(at)?;
        let old_cost = record.cost();
        let old = std::mem::replace(&mut record.packet, packet);
        record.offload = offload;
        self.lasting.cost = self.lasting.cost - old_cost + record.cost();
        self.lasting.bytes = self.lasting.bytes - old.len() + record.packet.len();
        let flow = &mut self.flows[usize::from(record.flow)];
        flow.bytes = flow.bytes - old.len() + record.packet.len();
        Some(old)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lasting.list.first().is_none() && self.ageing.list.first().is_none()
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

    /// All packets, in the order they came.
    pub(crate) fn into_records(mut self) -> impl Iterator<Item = Record> {
        std::iter::from_fn(move || {
            let turn = |lane: &Lane| lane.list.first().and_then(|at| self.shelf.get(at)).map(|it| it.turn);
            let (lasting, ageing) = (turn(&self.lasting), turn(&self.ageing));
            let first = if ageing.is_none() || lasting.is_some_and(|lasting| Some(lasting) < ageing) {
                &self.lasting
            } else {
                &self.ageing
            };
            self.remove(first.list.first()?)
        })
    }

    /// Gives back memory that a burst left behind, if all of it is gone.
    pub(crate) fn trim(&mut self) {
        if self.is_empty() {
            let Self { seed, target, first, end, spared, growing, .. } = *self;
            *self = Self { seed, target, first, end, spared, growing, ..Self::default() };
        }
    }

    /// The packet to send next.
    fn next(&self) -> Option<usize> {
        let flow = self.new.front().or_else(|| self.old.front())?;
        self.flows[usize::from(*flow)].list.first()
    }

    /// Whether a packet is to be dropped because its flow's queue stands. Its successor must be one that can be sent now.
    fn is_unwanted(&mut self, now: Instant, at: usize, delay: Duration, room: usize) -> bool {
        let Some(record) = self.shelf.get(at) else { return false };
        let behind = self.shelf.after(Chain::Flow, at).and_then(|behind| self.shelf.get(behind));
        if behind.is_some_and(|behind| behind.cost() > room) {
            return false;
        }
        let flow = &mut self.flows[usize::from(record.flow)];
        let length = record.packet.len();
        let queued = flow.bytes - length >= LEAST_QUEUE.max(length);
        let spared = self.growing || self.spared.is_some_and(|until| record.since <= until);
        flow.codel.drops(now, delay > self.target && queued && !spared)
    }

    fn flow_of(&self, packet: &[u8]) -> u16 {
        self.seed.as_ref().map_or(0, |seed| flow::place(seed, packet))
    }

    fn put(&mut self, mut record: Record, push: fn(&mut Shelf, Chain, &mut List, usize)) {
        if self.flows.is_empty() {
            self.flows.resize_with(flow::FLOWS, Flow::default);
        }
        record.flow = self.flow_of(&record.packet);
        let (place, length) = (record.flow, record.packet.len());
        let lane = if record.place.is_some() { &mut self.lasting } else { &mut self.ageing };
        lane.cost += record.cost();
        lane.bytes += length;
        let at = self.shelf.put(record);
        push(&mut self.shelf, Chain::Lane, &mut lane.list, at);
        let flow = &mut self.flows[usize::from(place)];
        push(&mut self.shelf, Chain::Flow, &mut flow.list, at);
        flow.bytes += length;
        if !std::mem::replace(&mut flow.waiting, true) {
            flow.credits = QUANTUM;
            self.new.push_back(place);
        }
        self.settle();
    }

    /// Takes out a packet, whoever's turn it is.
    fn remove(&mut self, at: usize) -> Option<Record> {
        let record = self.take(at);
        self.settle();
        record
    }

    fn take(&mut self, at: usize) -> Option<Record> {
        let (lasts, place) = self.shelf.get(at).map(|record| (record.place.is_some(), record.flow))?;
        let lane = if lasts { &mut self.lasting } else { &mut self.ageing };
        self.shelf.unlink(Chain::Lane, &mut lane.list, at);
        let flow = &mut self.flows[usize::from(place)];
        self.shelf.unlink(Chain::Flow, &mut flow.list, at);
        let record = self.shelf.take(at)?;
        lane.cost -= record.cost();
        lane.bytes -= record.packet.len();
        flow.bytes -= record.packet.len();
        Some(record)
    }

    /// Finds out whose turn it is: afterwards the flow in front has a packet and credits.
    fn settle(&mut self) {
        loop {
            let is_new = !self.new.is_empty();
            let Some(&place) = self.new.front().or_else(|| self.old.front()) else { return };
            let flow = &mut self.flows[usize::from(place)];
            let is_empty = flow.list.first().is_none();
            if !is_empty && flow.credits > 0 {
                return;
            }
            let alone = self.new.len() + self.old.len() == 1;
            let line = if is_new { &mut self.new } else { &mut self.old };
            line.pop_front();
            if is_empty && (alone || !is_new) {
                flow.waiting = false;
                continue;
            }
            // A new flow that has sent all it had is not new again before the others have had their turn.
            if flow.credits <= 0 {
                flow.credits = if alone { QUANTUM } else { flow.credits + QUANTUM };
            }
            self.old.push_back(place);
        }
    }
}

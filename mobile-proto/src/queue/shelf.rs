//! Where queued records are kept: in slots, each in two lists at the same time, so that one can be taken out of the
//! middle of either at no cost. Slots are used again.

use super::Record;

/// No slot.
const NONE: u32 = u32::MAX;

/// The two lists a record is in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chain {
    /// With all others that are treated alike in an outage, in order of arrival.
    Lane = 0,
    /// With all others of its flow, in order of sending.
    Flow = 1,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
}

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl List {
    pub(super) fn first(self) -> Option<usize> {
        index(self.first)
    }

    pub(super) fn last(self) -> Option<usize> {
        index(self.last)
    }
}

#[derive(Debug)]
struct Slot {
    /// None: the slot is free.
    record: Option<Record>,
    links: [Link; 2],
}

/// The slots.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Shelf {
    /// Takes a record, which is in no list yet.
    pub(super) fn put(&mut self, record: Record) -> usize {
        let links = [Link { before: NONE, after: NONE }; 2];
        let slot = Slot { record: Some(record), links };
        match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at as usize
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    /// Gives a record out, which is in no list any more.
    pub(super) fn take(&mut self, at: usize) -> Option<Record> {
        let record = self.slots.get_mut(at)?.record.take()?;
        self.free.push(number(at));
        Some(record)
    }

    /// How many slots there are.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, at: usize) -> Option<&Record> {
        self.slots.get(at)?.record.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Record> {
        self.slots.get_mut(at)?.record.as_mut()
    }

    /// The one behind, in a list.
    pub(super) fn after(&self, chain: Chain, at: usize) -> Option<usize> {
        index(self.slots.get(at)?.links[chain as usize].after)
    }

    pub(super) fn push_back(&mut self, chain: Chain, list: &mut List, at: usize) {
        self.slots[at].links[chain as usize] = Link { before: list.last, after: NONE };
        match list.last() {
            Some(last) => self.slots[last].links[chain as usize].after = number(at),
            None => list.first = number(at),
        }
        list.last = number(at);
    }

    pub(super) fn push_front(&mut self, chain: Chain, list: &mut List, at: usize) {
        self.slots[at].links[chain as usize] = Link { before: NONE, after: list.first };
        match list.first() {
            Some(first) => self.slots[first].links[chain as usize].before = number(at),
            None => list.last = number(at),
        }
        list.first = number(at);
    }

    pub(super) fn unlink(&mut self, chain: Chain, list: &mut List, at: usize) {
        let Link { before, after } = self.slots[at].links[chain as usize];
        match index(before) {
            Some(before) => self.slots[before].links[chain as usize].after = after,
            None => list.first = after,
        }
        match index(after) {
            Some(after) => self.slots[after].links[chain as usize].before = before,
            None => list.last = before,
        }
    }
}

fn index(slot: u32) -> Option<usize> {
    (slot != NONE).then_some(slot as usize)
}

/// The queue's bound in bytes keeps the number of slots far below this.
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

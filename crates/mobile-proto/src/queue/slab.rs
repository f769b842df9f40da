//! The slab that holds the queued records.
//!
//! Each record is linked into two lists at the same time, so that a record can be removed from the
//! middle of both without a search. Slots are reused.

use super::Record;

/// The index that means no slot.
const NONE: u32 = u32::MAX;

/// One of the two lists that a record is linked into.
#[derive(Clone, Copy, Debug)]
pub(super) enum ListKind {
    /// The list of the records of the same lane (segments of tracked TCP flows, or all other
    /// packets), in order of arrival.
    Lane = 0,
    /// The list of the records of the same flow queue, in order of sending.
    Flow = 1,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

/// The first and the last slot of a list.
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
    /// The record, or `None` in a free slot.
    record: Option<Record>,
    links: [Link; 2],
}

/// Storage for records, indexed by slot.
#[derive(Debug, Default)]
pub(super) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slab {
    /// Stores a record, which is not linked into any list yet, and returns its slot.
    pub(super) fn insert(&mut self, record: Record) -> usize {
        let links = [Link { previous: NONE, next: NONE }; 2];
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

    /// Removes a record, which must have been unlinked from both lists.
    pub(super) fn remove(&mut self, at: usize) -> Option<Record> {
        let record = self.slots.get_mut(at)?.record.take()?;
        self.free.push(number(at));
        Some(record)
    }

    /// Returns the number of slots, used or free.
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

    /// Returns the slot of the record after `at` in its list of this kind.
    pub(super) fn next(&self, kind: ListKind, at: usize) -> Option<usize> {
        index(self.slots.get(at)?.links[kind as usize].next)
    }

    pub(super) fn push_back(&mut self, kind: ListKind, list: &mut List, at: usize) {
        self.slots[at].links[kind as usize] = Link { previous: list.last, next: NONE };
        match list.last() {
            Some(last) => self.slots[last].links[kind as usize].next = number(at),
            None => list.first = number(at),
        }
        list.last = number(at);
    }

    pub(super) fn push_front(&mut self, kind: ListKind, list: &mut List, at: usize) {
        self.slots[at].links[kind as usize] = Link { previous: NONE, next: list.first };
        match list.first() {
            Some(first) => self.slots[first].links[kind as usize].previous = number(at),
            None => list.last = number(at),
        }
        list.first = number(at);
    }

    pub(super) fn unlink(&mut self, kind: ListKind, list: &mut List, at: usize) {
        let Link { previous, next } = self.slots[at].links[kind as usize];
        match index(previous) {
            Some(previous) => self.slots[previous].links[kind as usize].next = next,
            None => list.first = next,
        }
        match index(next) {
            Some(next) => self.slots[next].links[kind as usize].previous = previous,
            None => list.last = previous,
        }
    }
}

fn index(slot: u32) -> Option<usize> {
    (slot != NONE).then_some(slot as usize)
}

/// Converts an index into a slot number. The queue's limit in bytes keeps the number of slots far
/// below [`NONE`].
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

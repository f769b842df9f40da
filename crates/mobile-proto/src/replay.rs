//! The replay buffer: records that were sent and are not acknowledged yet. When transmission moves
//! to another path, all of them are sent again.

use std::collections::VecDeque;
use std::time::Instant;

use crate::queue::{PacketClass, Record, SegmentRange};
use crate::{Offload, ProtocolError};

/// The unacknowledged records of a session, numbered consecutively from `base`. A record that was
/// given up keeps its place and number, with an empty packet.
#[derive(Debug, Default)]
pub(crate) struct ReplayBuffer {
    records: VecDeque<Record>,
    /// The record number of the oldest unacknowledged record.
    base: u64,
    /// How many of `records` were sent on the active path.
    cursor: usize,
    /// One more than the highest record number that was sent in this epoch.
    sent_end: u64,
    /// The highest record number that the peer claimed to expect next.
    acked: u64,
    cost: usize,
    bytes: usize,
    /// The number of records that can expire in an outage.
    expirable: usize,
}

impl ReplayBuffer {
    /// Appends a record that is being sent now, and returns it with its record number.
    pub(crate) fn push_sent(&mut self, record: Record) -> (u64, &Record) {
        debug_assert!(!self.has_next(), "older records go first");
        let number = self.base + self.records.len() as u64;
        self.sent_end = number + 1;
        self.cursor = self.records.len() + 1;
        (number, self.append(record))
    }

    /// Appends a record of a former session, which this session still has to send.
    pub(crate) fn push_unsent(&mut self, record: Record) {
        self.append(record);
    }

    /// Returns whether a record still has to be sent again on the active path.
    pub(crate) fn has_next(&self) -> bool {
        self.cursor < self.records.len()
    }

    /// Returns the record to send again next, with its record number. Records that were given up
    /// are skipped, with their numbers.
    pub(crate) fn next(&mut self) -> Option<(u64, &Record)> {
        while self.records.get(self.cursor)?.packet.is_empty() {
            self.cursor += 1;
        }
        let record = self.records.get(self.cursor)?;
        let number = self.base + self.cursor as u64;
        self.cursor += 1;
        self.sent_end = self.sent_end.max(number + 1);
        Some((number, record))
    }

    /// Starts over for another path: all records have to be sent again. Returns how many, without
    /// those given up.
    pub(crate) fn rewind(&mut self) -> u64 {
        self.cursor = 0;
        self.records.iter().filter(|record| !record.packet.is_empty()).count() as u64
    }

    /// Starts over in another epoch of the relay: the records are numbered anew from `base`, the
    /// number that the peer expects.
    pub(crate) fn renumber(&mut self, base: u64) {
        (self.base, self.sent_end, self.acked, self.cursor) = (base, base, base, 0);
    }

    /// Removes all records with numbers below `upto`, which the peer has received, and passes each
    /// to `done`.
    ///
    /// # Errors
    /// If `upto` was never sent.
    pub(crate) fn acknowledge(
        &mut self,
        upto: u64,
        mut done: impl FnMut(Record),
    ) -> Result<(), ProtocolError> {
        // Records given up before they were sent in this epoch have numbers too.
        let sent = self.sent_end.max(self.base);
        if upto > sent {
            return Err(ProtocolError::AckBeyondSent { acked: upto, sent });
        }
        self.acked = self.acked.max(upto);
        while self.base < upto {
            match self.pop() {
                Some(record) if record.packet.is_empty() => {}
                Some(record) => done(record),
                None => break,
            }
        }
        self.skip_given_up();
        Ok(())
    }

    /// Gives up the records received from the TUN before `limit`, except for segments of tracked
    /// TCP flows, and passes their packets to `done`. The number of a record given up between
    /// others stays in use.
    pub(crate) fn give_up_older(&mut self, limit: Instant, mut done: impl FnMut(Vec<u8>)) {
        let Self { records, cost, bytes, expirable, .. } = self;
        for record in records.iter_mut().filter(|record| record.can_expire()) {
            if *expirable == 0 || record.received_at > limit {
                break;
            }
            let former = record.cost();
            let packet = std::mem::take(&mut record.packet);
            *cost = *cost - former + record.cost();
            *bytes -= packet.len();
            *expirable -= 1;
            done(packet);
        }
        self.skip_given_up();
    }

    /// Gives up the records for which `doomed` returns true, and passes them to `done`. Their
    /// record numbers stay in use.
    pub(crate) fn give_up(&mut self, mut doomed: impl FnMut(&Record) -> bool, mut done: impl FnMut(Record)) {
        for record in self.records.iter_mut().filter(|record| !record.packet.is_empty()) {
            if doomed(record) {
                let mark = PacketClass::default();
                let none = Record::new(Vec::new(), Offload::None, record.received_at, None, mark);
                let record = std::mem::replace(record, none);
                self.cost -= record.packet.capacity();
                self.bytes -= record.packet.len();
                self.expirable -= usize::from(record.can_expire());
                done(record);
            }
        }
        self.skip_given_up();
    }

    /// Returns the index of the oldest segment whose sequence range satisfies `wanted`.
    pub(crate) fn find(&self, wanted: impl Fn(&SegmentRange) -> bool) -> Option<usize> {
        self.records.iter().position(|record| record.range.as_ref().is_some_and(&wanted))
    }

    /// Returns the sequence range of the segment with this index.
    pub(crate) fn range(&self, at: usize) -> Option<SegmentRange> {
        self.records.get(at)?.range
    }

    /// Replaces the packet of the segment with this index by a fresher copy and returns the old
    /// packet. The record number stays the same, so the peer uses whichever copy it receives first.
    pub(crate) fn replace(&mut self, at: usize, packet: Vec<u8>, offload: Offload) -> Option<Vec<u8>> {
        let record = self.records.get_mut(at)?;
        let former = record.cost();
        let old = std::mem::replace(&mut record.packet, packet);
        record.offload = offload;
        self.cost = self.cost - former + record.cost();
        self.bytes = self.bytes - old.len() + record.packet.len();
        Some(old)
    }

    /// Returns the number of the next record if the peer has to be told that the records before it
    /// were given up: the peer expects one of these, and no record is held whose number would show
    /// the gap.
    pub(crate) fn gap(&self) -> Option<u64> {
        (self.records.is_empty() && self.base > self.acked).then_some(self.base)
    }

    /// Returns when the oldest record that can expire was read from the TUN.
    pub(crate) fn oldest_expirable(&self) -> Option<Instant> {
        if self.expirable == 0 {
            return None;
        }
        self.records.iter().find(|record| record.can_expire()).map(|record| record.received_at)
    }

    /// Returns whether any unacknowledged record was sent on the active path.
    pub(crate) fn in_flight(&self) -> bool {
        self.cursor > 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns how many record numbers are in use, those of records given up included.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the memory that the records hold, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// Returns the total length of the packets, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns all records that were not given up, in order.
    pub(crate) fn into_records(self) -> impl Iterator<Item = Record> {
        self.records.into_iter().filter(|record| !record.packet.is_empty())
    }

    /// Releases memory left over from a burst.
    pub(crate) fn trim(&mut self) {
        self.records.shrink_to_fit();
    }

    fn append(&mut self, record: Record) -> &mut Record {
        self.cost += record.cost();
        self.bytes += record.packet.len();
        self.expirable += usize::from(record.range.is_none());
        self.records.push_back_mut(record)
    }

    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.base += 1;
        self.cursor = self.cursor.saturating_sub(1);
        self.cost -= record.cost();
        self.bytes -= record.packet.len();
        self.expirable -= usize::from(record.can_expire());
        Some(record)
    }

    /// Frees the record numbers of records given up that have no older record before them.
    fn skip_given_up(&mut self) {
        while self.records.front().is_some_and(|record| record.packet.is_empty()) {
            self.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Packet;

    fn packet(byte: &[u8]) -> Packet<'_> {
        byte.into()
    }

    fn filled(count: u8) -> ReplayBuffer {
        let mut replay = ReplayBuffer::default();
        for byte in 0..count {
            let mark = PacketClass::default();
            let sent = replay.push_sent(Record::new(vec![byte], Offload::None, Instant::now(), None, mark));
            assert_eq!((sent.0, sent.1.packet()), (u64::from(byte), packet(&[byte])));
        }
        replay
    }

    fn next(replay: &mut ReplayBuffer) -> Option<(u64, Packet<'_>)> {
        replay.next().map(|(number, record)| (number, record.packet()))
    }

    #[test]
    fn an_acknowledgement_in_the_middle_of_a_replay_skips_what_it_covers() {
        let mut replay = filled(5);
        assert!(!replay.has_next());
        assert_eq!(replay.rewind(), 5);
        assert!(!replay.in_flight());
        assert_eq!(next(&mut replay), Some((0, packet(&[0]))));
        replay.acknowledge(3, drop).unwrap();
        assert_eq!(next(&mut replay), Some((3, packet(&[3]))));
        assert_eq!(next(&mut replay), Some((4, packet(&[4]))));
        assert_eq!(next(&mut replay), None);
        replay.acknowledge(5, drop).unwrap();
        assert!(replay.is_empty() && !replay.in_flight());
        assert_eq!((replay.cost(), replay.bytes()), (0, 0));
    }

    #[test]
    fn old_acknowledgements_are_ignored_and_impossible_ones_refused() {
        let mut replay = filled(3);
        replay.acknowledge(2, drop).unwrap();
        replay.acknowledge(1, |_| panic!("twice")).unwrap();
        let error = replay.acknowledge(4, drop).unwrap_err();
        assert_eq!(error, ProtocolError::AckBeyondSent { acked: 4, sent: 3 });
    }

    #[test]
    fn renumbered_records_cannot_be_acknowledged_before_they_are_sent_again() {
        let mut replay = filled(3);
        replay.renumber(10);
        assert!(replay.acknowledge(11, drop).is_err());
        assert_eq!(next(&mut replay), Some((10, packet(&[0]))));
        replay.acknowledge(11, drop).unwrap();
        assert_eq!(replay.gap(), None);
        replay.records[1].received_at += Duration::from_secs(60);
        let mut given_up = Vec::new();
        replay.give_up_older(Instant::now(), |packet| given_up.push(packet));
        assert_eq!(given_up, [vec![1]]);
        assert_eq!(next(&mut replay), Some((12, packet(&[2]))));
        replay.give_up_older(Instant::now() + Duration::from_secs(61), drop);
        assert_eq!(replay.gap(), Some(13));
        replay.acknowledge(13, drop).unwrap();
        assert_eq!(replay.gap(), None);
    }

    #[test]
    fn a_record_given_up_between_segments_leaves_a_jump() {
        let mut replay = filled(5);
        let range = Some(SegmentRange { flow: 1, seq: 0, length: 1 });
        (replay.records[0].range, replay.records[3].range, replay.expirable) = (range, range, 3);
        let mut given_up = Vec::new();
        replay.give_up_older(Instant::now(), |packet| given_up.push(packet));
        assert_eq!(given_up, [vec![1], vec![2], vec![4]]);
        assert_eq!((replay.oldest_expirable(), replay.bytes()), (None, 2));
        assert_eq!(replay.rewind(), 2, "what was given up is not sent again");
        assert_eq!(next(&mut replay), Some((0, packet(&[0]))));
        assert_eq!(next(&mut replay), Some((3, packet(&[3]))));
        assert_eq!(next(&mut replay), None);
        let mut acknowledged = 0;
        replay.acknowledge(1, |_| acknowledged += 1).unwrap();
        assert_eq!((replay.base, replay.gap()), (3, None));
        replay.acknowledge(4, |_| acknowledged += 1).unwrap();
        assert_eq!((acknowledged, replay.gap()), (2, Some(5)));
        assert_eq!((replay.cost(), replay.bytes()), (0, 0));
    }
}

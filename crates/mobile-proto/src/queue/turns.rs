//! The turns of the flows: deficit round robin (RFC 8290, 4.1.2 and 4.2).

use std::collections::VecDeque;

use super::flow_queue::{BUCKETS, FlowQueue};
use super::slab::List;

/// Bytes that a flow may send in one turn: a full-sized packet of most uplinks (RFC 8290, 5.2.1).
///
/// One of the kernel's large packets (64 KiB) uses up many turns at once. If a turn allowed that
/// many bytes, every flow would wait 50 ms for each bulk transfer on a path of 10 Mbit/s.
pub(super) const QUANTUM: i64 = 1514;

/// The flow queues, and the order in which they take turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The flow queues; empty until the first packet arrives.
    flows: Vec<FlowQueue>,
    /// Indices of the flows that had nothing queued when their packet arrived, served before
    /// `old_flows`. The front of the list that is served next always has a packet and credits.
    new_flows: VecDeque<u16>,
    /// Indices of the flows that have packets queued and have had a turn.
    old_flows: VecDeque<u16>,
    /// The flow of the packet sent last, if that flow had nothing queued before.
    last_sparse: Option<u16>,
}

impl Turns {
    /// Returns the list of the flow whose turn it is.
    pub(super) fn next(&self) -> Option<List> {
        let bucket = self.new_flows.front().or_else(|| self.old_flows.front())?;
        Some(self.flows[usize::from(*bucket)].list)
    }

    /// Returns the newest packet of a flow.
    pub(super) fn last(&self, bucket: u16) -> Option<usize> {
        self.flows.get(usize::from(bucket))?.list.last()
    }

    /// Returns the list of the flow that has the most bytes queued, unless that is the flow `own`
    /// or has no more than `bytes` queued.
    pub(super) fn longest_but(&self, own: u16, bytes: usize) -> Option<List> {
        let (longest, flow) = self.flows.iter().enumerate().max_by_key(|(_, flow)| flow.bytes)?;
        (longest != usize::from(own) && flow.bytes > bytes).then_some(flow.list)
    }

    /// Returns a flow that has or had packets queued.
    pub(super) fn flow_mut(&mut self, bucket: u16) -> &mut FlowQueue {
        &mut self.flows[usize::from(bucket)]
    }

    /// Adds a packet of `length` bytes to a flow, to whose list `push` appends the packet.
    pub(super) fn add(&mut self, bucket: u16, length: usize, push: impl FnOnce(&mut List)) {
        if self.flows.is_empty() {
            self.flows.resize_with(BUCKETS, FlowQueue::default);
        }
        let flow = self.flow_mut(bucket);
        push(&mut flow.list);
        flow.bytes += length;
        if !std::mem::replace(&mut flow.scheduled, true) {
            flow.credits = QUANTUM;
            self.new_flows.push_back(bucket);
        }
        self.schedule();
    }

    /// Records that the flow whose turn it is has sent a packet of `length` bytes, which was
    /// removed from its list.
    pub(super) fn on_sent(&mut self, bucket: u16, length: usize) {
        self.last_sparse = self.new_flows.front().copied();
        // A packet's length is below 2^17.
        self.flow_mut(bucket).credits -= length as i64;
        self.schedule();
    }

    /// Returns whether the packet sent last ended the turn of a flow that had nothing queued
    /// before, and the next packet belongs to another flow, which has a backlog.
    pub(super) fn is_over(&self) -> bool {
        self.new_flows.is_empty()
            && self.old_flows.front().is_some_and(|&next| self.last_sparse.is_some_and(|flow| flow != next))
    }

    /// Returns the number of entries for which memory is allocated.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.flows.capacity() + self.new_flows.capacity() + self.old_flows.capacity()
    }

    /// Advances the round robin until the flow in front has a packet and credits.
    pub(super) fn schedule(&mut self) {
        loop {
            let is_new = !self.new_flows.is_empty();
            let Some(&bucket) = self.new_flows.front().or_else(|| self.old_flows.front()) else { return };
            let flow = &mut self.flows[usize::from(bucket)];
            let is_empty = flow.list.first().is_none();
            if !is_empty && flow.credits > 0 {
                return;
            }
            let alone = self.new_flows.len() + self.old_flows.len() == 1;
            let flows = if is_new { &mut self.new_flows } else { &mut self.old_flows };
            flows.pop_front();
            if is_empty && (alone || !is_new) {
                flow.scheduled = false;
                continue;
            }
            // A new flow whose packets are all sent moves to the old flows: it counts as new again
            // only after the others have had their turn.
            if flow.credits <= 0 {
                flow.credits = if alone { QUANTUM } else { flow.credits + QUANTUM };
            }
            self.old_flows.push_back(bucket);
        }
    }
}

//! A bounded queue of packets for one client. The queue belongs to the client, not to a session:
//! packets that wait while an agent restarts are delivered to the agent's next session.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use mobile_proto::{InnerPacket, InnerPacketBuf, PacketHeaders};

/// A byte-bounded packet queue that refuses the newest packet when it is full.
#[derive(Debug)]
pub(crate) struct PacketQueue {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    capacity: usize,
    packets: VecDeque<InnerPacketBuf>,
    bytes: usize,
    reader: Option<Waker>,
}

impl PacketQueue {
    /// Creates a queue for at most `capacity` bytes of packets.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { state: Mutex::new(State { capacity, ..State::default() }) }
    }

    /// Changes the capacity; packets in the queue stay even if they exceed it.
    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.lock().capacity = capacity;
    }

    /// Appends a packet, or returns false if there is no room.
    pub(crate) fn push(&self, packet: InnerPacket<'_>) -> bool {
        let mut state = self.lock();
        if state.bytes + packet.len() > state.capacity {
            return false;
        }
        state.bytes += packet.len();
        state.packets.push_back(packet.into());
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Moves the oldest packet into `buffer` and returns where its headers are. A packet longer
    /// than the buffer would be dropped, but every session's buffer holds the largest packet of the
    /// device.
    pub(crate) fn poll_pop(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<PacketHeaders> {
        let mut state = self.lock();
        while let Some(packet) = state.packets.pop_front() {
            let bytes = packet.bytes();
            state.bytes -= bytes.len();
            if let Some(target) = buffer.get_mut(..bytes.len()) {
                target.copy_from_slice(bytes);
                return Poll::Ready(packet.headers());
            }
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Discards all packets when the session ends.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        // Release the memory too: thousands of idle clients should hold nothing.
        state.packets = VecDeque::new();
        state.bytes = 0;
        state.reader = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state consistent, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use super::*;

    fn push(queue: &PacketQueue, packet: &[u8]) -> bool {
        queue.push(packet.into())
    }

    async fn pop(queue: &PacketQueue) -> Vec<u8> {
        let mut buffer = [0; 16];
        let headers = poll_fn(|cx| queue.poll_pop(cx, &mut buffer)).await;
        buffer[..headers.len()].to_vec()
    }

    #[tokio::test]
    async fn packets_come_out_in_order_and_the_newest_is_refused_when_full() {
        let queue = PacketQueue::new(3);
        assert!(push(&queue, b"1") && push(&queue, b"22"));
        assert!(!push(&queue, b"3"));
        assert_eq!(pop(&queue).await, b"1");
        assert!(push(&queue, b"4"));
        assert_eq!(pop(&queue).await, b"22");
        assert_eq!(pop(&queue).await, b"4");
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let queue = Arc::new(PacketQueue::new(4));
        let reader = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { pop(&queue).await }
        });
        tokio::task::yield_now().await;
        assert!(push(&queue, b"late"));
        assert_eq!(reader.await.unwrap(), b"late");
    }

    #[tokio::test]
    async fn a_packet_longer_than_the_buffer_is_skipped() {
        let queue = PacketQueue::new(19);
        assert!(push(&queue, &[0; 17]) && push(&queue, b"ok"));
        assert_eq!(pop(&queue).await, b"ok");
    }
}

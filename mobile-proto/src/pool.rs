//! Packet buffers that are used again, so that a steady flow allocates nothing.

use crate::MAX_PACKET;

/// Capacities double from 256 bytes (acknowledgements, keystrokes) to 64 KiB (GSO packets): a
/// buffer wastes at most half of itself, and what is charged to a bound is what memory is used.
const CLASSES: usize = 9;
/// More idle buffers than this are given back: a burst must not be held for ever.
const MAX_IDLE: usize = 1 << 20;

fn class_for(length: usize) -> usize {
    (0..CLASSES - 1).find(|&class| length <= capacity(class)).unwrap_or(CLASSES - 1)
}

/// Idle packet buffers by capacity.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

fn capacity(class: usize) -> usize {
    if class + 1 == CLASSES { MAX_PACKET } else { 256 << class }
}

impl Pool {
    /// The memory that a copy of so many bytes takes, unless a larger buffer is at hand.
    pub(crate) fn capacity_for(&self, length: usize) -> usize {
        capacity(class_for(length))
    }

    /// A buffer with a copy of `packet`, which is at most [`MAX_PACKET`] long.
    pub(crate) fn copy(&mut self, packet: &[u8]) -> Vec<u8> {
        let class = class_for(packet.len());
        let mut buffer = match self.idle[class].pop() {
            Some(buffer) => {
                self.bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(capacity(class)),
        };
        buffer.extend_from_slice(packet);
        buffer
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, mut buffer: Vec<u8>) {
        let class = (0..CLASSES).rev().find(|&class| capacity(class) <= buffer.capacity());
        if let Some(class) = class
            && self.bytes + buffer.capacity() <= MAX_IDLE
        {
            buffer.clear();
            self.bytes += buffer.capacity();
            self.idle[class].push(buffer);
        }
    }

    /// Frees everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_its_class() {
        let mut pool = Pool::default();
        for len in [1, 256, 257, 1500, 65_535, MAX_PACKET] {
            let buffer = pool.copy(&vec![1; len]);
            assert_eq!(buffer.len(), len);
            let address = buffer.as_ptr();
            pool.give(buffer);
            let again = pool.copy(&vec![2; len]);
            assert_eq!(again.as_ptr(), address, "{len} bytes");
        }
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn idle_memory_is_bounded() {
        let mut pool = Pool::default();
        let buffers: Vec<_> = (0..100).map(|_| pool.copy(&[0; 60_000])).collect();
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        assert!(pool.bytes <= MAX_IDLE);
        assert_eq!(pool.idle[CLASSES - 1].len(), MAX_IDLE / MAX_PACKET);
        pool.give(vec![1, 2, 3]);
        pool.clear();
        assert_eq!(pool.bytes, 0);
    }
}

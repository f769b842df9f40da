//! A pool of packet buffers, so that a steady flow allocates nothing.

use crate::MAX_PACKET;

/// Number of size classes. Capacities double from 256 bytes (acknowledgements, keystrokes) to 64
/// KiB (GSO packets). So at most half of a buffer is unused, except in the smallest class, and a
/// packet counts against a memory limit with the capacity of its buffer.
const SIZE_CLASSES: usize = 9;
/// Maximum memory of idle buffers in bytes. Buffers beyond it are freed, so that the memory of a
/// burst is returned. A transfer at gigabits a second has megabytes in flight and is acknowledged
/// in large steps, and the buffers of one step are needed for the next.
const MAX_IDLE_BYTES: usize = 4 << 20;

fn class_for(length: usize) -> usize {
    (0..SIZE_CLASSES - 1).find(|&class| length <= capacity(class)).unwrap_or(SIZE_CLASSES - 1)
}

/// Idle packet buffers by size class.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    /// The buffers of each class; no classes until a buffer is recycled, because most sessions of a
    /// relay are idle.
    idle: Vec<Vec<Vec<u8>>>,
    bytes: usize,
}

fn capacity(class: usize) -> usize {
    if class + 1 == SIZE_CLASSES { MAX_PACKET } else { 256 << class }
}

impl BufferPool {
    /// Returns the memory that a copy of `length` bytes takes in bytes, unless only a larger buffer
    /// is idle.
    pub(crate) fn capacity_for(&self, length: usize) -> usize {
        capacity(class_for(length))
    }

    /// Returns a buffer with a copy of `packet`, which has at most [`MAX_PACKET`] bytes.
    pub(crate) fn copy(&mut self, packet: &[u8]) -> Vec<u8> {
        let class = class_for(packet.len());
        let mut buffer = self.take(class).unwrap_or_else(|| Vec::with_capacity(capacity(class)));
        buffer.clear();
        buffer.extend_from_slice(packet);
        buffer
    }

    /// Returns a buffer with the first `length` bytes of `packet`. The bytes of a long packet are
    /// not copied: `packet` is replaced with another buffer, at least as long as it was.
    pub(crate) fn adopt(&mut self, packet: &mut Vec<u8>, length: usize) -> Vec<u8> {
        let class = class_for(length);
        // A buffer of another capacity would not return to the class that it was taken from.
        if class + 1 < SIZE_CLASSES || packet.capacity() < MAX_PACKET {
            return self.copy(&packet[..length]);
        }
        let mut spare = self.take(class).unwrap_or_else(|| vec![0; packet.len()]);
        // Only what lies beyond its former packet is cleared; in a bulk transfer that is little.
        spare.resize(packet.len(), 0);
        let mut kept = std::mem::replace(packet, spare);
        kept.truncate(length);
        kept
    }

    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let buffer = self.idle.get_mut(class)?.pop()?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Returns a buffer to the pool.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        let class = (0..SIZE_CLASSES).rev().find(|&class| capacity(class) <= buffer.capacity());
        if let Some(class) = class
            && self.bytes + buffer.capacity() <= MAX_IDLE_BYTES
        {
            self.bytes += buffer.capacity();
            if self.idle.is_empty() {
                self.idle.resize_with(SIZE_CLASSES, Vec::new);
            }
            self.idle[class].push(buffer);
        }
    }

    /// Frees all idle buffers.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_buffer_is_reused_for_its_class() {
        let mut pool = BufferPool::default();
        for len in [1, 256, 257, 1500, 65_535, MAX_PACKET] {
            let buffer = pool.copy(&vec![1; len]);
            assert_eq!(buffer.len(), len);
            let address = buffer.as_ptr();
            pool.recycle(buffer);
            let again = pool.copy(&vec![2; len]);
            assert_eq!(again.as_ptr(), address, "{len} bytes");
        }
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn a_long_packet_is_adopted_and_a_short_one_is_copied() {
        let mut pool = BufferPool::default();
        let mut buffer = vec![0; MAX_PACKET];
        for length in [60_000, MAX_PACKET] {
            buffer[..length].fill(7);
            let address = buffer.as_ptr();
            let kept = pool.adopt(&mut buffer, length);
            assert_eq!((kept.as_ptr(), kept.len(), buffer.len()), (address, length, MAX_PACKET));
            assert!(kept.iter().all(|&byte| byte == 7));
            pool.recycle(kept);
        }
        let address = buffer.as_ptr();
        let kept = pool.adopt(&mut buffer, 100);
        assert_eq!((buffer.as_ptr(), kept.as_slice()), (address, &buffer[..100]));
        // A buffer of another length than the pool's is copied.
        let mut odd = vec![9; 60_000];
        assert_eq!((pool.adopt(&mut odd, 59_000), odd.len()), (vec![9; 59_000], 60_000));
        // A reused buffer shows nothing of its former content.
        assert_eq!(pool.copy(&[1; 40_000]), [1; 40_000]);
    }

    #[test]
    fn idle_memory_is_bounded() {
        let mut pool = BufferPool::default();
        let buffers: Vec<_> = (0..100).map(|_| pool.copy(&[0; 60_000])).collect();
        buffers.into_iter().for_each(|buffer| pool.recycle(buffer));
        assert!(pool.bytes <= MAX_IDLE_BYTES);
        assert_eq!(pool.idle[SIZE_CLASSES - 1].len(), MAX_IDLE_BYTES / MAX_PACKET);
        pool.recycle(vec![1, 2, 3]);
        pool.clear();
        assert_eq!(pool.bytes, 0);
    }
}

//! One direction of an emulated link: a queue of frames, each with the time at which it must be
//! delivered.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{DirectionState, LinkShape};
use crate::tap::{MAX_FRAME, Tap, VNET_HEADER};

/// The greatest number of frames read before due frames are delivered: enough to amortise reading
/// the clock, few enough to deliver in time.
const BATCH: usize = 32;

/// The size in bytes up to which a queued frame is copied to a buffer of its own size; larger
/// frames keep the full-sized buffer.
const SMALL: usize = 2_048;

/// The number of spare full-sized buffers kept for each direction; with 64 KiB each, 4 MiB.
const SPARE_BUFFERS: usize = 64;

struct Frame {
    due: Instant,
    buffer: Vec<u8>,
    length: usize,
}

enum Admission {
    Lost,
    Now,
    At(Instant),
}

/// The worker that moves the frames of one direction of a link, on its own thread.
pub(super) struct Worker {
    state: Arc<DirectionState>,
    from: Arc<Tap>,
    to: Arc<Tap>,
    stop: Arc<EventFd>,
    queue: VecDeque<Frame>,
    spare: Vec<Vec<u8>>,
    sender_free: Instant,
    chance: StdRng,
}

impl Worker {
    /// Creates a worker that moves frames from the device `from` to the device `to` until `stop` is
    /// readable. `name` seeds the random losses.
    pub(super) fn new(
        state: &Arc<DirectionState>,
        from: &Arc<Tap>,
        to: &Arc<Tap>,
        stop: &Arc<EventFd>,
        name: &str,
    ) -> Self {
        let seed =
            name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self {
            state: Arc::clone(state),
            from: Arc::clone(from),
            to: Arc::clone(to),
            stop: Arc::clone(stop),
            queue: VecDeque::new(),
            spare: Vec::new(),
            sender_free: Instant::now(),
            chance: StdRng::seed_from_u64(seed),
        }
    }

    /// Moves frames until the link is dropped.
    pub(super) fn run(mut self) {
        // The default timer slack of 50 µs would be added to every delay.
        let _ = nix::sys::prctl::set_timerslack(1);
        loop {
            let wait = self.queue.front().map(|frame| frame.due.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::new(self.from.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            // An interrupted wait only ends early.
            let _ = ppoll(&mut fds, wait.map(TimeSpec::from), None);
            if fds[1].any() == Some(true) {
                return;
            }
            let shape = *self.state.shape();
            if fds[0].any() == Some(true) {
                self.receive_frames(shape);
            }
            self.deliver_due(shape);
        }
    }

    fn receive_frames(&mut self, shape: LinkShape) {
        for _ in 0..BATCH {
            let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0; MAX_FRAME]);
            let length = match self.from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) => {
                    self.recycle(buffer);
                    if error.kind() != std::io::ErrorKind::WouldBlock {
                        // The device is being removed: sleep instead of spinning until `stop` is
                        // signalled.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return;
                }
            };
            match self.admit(shape, &buffer[..length]) {
                Admission::Lost => {
                    self.state.count_drop();
                    self.recycle(buffer);
                }
                Admission::Now if self.queue.is_empty() => {
                    self.deliver(&buffer[..length]);
                    self.recycle(buffer);
                }
                admission => {
                    let due = if let Admission::At(due) = admission { due } else { Instant::now() };
                    if length <= SMALL {
                        let small = buffer[..length].to_vec();
                        self.recycle(std::mem::replace(&mut buffer, small));
                    }
                    self.queue.push_back(Frame { due, buffer, length });
                }
            }
        }
    }

    fn admit(&mut self, shape: LinkShape, frame: &[u8]) -> Admission {
        if shape.cut || shape.blackholed || (shape.loss > 0.0 && self.chance.random_bool(shape.loss.min(1.0)))
        {
            return Admission::Lost;
        }
        if shape.delay.is_zero() && shape.rate.is_none() {
            return Admission::Now;
        }
        let now = Instant::now();
        let mut sent = now;
        if let Some(rate) = shape.rate {
            let start = self.sender_free.max(now);
            if start - now > shape.queue {
                return Admission::Lost;
            }
            sent = start + Duration::from_secs_f64(wire_bytes(frame) as f64 * 8.0 / rate as f64);
            self.sender_free = sent;
        }
        Admission::At(sent + shape.delay)
    }

    fn deliver_due(&mut self, shape: LinkShape) {
        if self.queue.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.queue.front().is_some_and(|frame| frame.due <= now) {
            let Some(frame) = self.queue.pop_front() else { return };
            if shape.cut || shape.blackholed {
                self.state.count_drop();
            } else {
                self.deliver(&frame.buffer[..frame.length]);
            }
            self.recycle(frame.buffer);
        }
    }

    fn deliver(&self, frame: &[u8]) {
        // The counters change before the write, so that a reader that has received the frame finds
        // it counted.
        let bytes = wire_bytes(frame);
        self.state.frames.fetch_add(1, Ordering::Relaxed);
        self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.to.write(frame).is_err() {
            // A device that is down refuses the frame, which counts as lost.
            self.state.frames.fetch_sub(1, Ordering::Relaxed);
            self.state.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.state.count_drop();
        }
    }

    fn recycle(&mut self, buffer: Vec<u8>) {
        if buffer.len() == MAX_FRAME && self.spare.len() < SPARE_BUFFERS {
            self.spare.push(buffer);
        }
    }
}

/// Returns the bytes that a frame would occupy on the wire, where each segment of a GSO packet has
/// headers of its own.
fn wire_bytes(frame: &[u8]) -> u64 {
    let length = frame.len().saturating_sub(VNET_HEADER);
    let byte = |at: usize| usize::from(frame.get(at).copied().unwrap_or(0));
    // struct virtio_net_hdr is in native byte order. Its hdr_len is only a hint, so the transport
    // header is found by csum_start.
    let field = |at: usize| usize::from(u16::from_ne_bytes([byte(at) as u8, byte(at + 1) as u8]));
    let (kind, segment, transport) = (byte(1) & !GSO_ECN, field(4), field(6));
    let headers = match kind {
        GSO_TCPV4 | GSO_TCPV6 => transport + (byte(VNET_HEADER + transport + 12) >> 4) * 4,
        GSO_UDP => transport + 8,
        _ => return length as u64,
    };
    if segment == 0 || headers >= length {
        return length as u64;
    }
    (length + ((length - headers).div_ceil(segment) - 1) * headers) as u64
}

/// The types of GSO packets in the virtio header (linux/virtio_net.h), and the flag for ECN.
const GSO_TCPV4: usize = 1;
const GSO_TCPV6: usize = 4;
const GSO_UDP: usize = 5;
const GSO_ECN: usize = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gso_packet_counts_the_headers_of_its_segments() {
        let mut frame = vec![0u8; VNET_HEADER + 66 + 3000];
        assert_eq!(wire_bytes(&frame), 3066);
        frame[1] = GSO_TCPV4 as u8;
        frame[4..6].copy_from_slice(&1448u16.to_ne_bytes());
        frame[6..8].copy_from_slice(&34u16.to_ne_bytes());
        frame[VNET_HEADER + 34 + 12] = 8 << 4;
        assert_eq!(wire_bytes(&frame), 3066 + 2 * 66);
    }
}

//! One direction of an emulated link: a queue of frames, each with the time it is due.

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

use super::{Lane, Shape};
use crate::tap::{MAX_FRAME, Tap, VNET_HEADER};

/// Frames taken in before due ones are let out: enough to amortise the clock, few enough to be punctual.
const BATCH: usize = 32;

/// Frames up to this size are kept in buffers of their own size, larger ones in full-sized ones.
const SMALL: usize = 2_048;

/// Buffers kept for reuse per direction; at 64 KiB each this is 4 MiB.
const SPARE_BUFFERS: usize = 64;

struct Frame {
    due: Instant,
    buffer: Vec<u8>,
    length: usize,
}

enum Fate {
    Lost,
    Now,
    At(Instant),
}

/// Moves the frames of one direction, on a thread of its own.
pub(super) struct Worker {
    lane: Arc<Lane>,
    from: Arc<Tap>,
    to: Arc<Tap>,
    stop: Arc<EventFd>,
    queue: VecDeque<Frame>,
    spare: Vec<Vec<u8>>,
    sender_free: Instant,
    chance: StdRng,
}

impl Worker {
    /// From `from` to `to`, until `stop` is readable; `name` decides what is lost by chance.
    pub(super) fn new(
        lane: &Arc<Lane>,
        from: &Arc<Tap>,
        to: &Arc<Tap>,
        stop: &Arc<EventFd>,
        name: &str,
    ) -> Self {
        let seed =
            name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self {
            lane: Arc::clone(lane),
            from: Arc::clone(from),
            to: Arc::clone(to),
            stop: Arc::clone(stop),
            queue: VecDeque::new(),
            spare: Vec::new(),
            sender_free: Instant::now(),
            chance: StdRng::seed_from_u64(seed),
        }
    }

    /// The thread.
    pub(super) fn run(mut self) {
        // The default slack of 50 µs would be added to every delay.
        let _ = nix::sys::prctl::set_timerslack(1);
        loop {
            let wait = self.queue.front().map(|frame| frame.due.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::new(self.from.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            // An interrupted wait is a short wait.
            let _ = ppoll(&mut fds, wait.map(TimeSpec::from), None);
            if fds[1].any() == Some(true) {
                return;
            }
            let shape = *self.lane.shape();
            if fds[0].any() == Some(true) {
                self.take_in(shape);
            }
            self.let_out(shape);
        }
    }

    fn take_in(&mut self, shape: Shape) {
        for _ in 0..BATCH {
            let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0; MAX_FRAME]);
            let length = match self.from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) => {
                    self.recycle(buffer);
                    if error.kind() != std::io::ErrorKind::WouldBlock {
                        // The device is on its way out: do not spin until we are told to stop.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return;
                }
            };
            match self.admit(shape, &buffer[..length]) {
                Fate::Lost => {
                    self.lane.count_drop();
                    self.recycle(buffer);
                }
                Fate::Now if self.queue.is_empty() => {
                    self.deliver(&buffer[..length]);
                    self.recycle(buffer);
                }
                fate => {
                    let due = if let Fate::At(due) = fate { due } else { Instant::now() };
                    if length <= SMALL {
                        let small = buffer[..length].to_vec();
                        self.recycle(std::mem::replace(&mut buffer, small));
                    }
                    self.queue.push_back(Frame { due, buffer, length });
                }
            }
        }
    }

    fn admit(&mut self, shape: Shape, frame: &[u8]) -> Fate {
        if shape.cut || shape.silent || (shape.loss > 0.0 && self.chance.random_bool(shape.loss.min(1.0))) {
            return Fate::Lost;
        }
        if shape.delay.is_zero() && shape.rate.is_none() {
            return Fate::Now;
        }
        let now = Instant::now();
        let mut sent = now;
        if let Some(rate) = shape.rate {
            let start = self.sender_free.max(now);
            if start - now > shape.queue {
                return Fate::Lost;
            }
            sent = start + Duration::from_secs_f64(wire_bytes(frame) as f64 * 8.0 / rate as f64);
            self.sender_free = sent;
        }
        Fate::At(sent + shape.delay)
    }

    fn let_out(&mut self, shape: Shape) {
        if self.queue.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.queue.front().is_some_and(|frame| frame.due <= now) {
            let Some(frame) = self.queue.pop_front() else { return };
            if shape.cut || shape.silent {
                self.lane.count_drop();
            } else {
                self.deliver(&frame.buffer[..frame.length]);
            }
            self.recycle(frame.buffer);
        }
    }

    fn deliver(&self, frame: &[u8]) {
        // Counted first, so that whoever has seen the frame arrive finds it counted.
        let bytes = wire_bytes(frame);
        self.lane.frames.fetch_add(1, Ordering::Relaxed);
        self.lane.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.to.write(frame).is_err() {
            // A device that is down refuses: the frame is lost, as on a real link.
            self.lane.frames.fetch_sub(1, Ordering::Relaxed);
            self.lane.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lane.count_drop();
        }
    }

    fn recycle(&mut self, buffer: Vec<u8>) {
        if buffer.len() == MAX_FRAME && self.spare.len() < SPARE_BUFFERS {
            self.spare.push(buffer);
        }
    }
}

/// The bytes a frame takes on the wire: a GSO packet repeats its headers for each segment.
fn wire_bytes(frame: &[u8]) -> u64 {
    let length = frame.len().saturating_sub(VNET_HEADER);
    let byte = |at: usize| usize::from(frame.get(at).copied().unwrap_or(0));
    // struct virtio_net_hdr is in the machine's byte order. Its hdr_len is only a hint: the transport
    // header's place (csum_start) is not.
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

/// From linux/virtio_net.h.
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

//! A link with delay, rate, queue, loss, silence and a cable, in user space: a kernel may have no netem.
//!
//! Two TAP devices in two namespaces, and for each direction one thread that moves frames between
//! them, whole GSO packets included. Loss is by frame: where the loss of single segments matters,
//! turn offloads off first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::ns::Ns;
use crate::tap::{MAX_FRAME, Tap, VNET_HEADER};

/// Frames taken in before due ones are let out: enough to amortise the clock, few enough to be punctual.
const BATCH: usize = 32;

/// Frames up to this size are kept in buffers of their own size, larger ones in full-sized ones.
const SMALL: usize = 2_048;

/// Buffers kept for reuse per direction; at 64 KiB each this is 4 MiB.
const SPARE_BUFFERS: usize = 64;

/// Which way a frame goes, as the mobile host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the network.
    Up,
    /// From the network to the host.
    Down,
}

/// What vanishes although the link looks alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blackhole {
    /// Nothing vanishes.
    None,
    /// What the host sends.
    Up,
    /// What the host should receive.
    Down,
    /// Everything.
    Both,
}

/// What one direction has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkCounters {
    /// Frames delivered.
    pub frames: u64,
    /// Bytes delivered, Ethernet headers included; a GSO packet counts as the segments it stands for.
    pub bytes: u64,
    /// Frames lost: by chance, by a full queue, into a blackhole or on a cut cable.
    pub dropped: u64,
}

/// An emulated link between two namespaces.
pub struct LinkEmulator {
    lanes: [Arc<Lane>; 2],
    near: Arc<Tap>,
    far: Arc<Tap>,
    stop: Arc<EventFd>,
    workers: Vec<JoinHandle<()>>,
}

impl LinkEmulator {
    /// Joins the new device `near` (name, in the host's namespace) with `far` by a perfect link.
    pub fn new(near: (&Ns, &str), far: (&Ns, &str)) -> Result<Self> {
        let near_tap = Arc::new(Tap::new(near.0, near.1)?);
        let far_tap = Arc::new(Tap::new(far.0, far.1)?);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let mut link = Self {
            lanes: [Arc::default(), Arc::default()],
            near: near_tap,
            far: far_tap,
            stop,
            workers: Vec::new(),
        };
        for direction in [Direction::Up, Direction::Down] {
            let (from, to) = match direction {
                Direction::Up => (&link.near, &link.far),
                Direction::Down => (&link.far, &link.near),
            };
            let worker = Worker::new(link.lane(direction), from, to, &link.stop, near.1);
            let handle = std::thread::Builder::new()
                .name(format!("{}-{direction:?}", near.1))
                .spawn(move || worker.run())
                .context("cannot start a thread for the link")?;
            link.workers.push(handle);
        }
        Ok(link)
    }

    /// One-way delay, in each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.shape_both(|shape| shape.delay = delay);
    }

    /// Bits per second in each direction; `None` is without limit.
    pub fn set_rate(&self, bits_per_second: Option<u64>) {
        self.shape_both(|shape| shape.rate = bits_per_second);
    }

    /// How long the FIFO before a limited rate may get, in time.
    pub fn set_queue(&self, limit: Duration) {
        self.shape_both(|shape| shape.queue = limit);
    }

    /// The probability that a frame is lost, in each direction. The sequence of losses is the same in
    /// every run.
    pub fn set_loss(&self, probability: f64) {
        self.shape_both(|shape| shape.loss = probability);
    }

    /// Makes frames vanish while the link looks alive.
    pub fn set_blackhole(&self, blackhole: Blackhole) {
        self.shape(Direction::Up).silent = matches!(blackhole, Blackhole::Up | Blackhole::Both);
        self.shape(Direction::Down).silent = matches!(blackhole, Blackhole::Down | Blackhole::Both);
    }

    /// Whether packets larger than the MTU pass whole.
    pub fn set_offload(&self, on: bool) -> Result<()> {
        self.near.set_offload(on)?;
        self.far.set_offload(on)
    }

    /// Pulls the cable: the host loses its carrier, what is on the way is lost.
    pub fn cut(&self) -> Result<()> {
        self.shape_both(|shape| shape.cut = true);
        self.near.set_carrier(false)
    }

    /// Plugs the cable in again.
    pub fn restore(&self) -> Result<()> {
        self.shape_both(|shape| shape.cut = false);
        self.near.set_carrier(true)
    }

    /// What a direction has done so far.
    #[must_use]
    pub fn counters(&self, direction: Direction) -> LinkCounters {
        let lane = self.lane(direction);
        LinkCounters {
            frames: lane.frames.load(Ordering::Relaxed),
            bytes: lane.bytes.load(Ordering::Relaxed),
            dropped: lane.dropped.load(Ordering::Relaxed),
        }
    }

    fn lane(&self, direction: Direction) -> &Arc<Lane> {
        &self.lanes[direction as usize]
    }

    fn shape(&self, direction: Direction) -> MutexGuard<'_, Shape> {
        self.lane(direction).shape()
    }

    fn shape_both(&self, change: impl Fn(&mut Shape)) {
        for lane in &self.lanes {
            change(&mut lane.shape());
        }
    }
}

impl Drop for LinkEmulator {
    fn drop(&mut self) {
        // Left at one, the event stays readable for both workers.
        let _ = self.stop.write(1);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    delay: Duration,
    rate: Option<u64>,
    queue: Duration,
    loss: f64,
    silent: bool,
    cut: bool,
}

/// What the controller and the worker of one direction share.
struct Lane {
    shape: Mutex<Shape>,
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Default for Lane {
    fn default() -> Self {
        // A quarter of a second of FIFO is a modest home router.
        let queue = Duration::from_millis(250);
        let shape = Shape { delay: Duration::ZERO, rate: None, queue, loss: 0.0, silent: false, cut: false };
        let zero = || AtomicU64::new(0);
        Self { shape: Mutex::new(shape), frames: zero(), bytes: zero(), dropped: zero() }
    }
}

impl Lane {
    fn shape(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_drop(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

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

struct Worker {
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
    fn new(lane: &Arc<Lane>, from: &Arc<Tap>, to: &Arc<Tap>, stop: &Arc<EventFd>, name: &str) -> Self {
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

    fn run(mut self) {
        // The default slack of 50 µs would be added to every delay.
        let _ = nix::sys::prctl::set_timerslack(1);
        loop {
            let wait = self.queue.front().map(|frame| frame.due.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::new(std::os::fd::AsFd::as_fd(&*self.from), PollFlags::POLLIN),
                PollFd::new(std::os::fd::AsFd::as_fd(&*self.stop), PollFlags::POLLIN),
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

//! A link with delay, rate, queue, loss, silence and a cable, in user space: a kernel may have no netem.
//!
//! Two TAP devices in two namespaces, and for each direction one thread that moves frames between
//! them, whole GSO packets included. Loss is by frame: where the loss of single segments matters,
//! turn offloads off first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};

mod worker;

use crate::ns::Ns;
use crate::tap::Tap;
use worker::Worker;

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

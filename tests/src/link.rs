//! A link emulator in user space: delay, rate, queue, loss, blackholes and carrier. The lab does
//! not use netem, which a kernel may lack.
//!
//! The link is two TAP devices in two namespaces and one thread for each direction, which moves
//! frames between them. GSO packets are moved whole. Losses are decided by frame, so turn offloads
//! off where the loss of single segments matters.

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

/// The direction of a frame on a link, as seen from the mobile host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the network.
    Up,
    /// From the network to the host.
    Down,
}

/// The directions in which frames are dropped although the link has a carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blackhole {
    /// No frames are dropped.
    None,
    /// Frames that the host sends are dropped.
    Up,
    /// Frames that the host should receive are dropped.
    Down,
    /// All frames are dropped, in both directions.
    Both,
}

/// Counters of one direction of a link.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkCounters {
    /// Frames delivered at the other end.
    pub frames: u64,
    /// Bytes delivered, Ethernet headers included; a GSO packet counts as the segments into which
    /// it would be cut.
    pub bytes: u64,
    /// Frames dropped: by random loss, by a full queue, by a blackhole or by a cut of the link.
    pub dropped: u64,
}

/// An emulated link between two namespaces.
pub struct LinkEmulator {
    states: [Arc<DirectionState>; 2],
    near: Arc<Tap>,
    far: Arc<Tap>,
    stop: Arc<EventFd>,
    workers: Vec<JoinHandle<()>>,
}

impl LinkEmulator {
    /// Creates the device `near` in the host's namespace and `far` in the other one, joined by a
    /// link without delay or loss.
    pub fn new(near: (&Ns, &str), far: (&Ns, &str)) -> Result<Self> {
        let near_tap = Arc::new(Tap::new(near.0, near.1)?);
        let far_tap = Arc::new(Tap::new(far.0, far.1)?);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let mut link = Self {
            states: [Arc::default(), Arc::default()],
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
            let worker = Worker::new(link.state(direction), from, to, &link.stop, near.1);
            let handle = std::thread::Builder::new()
                .name(format!("{}-{direction:?}", near.1))
                .spawn(move || worker.run())
                .context("cannot start a thread for the link")?;
            link.workers.push(handle);
        }
        Ok(link)
    }

    /// Sets the one-way delay of both directions.
    pub fn set_delay(&self, delay: Duration) {
        self.shape_both(|shape| shape.delay = delay);
    }

    /// Sets the rate of both directions in bit/s; `None` means unlimited.
    pub fn set_rate(&self, bits_per_second: Option<u64>) {
        self.shape_both(|shape| shape.rate = bits_per_second);
    }

    /// Sets the length of the FIFO in front of a limited rate, as the time in which a full FIFO
    /// drains. The default is 250 ms.
    pub fn set_queue(&self, limit: Duration) {
        self.shape_both(|shape| shape.queue = limit);
    }

    /// Sets the probability (0 to 1) that a frame is lost, in both directions.
    ///
    /// The sequence of losses is the same in every run.
    pub fn set_loss(&self, probability: f64) {
        self.shape_both(|shape| shape.loss = probability);
    }

    /// Sets in which directions frames are dropped silently while the link keeps its carrier.
    pub fn set_blackhole(&self, blackhole: Blackhole) {
        self.shape(Direction::Up).blackholed = matches!(blackhole, Blackhole::Up | Blackhole::Both);
        self.shape(Direction::Down).blackholed = matches!(blackhole, Blackhole::Down | Blackhole::Both);
    }

    /// Sets whether packets larger than the MTU pass the link as a whole (GSO).
    pub fn set_offload(&self, on: bool) -> Result<()> {
        self.near.set_offload(on)?;
        self.far.set_offload(on)
    }

    /// Cuts the link: the host's device loses its carrier, and frames in flight are lost.
    pub fn cut(&self) -> Result<()> {
        self.shape_both(|shape| shape.cut = true);
        self.near.set_carrier(false)
    }

    /// Restores a link that was cut.
    pub fn restore(&self) -> Result<()> {
        self.shape_both(|shape| shape.cut = false);
        self.near.set_carrier(true)
    }

    /// Returns the counters of one direction of the link.
    #[must_use]
    pub fn counters(&self, direction: Direction) -> LinkCounters {
        let state = self.state(direction);
        LinkCounters {
            frames: state.frames.load(Ordering::Relaxed),
            bytes: state.bytes.load(Ordering::Relaxed),
            dropped: state.dropped.load(Ordering::Relaxed),
        }
    }

    fn state(&self, direction: Direction) -> &Arc<DirectionState> {
        &self.states[direction as usize]
    }

    fn shape(&self, direction: Direction) -> MutexGuard<'_, LinkShape> {
        self.state(direction).shape()
    }

    fn shape_both(&self, change: impl Fn(&mut LinkShape)) {
        for state in &self.states {
            change(&mut state.shape());
        }
    }
}

impl Drop for LinkEmulator {
    fn drop(&mut self) {
        // The event stays readable for both workers.
        let _ = self.stop.write(1);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[derive(Clone, Copy)]
struct LinkShape {
    delay: Duration,
    rate: Option<u64>,
    queue: Duration,
    loss: f64,
    blackholed: bool,
    cut: bool,
}

/// The settings and counters of one direction of a link, shared by the emulator's owner and the
/// worker thread.
struct DirectionState {
    shape: Mutex<LinkShape>,
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Default for DirectionState {
    fn default() -> Self {
        // A FIFO of 250 ms, as in a modest home router.
        let queue = Duration::from_millis(250);
        let shape =
            LinkShape { delay: Duration::ZERO, rate: None, queue, loss: 0.0, blackholed: false, cut: false };
        let zero = || AtomicU64::new(0);
        Self { shape: Mutex::new(shape), frames: zero(), bytes: zero(), dropped: zero() }
    }
}

impl DirectionState {
    fn shape(&self) -> MutexGuard<'_, LinkShape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_drop(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

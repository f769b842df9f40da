//! Measurement of the datagram rate that a tunnel carries without loss.
//!
//! A sender and a counter run for the whole measurement and read one command per line, so that no
//! process starts between two trials. The tunnel must be the only bottleneck: the receiver has a
//! large buffer, and the sender sends in small bursts.

use std::io::BufRead as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::line_process::LineProcess;
use crate::wait::PATIENCE;

/// The size of a datagram's payload in bytes, as in games and calls.
pub const LENGTH: usize = 200;

/// The interval at which the sender sends a burst of datagrams.
const BURST: Duration = Duration::from_micros(500);

/// The size of the counter's receive buffer in bytes: room for 8,000 datagrams and the kernel's own
/// overhead.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The time without arrivals after which no datagram of a trial is in flight any more.
const QUIET: Duration = Duration::from_millis(60);

/// The result of sending datagrams at one rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The requested rate in datagrams per second.
    pub rate: f64,
    /// The time for which the sender was to send.
    pub lasted: Duration,
    /// The number of datagrams sent, which is less than requested if the sender was blocked.
    pub sent: u64,
    /// The number of datagrams received.
    pub received: u64,
}

impl Trial {
    /// Returns the share (0 to 1) of the sent datagrams that were lost.
    #[must_use]
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    /// Returns whether the sender reached 98 % of the rate and at most one datagram in a thousand
    /// was lost.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        self.sent as f64 >= 0.98 * self.rate * self.lasted.as_secs_f64() && self.loss() <= 0.001
    }
}

/// A running sender and a running counter of datagrams.
pub struct Datagrams {
    sender: LineProcess,
    counter: LineProcess,
}

impl Datagrams {
    /// Starts the two commands: `sender` runs `labtool datagrams ADDRESS`, and `counter` runs
    /// `labtool count ADDRESS`.
    pub fn start(sender: &mut Command, counter: &mut Command) -> Result<Self> {
        let mut counter = LineProcess::start(counter)?;
        let output = counter.next_line()?;
        ensure!(output == "ready", "the counter says {output}");
        Ok(Self { sender: LineProcess::start(sender)?, counter })
    }

    /// Sends datagrams at `rate` per second for the time `lasting`, then waits until none is in
    /// flight.
    pub fn trial(&mut self, rate: f64, lasting: Duration) -> Result<Trial> {
        let before = self.count()?;
        self.sender.send_line(&format!("{rate} {}", lasting.as_millis()))?;
        let output = self.sender.next_line_within(PATIENCE + lasting)?;
        let sent = output.parse().with_context(|| format!("the sender says {output}"))?;
        let mut now = self.count()?;
        loop {
            sleep(QUIET);
            let last = std::mem::replace(&mut now, self.count()?);
            if now == last {
                return Ok(Trial { rate, lasted: lasting, sent, received: now - before });
            }
        }
    }

    fn count(&mut self) -> Result<u64> {
        let output = self.counter.request("how many?")?;
        output.parse().with_context(|| format!("the counter says {output}"))
    }
}

/// Sends datagrams to `address`: for each line `RATE MILLISECONDS` on stdin sends at that rate for
/// that time, and prints the number of datagrams sent.
pub fn send(address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    // The default timer slack of 50 µs would lengthen every pause.
    nix::sys::prctl::set_timerslack(1)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (rate, lasting) = line.split_once(' ').context("expected RATE MILLISECONDS")?;
        println!("{}", burst(&socket, rate.parse()?, Duration::from_millis(lasting.parse()?))?);
    }
    Ok(())
}

fn burst(socket: &UdpSocket, rate: f64, lasting: Duration) -> Result<u64> {
    let datagram = [0x5a; LENGTH];
    let began = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = began.elapsed();
        // A sender that was blocked catches up until its time is over.
        let due = (rate * (elapsed + BURST).min(lasting).as_secs_f64()) as u64;
        while sent < due {
            socket.send(&datagram).context("send")?;
            sent += 1;
            if sent % 64 == 0 && began.elapsed() > lasting {
                return Ok(sent);
            }
        }
        if elapsed >= lasting {
            return Ok(sent);
        }
        sleep(BURST.saturating_sub(began.elapsed() - elapsed));
    }
}

/// Counts datagrams that arrive at `address`: prints `ready`, then for each line on stdin the
/// number received so far.
pub fn count(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    let counted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&counted);
    thread::spawn(move || {
        let mut datagram = [0; 2 * LENGTH];
        while let Ok(length) = socket.recv(&mut datagram) {
            counter.fetch_add(u64::from(length == LENGTH), Ordering::Relaxed);
        }
    });
    println!("ready");
    for _order in std::io::stdin().lock().lines() {
        println!("{}", counted.load(Ordering::Relaxed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_lossless_at_the_requested_rate_with_almost_no_loss() {
        let trial = Trial { rate: 1000.0, lasted: Duration::from_secs(2), sent: 2000, received: 1999 };
        assert!(trial.is_lossless());
        assert!(!Trial { received: 1997, ..trial }.is_lossless());
        // The sender was blocked.
        assert!(!Trial { sent: 1900, received: 1900, ..trial }.is_lossless());
    }
}

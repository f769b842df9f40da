//! Datagrams at a given rate, and their count at the other end: how many a tunnel carries without losing one.
//!
//! Two programs that take an order a line, so that nothing is started between two trials. What limits a trial must be the
//! tunnel: the receiver has a buffer for a hiccup of its own, and the sender sends in small bursts, as timers allow.

use std::io::BufRead as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::talk::Talk;
use crate::wait::PATIENCE;

/// Bytes of each, without headers: a game's, or a call's.
pub const LENGTH: usize = 200;

/// The sender's bursts are this far apart.
const BURST: Duration = Duration::from_micros(500);

/// Bytes: 8,000 of them and the kernel's own share.
const RECEIVE_BUFFER: usize = 8 << 20;

/// When nothing more comes for so long, nothing more is on its way.
const QUIET: Duration = Duration::from_millis(60);

/// What became of the datagrams of one trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// What was asked for, datagrams a second.
    pub rate: f64,
    /// For how long.
    pub lasted: Duration,
    /// How many were sent; fewer than asked for if the sender was kept waiting.
    pub sent: u64,
    /// How many came.
    pub received: u64,
}

impl Trial {
    /// The part of those sent that did not come.
    #[must_use]
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    /// Whether the rate was reached, and no more than one in a thousand was lost.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        self.sent as f64 >= 0.98 * self.rate * self.lasted.as_secs_f64() && self.loss() <= 0.001
    }
}

/// Both ends.
pub struct Datagrams {
    sender: Talk,
    counter: Talk,
}

impl Datagrams {
    /// Of `labtool datagrams ADDRESS` and `labtool count ADDRESS`.
    pub fn start(sender: &mut Command, counter: &mut Command) -> Result<Self> {
        let mut counter = Talk::start(counter)?;
        let said = counter.hear()?;
        ensure!(said == "ready", "the counter says {said}");
        Ok(Self { sender: Talk::start(sender)?, counter })
    }

    /// Sends at `rate` for so long, and waits for what is on its way.
    pub fn trial(&mut self, rate: f64, lasting: Duration) -> Result<Trial> {
        let before = self.count()?;
        self.sender.say(&format!("{rate} {}", lasting.as_millis()))?;
        let said = self.sender.hear_within(PATIENCE + lasting)?;
        let sent = said.parse().with_context(|| format!("the sender says {said}"))?;
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
        let said = self.counter.ask("how many?")?;
        said.parse().with_context(|| format!("the counter says {said}"))
    }
}

/// The sender: for each line, `RATE MILLISECONDS`, says how many it sent.
pub fn send(address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    // The default of 50 µs would be added to every pause.
    nix::sys::prctl::set_timerslack(1)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (rate, lasting) = line.split_once(' ').context("RATE MILLISECONDS")?;
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
        // One that was kept waiting catches up, for as long as it was to last.
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

/// The counter: says `ready`, then for each line how many have come up to now.
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
    fn lossless_is_the_rate_asked_for_and_next_to_nothing_lost() {
        let trial = Trial { rate: 1000.0, lasted: Duration::from_secs(2), sent: 2000, received: 1999 };
        assert!(trial.is_lossless());
        assert!(!Trial { received: 1997, ..trial }.is_lossless());
        // Kept waiting.
        assert!(!Trial { sent: 1900, received: 1900, ..trial }.is_lossless());
    }
}

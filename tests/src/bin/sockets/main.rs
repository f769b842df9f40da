//! Makes sockets of every kind and reports what happens to the packets they send.
//!
//! `sockets KEY=VALUE…` reads lines from stdin. It answers each with JSON lines, one for every kind
//! of socket and address family, and then `{"done":…}`:
//!
//! - `open` makes the sockets and binds those whose kind requires it;
//! - `connect MS` connects the sockets whose kind requires it, and waits as `send` does;
//! - `send MS` sends until every socket was answered or refused, or until nothing has changed for
//!   MS milliseconds.
//!
//! A JSON line has `kind`, `family`, `number` and `outcome` (`ok`, `answered`, `waiting` or
//! `refused`). It may have `seen`, the source address that the other end sees, or `errno` and
//! `call`. Each socket has a number of its own, counted from `base`: the destination port of TCP
//! and UDP (where the server answers with the source address), the sequence number of an echo
//! request, or the port of a listening socket. The number tells on the wire which socket sent a
//! packet.
//!
//! Keys: `base`; `server4` and `server6`; `source4` and `source6`, the local addresses that some
//! kinds bind to or name; `uplink4`, `uplink6` and `device` of an uplink; `link4` and `link6`,
//! link-local neighbours on it; `kinds`, a comma-separated choice. The program depends on nothing
//! of the lab, so that it also runs in a virtual machine.

mod cell;
mod config;
mod icmp;
mod kind;

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cell::{Outcome, SocketCell};
use config::Config;
use kind::{Family, SocketKind};

/// The interval at which the sockets are polled.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sockets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let config = Config::parse(std::env::args().skip(1))?;
    let mut cells = Vec::new();
    for (row, kind) in SocketKind::ALL.into_iter().enumerate() {
        for (column, family) in Family::ALL.into_iter().enumerate() {
            if kind.exists_in(family) && config.chosen(kind.name()) {
                let index = u16::try_from(row * Family::ALL.len() + column)?;
                cells.push(SocketCell::new(kind, family, config.base + index));
            }
        }
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["open"] => cells.iter_mut().for_each(|cell| cell.open(&config)),
            ["connect", quiet] => {
                cells.iter_mut().for_each(|cell| cell.connect(&config));
                drive(&mut cells, quiet, SocketCell::watch_connect)?;
            }
            ["send", quiet] => {
                cells.iter_mut().for_each(SocketCell::restart);
                drive(&mut cells, quiet, |cell| cell.send(&config))?;
            }
            _ => bail!("{line:?} is none of `open`, `connect MS` and `send MS`"),
        }
        report(&cells, &line)?;
    }
    Ok(())
}

/// Calls `step` for all waiting sockets again and again, until none waits any more or until no
/// further one has finished for `quiet` milliseconds.
fn drive(cells: &mut [SocketCell], quiet: &str, mut step: impl FnMut(&mut SocketCell)) -> Result<()> {
    let quiet = Duration::from_millis(quiet.parse().context("a number of milliseconds was expected")?);
    let (mut open, mut since) = (usize::MAX, Instant::now());
    loop {
        cells.iter_mut().filter(|cell| cell.outcome() == Outcome::Waiting).for_each(&mut step);
        let left = cells.iter().filter(|cell| cell.outcome() == Outcome::Waiting).count();
        if left < open {
            (open, since) = (left, Instant::now());
        }
        if left == 0 || since.elapsed() > quiet {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

fn report(cells: &[SocketCell], line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for cell in cells {
        writeln!(out, "{}", cell.report())?;
    }
    writeln!(out, "{}", serde_json::json!({ "done": line }))?;
    Ok(out.flush()?)
}

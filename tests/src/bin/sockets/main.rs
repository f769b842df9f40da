//! Sockets of every kind, and what becomes of what they send.
//!
//! `sockets KEY=VALUE…` waits for lines on its standard input and answers each with JSON lines, one for every kind of socket
//! and family of addresses, then `{"done":…}`:
//!
//! - `open` makes (and binds) the sockets;
//! - `connect MS` connects those that are, and waits for it as below;
//! - `send MS` sends until each was answered, was refused, or nothing has happened to any for MS milliseconds.
//!
//! A line has `kind`, `family`, `number`, `outcome` (`ok`, `answered`, `waiting` or `refused`), and where there is one `seen`
//! (the address the other end sees) or `errno` and `call`. Each cell has a number of its own, counted from `base`: the destination
//! port of TCP and UDP (where the server answers with the address it sees), the sequence number of an echo request, the port
//! of a listening socket. So whoever watches the wire knows whose packet it is.
//!
//! Keys: `base` and `server4`, `server6`; `source4`, `source6`, the addresses to bind to or to name where a kind does; `uplink4`,
//! `uplink6` and `device` of an uplink; `link4`, `link6`, link-local neighbours on it; `kinds`, a comma-separated choice. It
//! depends on nothing of the lab, so that it runs in a virtual machine too.

mod cell;
mod icmp;
mod kind;
mod place;

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cell::{Cell, Outcome};
use kind::{Family, Kind};
use place::Place;

/// Between two looks at every socket.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    match obey() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sockets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey() -> Result<()> {
    let place = Place::parse(std::env::args().skip(1))?;
    let mut cells = Vec::new();
    for (row, kind) in Kind::ALL.into_iter().enumerate() {
        for (column, family) in Family::ALL.into_iter().enumerate() {
            if kind.exists_in(family) && place.chosen(kind.name()) {
                let index = u16::try_from(row * Family::ALL.len() + column)?;
                cells.push(Cell::new(kind, family, place.base + index));
            }
        }
    }
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["open"] => cells.iter_mut().for_each(|cell| cell.open(&place)),
            ["connect", quiet] => {
                cells.iter_mut().for_each(|cell| cell.connect(&place));
                drive(&mut cells, quiet, Cell::watch_connect)?;
            }
            ["send", quiet] => {
                cells.iter_mut().for_each(Cell::restart);
                drive(&mut cells, quiet, |cell| cell.send(&place))?;
            }
            _ => bail!("{line:?} is none of `open`, `connect MS` and `send MS`"),
        }
        report(&cells, &line)?;
    }
    Ok(())
}

/// Goes over the cells until all are done, or for `quiet` milliseconds none has become so.
fn drive(cells: &mut [Cell], quiet: &str, mut step: impl FnMut(&mut Cell)) -> Result<()> {
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

fn report(cells: &[Cell], line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for cell in cells {
        writeln!(out, "{}", cell.report())?;
    }
    writeln!(out, "{}", serde_json::json!({ "done": line }))?;
    Ok(out.flush()?)
}

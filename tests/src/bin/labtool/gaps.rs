//! Measures gaps and round trips in the data of a connection.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mobile_tests::pulse::{PULSE, PulseMode, Recorder, monotonic_ms};
use socket2::{Domain, Protocol, Socket, Type};

use crate::say;

/// Sends a number at every interval to an echo server. Prints, as JSON, the longest gap between two
/// echoes and the time at which it began.
pub(crate) fn longest(address: &str, interval: &str, seconds: &str) -> Result<()> {
    let (interval, length) =
        (Duration::from_millis(interval.parse()?), Duration::from_secs_f64(seconds.parse()?));
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let start = Instant::now();
    std::thread::spawn(move || {
        for number in 0..=u64::MAX {
            if writer.write_all(&number.to_be_bytes()).is_err() {
                return;
            }
            std::thread::sleep(interval);
        }
    });
    let (mut last, mut longest, mut at, mut expected) =
        (Instant::now(), Duration::ZERO, Duration::ZERO, 0_u64);
    let mut buffer = [0; 8];
    while start.elapsed() < length {
        stream.read_exact(&mut buffer).context("receive")?;
        if u64::from_be_bytes(buffer) != expected {
            bail!("answer {} where {expected} was due", u64::from_be_bytes(buffer));
        }
        expected += 1;
        if last.elapsed() > longest {
            (longest, at) = (last.elapsed(), last - start);
        }
        last = Instant::now();
    }
    let report = serde_json::json!({
        "longest_gap_ms": longest.as_secs_f64() * 1e3, "at_ms": at.as_secs_f64() * 1e3, "answers": expected,
    });
    say(&report.to_string());
    Ok(())
}

/// Exchanges numbers with an echo server, or receives them from a server. For each time that is
/// read from stdin, prints a report of the gaps since that time.
pub(crate) fn pulse(way: &str, protocol: &str, address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let protocol = if protocol == "mptcp" { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).context("socket")?;
    socket.connect(&address.into()).context("connect")?;
    socket.set_tcp_nodelay(true)?;
    let mut stream = TcpStream::from(socket);
    let recorder = Arc::new(Mutex::new(Recorder::new(monotonic_ms())));
    say("connected");
    if way == PulseMode::Echo.name() {
        let mut writer = stream.try_clone()?;
        std::thread::spawn(move || {
            for number in 0..=u64::MAX {
                // The reader fails too, and reports the error.
                if writer.write_all(&number.to_be_bytes()).is_err() {
                    return;
                }
                std::thread::sleep(PULSE);
            }
        });
    }
    let noted = Arc::clone(&recorder);
    std::thread::spawn(move || {
        let mut buffer = [0; 8];
        for due in 0..=u64::MAX {
            let result = stream.read_exact(&mut buffer);
            let number = u64::from_be_bytes(buffer);
            match result {
                Err(error) => return lock(&noted).fail(format!("receive: {error}")),
                Ok(()) if number != due => {
                    return lock(&noted).fail(format!("{number} came where {due} was due"));
                }
                Ok(()) => lock(&noted).note(monotonic_ms()),
            }
        }
    });
    for line in std::io::stdin().lock().lines() {
        let since = line?.parse().context("a time in milliseconds was expected")?;
        say(&lock(&recorder).report(since, monotonic_ms()).to_json().to_string());
    }
    Ok(())
}

/// Sends eight bytes at every interval to an echo server, one write at a time; prints the median
/// and the 99th percentile of the round trips as JSON.
pub(crate) fn keystrokes(address: &str, interval: &str, seconds: &str) -> Result<()> {
    let (interval, length) =
        (Duration::from_millis(interval.parse()?), Duration::from_secs_f64(seconds.parse()?));
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    let start = Instant::now();
    let mut trips = Vec::new();
    while start.elapsed() < length {
        let (sent, mut buffer) = (Instant::now(), [0; 8]);
        stream.write_all(&buffer).context("send")?;
        stream.read_exact(&mut buffer).context("receive")?;
        trips.push(sent.elapsed());
        std::thread::sleep(interval.saturating_sub(sent.elapsed()));
    }
    trips.sort_unstable();
    let at =
        |part: f64| trips.get(((trips.len() - 1) as f64 * part) as usize).map_or(0.0, Duration::as_secs_f64);
    let report = serde_json::json!({
        "median_ms": at(0.5) * 1e3, "p99_ms": at(0.99) * 1e3, "count": trips.len(),
    });
    say(&report.to_string());
    Ok(())
}

fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

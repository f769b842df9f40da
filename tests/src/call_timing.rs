//! Timing of system calls and commands inside a process, so that processes (mobile and ordinary
//! ones) can be compared.
//!
//! One thread holds both ends of each socket, and only the call itself is timed, so that scheduling
//! has no part in the result.

use std::fmt;
use std::hint::black_box;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use socket2::{Domain, Socket, Type};

/// The number of calls that one measurement times.
const CALLS: usize = 2_000;

/// A kind of system call on loopback sockets that a process can time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimedCall {
    /// `connect()` of a TCP socket to a listener.
    Connect,
    /// `sendto()` of a small datagram.
    Datagram,
    /// Writing 64 KiB to a TCP connection and reading them at the other end.
    Bulk,
}

impl TimedCall {
    /// Every kind of call that can be timed.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Datagram, Self::Bulk];

    /// Returns the name of the call, by which [`serve`] accepts it on stdin.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Datagram => "datagram",
            Self::Bulk => "bulk",
        }
    }

    /// Times many calls of this kind in this process.
    fn measure(self) -> Result<Timing> {
        match self {
            Self::Connect => connect(),
            Self::Datagram => datagram(),
            Self::Bulk => bulk(),
        }
    }
}

/// The median and the shortest duration of many calls, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The median duration of all calls.
    pub median: u64,
    /// The duration of the shortest call, which other work on the machine disturbs least.
    pub least: u64,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.median, self.least)
    }
}

impl FromStr for Timing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (median, least) =
            text.split_once(' ').with_context(|| format!("{text:?} does not have two figures"))?;
        Ok(Self { median: median.parse()?, least: least.parse()? })
    }
}

/// Reads requests from stdin and prints a [`Timing`] for each.
///
/// A request is a line: the name of a call, or `run` and the words of a command, separated by tabs.
pub fn serve() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let took = match line.strip_prefix("run\t") {
            Some(argv) => command(&argv.split('\t').collect::<Vec<_>>())?,
            None => {
                let call = TimedCall::ALL.into_iter().find(|call| call.name() == line);
                call.with_context(|| format!("{line:?} is not a call to time"))?.measure()?
            }
        };
        writeln!(std::io::stdout().lock(), "{took}")?;
    }
    Ok(())
}

/// Times a command from its start to its end.
fn command(argv: &[&str]) -> Result<Timing> {
    let (program, args) = argv.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    let took = start.elapsed();
    ensure!(status.success(), "{argv:?}: {status}");
    Ok(Timing { median: nanoseconds(took), least: nanoseconds(took) })
}

fn connect() -> Result<Timing> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.into();
    many(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Closing with a reset keeps thousands of ports out of TIME_WAIT, which would slow later
        // calls.
        socket.set_linger(Some(Duration::ZERO))?;
        let start = Instant::now();
        socket.connect(&address)?;
        let took = start.elapsed();
        drop((listener.accept()?, socket));
        Ok(took)
    })
}

fn datagram() -> Result<Timing> {
    let (from, to) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    let address: SocketAddr = to.local_addr()?;
    let mut buffer = [0; 64];
    many(|| {
        let start = Instant::now();
        from.send_to(&[7; 32], address)?;
        let took = start.elapsed();
        to.recv(&mut buffer)?;
        Ok(took)
    })
}

fn bulk() -> Result<Timing> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut from = TcpStream::connect(listener.local_addr()?)?;
    let (mut to, _) = listener.accept()?;
    let mut buffer = vec![0; 1 << 16];
    many(|| {
        let start = Instant::now();
        from.write_all(black_box(&buffer))?;
        to.read_exact(&mut buffer)?;
        Ok(start.elapsed())
    })
}

fn many(mut call: impl FnMut() -> Result<Duration>) -> Result<Timing> {
    let mut took = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        took.push(call()?);
    }
    took.sort_unstable();
    Ok(Timing { median: nanoseconds(took[CALLS / 2]), least: nanoseconds(took[0]) })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_takes_time_and_a_failed_command_is_an_error() {
        for call in TimedCall::ALL {
            let took = call.measure().unwrap();
            assert!(0 < took.least && took.least <= took.median, "{call:?}: {took}");
            assert_eq!(took.to_string().parse::<Timing>().unwrap(), took);
        }
        assert!(command(&["true"]).unwrap().least > 10_000);
        assert!(command(&["false"]).is_err());
    }
}

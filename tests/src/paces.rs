//! A process that times system calls and commands, one order a line: for measurements that compare processes with each other.
//!
//! Both ends of each socket belong to one thread, and only the call itself is timed, so that no scheduler has a part in it.

use std::fmt;
use std::hint::black_box;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use socket2::{Domain, Socket, Type};

/// Calls timed for one answer.
const CALLS: usize = 2_000;

/// What a process times on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// connect() of a TCP socket to a listener.
    Connect,
    /// sendto() of a small datagram.
    Datagram,
    /// 64 KiB into a TCP connection, and out of it again.
    Bulk,
}

impl Pace {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Datagram, Self::Bulk];

    /// The order for it, and its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Datagram => "datagram",
            Self::Bulk => "bulk",
        }
    }

    /// What many took.
    fn take(self) -> Result<Took> {
        match self {
            Self::Connect => connect(),
            Self::Datagram => datagram(),
            Self::Bulk => bulk(),
        }
    }
}

/// What many calls took, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// The middle one.
    pub median: u64,
    /// The shortest: on a machine that does other work, what others disturb least.
    pub least: u64,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.median, self.least)
    }
}

impl FromStr for Took {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (median, least) = text.split_once(' ').with_context(|| format!("{text:?} is not two figures"))?;
        Ok(Self { median: median.parse()?, least: least.parse()? })
    }
}

/// Answers each line of stdin with a [`Took`]: of a pace named, or of the command behind `run`, split at tabs.
pub fn serve() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let took = match line.strip_prefix("run\t") {
            Some(argv) => command(&argv.split('\t').collect::<Vec<_>>())?,
            None => {
                let pace = Pace::ALL.into_iter().find(|pace| pace.word() == line);
                pace.with_context(|| format!("{line:?} is nothing to time"))?.take()?
            }
        };
        writeln!(std::io::stdout().lock(), "{took}")?;
    }
    Ok(())
}

/// From the start of a command to its end.
fn command(argv: &[&str]) -> Result<Took> {
    let (program, args) = argv.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    let took = start.elapsed();
    ensure!(status.success(), "{argv:?}: {status}");
    Ok(Took { median: nanoseconds(took), least: nanoseconds(took) })
}

fn connect() -> Result<Took> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.into();
    many(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Closed by a reset: thousands of ports in TIME_WAIT would slow the next ones.
        socket.set_linger(Some(Duration::ZERO))?;
        let start = Instant::now();
        socket.connect(&address)?;
        let took = start.elapsed();
        drop((listener.accept()?, socket));
        Ok(took)
    })
}

fn datagram() -> Result<Took> {
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

fn bulk() -> Result<Took> {
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

fn many(mut call: impl FnMut() -> Result<Duration>) -> Result<Took> {
    let mut took = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        took.push(call()?);
    }
    took.sort_unstable();
    Ok(Took { median: nanoseconds(took[CALLS / 2]), least: nanoseconds(took[0]) })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pace_takes_time_and_a_failed_command_is_no_figure() {
        for pace in Pace::ALL {
            let took = pace.take().unwrap();
            assert!(0 < took.least && took.least <= took.median, "{pace:?}: {took}");
            assert_eq!(took.to_string().parse::<Took>().unwrap(), took);
        }
        assert!(command(&["true"]).unwrap().least > 10_000);
        assert!(command(&["false"]).is_err());
    }
}

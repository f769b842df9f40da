//! Many sockets at a time, which stay open until the process is killed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, fork, pause};
use socket2::{Domain, Protocol, Socket, Type};

use crate::say;

/// Starts child processes, each with TCP connections to `address`; prints `ready` once all are
/// connected.
pub(crate) fn connect(processes: &str, sockets: &str, address: &str) -> Result<()> {
    let (processes, sockets): (u32, u32) = (processes.parse()?, sockets.parse()?);
    let address: SocketAddr = address.parse()?;
    let (mut ready, done) = std::io::pipe()?;
    for _ in 0..processes {
        // SAFETY: this program has one thread, so the child may do all that its parent may.
        if let ForkResult::Child = unsafe { fork() }? {
            set_pdeathsig(Signal::SIGKILL)?;
            let dial = || TcpStream::connect(address);
            let open: Vec<TcpStream> = (0..sockets).map(|_| dial()).collect::<std::io::Result<_>>()?;
            (&done).write_all(&[1])?;
            drop(done);
            loop {
                pause();
                // The connections stay open until the process is killed.
                let _ = &open;
            }
        }
    }
    drop(done);
    let mut count = 0;
    while ready.read(&mut [0])? == 1 {
        count += 1;
        if count == processes {
            break;
        }
    }
    if count < processes {
        bail!("{} of {processes} processes have no connections", processes - count);
    }
    say(&format!("ready {count}"));
    loop {
        pause();
    }
}

/// Accepts connections at `address` and keeps them open. The listening socket is bound to `device`
/// if one is named.
pub(crate) fn accept(device: Option<&str>, address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    raise_file_limit()?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind_device(device.map(str::as_bytes)).context("bind to the device")?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    say("ready");
    let mut open = Vec::new();
    loop {
        open.push(socket.accept().context("accept")?);
    }
}

/// Keeps `count` MPTCP sockets open whose `connect()` was refused, until killed.
pub(crate) fn hold_mptcp(count: &str) -> Result<()> {
    raise_file_limit()?;
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let make = |_| -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))?;
        let _ = socket.connect(&nobody.into());
        Ok(socket)
    };
    let held: Vec<Socket> = (0..count.parse::<u32>()?).map(make).collect::<std::io::Result<_>>()?;
    say("ready");
    loop {
        pause();
        // The sockets stay open until the process is killed.
        let _ = &held;
    }
}

/// Raises the soft limit of open files to the hard limit.
fn raise_file_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

//! Helper programs of the cases, which must be separate processes to run with and without the
//! MOBILE attribute.
//!
//! - `tcp ADDRESS`, `udp ADDRESS` and `udp-connected ADDRESS` send each line of stdin and print
//!   each answer, or `! error`.
//! - `udp-on DEVICE ADDRESS` sends one datagram through that device (IP_PKTINFO).
//! - `chatter ADDRESS MS` opens new UDP sockets and TCP connections all the time, MS ms apart.
//! - `gaps` and `keystrokes` measure an echo service and print JSON.
//! - `pulse echo|down tcp|mptcp ADDRESS` receives numbers. For each time (of CLOCK_MONOTONIC, in
//!   milliseconds) on stdin it prints a report on what has arrived since.
//! - `dns udp|udp-connected|tcp RESOLVER` prints an answer and its source address.
//! - `crowd PROCESSES SOCKETS ADDRESS` starts processes with connections, `accept ADDRESS` accepts
//!   them; both print `ready` and wait to be killed. `accept-on DEVICE ADDRESS` is bound to a
//!   device.
//! - `hold-mptcp COUNT` keeps MPTCP sockets open whose `connect()` was refused.
//! - `time-calls` times system calls and commands, see `mobile_tests::call_timing`.
//! - `datagrams ADDRESS` sends datagrams at given rates, `count ADDRESS` counts them.
//! - `write nagle|nodelay|paced ADDRESS FILE` writes a file to a discard server in writes of 1024
//!   bytes, as in the paper's measurement.
//! - `hold-lab` makes a lab and waits to be killed.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mobile_tests::dns::Transport;
use mobile_tests::pulse::{PULSE, PulseMode, Recorder, monotonic_ms};
use mobile_tests::{Lab, Terminal, addr};
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::net::if_::if_nametoindex;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use nix::unistd::{ForkResult, fork, pause};
use socket2::{Domain, Protocol, Socket, Type};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["tcp", address] => tcp(address),
        ["udp", address] => udp(address, false),
        ["udp-connected", address] => udp(address, true),
        ["udp-on", device, address] => udp_on(device, address),
        ["chatter", address, interval] => chatter(address, interval),
        ["gaps", address, interval, seconds] => gaps(address, interval, seconds),
        ["keystrokes", address, interval, seconds] => keystrokes(address, interval, seconds),
        ["pulse", way, protocol, address] => pulse(way, protocol, address),
        ["write", pace, address, file] => write(pace, address, file),
        ["dns", transport, resolver] => dns(transport, resolver),
        ["crowd", processes, sockets, address] => crowd(processes, sockets, address),
        ["accept", address] => accept(None, address),
        ["accept-on", device, address] => accept(Some(device), address),
        ["hold-mptcp", count] => hold_mptcp(count),
        ["datagrams", address] => mobile_tests::datagrams::send(address),
        ["count", address] => mobile_tests::datagrams::count(address),
        ["time-calls"] => mobile_tests::call_timing::serve(),
        ["hold-lab"] => hold_lab(),
        _ => Err(anyhow::anyhow!(
            "usage: labtool tcp|udp|udp-connected ADDRESS | udp-on DEVICE ADDRESS | chatter ADDRESS MS | gaps|keystrokes ADDRESS MS SECONDS | \
             pulse echo|down tcp|mptcp ADDRESS | dns udp|udp-connected|tcp RESOLVER | crowd PROCESSES SOCKETS ADDRESS | accept ADDRESS | accept-on DEVICE ADDRESS | hold-mptcp COUNT | datagrams|count ADDRESS | write nagle|nodelay|paced ADDRESS FILE"
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("! {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tcp(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    say(&format!("connected {} {}", stream.local_addr()?, stream.peer_addr()?));
    let mut answers = BufReader::new(stream.try_clone()?);
    std::thread::spawn(move || {
        let mut line = String::new();
        loop {
            line.clear();
            match answers.read_line(&mut line) {
                Ok(0) => return say("! closed by the peer"),
                Ok(_) => say(line.trim_end()),
                Err(error) => return say(&format!("! receive: {error}")),
            }
        }
    });
    for line in std::io::stdin().lock().lines() {
        stream.write_all(format!("{}\n", line?).as_bytes()).context("send")?;
    }
    Ok(())
}

fn udp(address: &str, connected: bool) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let socket = UdpSocket::bind(any(address))?;
    if connected {
        socket.connect(address).context("connect")?;
    }
    let receiver = socket.try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(count) => say(String::from_utf8_lossy(&buffer[..count]).trim_end()),
                Err(error) => say(&format!("! receive: {error}")),
            }
        }
    });
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let sent =
            if connected { socket.send(line.as_bytes()) } else { socket.send_to(line.as_bytes(), address) };
        sent.context("send")?;
    }
    Ok(())
}

/// Sends one datagram over the device `device` by IP_PKTINFO.
fn udp_on(device: &str, address: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let index = i32::try_from(if_nametoindex(device)?)?;
    let socket = UdpSocket::bind(any(address))?;
    // SAFETY: both structures consist of integers only, for which zero means "any".
    let (mut four, mut six): (in_pktinfo, in6_pktinfo) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    four.ipi_ifindex = index;
    six.ipi6_ifindex = u32::try_from(index)?;
    let on = if address.is_ipv4() {
        ControlMessage::Ipv4PacketInfo(&four)
    } else {
        ControlMessage::Ipv6PacketInfo(&six)
    };
    let data = [IoSlice::new(b"on a device\n")];
    sendmsg(socket.as_raw_fd(), &data, &[on], MsgFlags::empty(), Some(&SockaddrStorage::from(address)))
        .context("send")?;
    say("sent");
    Ok(())
}

/// Opens new sockets in endless rounds: an unconnected UDP socket, a connected one and a TCP
/// connection.
///
/// Prints a line for each round. Errors are printed and are not fatal.
fn chatter(address: &str, interval: &str) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    let interval = Duration::from_millis(interval.parse()?);
    for round in 0..=u64::MAX {
        let line = format!("round {round}");
        let fresh = UdpSocket::bind(any(address)).and_then(|socket| socket.send_to(line.as_bytes(), address));
        let connected = UdpSocket::bind(any(address)).and_then(|socket| {
            socket.connect(address)?;
            socket.send(line.as_bytes())
        });
        // The timeout is short, because during an outage the handshake hangs, as it should.
        let tcp = TcpStream::connect_timeout(&address, interval);
        say(&format!("{line}: {} {} {}", word(fresh.err()), word(connected.err()), word(tcp.err())));
        std::thread::sleep(interval);
    }
    Ok(())
}

/// Sends a number at every interval to an echo server. Prints, as JSON, the longest gap between two
/// echoes and the time at which it began.
fn gaps(address: &str, interval: &str, seconds: &str) -> Result<()> {
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
fn pulse(way: &str, protocol: &str, address: &str) -> Result<()> {
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
fn keystrokes(address: &str, interval: &str, seconds: &str) -> Result<()> {
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

fn dns(transport: &str, resolver: &str) -> Result<()> {
    let transport = Transport::named(transport).context("a transport was expected")?;
    let (answer, from) = mobile_tests::dns::ask(transport, resolver.parse()?)?;
    say(&format!("{answer} from {from}"));
    Ok(())
}

/// Starts child processes, each with TCP connections to `address`; prints `ready` once all are
/// connected.
fn crowd(processes: &str, sockets: &str, address: &str) -> Result<()> {
    let (processes, sockets): (u32, u32) = (processes.parse()?, sockets.parse()?);
    let address: SocketAddr = address.parse()?;
    let (mut ready, done) = std::io::pipe()?;
    for _ in 0..processes {
        // SAFETY: this program has one thread, so the child may do all that its parent may.
        if let ForkResult::Child = unsafe { fork() }? {
            set_pdeathsig(Signal::SIGKILL)?;
            let connect = || TcpStream::connect(address);
            let open: Vec<TcpStream> = (0..sockets).map(|_| connect()).collect::<std::io::Result<_>>()?;
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
fn accept(device: Option<&str>, address: &str) -> Result<()> {
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
fn hold_mptcp(count: &str) -> Result<()> {
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

/// Writes a file in writes of 1024 bytes (section 5.2 of the paper): as fast as possible or,
/// `paced`, one write every 2 ms.
///
/// Returns once the server has received everything and has closed.
fn write(pace: &str, address: &str, file: &str) -> Result<()> {
    let data = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(pace != "nagle")?;
    for chunk in data.chunks(1024) {
        stream.write_all(chunk).context("send")?;
        if pace == "paced" {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let answer = stream.read_to_end(&mut Vec::new()).context("receive")?;
    if answer > 0 {
        bail!("a discard server answered {answer} bytes");
    }
    Ok(())
}

/// Makes a lab with a telnet session in it, prints the lab's cgroup and waits for ever.
fn hold_lab() -> Result<()> {
    let lab = Lab::new()?;
    let telnet = Terminal::start(lab.host.command("telnet").arg(addr::SERVER4.to_string()))?;
    telnet.expect("# ")?;
    say(&lab.cgroup().path().display().to_string());
    loop {
        std::thread::park();
    }
}

fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

fn any(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() }
}

fn word(error: Option<std::io::Error>) -> String {
    error.map_or("ok".into(), |error| error.to_string().replace(' ', "-"))
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The reader is gone, so an error does not matter.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

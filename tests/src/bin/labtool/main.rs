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

mod crowd;
mod gaps;
mod talk;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mobile_tests::dns::Transport;
use mobile_tests::{Lab, Terminal, addr};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["tcp", address] => talk::tcp(address),
        ["udp", address] => talk::udp(address, false),
        ["udp-connected", address] => talk::udp(address, true),
        ["udp-on", device, address] => talk::udp_on(device, address),
        ["chatter", address, interval] => talk::chatter(address, interval),
        ["gaps", address, interval, seconds] => gaps::longest(address, interval, seconds),
        ["keystrokes", address, interval, seconds] => gaps::keystrokes(address, interval, seconds),
        ["pulse", way, protocol, address] => gaps::pulse(way, protocol, address),
        ["write", pace, address, file] => write(pace, address, file),
        ["dns", transport, resolver] => dns(transport, resolver),
        ["crowd", processes, sockets, address] => crowd::connect(processes, sockets, address),
        ["accept", address] => crowd::accept(None, address),
        ["accept-on", device, address] => crowd::accept(Some(device), address),
        ["hold-mptcp", count] => crowd::hold_mptcp(count),
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

fn dns(transport: &str, resolver: &str) -> Result<()> {
    let transport = Transport::named(transport).context("a transport was expected")?;
    let (answer, from) = mobile_tests::dns::ask(transport, resolver.parse()?)?;
    say(&format!("{answer} from {from}"));
    Ok(())
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

/// Prints a line at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The reader is gone, so an error does not matter.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

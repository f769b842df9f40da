//! `cargo xtask bench relay`: how many clients a relay serves, the memory and processor time of
//! each, how fast they connect, and how floods of connections at the relay's port affect them.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mobile_tests::crowd::{Attack, Crowd, CrowdClient, Sources};
use mobile_tests::{Lab, LabOptions, Relay};

use super::cpu_usage::CpuUsage;
use super::machine;
use super::stats::Spread;
use crate::shell::step;

/// Arguments of `cargo xtask bench relay`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Holds sessions of this many clients
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..60_000))]
    sessions: u32,
    /// Times this many handshakes in each round, without and with a flood
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..1000))]
    samples: u32,
    /// Runs this many rounds of each flood
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Makes this many unauthorised connection attempts per second in a flood
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..))]
    flood: u32,
}

/// The number of parts in which the sessions are opened. The rate is measured for each part.
const PARTS: u32 = 10;
/// The number of handshakes in progress at a time while the sessions are opened.
const AT_ONCE: usize = 32;
/// The time for which idle sessions are measured, which includes a keepalive of every client.
const WATCHED: Duration = Duration::from_secs(60);
/// The pause between two timed handshakes.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs all measurements, one after the other.
pub(crate) fn run(args: &Args) -> Result<()> {
    let lab = Lab::with(&LabOptions::default())?;
    let mut relay = Relay::install(&lab)?;
    relay.configure("pool", "ipv4", "10.64.0.0/16")?;
    // All clients come at once from sources that the relay does not know; the limit would otherwise
    // be measured.
    relay.configure("limits", "handshake_rate", 1_000_000)?;
    let crowd = Crowd::start(&lab, &relay)?;
    let probes = args.sessions..args.sessions + args.samples;
    step(&format!("authorising {} clients", probes.end));
    let start = Instant::now();
    crowd.authorize(&relay, &lab, probes.end)?;
    println!("{} clients authorised from a file: {:.1} s", probes.end, start.elapsed().as_secs_f64());
    let start = Instant::now();
    relay.start()?;
    println!("start of the relay with them: {:.1} s", start.elapsed().as_secs_f64());
    let pid = relay.pid().context("the relay runs")?;
    let idle = resident(pid)?;
    println!("resident memory without sessions: {:.1} MiB", idle as f64 / 1024.0);

    let members = ramp(&crowd, pid, args.sessions)?;
    sleep(Duration::from_secs(5));
    let held = resident(pid)?;
    let each = (held - idle) as f64 / members.len() as f64;
    println!("{} sessions held: {:.1} MiB resident, {each:.1} KiB each", members.len(), held as f64 / 1024.0);
    step(&format!("watching them for {} s", WATCHED.as_secs()));
    let before = CpuUsage::of(pid)?;
    sleep(WATCHED);
    let worked = CpuUsage::of(pid)?.nanoseconds - before.nanoseconds;
    let now = resident(pid)?;
    println!(
        "their keepalives: {:.2} % of a processor; afterwards {:.1} KiB each",
        worked as f64 / WATCHED.as_nanos() as f64 * 100.0,
        (now - idle) as f64 / members.len() as f64
    );
    packets(&lab, pid, &members)?;

    relay.configure("limits", "handshake_rate", 500)?;
    relay.cli(&["reload"])?.ok()?;
    floods(&crowd, &probes, args)?;
    println!("\n{}; the crowd on the same cores", machine::describe());
    relay.stop()?;
    relay.cli(&["cleanup"])?.ok()?;
    lab.passed();
    Ok(())
}

/// Opens `sessions` sessions, prints the rate of handshakes and the relay's processor time per
/// handshake, and returns the clients.
fn ramp(crowd: &Crowd, pid: i32, sessions: u32) -> Result<Vec<CrowdClient>> {
    let (mut members, mut rates, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for part in 0..PARTS {
        let numbers = part * sessions / PARTS..(part + 1) * sessions / PARTS;
        let (start, worked, count) = (Instant::now(), CpuUsage::of(pid)?, numbers.len());
        members.extend(crowd.open(numbers, AT_ONCE)?);
        let took = start.elapsed();
        let worked = CpuUsage::of(pid)?.nanoseconds - worked.nanoseconds;
        rates.push(count as f64 / took.as_secs_f64());
        shares.push(worked as f64 / 1e3 / count as f64);
        step(&format!("{} sessions, {:.0} handshakes/s", members.len(), rates[rates.len() - 1]));
    }
    let (rate, share) = Spread::of(&rates).zip(Spread::of(&shares)).context("no parts")?;
    println!(
        "full handshakes, each with a new session: {rate} a second, {share} µs of the relay's processor time each"
    );
    Ok(members)
}

/// Measures packets from the relay's machine: first small ones to all clients in turn, then 20
/// flows to one client during one flow to another.
fn packets(lab: &Lab, pid: i32, members: &[CrowdClient]) -> Result<()> {
    let active = &members[..members.len().min(1000)];
    let all: Vec<SocketAddr> = active.iter().filter_map(|member| address(member, 9)).collect();
    let (sent, took, before, worked) = {
        let (before, cpu_usage) = (total(active), CpuUsage::of(pid)?);
        let (sent, took) = lab.relay.enter(|| blast(&all, Duration::from_secs(5)))?;
        (sent, took, before, CpuUsage::of(pid)?.nanoseconds - cpu_usage.nanoseconds)
    };
    sleep(Duration::from_millis(500));
    let got = total(active) - before;
    println!(
        "packets of 100 bytes to {} clients in turn: {:.0} a second of {:.0} sent, {:.1} µs of the relay's processor time each",
        active.len(),
        got as f64 / took.as_secs_f64(),
        sent as f64 / took.as_secs_f64(),
        worked as f64 / 1e3 / got.max(1) as f64
    );
    let [heavy, light] = [&members[0], &members[1]];
    let mut flows: Vec<SocketAddr> = (0..20).filter_map(|flow| address(heavy, 1000 + flow)).collect();
    flows.extend(address(light, 1000));
    let before = [heavy.received(), light.received()];
    let (sent, _) = lab.relay.enter(|| blast(&flows, Duration::from_secs(5)))?;
    sleep(Duration::from_millis(500));
    let part = |got: u64, flows: u64| got as f64 / (sent as f64 * flows as f64 / 21.0) * 100.0;
    println!(
        "one client with 20 flows beside one with one: {:.1} % and {:.1} % of what was sent to them arrived",
        part(heavy.received() - before[0], 20),
        part(light.received() - before[1], 1)
    );
    Ok(())
}

/// Sends datagrams to each address in turn, as fast as possible; returns their number and the time
/// taken.
fn blast(to: &[SocketAddr], time: Duration) -> Result<(u64, Duration)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        for address in to {
            socket.send_to(&[0; 72], address)?;
            sent += 1;
        }
    }
    Ok((sent, start.elapsed()))
}

fn floods(crowd: &Crowd, probes: &std::ops::Range<u32>, args: &Args) -> Result<()> {
    // Afterwards the relay knows the clients' source addresses.
    crowd.latencies(probes.clone(), Duration::ZERO)?;
    println!("\n| flood | p50 | p95 | p99, ms | p95 against idle | tried again | attempts/s |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (name, attack, sources) in [
        ("garbage, few sources", Attack::Garbage, Sources::Few),
        ("garbage, many sources", Attack::Garbage, Sources::Many),
        ("unknown keys, few sources", Attack::UnknownKey, Sources::Few),
        ("unknown keys, many sources", Attack::UnknownKey, Sources::Many),
    ] {
        let (mut idle, mut flooded) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
        let (mut ratios, mut again, mut rates) = (Vec::new(), 0, Vec::new());
        for _ in 0..args.rounds {
            let (quiet, _) = crowd.latencies(probes.clone(), PAUSE)?;
            let (flood, start) = (crowd.flood(attack, sources, args.flood), Instant::now());
            sleep(Duration::from_secs(2));
            let (loud, failed) = crowd.latencies(probes.clone(), PAUSE)?;
            rates.push(flood.attempts() as f64 / start.elapsed().as_secs_f64());
            drop(flood);
            sleep(Duration::from_secs(2));
            again += failed;
            let (quiet, loud) = (percentiles(quiet), percentiles(loud));
            ratios.push(loud[1] / quiet[1]);
            for index in 0..3 {
                idle[index].push(quiet[index]);
                flooded[index].push(loud[index]);
            }
        }
        let told = |figures: &[f64]| -> Result<String> {
            let Spread { median, least, greatest } = Spread::of(figures).context("no rounds")?;
            Ok(format!("{median:.1} ({least:.1}–{greatest:.1})"))
        };
        let [a, b, c] = [told(&idle[0])?, told(&idle[1])?, told(&idle[2])?];
        println!("| none | {a} | {b} | {c} | | | |");
        let [a, b, c] = [told(&flooded[0])?, told(&flooded[1])?, told(&flooded[2])?];
        println!("| {name} | {a} | {b} | {c} | {} | {again} | {} |", told(&ratios)?, told(&rates)?);
        step(name);
    }
    Ok(())
}

/// Returns the 50th, 95th and 99th percentile of durations, in milliseconds.
fn percentiles(mut took: Vec<Duration>) -> [f64; 3] {
    took.sort();
    [50, 95, 99].map(|part| took[(took.len() * part / 100).min(took.len() - 1)].as_secs_f64() * 1e3)
}

fn total(members: &[CrowdClient]) -> u64 {
    members.iter().map(CrowdClient::received).sum()
}

fn address(member: &CrowdClient, port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::from((member.config.ipv4?, port)))
}

/// Returns the resident memory of a process in KiB.
fn resident(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_do_not_depend_on_the_order() {
        let took = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentiles(took), [51.0, 96.0, 100.0]);
        assert_eq!(percentiles(vec![Duration::from_millis(7)]), [7.0; 3]);
    }

    #[test]
    fn the_memory_of_this_process_can_be_read() {
        assert!(resident(i32::try_from(std::process::id()).unwrap()).unwrap() > 100);
    }
}

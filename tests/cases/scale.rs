//! A thousand mobile processes with ten thousand connections: no verb of `mobile` takes long, and
//! no packet waits meanwhile.

use std::time::{Duration, Instant};

use mobile_tests::{Agent, LabOptions, LineProcess, Testbed, addr, port, program};

use crate::{Outcome, server};

const PROCESSES: usize = 1000;
const SOCKETS: usize = 10;

/// The longest time that a verb of `mobile` may take: some 100 ms if it reads each table of the
/// kernel once, but minutes if it reads one for each process.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest time that a keystroke may wait while a verb runs: the round trip of 20 ms, and the
/// rest for load on the test machine.
const KEYSTROKE: Duration = Duration::from_secs(1);

/// The server's port to which the thousand processes connect.
const CROWD: u16 = 4000;

#[test]
fn a_thousand_processes_with_ten_thousand_connections_keep_nobody_waiting() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    // The crowd needs ten times a client's default limit.
    bed.relay.configure("limits", "connections_per_client", 0)?;
    bed.relay.configure("limits", "connection_rate_per_client", 0)?;
    bed.start()?;
    let tool = program("labtool")?;
    let to = format!("{}:{CROWD}", addr::SERVER4);
    let mut taker = LineProcess::start(bed.lab.server.command(&tool).args(["accept", &to]))?;
    assert_eq!(taker.next_line()?, "ready");
    let mut crowd = bed.mobile_labtool(&["crowd", &PROCESSES.to_string(), &SOCKETS.to_string(), &to])?;
    assert_eq!(crowd.next_line_within(Duration::from_secs(120))?, format!("ready {PROCESSES}"));

    let agent = bed.agent.pid().expect("it runs");
    let timed = |args: &[&str]| -> anyhow::Result<String> {
        let (start, worked) = (Instant::now(), processor_time(agent)?);
        let said = bed.agent.cli(args)?.ok()?;
        let (took, worked) = (start.elapsed(), processor_time(agent)? - worked);
        println!("{}: {took:.0?}, of the agent {worked:.0?}", args[0]);
        assert!(took < PATIENCE, "{} took {took:?}", args[0]);
        Ok(said)
    };
    let listed: serde_json::Value = serde_json::from_str(&timed(&["ps", "--json"])?)?;
    let processes = listed.as_array().expect("a list");
    let connections = |process: &serde_json::Value| process["connections"].as_array().map_or(0, Vec::len);
    assert_eq!(processes.iter().map(connections).sum::<usize>(), PROCESSES * SOCKETS);
    assert!(processes.len() > PROCESSES, "the parent is one of them: {}", processes.len());

    timed(&["status"])?;
    timed(&["explain", &crowd.pid().to_string()])?;
    let mut shell = LineProcess::start(&mut bed.lab.host.command("sh"))?;
    timed(&["attach", &shell.pid().to_string()])?;
    // All processes in one command; they are mobile already.
    let pids: Vec<String> = processes.iter().map(|process| process["pid"].to_string()).collect();
    let all: Vec<&str> = std::iter::once("attach").chain(pids.iter().map(String::as_str)).collect();
    let said = timed(&all)?;
    assert_eq!(said.lines().filter(|line| line.ends_with("is mobile")).count(), pids.len());

    // Packets must pass while the agent inspects the crowd.
    let mut talk = bed.mobile_labtool(&["tcp", &server(port::ECHO)[0]])?;
    talk.next_line()?;
    let worst = slowest_keystroke_beside_ps(&bed.agent, &mut talk)?;
    println!("keystroke beside ps: {worst:.0?} at most");
    assert!(worst < KEYSTROKE, "a keystroke took {worst:?}");
    assert_eq!(shell.request("echo here")?, "here");
    let log = bed.agent.log();
    assert!(!log.contains("gone silent"), "{log}");
    // When a thousand processes die at once, the kernel may be too busy to acknowledge anything for
    // longer than a working path takes.
    bed.expect_warning("gone silent");
    drop((crowd, talk, shell, taker));
    bed.finish()
}

/// Sends keystrokes one after the other to an echo service while `mobile ps` runs five times, and
/// returns the longest time that an echo took.
fn slowest_keystroke_beside_ps(agent: &Agent, echo: &mut LineProcess) -> anyhow::Result<Duration> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| (0..5).try_for_each(|_| agent.cli(&["ps", "--json"])?.ok().map(drop)));
        let mut worst = Duration::ZERO;
        while !looking.is_finished() {
            let start = Instant::now();
            assert_eq!(echo.request("key")?, "key");
            worst = worst.max(start.elapsed());
        }
        looking.join().expect("it did not panic")?;
        Ok(worst)
    })
}

/// Returns the processor time that a process has used in user and system mode.
fn processor_time(pid: i32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect::<Vec<_>>());
    // proc(5) numbers the fields from 1, and the first one here is field 3: utime is 14 and stime
    // 15, in ticks of 10 ms.
    let ticks = |field: usize| fields.as_ref().and_then(|fields| fields.get(field - 3)?.parse::<u64>().ok());
    let ticks = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    Ok(Duration::from_millis(10 * ticks.unwrap_or_default()))
}

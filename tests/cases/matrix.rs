//! The socket matrix: sockets of every kind are used in every state of the agent, by processes that
//! became mobile at different times. No packet may leak, and the documentation must say what
//! happens to each kind.
//!
//! For each state a lab runs six processes, each with a socket of every kind and address family.
//! All devices of the host are watched, and each packet carries its socket's number. The tables in
//! docs/understand/security.md are the result: `MATRIX=write cargo xtask test e2e matrix` writes
//! them. On the older kernels of `cargo xtask test vm` the case measures, in some of the states,
//! which sockets can send outside the tunnel, and compares the list in the same document.

mod rules;
mod table;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use mobile_tests::matrix::{
    AttachTiming, Caller, EgressDevices, EgressWatch, MatrixServer, SOCKET_NUMBERS, SocketProcess,
};
use mobile_tests::{LabOptions, Testbed};
use serde_json::Value;

use crate::Outcome;

#[test]
fn the_matrix_of_sockets_and_states_is_as_documented() -> Outcome {
    let older = table::is_an_older_kernel();
    // The labs mostly wait: four of them keep two cores busy. An emulated machine runs one.
    let (states, labs_at_once) = if older { (&State::DISTINCT[..], 1) } else { (&State::ALL[..], 4) };
    let todo = Mutex::new(states.to_vec());
    let measured = Mutex::new(HashMap::new());
    std::thread::scope(|scope| -> Outcome {
        // A lab's programs end with the thread that started them, so each lab belongs to one
        // thread.
        let worker = || -> Outcome {
            loop {
                let Some(state) = todo.lock().expect("no panic").pop() else { return Ok(()) };
                let cells = measure(state).with_context(|| format!("{state:?}"))?;
                measured.lock().expect("no panic").insert(state, cells);
            }
        };
        let workers: Vec<_> = (0..labs_at_once).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    let measured = measured.into_inner()?;
    if let Some(path) = std::env::var_os("MATRIX_ALL") {
        std::fs::write(path, table::everything(&measured))?;
    }
    if older {
        return table::compare_exceptions(&table::exceptions(&measured));
    }
    let leaks = table::leaks(&measured);
    ensure!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    table::compare(&table::tables(&measured))
}

/// The state of the agent while the sockets are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Up,
    NeverConnected,
    RelayGone,
    NoUplink,
    Killed,
    Upgrading,
    /// `mobile cleanup` was interrupted after its first step: no process is mobile, but the MOBILE
    /// route exists.
    NobodyMobile,
    /// `mobile cleanup` was interrupted after its second step: the MOBILE route does not exist
    /// either.
    RouteGone,
}

impl State {
    const ALL: [Self; 8] = [
        Self::Up,
        Self::NeverConnected,
        Self::RelayGone,
        Self::NoUplink,
        Self::Killed,
        Self::Upgrading,
        Self::NobodyMobile,
        Self::RouteGone,
    ];

    /// The states that differ in the decisions of eBPF programs and routes; the other states repeat
    /// these decisions at other moments.
    const DISTINCT: [Self; 3] = [Self::Up, Self::NoUplink, Self::Killed];

    fn enter(self, bed: &mut Testbed) -> Outcome {
        let lost = |bed: &Testbed| {
            bed.agent.wait_status("the loss to be seen", |status| status["session"] != "connected")
        };
        match self {
            Self::Up | Self::NeverConnected => {}
            Self::RelayGone => {
                bed.relay.kill()?;
                lost(bed)?;
            }
            Self::NoUplink => {
                bed.lab.eth().take_down()?;
                bed.lab.wlan().take_down()?;
                lost(bed)?;
            }
            Self::Killed | Self::Upgrading => bed.agent.kill()?,
            Self::NobodyMobile | Self::RouteGone => {
                bed.agent.kill()?;
                empty(&bed.agent.cgroup, bed.lab.cgroup().path())?;
                if self == Self::RouteGone {
                    bed.lab.host.run(&["ip", "link", "del", "mobile0"])?;
                    for (family, rule) in [("-4", "4900"), ("-4", "4901"), ("-6", "4900"), ("-6", "4901")] {
                        bed.lab.host.run(&["ip", family, "rule", "del", "pref", rule])?;
                    }
                    for family in ["-4", "-6"] {
                        bed.lab.host.run(&["ip", family, "route", "flush", "table", "7700"])?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the state, so that everything works again. Returns false for states that cannot or need
    /// not be ended, and changes nothing then.
    fn leave(self, bed: &mut Testbed) -> Result<bool> {
        match self {
            Self::Up | Self::NobodyMobile | Self::RouteGone => return Ok(false),
            Self::NeverConnected | Self::RelayGone => bed.relay.start()?,
            Self::NoUplink => {
                bed.lab.eth().bring_up()?;
                bed.lab.wlan().bring_up()?;
            }
            Self::Killed => bed.agent.start()?,
            // The upgrade happened while the processes were sending.
            Self::Upgrading => {}
        }
        bed.agent.wait_connected()?;
        Ok(true)
    }
}

/// Moves all processes from the mobile cgroup and its child cgroups to the cgroup `to`, as the
/// first step of `mobile cleanup` does.
fn empty(cgroup: &std::path::Path, to: &std::path::Path) -> Outcome {
    for entry in std::fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            empty(&entry.path(), to)?;
        }
    }
    for pid in std::fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        std::fs::write(to.join("cgroup.procs"), pid)?;
    }
    // A process that has just ended may hold the cgroup a moment longer; an empty cgroup does not
    // matter.
    let _may_stay = std::fs::remove_dir(cgroup);
    Ok(())
}

/// The result for one socket: its reports and the devices that its packets left by.
struct Cell {
    timing: AttachTiming,
    kind: String,
    family: String,
    /// The socket's report while the agent is in the state under test.
    first: Value,
    /// The socket's report after the state has ended and everything works again, or `None` if the
    /// state was not ended.
    after: Option<Value>,
    /// The devices that the socket's packets left by.
    left: EgressDevices,
    /// Whether a packet with a persistent source address left by an uplink.
    astray: bool,
}

impl Cell {
    /// Joins a socket's reports and its packets among all that `left` the host. The persistent
    /// addresses are those of the client.
    fn new(
        timing: AttachTiming,
        first: Value,
        after: Option<Value>,
        left: &HashMap<u16, EgressDevices>,
        persistent: [IpAddr; 2],
    ) -> Result<Self> {
        let text = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
        let number = u16::try_from(first["number"].as_u64().context("a number")?)?;
        let left = left.get(&number).cloned().unwrap_or_default();
        let from_us = |packet: &str| persistent.iter().any(|ours| packet.starts_with(&format!("{ours} ")));
        let astray = left.iter().any(|(device, packet)| device != "mobile0" && from_us(packet));
        Ok(Self { timing, kind: text("kind"), family: text("family"), first, after, left, astray })
    }
}

const OPEN: &str = "open";
const CONNECT: &str = "connect 1500";
const SEND: &str = "send 2500";
/// The step that sends after the state has ended. TCP's retransmissions of a SYN may be eight
/// seconds apart by then, so the step waits nine seconds for the next one.
const SEND_AFTER: &str = "send 9000";

/// Uses the sockets of all processes while the agent is in a state and, if the state can be ended,
/// after it.
fn measure(state: State) -> Result<Vec<Cell>> {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    // The server connects to the listening sockets, which only a routed pool allows.
    bed.relay.configure("nat", "masquerade", false)?;
    bed.relay.configure("clients", "inbound", "routed")?;
    let _server = MatrixServer::start(&bed)?;
    if state == State::NeverConnected {
        bed.agent.start()?;
    } else {
        bed.start()?;
    }
    let watch = EgressWatch::start(&bed.lab.host, SOCKET_NUMBERS)?;
    let mut processes = AttachTiming::ALL.map(|timing| SocketProcess::start(&bed, timing));
    let mut processes: Vec<SocketProcess> = processes.iter_mut().map(take).collect::<Result<_>>()?;
    attach_and_detach(&bed, &mut processes)?;
    let _before = watch.take()?;

    state.enter(&mut bed)?;
    let callers = use_sockets(state, &mut bed, &mut processes)?;
    let first: Vec<Vec<Value>> = processes.iter().map(|process| process.reports.clone()).collect();
    let is_back = state.leave(&mut bed)?;
    if is_back {
        steps(&mut processes, |_| &[SEND_AFTER])?;
    }
    let left = watch.take()?;
    watch.finish()?;
    drop(callers);

    let persistent = [IpAddr::V4(bed.agent.address4), bed.agent.address6.into()];
    let mut cells = Vec::new();
    for (process, first) in processes.iter().zip(first) {
        for (first, last) in first.into_iter().zip(&process.reports) {
            let after = is_back.then(|| last.clone());
            cells.push(Cell::new(process.timing, first, after, &left, persistent)?);
        }
    }
    drop(processes);
    bed.expect_warnings_of_all_kinds();
    bed.finish()?;
    Ok(cells)
}

/// Makes processes mobile or ordinary that change with sockets open, after the steps before the
/// change.
fn attach_and_detach(bed: &Testbed, processes: &mut [SocketProcess]) -> Outcome {
    steps(processes, |timing| match timing {
        AttachTiming::Mobile | AttachTiming::Ordinary => &[],
        AttachTiming::AttachedAfterSocket | AttachTiming::DetachedAfterSocket => &[OPEN],
        AttachTiming::AttachedAfterConnect | AttachTiming::DetachedAfterConnect => &[OPEN, CONNECT, SEND],
    })?;
    for process in processes {
        let verb = match process.timing {
            AttachTiming::Mobile | AttachTiming::Ordinary => continue,
            AttachTiming::AttachedAfterSocket | AttachTiming::AttachedAfterConnect => "attach",
            AttachTiming::DetachedAfterSocket | AttachTiming::DetachedAfterConnect => "detach",
        };
        bed.agent.cli(&[verb, &process.pid()])?.ok()?;
    }
    Ok(())
}

/// Takes every socket through its remaining steps up to the first sending in a state, and returns
/// the threads that call the listening sockets meanwhile.
fn use_sockets(state: State, bed: &mut Testbed, processes: &mut [SocketProcess]) -> Result<Vec<Caller>> {
    steps(processes, |timing| match timing {
        AttachTiming::Mobile | AttachTiming::Ordinary => &[OPEN],
        _ => &[],
    })?;
    let callers = callers(bed, processes);
    let rest = |timing| -> &'static [&'static str] {
        match timing {
            AttachTiming::AttachedAfterConnect | AttachTiming::DetachedAfterConnect => &[SEND],
            _ => &[CONNECT, SEND],
        }
    };
    for process in &mut *processes {
        rest(process.timing).iter().try_for_each(|step| process.start_step(step))?;
    }
    if state == State::Upgrading {
        bed.agent.start()?;
    }
    processes.iter_mut().try_for_each(|process| process.wait(SEND))?;
    Ok(callers)
}

fn take(process: &mut Result<SocketProcess>) -> Result<SocketProcess> {
    std::mem::replace(process, Err(anyhow::anyhow!("taken")))
}

/// Runs in each process the steps that `of` returns for its timing, in all processes at the same
/// time, and waits for their end.
fn steps(processes: &mut [SocketProcess], of: impl Fn(AttachTiming) -> &'static [&'static str]) -> Outcome {
    for process in &mut *processes {
        of(process.timing).iter().try_for_each(|step| process.start_step(step))?;
    }
    processes.iter_mut().try_for_each(|process| match of(process.timing).last() {
        Some(last) => process.wait(last),
        None => Ok(()),
    })
}

/// Starts, for each listening socket, a thread at the server that connects to the socket again and
/// again.
fn callers(bed: &Testbed, processes: &[SocketProcess]) -> Vec<Caller> {
    let listening =
        processes.iter().flat_map(|process| &process.reports).filter(|cell| cell["kind"] == "tcp-listening");
    let call = |cell: &Value| {
        let port = u16::try_from(cell["number"].as_u64()?).ok()?;
        let six = cell["family"] == "ipv6";
        let address = if six { bed.agent.address6.into() } else { IpAddr::V4(bed.agent.address4) };
        Some(Caller::start(&bed.lab.server, SocketAddr::new(address, port)))
    };
    listening.filter_map(call).collect()
}

//! Both programs as services of systemd: readiness notifications, the watchdog, `mobile.slice` and
//! confinement.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mobile_tests::{CommandOutput, LabOptions, PATIENCE, Testbed, addr, finish_within, until};
use nix::sys::signal::Signal;

use crate::leaks::{assert_no_leak, captures};
use crate::{Outcome, ip_of, urls};

/// The watchdog timeout (`WatchdogSec=`), short so that several notifications arrive within a case.
const WATCHDOG: Duration = Duration::from_millis(600);

/// The socket at which a service sends its notifications (`NOTIFY_SOCKET`), as systemd would
/// provide it.
struct NotifySocket(UnixDatagram);

impl NotifySocket {
    fn new(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Returns the next notification of the service.
    fn receive(&self) -> Result<String> {
        let mut bytes = [0; 1024];
        let length = self.0.recv(&mut bytes).context("nothing was told")?;
        Ok(String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned())
    }

    /// Waits for the notification `word` and returns the notifications before it.
    fn wait(&self, word: &str) -> Result<Vec<String>> {
        let mut before = Vec::new();
        loop {
            let told = self.receive().with_context(|| format!("no {word}; before it: {before:?}"))?;
            if told == word {
                return Ok(before);
            }
            before.push(told);
        }
    }

    fn drain(&self) -> Result<()> {
        self.0.set_nonblocking(true)?;
        while self.0.recv(&mut [0; 1024]).is_ok() {}
        self.0.set_nonblocking(false)?;
        Ok(())
    }
}

#[test]
fn systemd_hears_when_each_program_is_ready_alive_and_stopping() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let dir = bed.lab.dir().to_owned();
    let [agent, relay] = ["agent", "relay"].map(|name| dir.join(format!("{name}.notify")));
    let micros = WATCHDOG.as_micros().to_string();
    let managers = [NotifySocket::new(&agent)?, NotifySocket::new(&relay)?];
    bed.agent.set_variable("NOTIFY_SOCKET", agent.display().to_string());
    bed.agent.set_variable("WATCHDOG_USEC", micros.as_str());
    bed.relay.set_variable("NOTIFY_SOCKET", relay.display().to_string());
    bed.relay.set_variable("WATCHDOG_USEC", micros);
    bed.start()?;
    for manager in &managers {
        let before = manager.wait("READY=1")?;
        assert!(before.is_empty(), "told before it was ready: {before:?}");
        // Discards notifications that were queued earlier.
        manager.drain()?;
        let start = Instant::now();
        for _ in 0..5 {
            manager.wait("WATCHDOG=1")?;
        }
        // The notifications arrive at intervals, not all at once, and in time on average: a busy
        // test machine may delay one.
        let took = start.elapsed();
        assert!((WATCHDOG..WATCHDOG * 5).contains(&took), "five feedings in {took:?}");
    }

    // A stopped process must not feed the watchdog.
    bed.agent.signal(Signal::SIGSTOP)?;
    managers[0].drain()?;
    managers[0].0.set_read_timeout(Some(WATCHDOG * 2))?;
    assert!(managers[0].receive().is_err(), "a stopped agent was heard");
    bed.agent.signal(Signal::SIGCONT)?;
    managers[0].0.set_read_timeout(Some(PATIENCE))?;
    managers[0].wait("WATCHDOG=1")?;

    // Type=notify-reload: after SIGHUP, RELOADING=1 and then READY=1.
    bed.agent.signal(Signal::SIGHUP)?;
    bed.relay.signal(Signal::SIGHUP)?;
    for manager in &managers {
        let told = manager.wait("READY=1")?;
        let reloading = told.iter().find_map(|word| word.strip_prefix("RELOADING=1\nMONOTONIC_USEC="));
        let micros: u64 = reloading.with_context(|| format!("no reload in {told:?}"))?.parse()?;
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
        let age = Duration::from(now).saturating_sub(Duration::from_micros(micros));
        assert!(age < PATIENCE, "a reload {age:?} ago");
    }

    bed.agent.stop()?;
    managers[0].wait("STOPPING=1")?;
    bed.relay.stop()?;
    managers[1].wait("STOPPING=1")?;
    // A stop of this length may look like a silent path.
    bed.expect_warning("gone silent");
    bed.finish()
}

/// Runs a command as systemd runs a service of `mobile.slice`: in a new cgroup below the cgroup of
/// that slice.
fn in_slice(bed: &Testbed, service: &str, argv: &[&str]) -> Result<CommandOutput> {
    let cgroup = bed.agent.slice.join(service);
    std::fs::create_dir_all(&cgroup)?;
    let mut shell = bed.lab.host.command("sh");
    shell.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&cgroup).args(argv);
    let done = finish_within(&mut shell, None, PATIENCE);
    // systemd removes the cgroups of a service and an empty slice when the last process has ended.
    until("the cgroup of the service to go", || {
        std::fs::remove_dir(&cgroup).is_ok() && std::fs::remove_dir(&bed.agent.slice).is_ok()
    })?;
    done
}

#[test]
fn what_systemd_starts_in_the_slice_is_mobile_whenever_the_slice_comes_and_goes() -> Outcome {
    let mut bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let [four, six] = urls("/ip");
    // The agent notices a slice that nothing has announced, on a busy machine later than systemd
    // starts the first program; services of the package's slice wait for it.
    let curl = |url: &str| format!("sleep 0.5; exec curl -s -m 2 {url}");
    for round in 0..3 {
        for (url, relay) in [(&four, addr::RELAY4.into()), (&six, std::net::IpAddr::V6(addr::RELAY6))] {
            let seen = in_slice(&bed, "a.service", &["sh", "-c", &curl(url)])?.ok()?;
            assert_eq!(ip_of(&seen), relay, "round {round}");
        }
        assert!(!bed.agent.slice.exists(), "somebody else keeps it");
    }

    // `ps` lists the service among other mobile processes, but only systemd may move it.
    let config = bed.agent.config().display().to_string();
    let mobile = bed.agent.binary().display().to_string();
    let verb = |verb: &str| format!("\"{mobile}\" {verb} --config \"{config}\" $$");
    let told = in_slice(&bed, "b.service", &["sh", "-c", &format!("{}; echo alive", verb("detach"))])?;
    assert!(told.stderr.contains("set another `Slice=`") && told.stdout == "alive\n", "{told:?}");
    let told =
        in_slice(&bed, "b.service", &["sh", "-c", &format!("{}; cat /proc/self/cgroup", verb("attach"))])?;
    assert!(told.stdout.contains("is mobile") && told.stdout.contains(".slice/b.service"), "{told:?}");
    let told = in_slice(&bed, "b.service", &["sh", "-c", &format!("{}; exit", verb("explain"))])?.ok()?;
    assert!(told.contains("is mobile") && told.contains("through the tunnel"), "{told}");
    let list = format!("\"{mobile}\" ps --config \"{config}\"; exit");
    let told = in_slice(&bed, "b.service", &["sh", "-c", &list])?.ok()?;
    assert!(told.contains("ps --config"), "{told}");

    // An existing slice stays mobile when the agent is killed, and when the next agent starts.
    std::fs::create_dir_all(bed.agent.slice.join("kept.service"))?;
    std::thread::sleep(Duration::from_millis(500));
    bed.agent.kill()?;
    let mut shell = bed.lab.host.command("sh");
    shell.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec curl -s -m 1 \"$1\""]);
    shell.arg(bed.agent.slice.join("kept.service")).arg(&four);
    assert!(!finish_within(&mut shell, None, PATIENCE)?.status.success());
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    assert_eq!(ip_of(&finish_within(&mut shell, None, PATIENCE)?.ok()?), std::net::IpAddr::V4(addr::RELAY4));
    assert_no_leak(&bed, captures)?;
    bed.finish()
}

/// Returns a process's permitted capabilities as a bit set, and the fields NoNewPrivs and Seccomp
/// of its `/proc/PID/status`.
fn confinement(pid: i32) -> Result<(u64, [String; 2])> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<String> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name} in {status}"))?.trim().to_owned())
    };
    let capabilities = u64::from_str_radix(&field("CapPrm:")?, 16)?;
    Ok((capabilities, [field("NoNewPrivs:")?, field("Seccomp:")?]))
}

/// Returns the process helper of an agent: its only child.
fn helper_of(agent: i32) -> Result<i32> {
    let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"))?;
    let children: Vec<i32> = children.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [helper] = children[..] else { anyhow::bail!("not one child of the agent: {children:?}") };
    Ok(helper)
}

#[test]
fn both_daemons_give_up_what_they_do_not_need_once_they_run() -> Outcome {
    let bed = Testbed::new()?;
    // Bits of linux/capability.h.
    const DAC_OVERRIDE: u64 = 1 << 1;
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_PTRACE: u64 = 1 << 19;
    const BPF: u64 = 1 << 39;
    let agent = bed.agent.pid().context("it runs")?;
    for (name, pid, kept) in [
        ("relay", bed.relay.pid().context("it runs")?, DAC_OVERRIDE | NET_ADMIN),
        // The process that parses network input cannot inspect other processes or overwrite others'
        // files.
        ("agent", agent, NET_ADMIN),
        ("process helper", helper_of(agent)?, BPF | DAC_OVERRIDE | NET_ADMIN | SYS_PTRACE),
    ] {
        let (capabilities, rest) = confinement(pid)?;
        assert_eq!(capabilities & !kept, 0, "{name}: {capabilities:x}");
        // Mode 2: a seccomp filter is in force.
        assert_eq!(rest, ["1", "2"], "{name}");
    }
    bed.finish()
}

#[test]
fn an_agent_that_lost_its_process_helper_ends_and_the_next_one_adopts_all() -> Outcome {
    let mut bed = Testbed::new()?;
    let agent = bed.agent.pid().context("it runs")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper_of(agent)?), Signal::SIGKILL)?;
    let stat = format!("/proc/{agent}/stat");
    until("the agent to end", || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")))?;
    assert!(bed.agent.log().contains("the process helper of the agent ended"), "{}", bed.agent.log());
    bed.expect_warning("the process helper of the agent ended");
    bed.agent.kill()?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    // The helper of a killed agent must end by itself.
    let agent = bed.agent.pid().context("it runs")?;
    let helper = helper_of(agent)?;
    bed.agent.kill()?;
    until("the helper to end", || !Path::new(&format!("/proc/{helper}")).exists())?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    let [four, _] = urls("/ip");
    let mut curl = bed.agent.run(&["curl", "-s", "-m", "5", &four]);
    let seen = finish_within(&mut curl, None, PATIENCE)?.ok()?;
    assert_eq!(ip_of(&seen), std::net::IpAddr::V4(addr::RELAY4));
    bed.finish()
}

//! Both programs as systemd's services: they say when they are ready, that they live, and that they go.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mobile_tests::{LabOptions, PATIENCE, Testbed};
use nix::sys::signal::Signal;

use crate::Outcome;

/// What `WatchdogSec=` would be; short, so that some feedings are seen soon.
const WATCHDOG: Duration = Duration::from_millis(600);

/// The socket systemd would give a service.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// What it is told next.
    fn hear(&self) -> Result<String> {
        let mut bytes = [0; 1024];
        let length = self.0.recv(&mut bytes).context("nothing was told")?;
        Ok(String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned())
    }

    /// Waits for `word`; the words before it.
    fn wait(&self, word: &str) -> Result<Vec<String>> {
        let mut before = Vec::new();
        loop {
            let told = self.hear().with_context(|| format!("no {word}; before it: {before:?}"))?;
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
    let managers = [Manager::new(&agent)?, Manager::new(&relay)?];
    bed.agent.set_variable("NOTIFY_SOCKET", agent.display().to_string());
    bed.agent.set_variable("WATCHDOG_USEC", micros.as_str());
    bed.relay.set_variable("NOTIFY_SOCKET", relay.display().to_string());
    bed.relay.set_variable("WATCHDOG_USEC", micros);
    bed.start()?;
    for manager in &managers {
        let before = manager.wait("READY=1")?;
        assert!(before.is_empty(), "told before it was ready: {before:?}");
        // What was told while nobody listened says nothing about now.
        manager.drain()?;
        let start = Instant::now();
        for _ in 0..5 {
            let fed = Instant::now();
            manager.wait("WATCHDOG=1")?;
            assert!(fed.elapsed() < WATCHDOG, "fed after {:?}", fed.elapsed());
        }
        // Repeatedly, not all at once.
        assert!(start.elapsed() > WATCHDOG, "five feedings in {:?}", start.elapsed());
    }

    // A process that does not run any more does not feed it either: that is what it is for.
    bed.agent.signal(Signal::SIGSTOP)?;
    managers[0].drain()?;
    managers[0].0.set_read_timeout(Some(WATCHDOG * 2))?;
    assert!(managers[0].hear().is_err(), "a stopped agent was heard");
    bed.agent.signal(Signal::SIGCONT)?;
    managers[0].0.set_read_timeout(Some(PATIENCE))?;
    managers[0].wait("WATCHDOG=1")?;

    // Type=notify-reload: SIGHUP, and the two words about it.
    bed.relay.signal(Signal::SIGHUP)?;
    let told = managers[1].wait("READY=1")?;
    let reloading = told.iter().find_map(|word| word.strip_prefix("RELOADING=1\nMONOTONIC_USEC="));
    let micros: u64 = reloading.with_context(|| format!("no reload in {told:?}"))?.parse()?;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let age = Duration::from(now).saturating_sub(Duration::from_micros(micros));
    assert!(age < PATIENCE, "a reload {age:?} ago");

    bed.agent.stop()?;
    managers[0].wait("STOPPING=1")?;
    bed.relay.stop()?;
    managers[1].wait("STOPPING=1")?;
    // A sleep of this length may be taken for the path's silence.
    bed.expect_warning("gone silent");
    bed.finish()
}

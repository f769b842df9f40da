//! One run of the chaos test: performs the events of the script, then checks the final state.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::flows::Flows;
use super::options::Options;
use super::resource_usage::ResourceUsage;
use super::script::{EventKind, Script};
use super::stage::Stage;
use crate::wait::{PATIENCE, wait_for};

/// The interval at which flows are checked while no event is due.
const SUPERVISE_INTERVAL: Duration = Duration::from_millis(100);

/// The interval at which both programs' memory and file descriptors are measured.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// The interval at which a long run prints its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// Runs a chaos test with its events and checks, and prints a summary on stdout.
pub fn run(options: &Options) -> Result<()> {
    let Options { seed, events, tunnel } = options;
    let script = Script::new(*seed, *events);
    println!("chaos: seed {seed}, {events} events in {} s", script.end().as_secs());
    let mut played = Vec::new();
    let outcome = play(&script, options, &mut played);
    if outcome.is_err() {
        println!("the script:\n{script}");
        for line in &played {
            println!("{line}");
        }
        let tunnel: String = tunnel.iter().map(|(key, value)| format!(" --tunnel {key}={value}")).collect();
        println!("replay this run with: cargo xtask test chaos --seed {seed} --events {events}{tunnel}");
    }
    outcome
}

fn play(script: &Script, options: &Options, played: &mut Vec<String>) -> Result<()> {
    let mut stage = Stage::new(&options.tunnel)?;
    // Every kind of event makes one of the programs warn.
    stage.bed.expect_warnings_of_all_kinds();
    let mut flows = Flows::start(&stage.bed, options.seed)?;
    let mut supervisor = Supervisor::new(script.calm_from());
    let mut survived: BTreeMap<EventKind, u64> = BTreeMap::new();
    for event in &script.events {
        supervisor.pass(&mut stage, &mut flows, event.at)?;
        played.push(format!("begun at {:8.3} s: {event}", supervisor.start.elapsed().as_secs_f64()));
        stage.perform(event)?;
        *survived.entry(event.kind).or_default() += 1;
        supervisor.report_progress(&survived);
    }
    let rest = stage.next_undo().map_or(Duration::ZERO, |at| at.saturating_duration_since(supervisor.start));
    supervisor.pass(&mut stage, &mut flows, rest)?;
    stage.repair()?;
    supervisor.sample(&stage)?;

    stage.bed.agent.wait_connected()?;
    flows.wait_moved().context("after the last event")?;
    one_active_path(&stage)?;
    let bytes = flows.finish()?;
    let resource_usage = supervisor.resource_usage.map(|resource_usage| resource_usage.check_growth());
    let took = supervisor.start.elapsed();
    stage.bed.finish()?;

    println!("survived {} events in {} s:", script.events.len(), took.as_secs());
    for (kind, count) in survived {
        println!("{count:6}  {}", kind.description());
    }
    println!("{bytes} bytes checked, none wrong or missing, no connection lost");
    for words in resource_usage {
        println!("{}", words?);
    }
    Ok(())
}

/// Checks the flows and measures both programs' resource usage between the events.
struct Supervisor {
    start: Instant,
    calm_from: Duration,
    resource_usage: [ResourceUsage; 2],
    sampled_at: Instant,
    reported_at: Instant,
}

impl Supervisor {
    fn new(calm_from: Duration) -> Self {
        let now = Instant::now();
        let resource_usage = [ResourceUsage::new("mobile"), ResourceUsage::new("home-relay")];
        Self { start: now, calm_from, resource_usage, sampled_at: now, reported_at: now }
    }

    /// Waits until the time `at` of the next event. Meanwhile undoes events whose time is over, and
    /// fails if a flow has failed.
    fn pass(&mut self, stage: &mut Stage, flows: &mut Flows, at: Duration) -> Result<()> {
        loop {
            let now = Instant::now();
            stage.undo_until(now)?;
            flows.supervise()?;
            if now >= self.start + self.calm_from && self.sampled_at.elapsed() >= SAMPLE_INTERVAL {
                self.sample(stage)?;
            }
            let Some(left) = at.checked_sub(self.start.elapsed()) else { return Ok(()) };
            let next = stage.next_undo().map_or(left, |at| at.saturating_duration_since(now).min(left));
            std::thread::sleep(next.min(SUPERVISE_INTERVAL));
        }
    }

    fn sample(&mut self, stage: &Stage) -> Result<()> {
        self.sampled_at = Instant::now();
        let [agent, relay] = &mut self.resource_usage;
        agent.sample(stage.bed.agent.pid())?;
        relay.sample(stage.bed.relay.pid())
    }

    fn report_progress(&mut self, survived: &BTreeMap<EventKind, u64>) {
        if self.reported_at.elapsed() >= PROGRESS_INTERVAL {
            self.reported_at = Instant::now();
            let count: u64 = survived.values().sum();
            println!("{} min: {count} events survived", self.start.elapsed().as_secs() / 60);
        }
    }
}

/// Waits until the agent and the relay agree on exactly one active path.
fn one_active_path(stage: &Stage) -> Result<()> {
    let (agent, relay) = (&stage.bed.agent, &stage.bed.relay);
    wait_for("one active path on both sides", PATIENCE, || {
        let sessions = relay.sessions()?;
        ensure!(sessions.len() == 1, "the relay has {} sessions", sessions.len());
        let active = relay.paths()?.iter().filter(|path| path["active"] == true).count();
        ensure!(active == 1, "the relay has {active} active paths");
        let uplinks: Vec<_> = agent.uplinks()?.into_iter().filter(|link| link["state"] == "active").collect();
        ensure!(uplinks.len() == 1, "the agent has {} active uplinks", uplinks.len());
        let status = agent.status()?;
        ensure!(
            status["session"] == "connected" && status["active_uplink"] == uplinks[0]["name"],
            "{status}"
        );
        Ok(Some(()))
    })
}

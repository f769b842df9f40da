//! One run: the script played to its end, and what must be true then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::flows::Flows;
use super::options::Options;
use super::script::{Kind, Script};
use super::stage::Stage;
use super::vitals::Vitals;
use crate::wait::{PATIENCE, wait_for};

/// How often flows are looked after while nothing happens.
const ROUND: Duration = Duration::from_millis(100);

/// How often memory and descriptors are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How often a long run says how far it is.
const TELL: Duration = Duration::from_secs(60);

/// Plays the script and checks everything; says on stdout what was survived.
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
        println!("the same again: cargo xtask test chaos --seed {seed} --events {events}{tunnel}");
    }
    outcome
}

fn play(script: &Script, options: &Options, played: &mut Vec<String>) -> Result<()> {
    let mut stage = Stage::new(&options.tunnel)?;
    // Every kind of trouble makes one of the programs warn.
    stage.bed.expect_warnings_of_all_kinds();
    let mut flows = Flows::start(&stage.bed, options.seed)?;
    let mut watch = Watch::new(script.calm_from());
    let mut survived: BTreeMap<Kind, u64> = BTreeMap::new();
    for event in &script.events {
        watch.pass(&mut stage, &mut flows, event.at)?;
        played.push(format!("begun at {:8.3} s: {event}", watch.start.elapsed().as_secs_f64()));
        stage.perform(event)?;
        *survived.entry(event.kind).or_default() += 1;
        watch.tell(&survived);
    }
    let rest = stage.next_undo().map_or(Duration::ZERO, |at| at.saturating_duration_since(watch.start));
    watch.pass(&mut stage, &mut flows, rest)?;
    stage.repair()?;
    watch.look(&stage)?;

    stage.bed.agent.wait_connected()?;
    flows.wait_moved().context("after the last event")?;
    one_active_path(&stage)?;
    let bytes = flows.finish()?;
    let vitals = watch.vitals.map(|vitals| vitals.verdict());
    let took = watch.start.elapsed();
    stage.bed.finish()?;

    println!("survived {} events in {} s:", script.events.len(), took.as_secs());
    for (kind, count) in survived {
        println!("{count:6}  {}", kind.words());
    }
    println!("{bytes} bytes checked, none wrong or missing, no connection lost");
    for words in vitals {
        println!("{}", words?);
    }
    Ok(())
}

/// Looks after everything while time passes.
struct Watch {
    start: Instant,
    calm_from: Duration,
    vitals: [Vitals; 2],
    looked: Instant,
    told: Instant,
}

impl Watch {
    fn new(calm_from: Duration) -> Self {
        let now = Instant::now();
        let vitals = [Vitals::new("mobile"), Vitals::new("home-relay")];
        Self { start: now, calm_from, vitals, looked: now, told: now }
    }

    /// Waits until `at` has passed since the start, undoes what is due meanwhile, and finds out who suffers.
    fn pass(&mut self, stage: &mut Stage, flows: &mut Flows, at: Duration) -> Result<()> {
        loop {
            let now = Instant::now();
            stage.undo_until(now)?;
            flows.supervise()?;
            if now >= self.start + self.calm_from && self.looked.elapsed() >= LOOK {
                self.look(stage)?;
            }
            let Some(left) = at.checked_sub(self.start.elapsed()) else { return Ok(()) };
            let next = stage.next_undo().map_or(left, |at| at.saturating_duration_since(now).min(left));
            std::thread::sleep(next.min(ROUND));
        }
    }

    fn look(&mut self, stage: &Stage) -> Result<()> {
        self.looked = Instant::now();
        let [agent, relay] = &mut self.vitals;
        agent.look(stage.bed.agent.pid())?;
        relay.look(stage.bed.relay.pid())
    }

    fn tell(&mut self, survived: &BTreeMap<Kind, u64>) {
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            let count: u64 = survived.values().sum();
            println!("{} min: {count} events survived", self.start.elapsed().as_secs() / 60);
        }
    }
}

/// Both sides have settled on one active path, and it is the same one.
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

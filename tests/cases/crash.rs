//! The relay is killed at random times. Afterwards its store opens and contains every acknowledged
//! change, each completely.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mobile_tests::{LabOptions, Ns, RELAY_PORT, Relay, Testbed, program, until};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::Outcome;

const KILLS: u32 = 100;
/// The longest time from the relay's start to its kill: several commands fit in, or about one
/// enrolment, so that kills interrupt both.
const LIFE: Duration = Duration::from_millis(250);

/// The state of one client name in the relay's store, as expected or as found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ClientState {
    Client { key: String, ipv4: String },
    Invited { ipv4: String },
    Gone,
}

/// The acknowledged commands of a worker, over all lives of the relay.
#[derive(Default)]
struct Progress {
    /// The number of names and addresses that the worker has used.
    count: u32,
    /// The state of each client name that these commands must have caused.
    known: BTreeMap<String, ClientState>,
}

/// One administrator, who uses client names of its own.
struct Worker<'a> {
    relay: &'a Relay,
    ns: Ns,
    dir: PathBuf,
    stop: &'a AtomicBool,
    random: StdRng,
    prefix: String,
    progress: Progress,
    /// The client name whose last command the relay did not acknowledge, so that the store may hold
    /// the old or the new state.
    doubtful: Option<String>,
}

impl<'a> Worker<'a> {
    fn new(bed: &'a Testbed, stop: &'a AtomicBool, number: usize, seed: u64, progress: Progress) -> Self {
        Self {
            relay: &bed.relay,
            ns: bed.lab.relay.clone(),
            dir: bed.lab.dir().to_owned(),
            stop,
            random: StdRng::seed_from_u64(seed),
            prefix: format!("w{number}"),
            progress,
            doubtful: None,
        }
    }

    /// Runs a command about the client `name` and returns the output, or `None` if the relay did
    /// not acknowledge the command.
    fn acknowledged(&mut self, name: &str, args: &[&str]) -> Result<Option<String>> {
        self.doubtful = Some(name.to_owned());
        let done = self.relay.cli(args)?;
        if done.code() != 0 {
            return Ok(None);
        }
        self.doubtful = None;
        Ok(Some(done.stdout))
    }

    fn fresh(&mut self) -> String {
        self.progress.count += 1;
        format!("{}-{}", self.prefix, self.progress.count)
    }

    /// Authorises and revokes clients, and changes their addresses, until `stop` is set or a
    /// command is not acknowledged.
    fn administer(&mut self) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let clients: Vec<(String, String)> = self
                .progress
                .known
                .iter()
                .filter_map(|(name, known)| match known {
                    ClientState::Client { key, .. } => Some((name.clone(), key.clone())),
                    _ => None,
                })
                .collect();
            let what = if clients.len() < 3 { 0 } else { self.random.random_range(0..3) };
            let (name, key) = match clients.get(self.random.random_range(0..clients.len().max(1))) {
                Some(client) if what > 0 => client.clone(),
                _ => (self.fresh(), STANDARD.encode(self.random.random::<[u8; 32]>())),
            };
            let said = match what {
                0 => self.acknowledged(&name, &["authorize", &name, &key])?,
                1 => {
                    self.progress.count += 1;
                    let count = self.progress.count;
                    let ipv4 = format!("10.77.{}.{}", 100 + count / 200, 1 + count % 200);
                    self.acknowledged(&name, &["authorize", &name, &key, "--ipv4", &ipv4])?
                }
                _ => self.acknowledged(&name, &["revoke", &name])?,
            };
            let Some(said) = said else { return Ok(()) };
            let known = match what {
                2 => ClientState::Gone,
                _ => ClientState::Client { key, ipv4: said.lines().next().context("an address")?.to_owned() },
            };
            self.progress.known.insert(name, known);
        }
        Ok(())
    }

    /// Invites and enrols clients until `stop` is set, which also kills an enrolment in progress.
    fn join(&mut self) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let name = self.fresh();
            let endpoint = format!("127.0.0.1:{RELAY_PORT}");
            let Some(invitation) = self.acknowledged(&name, &["invite", &name, "--endpoint", &endpoint])?
            else {
                return Ok(());
            };
            // Acknowledged, so it must be stored. A relay that is killed meanwhile does not report
            // the addresses.
            self.progress.known.insert(name.clone(), ClientState::Invited { ipv4: String::new() });
            let Some(ipv4) =
                self.relay.client(&name).ok().and_then(|it| Some(it["ipv4"].as_str()?.to_owned()))
            else {
                return Ok(());
            };
            self.progress.known.insert(name.clone(), ClientState::Invited { ipv4: ipv4.clone() });
            let config = self.config(&name);
            let mut enroll = self.ns.command(program("mobile")?);
            enroll.args(["enroll", "-", "--config"]).arg(&config);
            enroll.env("MOBILE_STATE_DIR", config.with_extension("state"));
            let quiet = enroll.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = quiet.spawn()?;
            child.stdin.take().context("a pipe")?.write_all(invitation.as_bytes())?;
            while child.try_wait()?.is_none() {
                if self.stop.load(Ordering::Relaxed) {
                    child.kill()?;
                    child.wait()?;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if !config.exists() {
                self.doubtful = Some(name);
                return Ok(());
            }
            // The agent has stored its configuration, so the relay must have stored the client. Its
            // key is looked up below.
            self.progress.known.insert(name, ClientState::Client { key: String::new(), ipv4 });
        }
        Ok(())
    }

    fn config(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("agent.toml")
    }

    /// Compares the expected states of this worker's names with `found`, the content of the relay's
    /// store.
    fn verify(&mut self, found: &BTreeMap<String, ClientState>) -> Result<()> {
        for (name, known) in found.iter().filter(|(name, _)| name.starts_with(&self.prefix)) {
            let expected = self.progress.known.get(name).is_some_and(|it| *it != ClientState::Gone);
            ensure!(expected || self.doubtful.as_ref() == Some(name), "{name} was not made: {known:?}");
        }
        for (name, known) in &mut self.progress.known {
            let now = found.get(name).cloned().unwrap_or(ClientState::Gone);
            if let (ClientState::Invited { ipv4 }, ClientState::Invited { .. }) = (&*known, &now)
                && ipv4.is_empty()
            {
                *known = now.clone();
            }
            if let (ClientState::Client { key, ipv4 }, ClientState::Client { key: found, ipv4: at }) =
                (&*known, &now)
                && (key.is_empty() && ipv4 == at && !found.is_empty())
            {
                *known = now.clone();
            }
            if *known == now {
                continue;
            }
            ensure!(
                self.doubtful.as_ref() == Some(name),
                "{name} was acknowledged as {known:?}, and is {now:?}"
            );
            let whole = match (&*known, &now) {
                // Invited and possibly enrolled: the addresses are the same.
                (ClientState::Invited { ipv4 }, ClientState::Client { ipv4: at, .. }) => ipv4 == at,
                // Possibly moved or revoked, but never with another key.
                (ClientState::Client { key, .. }, ClientState::Client { key: found, .. }) => key == found,
                (ClientState::Client { .. }, ClientState::Gone) => true,
                _ => false,
            };
            ensure!(whole, "{name} was {known:?} and is {now:?}");
            *known = now;
        }
        // A command that was not acknowledged but was executed is known from here on.
        if let Some(name) = self.doubtful.take()
            && let Some(now) = found.get(&name)
        {
            self.progress.known.insert(name, now.clone());
        }
        self.progress.known.retain(|_, known| *known != ClientState::Gone);
        Ok(())
    }
}

/// Reads the store of a relay that does not run, with `home-relay clients`.
fn read_store(relay: &Relay) -> Result<BTreeMap<String, ClientState>> {
    let listed: Value = serde_json::from_str(&relay.cli(&["clients", "--json"])?.ok()?)?;
    let (mut found, mut unique) = (BTreeMap::new(), BTreeSet::new());
    for entry in listed.as_array().context("a list")? {
        let text = |field: &str| entry[field].as_str().map(str::to_owned);
        let (name, ipv4) = (text("name").context("a name")?, text("ipv4").context("an IPv4 address")?);
        let ipv6 = text("ipv6").context("an IPv6 address")?;
        let known = match text("public_key") {
            Some(key) => {
                ensure!(unique.insert(key.clone()), "two clients have the key {key}");
                ClientState::Client { key, ipv4: ipv4.clone() }
            }
            None => ClientState::Invited { ipv4: ipv4.clone() },
        };
        ensure!(unique.insert(ipv4) && unique.insert(ipv6), "two have one address: {listed}");
        ensure!(found.insert(name.clone(), known).is_none(), "{name} is there twice: {listed}");
    }
    Ok(found)
}

#[test]
fn a_relay_killed_at_any_instant_forgets_nothing_it_acknowledged() -> Outcome {
    let seed = std::env::var("MOBILE_TEST_SEED").map_or_else(|_| Ok(rand::random()), |seed| seed.parse())?;
    println!("MOBILE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.configure("pool", "ipv4", "10.77.0.0/16")?;
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    let stop = AtomicBool::new(false);
    let mut kept = [Progress::default(), Progress::default()];
    let begun = Instant::now();
    for round in 0..KILLS {
        bed.relay.start()?;
        stop.store(false, Ordering::Relaxed);
        let life = LIFE.mul_f64(random.random());
        let mut number = 0;
        let mut workers = kept.map(|progress| {
            let worker = Worker::new(&bed, &stop, number, random.random(), progress);
            number += 1;
            worker
        });
        work_until_killed(&bed.relay, &mut workers, life)?;
        let found = read_store(&bed.relay).with_context(|| format!("seed {seed}, round {round}"))?;
        for worker in &mut workers {
            worker.verify(&found).with_context(|| format!("seed {seed}, round {round}"))?;
        }
        // A laptop has both key and configuration, or neither, whenever it was killed.
        for name in workers[1].progress.known.keys() {
            let config = workers[1].config(name);
            let key = config.with_file_name("agent.key");
            ensure!(!config.exists() || key.exists(), "seed {seed}, round {round}: {name} has no key");
        }
        kept = workers.map(|worker| worker.progress);
        bed.relay.kill()?;
    }
    let [administered, joined] = kept;
    let enrolled = joined.known.values().filter(|known| matches!(known, ClientState::Client { .. })).count();
    let pending = joined.known.len() - enrolled;
    println!(
        "{KILLS} kills, {} names authorised and moved, {enrolled} enrolled, {pending} invited, in {:?}",
        administered.count,
        begun.elapsed()
    );
    ensure!(
        administered.count > KILLS && enrolled > 10 && pending > 10,
        "too little was acknowledged to mean anything"
    );
    bed.finish()
}

/// Lets the first worker administer clients and the second one enrol them, kills the relay after
/// the time `life`, and waits until the workers have ended and the relay's socket is gone.
fn work_until_killed(relay: &Relay, workers: &mut [Worker<'_>; 2], life: Duration) -> Outcome {
    let [administrator, inviter] = workers;
    let stop = administrator.stop;
    std::thread::scope(|scope| {
        let running = [scope.spawn(|| administrator.administer()), scope.spawn(|| inviter.join())];
        std::thread::sleep(life);
        relay.signal(Signal::SIGKILL)?;
        stop.store(true, Ordering::Relaxed);
        running.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })?;
    // A killed process and its socket last for a moment. If the store does not open, the case
    // itself fails.
    let _ = until("the relay to be dead", || relay.cli(&["clients"]).is_ok_and(|it| it.code() == 0));
    Ok(())
}

//! The verb `mobile cleanup`, which removes every kernel object of the agent and succeeds if there
//! is none.
//!
//! Files stay: the configuration, the key and the addresses cached in `[state] dir`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mobile_host::control::{Client, ControlError};
use mobile_host::shutdown;
use mobile_host::text::printable;

use super::connect;
use crate::claims::{Claims, Setting};
use crate::cleanup::remove_everything;
use crate::config::{Config, DEFAULT_PATH};
use crate::footprint;
use crate::protocol::{Reply, Request};
use crate::selection::cgroup::MobileCgroup;

/// How long an agent that closes its connections may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before such an agent is asked again.
const END_PAUSE: Duration = Duration::from_millis(20);

/// Asks a running agent to remove everything and to end; without an agent, removes everything
/// itself.
///
/// With `unless_shutdown`, removes nothing while the machine shuts down, because mobile processes
/// that still run must not go direct.
pub(super) fn cleanup(path: Option<&Path>, log: Option<&str>, unless_shutdown: bool) -> anyhow::Result<()> {
    mobile_host::log::init(log, "MOBILE_LOG")?;
    if unless_shutdown && shutdown::is_under_way().context(
        "nothing was removed, because systemd does not tell whether the machine is shutting down: run `mobile cleanup`",
    )? {
        tracing::info!("the machine is shutting down: nothing removed, mobile processes wait until they end");
        return Ok(());
    }
    let record =
        footprint::state_file(path).context("cannot locate the record of the agent's kernel objects")?;
    let names = footprint::for_cleanup(path, &record)?;
    let file = mobile_host::config::identity(path.unwrap_or(Path::new(DEFAULT_PATH)));
    let before = present(&names);
    for config in &names {
        if is_anothers(config, path) {
            continue;
        }
        // The agent reads the record too.
        match ask_agent(&config.control.socket, &file)? {
            // The agent may lack the right to remove its record's directory.
            Some(Reply::Done) => {
                record.remove()?;
                return print_removed("the agent has ended; ", before, &names);
            }
            Some(Reply::Refused(reason)) => bail!("{}", printable(&reason)),
            Some(other) => return Err(super::unexpected(&other)),
            None => {}
        }
    }
    ensure!(nix::unistd::geteuid().is_root(), "only root may clean up: run `sudo mobile cleanup`");
    super::runtime()?.block_on(remove_everything(&names, path, &record, None))?;
    print_removed("", before, &names)
}

/// Returns whether the agent that listens on the configuration's control socket runs with another
/// configuration file, so that a request to clean up would remove what belongs to that one. False
/// for an ordinary user, who cannot find out.
fn is_anothers(config: &Config, path: Option<&Path>) -> bool {
    let running = Claims::of(config, path, None).in_use().unwrap_or_default();
    running.iter().any(|agent| agent.has(Setting::Socket) && !agent.is_own)
}

/// Names the kernel objects of the agents `names` that exist. Rules and routes come and go with the
/// device.
fn present(names: &[Config]) -> Vec<String> {
    let mut present = Vec::new();
    for config in names {
        let device = &config.tunnel.device;
        if Path::new("/proc/sys/net/ipv4/conf").join(device).exists() {
            present.push(format!("device {device} with its rules and routes"));
        }
        if std::fs::read_dir(&config.bpf.pin_dir).is_ok_and(|mut pins| pins.next().is_some()) {
            present.push(format!("eBPF programs in {}", config.bpf.pin_dir.display()));
        }
        if let Ok(Some(cgroup)) = MobileCgroup::existing(config.cgroup.path.as_deref()) {
            present.push(format!("cgroup {}", cgroup.dir().display()));
        }
    }
    // Two records of one agent may differ in other names only.
    let mut named = BTreeSet::new();
    present.retain(|object| named.insert(object.clone()));
    present
}

/// Says which of the objects that were there before were removed.
fn print_removed(what_ended: &str, before: Vec<String>, names: &[Config]) -> anyhow::Result<()> {
    let kept = present(names);
    let removed: Vec<String> = before.into_iter().filter(|object| !kept.contains(object)).collect();
    let removed = match &removed[..] {
        [] => "nothing to remove".to_owned(),
        removed => format!("removed: {}", removed.join(", ")),
    };
    super::print(&format!("{what_ended}{removed}\n"))
}

/// Asks the agent that listens on `socket` to clean up, if its configuration file is `config`;
/// returns `None` if no agent runs, or if it ended without a reply.
fn ask_agent(socket: &Path, config: &Path) -> anyhow::Result<Option<Reply>> {
    if let Ok(mut agent) = Client::connect(socket) {
        match connect::check_owner(&mut agent, socket, config) {
            // The agent is ending: see below.
            Err(error) if error.is::<ControlError>() => {}
            checked => checked?,
        }
    }
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        let answer = Client::connect(socket).and_then(|mut agent| agent.call::<_, Reply>(&Request::Cleanup));
        match answer {
            Ok(reply) => return Ok(Some(reply)),
            Err(ControlError::NotRunning { .. }) => return Ok(None),
            // The agent was ending while it was asked, and holds its objects until it has ended,
            // or it has too many connections of this user.
            Err(ControlError::HungUp(_)) if Instant::now() < deadline => std::thread::sleep(END_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

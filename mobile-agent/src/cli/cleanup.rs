//! `mobile cleanup`: removes every kernel object of the agent. What is gone already is fine.
//!
//! The addresses remembered in `[state] dir`, the configuration and the key are files, not kernel objects: they stay.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use mobile_io::control::{Client, ControlError};
use mobile_io::netlink::Netlink;
use mobile_io::shutdown;
use mobile_io::state_file::StateFile;

use crate::config::Config;
use crate::control::protocol::{Answer, Request};
use crate::footprint;
use crate::processes::{Job, ProcessHelper};
use crate::routing;
use crate::selection::bpf;
use crate::selection::cgroup::{CgroupError, MobileCgroup};
use crate::selection::owner;

/// Has a running agent remove everything and end; without an agent, this process removes
/// everything.
///
/// `unless_shutdown` removes nothing while the machine shuts down: mobile processes that still run
/// must not go direct.
pub(super) fn cleanup(config: Option<&Path>, log: Option<&str>, unless_shutdown: bool) -> anyhow::Result<()> {
    mobile_io::log::init(log, "MOBILE_LOG")?;
    if unless_shutdown && shutdown::is_under_way().context(
        "nothing removed, because systemd does not say whether the machine shuts down: run `mobile cleanup`",
    )? {
        tracing::info!("the machine shuts down: nothing removed, mobile processes wait until they end");
        return Ok(());
    }
    let record = footprint::record(config).context("cannot find what the agent recorded")?;
    let names = footprint::known(config, &record)?;
    for config in &names {
        match Client::connect(&config.control.socket) {
            // The agent reads the records too.
            Ok(mut agent) => {
                return match super::ask(&mut agent, &Request::Cleanup)? {
                    // The agent may lack the right to remove its record's directory.
                    Answer::Done => record.remove().map_err(Into::into),
                    other => Err(super::unexpected(&other)),
                };
            }
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(nix::unistd::geteuid().is_root(), "only root may clean up: try it with sudo");
    super::runtime()?.block_on(remove_everything(&names, &record, None))
}

/// Removes each set of kernel objects, and then their record. Tries everything and reports every
/// error. A running agent has given up the right to move others' processes, so its `helper` does
/// that.
pub(crate) async fn remove_everything(
    names: &[Config],
    record: &StateFile,
    helper: Option<&ProcessHelper>,
) -> anyhow::Result<()> {
    let mut errors: Vec<anyhow::Error> = Vec::new();
    for config in names {
        errors.extend(remove(config, helper).await);
    }
    if errors.is_empty() {
        return record.remove().map_err(Into::into);
    }
    for error in &errors {
        tracing::error!(error = super::story(error), "not removed");
    }
    bail!("{} things could not be removed (see above): try again", errors.len())
}

async fn remove(config: &Config, helper: Option<&ProcessHelper>) -> Vec<anyhow::Error> {
    let mut errors: Vec<anyhow::Error> = Vec::new();
    // First nobody is mobile, then the route goes, and the programs at last: wherever this ends early, who is mobile no more
    // gets the ordinary route, and what was sent by the MOBILE one does not leave beside it.
    errors.extend(remove_cgroup(config, helper).err());
    match Netlink::new() {
        Ok(netlink) => errors.extend(routing::remove(config, &netlink, true).await),
        Err(error) => errors.push(error.into()),
    }
    if let Err(error) = bpf::remove(&config.bpf.pin_dir) {
        errors.push(error.into());
    }
    errors
}

fn remove_cgroup(config: &Config, helper: Option<&ProcessHelper>) -> anyhow::Result<()> {
    match MobileCgroup::existing(config.cgroup.path.as_deref()) {
        Ok(Some(cgroup)) if owner::may_remove(&cgroup)? => match helper {
            Some(helper) => Ok(helper.run(&Job::RemoveCgroup { path: config.cgroup.path.clone() }, None)?),
            None => Ok(cgroup.remove()?),
        },
        Ok(Some(cgroup)) => {
            let cgroup = cgroup.dir().display();
            tracing::info!(%cgroup, "left: it belongs to the agent of another network namespace");
            Ok(())
        }
        // Without cgroup2 there is no mobile cgroup either.
        Ok(None) | Err(CgroupError::NoCgroup2) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

//! The verb `mobile cleanup`, which removes every kernel object of the agent and succeeds if there
//! is none.
//!
//! Files stay: the configuration, the key and the addresses cached in `[state] dir`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use mobile_host::control::{Client, ControlError};
use mobile_host::shutdown;
use mobile_host::state_file::StateFile;
use mobile_netlink::Netlink;

use crate::config::Config;
use crate::control::protocol::{Reply, Request};
use crate::footprint;
use crate::processes::{Job, ProcessHelper};
use crate::routing;
use crate::selection::bpf;
use crate::selection::cgroup::{CgroupError, MobileCgroup};
use crate::selection::cgroup_lock;

/// Asks a running agent to remove everything and to end; without an agent, removes everything
/// itself.
///
/// With `unless_shutdown`, removes nothing while the machine shuts down, because mobile processes
/// that still run must not go direct.
pub(super) fn cleanup(config: Option<&Path>, log: Option<&str>, unless_shutdown: bool) -> anyhow::Result<()> {
    mobile_host::log::init(log, "MOBILE_LOG")?;
    if unless_shutdown && shutdown::is_under_way().context(
        "nothing was removed, because systemd does not tell whether the machine is shutting down: run `mobile cleanup`",
    )? {
        tracing::info!("the machine is shutting down: nothing removed, mobile processes wait until they end");
        return Ok(());
    }
    let record =
        footprint::state_file(config).context("cannot locate the record of the agent's kernel objects")?;
    let names = footprint::for_cleanup(config, &record)?;
    for config in &names {
        match Client::connect(&config.control.socket) {
            // The agent reads the record too.
            Ok(mut agent) => {
                return match super::ask(&mut agent, &Request::Cleanup)? {
                    // The agent may lack the right to remove its record's directory.
                    Reply::Done => record.remove().map_err(Into::into),
                    other => Err(super::unexpected(&other)),
                };
            }
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(nix::unistd::geteuid().is_root(), "only root may clean up: run `sudo mobile cleanup`");
    super::runtime()?.block_on(remove_everything(&names, &record, None))
}

/// Removes the kernel objects that each configuration in `names` names, then `record`, the file
/// that lists these names. Continues after an error and reports every error.
///
/// A running agent has dropped the capabilities to move other users' processes, so its `helper`
/// moves them.
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
        tracing::error!(error = mobile_host::error_chain(error), "cannot remove a kernel object");
    }
    bail!("{} kernel objects could not be removed, see the errors above: try again", errors.len())
}

async fn remove(config: &Config, helper: Option<&ProcessHelper>) -> Vec<anyhow::Error> {
    let mut errors: Vec<anyhow::Error> = Vec::new();
    // The order keeps traffic off the uplinks if this stops half-way: without the cgroup, no
    // process is mobile and new connections use the ordinary route; the programs go last, because
    // until then they stop packets of marked sockets from leaving by an uplink.
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
        Ok(Some(cgroup)) if cgroup_lock::may_remove(&cgroup)? => match helper {
            Some(helper) => Ok(helper.run(&Job::RemoveCgroup { path: config.cgroup.path.clone() }, None)?),
            None => Ok(cgroup.remove()?),
        },
        Ok(Some(cgroup)) => {
            let cgroup = cgroup.dir().display();
            tracing::info!(%cgroup, "kept the cgroup: it belongs to the agent of another network namespace");
            Ok(())
        }
        // Without cgroup2 there is no mobile cgroup either.
        Ok(None) | Err(CgroupError::NoCgroup2(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

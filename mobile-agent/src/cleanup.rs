//! Removes the kernel objects of an agent, for `mobile cleanup` with or without a running agent.
//! What another running agent has claimed stays.

use std::path::Path;

use anyhow::{Context as _, bail};
use mobile_host::error_chain;
use mobile_host::in_use::retry_while_in_use;
use mobile_host::state_file::StateFile;
use mobile_netlink::Netlink;

use crate::claims::{Claims, InUse, Setting};
use crate::config::Config;
use crate::processes::{Job, ProcessHelper};
use crate::routing::{self, HostDevice};
use crate::selection::bpf;
use crate::selection::cgroup::{CgroupError, MobileCgroup};
use crate::selection::cgroup_lock;

/// The settings that name what a clean-up removes.
const REMOVED: [Setting; 5] =
    [Setting::Cgroup, Setting::Device, Setting::Table, Setting::RelayTable, Setting::PinDir];

/// Removes the kernel objects that each configuration in `names` names, then `record`, the file
/// that lists these names; `path` is the configuration file, or the default one if `None`.
/// Continues after an error and reports every error.
///
/// A running agent has dropped the capabilities to move other users' processes, so its `helper`
/// moves them.
pub(crate) async fn remove_everything(
    names: &[Config],
    path: Option<&Path>,
    record: &StateFile,
    helper: Option<&ProcessHelper>,
) -> anyhow::Result<()> {
    let mut errors: Vec<anyhow::Error> = Vec::new();
    for config in names {
        let in_use = in_use(config, path)?;
        errors.extend(remove(config, &in_use, helper).await);
    }
    if errors.is_empty() {
        return record.remove().map_err(Into::into);
    }
    for error in &errors {
        tracing::error!(error = error_chain(error), "cannot remove a kernel object");
    }
    bail!("{} kernel objects could not be removed, see the errors above: try again", errors.len())
}

/// Returns the other running agents that have claimed a part of what `config` names, and logs what
/// stays because of them. Fails if an agent that runs with this configuration does not end in 1 s.
fn in_use(config: &Config, path: Option<&Path>) -> anyhow::Result<Vec<InUse>> {
    let claims = Claims::of(config, path, None);
    let others = retry_while_in_use(
        || match claims.in_use() {
            Ok(running) => running.iter().find(|agent| agent.is_own).map_or(Ok(Ok(running.clone())), |own| {
                Err(anyhow::anyhow!("{} is starting or ending: try again", own.owner()))
            }),
            Err(error) => Ok(Err(error)),
        },
        |_| true,
    )?;
    let others = others.context("cannot find out which agents run on this machine")?;
    for agent in &others {
        let kept = agent.only(&REMOVED);
        if !kept.conflicts.is_empty() {
            let owner = agent.config.display();
            tracing::info!("kept: {}; `mobile cleanup --config {owner}` removes it", kept.what());
        }
    }
    Ok(others)
}

async fn remove(config: &Config, in_use: &[InUse], helper: Option<&ProcessHelper>) -> Vec<anyhow::Error> {
    let mut errors: Vec<anyhow::Error> = Vec::new();
    let is_free = |setting| !in_use.iter().any(|agent| agent.has(setting));
    // The order keeps traffic off the uplinks if this stops half-way: without the cgroup, no
    // process is mobile and new connections use the ordinary route; the programs go last, because
    // until then they stop packets of marked sockets from leaving by an uplink.
    if is_free(Setting::Cgroup) {
        errors.extend(remove_cgroup(config, helper).err());
    }
    let device = if is_free(Setting::Device) { HostDevice::Remove } else { HostDevice::Foreign };
    let tables = [(Setting::Table, config.routing.table), (Setting::RelayTable, config.routing.relay_table)];
    let tables: Vec<u32> = tables.into_iter().filter(|it| is_free(it.0)).map(|it| it.1).collect();
    match Netlink::new() {
        Ok(netlink) => errors.extend(routing::remove(config, &netlink, device, &tables).await),
        Err(error) => errors.push(error.into()),
    }
    if is_free(Setting::PinDir)
        && let Err(error) = bpf::remove(&config.bpf.pin_dir)
    {
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

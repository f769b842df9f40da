//! Removes the kernel objects of an agent, for `mobile cleanup` with or without a running agent.

use anyhow::bail;
use mobile_host::error_chain;
use mobile_host::state_file::StateFile;
use mobile_netlink::Netlink;

use crate::config::Config;
use crate::processes::{Job, ProcessHelper};
use crate::routing::{self, HostDevice};
use crate::selection::bpf;
use crate::selection::cgroup::{CgroupError, MobileCgroup};
use crate::selection::cgroup_lock;

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
        tracing::error!(error = error_chain(error), "cannot remove a kernel object");
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
        Ok(netlink) => errors.extend(routing::remove(config, &netlink, HostDevice::Remove).await),
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

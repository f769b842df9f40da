//! `mobile cleanup`: removes every kernel object of the agent. What is gone already is fine.
//!
//! The addresses remembered in `[state] dir`, the configuration and the key are files, not kernel objects: they stay.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use mobile_io::control::{Client, ControlError};
use mobile_io::netlink::Netlink;

use crate::config::Config;
use crate::control::protocol::{Answer, Request};
use crate::processes::{Job, ProcessHelper};
use crate::routing;
use crate::selection::bpf;
use crate::selection::cgroup::{CgroupError, MobileCgroup};

/// A running agent does it and ends; without one this process does it.
pub(super) fn cleanup(config: Option<&Path>, log: Option<&str>) -> anyhow::Result<()> {
    mobile_io::log::init(log, "MOBILE_LOG")?;
    let config = Config::load(config)?;
    match Client::connect(&config.control.socket) {
        Ok(mut agent) => match super::ask(&mut agent, &Request::Cleanup)? {
            Answer::Done => Ok(()),
            other => Err(super::unexpected(&other)),
        },
        Err(ControlError::NotRunning { .. }) => {
            ensure!(nix::unistd::geteuid().is_root(), "only root may clean up: try it with sudo");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            runtime.block_on(remove_everything(&config, None))
        }
        Err(error) => Err(error.into()),
    }
}

/// Tries everything, reports every error. A running agent has given up the right to move others'
/// processes, and has its `helper` do that.
pub(crate) async fn remove_everything(config: &Config, helper: Option<&ProcessHelper>) -> anyhow::Result<()> {
    let mut errors: Vec<anyhow::Error> = Vec::new();
    // First nobody is mobile, then the route goes, and the programs at last: wherever this ends early, who is mobile no more
    // gets the ordinary route, and what was sent by the MOBILE one does not leave beside it.
    match MobileCgroup::existing(config.cgroup.path.as_deref()) {
        Ok(Some(cgroup)) => match helper {
            Some(helper) => errors.extend(helper.run::<()>(&Job::RemoveCgroup, None).err().map(Into::into)),
            None => errors.extend(cgroup.remove().err().map(Into::into)),
        },
        // Where there is no cgroup2 there is no cgroup of ours.
        Ok(None) | Err(CgroupError::NoCgroup2) => {}
        Err(error) => errors.push(error.into()),
    }
    match Netlink::new() {
        Ok(netlink) => errors.extend(routing::remove(config, &netlink, true).await),
        Err(error) => errors.push(error.into()),
    }
    if let Err(error) = bpf::remove(&config.bpf.pin_dir) {
        errors.push(error.into());
    }
    if errors.is_empty() {
        return Ok(());
    }
    for error in &errors {
        tracing::error!(error = super::story(error), "not removed");
    }
    bail!("{} things could not be removed (see above): try again", errors.len())
}

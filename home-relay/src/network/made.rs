//! Records the changes that a pass over the kernel's state made: their names, for the log, and the
//! actions that undo them, for a start that fails half-way.

use ipnet::IpNet;
use mobile_io::netlink::Netlink;
use mobile_io::{sysctl, tun};
use tracing::warn;

use super::nft;

/// An action that undoes one change.
#[derive(Debug)]
pub(super) enum Step {
    RemoveDevice(String),
    RemoveAddress(u32, IpNet),
    RemoveTable(String),
    RestoreSetting { name: String, value: String },
}

/// The changes of one pass, each with its name and with the action that undoes it, if any.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<(String, Option<Step>)>);

impl Made {
    /// Records a change that was made.
    pub(super) fn push(&mut self, what: impl Into<String>, step: impl Into<Option<Step>>) {
        self.0.push((what.into(), step.into()));
    }

    /// Sets a sysctl, records the change if there was one, and returns the previous value.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<Option<String>, sysctl::SysctlError> {
        let before = sysctl::ensure(name, value)?;
        if let Some(before) = before.clone() {
            self.push(name, Step::RestoreSetting { name: name.to_owned(), value: before });
        }
        Ok(before)
    }

    /// Returns the names of the changes.
    pub(super) fn names(self) -> Vec<String> {
        self.0.into_iter().map(|(what, _)| what).collect()
    }

    /// Undoes all changes in reverse order; a failure is logged and does not stop the others.
    pub(super) async fn roll_back(self) {
        for step in self.0.into_iter().rev().filter_map(|(_, step)| step) {
            if let Err(error) = step.unmake().await {
                warn!("cannot undo a change of the failed start: {error:#}; `home-relay cleanup` may help");
            }
        }
    }
}

impl Step {
    async fn unmake(self) -> anyhow::Result<()> {
        match self {
            Self::RemoveDevice(name) => {
                tun::remove(&name)?;
            }
            Self::RemoveAddress(index, net) => {
                Netlink::new()?.del_address(index, net).await?;
            }
            Self::RemoveTable(table) => {
                nft::remove(&table)?;
            }
            Self::RestoreSetting { name, value } => sysctl::write(&name, &value)?,
        }
        Ok(())
    }
}

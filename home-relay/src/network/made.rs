//! What a pass over the kernel's state had to make or change: named, for the log; and to be unmade in reverse, for a start
//! that fails half-way.

use ipnet::IpNet;
use mobile_io::netlink::Netlink;
use mobile_io::{sysctl, tun};
use tracing::warn;

use super::nft;

/// What unmakes one thing.
#[derive(Debug)]
pub(super) enum Step {
    RemoveDevice(String),
    RemoveAddress(u32, IpNet),
    RemoveTable(String),
    RestoreSetting { name: String, value: String },
}

/// The things so far, each by its name and by what unmakes it, if anything has to.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<(String, Option<Step>)>);

impl Made {
    /// This was made or changed just now.
    pub(super) fn push(&mut self, what: impl Into<String>, step: impl Into<Option<Step>>) {
        self.0.push((what.into(), step.into()));
    }

    /// Gives a setting of the kernel its value.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<Option<String>, sysctl::SysctlError> {
        let before = sysctl::ensure(name, value)?;
        if let Some(before) = before.clone() {
            self.push(name, Step::RestoreSetting { name: name.to_owned(), value: before });
        }
        Ok(before)
    }

    /// What they are.
    pub(super) fn names(self) -> Vec<String> {
        self.0.into_iter().map(|(what, _)| what).collect()
    }

    /// Unmakes everything; a step that fails is logged and does not stop the others.
    pub(super) async fn roll_back(self) {
        for step in self.0.into_iter().rev().filter_map(|(_, step)| step) {
            if let Err(error) = step.unmake().await {
                warn!("cleaning up after the failed start: {error:#}; `home-relay cleanup` may help");
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

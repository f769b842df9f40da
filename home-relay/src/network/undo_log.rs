//! Records the changes that one set-up or reconciliation made to the kernel's network state: their
//! names, for the log, and the actions that undo them, for a start that fails half-way.

use ipnet::IpNet;
use mobile_host::sysctl;
use mobile_netlink::Netlink;
use mobile_transport::tun;
use tracing::warn;

use super::nft;

/// An action that undoes one change of the kernel's network state.
#[derive(Debug)]
pub(super) enum UndoAction {
    RemoveDevice(String),
    RemoveAddress(u32, IpNet),
    RemoveTable(String),
    RestoreSetting { name: String, value: String },
}

/// The changes that one set-up or reconciliation made to the kernel's network state, each with its
/// name and with the action that undoes it, if any.
#[derive(Debug, Default)]
pub(super) struct UndoLog(Vec<(String, Option<UndoAction>)>);

impl UndoLog {
    /// Records a change that was made, with the action that undoes it, if any.
    pub(super) fn record(&mut self, name: impl Into<String>, action: impl Into<Option<UndoAction>>) {
        self.0.push((name.into(), action.into()));
    }

    /// Sets a sysctl and records the change; returns the previous value, or `None` if nothing
    /// changed.
    pub(super) fn set_sysctl(
        &mut self,
        name: &str,
        value: &str,
    ) -> Result<Option<String>, sysctl::SysctlError> {
        let before = sysctl::ensure(name, value)?;
        if let Some(before) = before.clone() {
            self.record(name, UndoAction::RestoreSetting { name: name.to_owned(), value: before });
        }
        Ok(before)
    }

    /// Returns the names of the recorded changes.
    pub(super) fn into_names(self) -> Vec<String> {
        self.0.into_iter().map(|(name, _)| name).collect()
    }

    /// Undoes all changes in reverse order; a failure is logged and does not stop the others.
    pub(super) async fn roll_back(self) {
        for action in self.0.into_iter().rev().filter_map(|(_, action)| action) {
            if let Err(error) = action.undo().await {
                warn!("cannot undo a change of the failed start: {error:#}; `home-relay cleanup` may help");
            }
        }
    }
}

impl UndoAction {
    async fn undo(self) -> anyhow::Result<()> {
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

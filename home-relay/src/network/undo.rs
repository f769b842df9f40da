//! What a start that fails half-way has made, to be unmade in reverse.

use ipnet::IpNet;
use mobile_io::netlink::Netlink;
use mobile_io::{sysctl, tun};
use tracing::warn;

use super::nft;

/// One thing that was made, by what unmakes it.
#[derive(Debug)]
pub(super) enum Step {
    RemoveDevice(String),
    RemoveAddress(u32, IpNet),
    RemoveTable,
    RestoreSetting { name: String, value: String },
}

/// The steps so far.
#[derive(Debug, Default)]
pub(super) struct Undo(Vec<Step>);

impl Undo {
    /// This was made just now.
    pub(super) fn push(&mut self, step: Step) {
        self.0.push(step);
    }

    /// Unmakes everything; a step that fails is logged and does not stop the others.
    pub(super) async fn roll_back(self) {
        for step in self.0.into_iter().rev() {
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
            Self::RemoveTable => {
                nft::remove()?;
            }
            Self::RestoreSetting { name, value } => sysctl::write(&name, &value)?,
        }
        Ok(())
    }
}

//! Being told that a table of nftables changed.

use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::task::coop::consume_budget;

use super::NetlinkError;
use super::subscription::{Heard, Subscription};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// A subscription to what the kernel tells of one nftables table, in whatever family.
pub struct TableWatch {
    subscription: Subscription,
    /// With its closing zero, as messages have it.
    name: Vec<u8>,
}

impl TableWatch {
    /// Subscribes, in this thread's network namespace, to the table `name`, which need not be there. Wants a runtime,
    /// and `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// When the kernel gives no socket: it has no netfilter.
    pub fn new(name: &str) -> Result<Self, NetlinkError> {
        let subscription = Subscription::new(NETLINK_NETFILTER, 0, &[GROUP]);
        let subscription = subscription.map_err(|error| NetlinkError::Socket {
            what: "subscribe to changes of nftables".to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self { subscription, name: [name.as_bytes(), &[0]].concat() })
    }

    /// Waits until something in the table, or the table itself, was made, changed or removed, by us or others. Other
    /// tables' changes are passed over; now and then one may be taken for ours, as after an overrun.
    ///
    /// A future dropped before it is ready has taken nothing that matters.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            // Of others' tables there may be more than we can read.
            consume_budget().await;
            let heard = self.subscription.next().await.map_err(|error| NetlinkError::Socket {
                what: "wait for a change of nftables".to_owned(),
                message: error.to_string(),
            })?;
            let ours = match heard {
                // Every message but the last of a transaction names its table. To look for the name anywhere is
                // enough: what is found by chance costs one look.
                Heard::Messages(bytes) => bytes.windows(self.name.len()).any(|window| window == self.name),
                Heard::Overrun => true,
            };
            if ours {
                return Ok(());
            }
        }
    }
}

impl std::fmt::Debug for TableWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableWatch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::tests::in_new_namespace;
    use super::*;

    fn nft(command: &str) {
        assert!(Command::new("nft").arg(command).status().unwrap().success(), "nft {command}");
    }

    #[test]
    fn every_change_of_the_table_is_told_and_none_of_anothers() {
        in_new_namespace(async {
            let mut watch = TableWatch::new("ours").unwrap();
            for (command, expected) in [
                ("add table inet ours", true),
                ("add table inet theirs", false),
                ("add chain inet theirs a", false),
                ("add chain inet ours a", true),
                ("add rule inet ours a accept", true),
                ("flush chain inet theirs a", false),
                ("flush chain inet ours a", true),
                ("add table inet ours { flags dormant; }", true),
                ("delete table inet ours", true),
                ("add table inet ours", true),
                ("flush ruleset", true),
                ("add table inet theirs", false),
            ] {
                nft(command);
                let mut told = false;
                while timeout(Duration::from_millis(100), watch.changed()).await.is_ok() {
                    told = true;
                }
                assert_eq!(told, expected, "nft {command}");
            }
        });
    }
}

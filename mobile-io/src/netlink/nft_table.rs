//! Asks the kernel itself about an nftables table: whether it exists, and when it changes.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::NLMSG_ERROR;
use tokio::task::coop::consume_budget;

use super::NetlinkError;
use super::subscription::{Notification, Subscription};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// `NFT_MSG_GETTABLE` of the subsystem `NFNL_SUBSYS_NFTABLES`.
const GET_TABLE: u16 = (10 << 8) | 1;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;

/// Returns whether the table `name` of family inet is in the kernel, in this thread's network
/// namespace. Does not need the `nft` program, which may be missing while its rules are in force.
///
/// # Errors
/// When the kernel does not answer, or does not let us ask (`CAP_NET_ADMIN`).
pub fn table_exists(name: &str) -> Result<bool, NetlinkError> {
    let refused =
        |source| NetlinkError::Refused { what: format!("look for table inet {name} of nftables"), source };
    match ask_for_table(name) {
        Ok(()) => Ok(true),
        // No such table; no nf_tables in this kernel; no netfilter at all.
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => Ok(false),
            _ => Err(refused(error)),
        },
    }
}

/// Requests one table; the error is the kernel's answer.
fn ask_for_table(name: &str) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&table_request(name), &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(8192);
    loop {
        answer.clear();
        let (_, from) = socket.recv_from(&mut answer, 0)?;
        // Any process may send to a netlink socket; port 0 is the kernel.
        if from.port_number() == 0 {
            break;
        }
    }
    // struct nlmsghdr: length, type; behind its 16 bytes, struct nlmsgerr begins with the error.
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let error = answer.get(16..20).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match (kind, error) {
        (Some(kind), Some(error)) if i32::from(kind) == NLMSG_ERROR && error != 0 => {
            Err(io::Error::from_raw_os_error(-error))
        }
        (Some(_), Some(_)) => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Builds `struct nlmsghdr`, `struct nfgenmsg`, and the table's name as the only attribute.
fn table_request(name: &str) -> Vec<u8> {
    // A device's name has at most 15 bytes, so the names of our tables fit easily.
    let attribute = u16::try_from(4 + name.len() + 1).unwrap_or(u16::MAX);
    let padding = usize::from(attribute).next_multiple_of(4) - usize::from(attribute);
    let length = 16 + 4 + u32::from(attribute) + u32::try_from(padding).unwrap_or(0);
    let mut message = Vec::with_capacity(64);
    message.extend(length.to_ne_bytes());
    message.extend(GET_TABLE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number and port: the socket carries this one request only.
    message.extend([0; 8]);
    // Version 0 and resource id 0.
    message.extend([INET, 0, 0, 0]);
    message.extend(attribute.to_ne_bytes());
    message.extend(TABLE_NAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.resize(message.len() + 1 + padding, 0);
    message
}

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
                Notification::Messages(bytes) => {
                    bytes.windows(self.name.len()).any(|window| window == self.name)
                }
                Notification::Overrun => true,
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
    fn a_table_is_found_without_the_nft_program() {
        in_new_namespace(async {
            assert!(!table_exists("ours").unwrap());
            for (command, there) in [
                ("add table inet ours", true),
                ("add table inet ours_2", true),
                ("delete table inet ours", false),
                ("add table ip ours", false),
            ] {
                nft(command);
                assert_eq!(table_exists("ours").unwrap(), there, "nft {command}");
            }
            for length in 1..=16 {
                let name = "x".repeat(length);
                assert!(!table_exists(&name).unwrap());
                nft(&format!("add table inet {name}"));
                assert!(table_exists(&name).unwrap(), "{name}");
            }
        });
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

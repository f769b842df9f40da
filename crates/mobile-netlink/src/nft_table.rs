//! Asks the kernel whether an nftables table exists, and watches the table for changes, without the
//! `nft` program.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::NLMSG_ERROR;
use tokio::task::coop::consume_budget;

use super::NetlinkError;
use super::subscription::{Notification, Subscription};

/// The netlink multicast group with notifications of nftables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;

/// The type of a netlink request for a table (`NFT_MSG_GETTABLE` of the subsystem
/// `NFNL_SUBSYS_NFTABLES`).
const GET_TABLE: u16 = (10 << 8) | 1;
/// The flag that every netlink request carries (`NLM_F_REQUEST`).
const REQUEST: u16 = 1;
/// The nftables family inet, for IPv4 and IPv6 (`NFPROTO_INET`).
const INET: u8 = 1;
/// The attribute of a table's name (`NFTA_TABLE_NAME`).
const TABLE_NAME: u16 = 1;

/// Returns whether the table `name` of family inet exists in this thread's network namespace.
///
/// Does not need the `nft` program, which may be missing while its rules are in force.
///
/// # Errors
/// When the kernel does not reply or denies the request (it requires `CAP_NET_ADMIN`).
pub fn table_exists(name: &str) -> Result<bool, NetlinkError> {
    let refused =
        |source| NetlinkError::Refused { what: format!("look up the nftables table inet {name}"), source };
    match ask_for_table(name) {
        Ok(()) => Ok(true),
        // There is no such table, no nf_tables in this kernel, or no netfilter at all.
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => Ok(false),
            _ => Err(refused(error)),
        },
    }
}

/// Requests the nftables table `name` from the kernel; returns the kernel's error if the request is
/// refused or the table does not exist.
fn ask_for_table(name: &str) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&table_request(name), &SocketAddr::new(0, 0), 0)?;
    let mut reply = Vec::with_capacity(8192);
    loop {
        reply.clear();
        let (_, from) = socket.recv_from(&mut reply, 0)?;
        // Any process may send to a netlink socket; port 0 is the kernel.
        if from.port_number() == 0 {
            break;
        }
    }
    // struct nlmsghdr begins with length and type. It has 16 bytes, behind which struct nlmsgerr
    // begins with the error.
    let kind = reply.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let error = reply.get(16..20).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match (kind, error) {
        (Some(kind), Some(error)) if i32::from(kind) == NLMSG_ERROR && error != 0 => {
            Err(io::Error::from_raw_os_error(-error))
        }
        (Some(_), Some(_)) => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Builds the netlink request for a table: `struct nlmsghdr`, `struct nfgenmsg`, and the table's
/// name as the only attribute.
fn table_request(name: &str) -> Vec<u8> {
    // Tables are named after devices, whose names have at most 15 bytes, so the length fits.
    let attribute = u16::try_from(4 + name.len() + 1).unwrap_or(u16::MAX);
    let padding = usize::from(attribute).next_multiple_of(4) - usize::from(attribute);
    let length = 16 + 4 + u32::from(attribute) + u32::try_from(padding).unwrap_or(0);
    let mut message = Vec::with_capacity(64);
    message.extend(length.to_ne_bytes());
    message.extend(GET_TABLE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number and port are zero: the socket carries this one request only.
    message.extend([0; 8]);
    // Version 0 and resource ID 0.
    message.extend([INET, 0, 0, 0]);
    message.extend(attribute.to_ne_bytes());
    message.extend(TABLE_NAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.resize(message.len() + 1 + padding, 0);
    message
}

/// A subscription to changes of the nftables tables with one name, in any family.
pub struct TableWatch {
    subscription: Subscription,
    /// The name of the watched table with a terminating zero byte, as in netlink messages.
    name: Vec<u8>,
}

impl TableWatch {
    /// Subscribes to the table `name`, which need not exist, in this thread's network namespace.
    ///
    /// Must be called in a tokio runtime and requires `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// When the kernel provides no socket, because it has no netfilter.
    pub fn new(name: &str) -> Result<Self, NetlinkError> {
        let subscription = Subscription::new(NETLINK_NETFILTER, 0, &[GROUP]);
        let subscription = subscription.map_err(|error| NetlinkError::Socket {
            what: "subscribe to changes of nftables".to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self { subscription, name: [name.as_bytes(), &[0]].concat() })
    }

    /// Waits until the table or anything in it is created, changed or removed by any program.
    ///
    /// Changes of other tables are skipped, although a few may be reported, for example after an
    /// overrun of the socket. This method is cancel safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            // Yield regularly: other tables may change faster than this loop reads.
            consume_budget().await;
            let notification = self.subscription.next().await.map_err(|error| NetlinkError::Socket {
                what: "wait for a change of nftables".to_owned(),
                message: error.to_string(),
            })?;
            let ours = match notification {
                // Every message but the last of a transaction names its table. Searching all bytes
                // for the name is sufficient: a chance match only costs a check by the caller.
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
            for (command, exists) in [
                ("add table inet ours", true),
                ("add table inet ours_2", true),
                ("delete table inet ours", false),
                ("add table ip ours", false),
            ] {
                nft(command);
                assert_eq!(table_exists("ours").unwrap(), exists, "nft {command}");
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
    fn every_change_of_the_table_is_reported_and_none_of_another() {
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
                let mut reported = false;
                while timeout(Duration::from_millis(100), watch.changed()).await.is_ok() {
                    reported = true;
                }
                assert_eq!(reported, expected, "nft {command}");
            }
        });
    }
}

//! The name of the relay's nftables table, and its removal; `ruleset` has the content.

use std::fmt::Write as _;

use anyhow::Context as _;
use mobile_host::nft::{self, NftError};

use crate::config::DEFAULT_DEVICE;

/// The prefix of the names of all relays' nftables tables.
pub(crate) const TABLE: &str = "home_relay";

/// The address family of the relay's nftables tables.
pub(super) const FAMILY: &str = "inet";

/// Returns the name of the nftables table that holds every rule of the relay with this device, so
/// that one deletion removes exactly this relay's rules. The default device's table is [`TABLE`].
pub(crate) fn table(device: &str) -> String {
    if device == DEFAULT_DEVICE {
        return TABLE.to_owned();
    }
    let mut name = format!("{TABLE}_");
    for byte in device.bytes() {
        // Writing to a String cannot fail.
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => write!(name, "{}", byte as char),
            // Escape with a character that nft accepts in a name and that no device name contains.
            other => write!(name, "/{other:02x}"),
        };
    }
    name
}

/// The next steps when nftables does not work on this host.
pub(crate) const HINT: &str = "cannot install the nftables rules; where the kernel lacks connlimit, set [limits] \
                               connections_per_client = 0; without nftables on this host set [nat] masquerade = false and \
                               [clients] reach = \"all\", and delete the forwards";

/// Returns whether `error` is that the kernel does not let this process change nftables, so that
/// other settings would not help.
pub(crate) fn is_forbidden(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(NftError::NotAllowed { .. })))
}

/// Removes the nftables table and returns whether there was one. A host without nft has none.
pub(crate) fn remove(table: &str) -> anyhow::Result<bool> {
    nft::delete((FAMILY, table)).with_context(|| format!("cannot delete table inet {table}"))
}

/// Returns whether the nftables table is in the kernel; false on a host without the program nft.
pub(crate) fn exists(table: &str) -> anyhow::Result<bool> {
    Ok(nft::exists((FAMILY, table))?)
}

/// Returns every nftables chain of this host, as nft's JSON.
pub(crate) fn list_chains() -> anyhow::Result<serde_json::Value> {
    let listed = nft::query(&["-j", "list", "chains"])?;
    serde_json::from_str(&listed).context("cannot parse the JSON of `nft list chains`")
}

//! Installs the relay's nftables rules: the whole ruleset or nothing.

use anyhow::Context as _;
use mobile_netlink::table_exists;
use tracing::info;

use super::ruleset::{HostState, Ruleset};
use super::{firewall, nft};

/// The host state that newly installed nftables rules assume, and the relay's table as nft lists
/// it, or `None` without nftables.
pub(super) type Installed = (HostState, Option<String>);

/// Returns the ruleset for the host state `host`, after detecting other firewalls anew.
pub(super) fn for_host(ruleset: &Ruleset, host: HostState) -> Ruleset {
    ruleset.for_host(HostState { has_firewall: firewall::filters_this_host(), ..host })
}

/// Installs the ruleset, and returns the host state that it assumes and the resulting nftables
/// table.
pub(super) fn install(ruleset: &Ruleset, host: HostState) -> anyhow::Result<Installed> {
    let rules = for_host(ruleset, host);
    Ok((rules.host(), apply_or_explain(&rules)?.then(|| applied_listing(&rules)).transpose()?))
}

/// Installs the whole ruleset or nothing, and returns whether it is in force.
///
/// Without nftables the relay still serves, provided that nothing in its configuration depends on
/// the rules. If a table of the relay is already in the kernel, a failure is always an error,
/// because the old rules, including those of deleted forwards, would stay in force.
pub(super) fn apply_or_explain(ruleset: &Ruleset) -> anyhow::Result<bool> {
    let Err(error) = ruleset.apply() else { return Ok(true) };
    let table = ruleset.table();
    match table_exists(&table) {
        Ok(true) => Err(error.context(format!(
            "cannot replace the nftables rules, and the former ones stay in force: repair nft, or remove \
             them with `nft delete table inet {table}`"
        ))),
        _ if nft::is_forbidden(&error) => Err(error.context("cannot install the nftables rules")),
        _ if ruleset.is_required() => Err(error.context(nft::HINT)),
        Ok(false) => {
            info!(
                "nftables is not available: no connection limits for clients, and no TCP MSS clamping: {error:#}"
            );
            Ok(false)
        }
        Err(unknown) => Err(error.context(format!(
            "cannot install the nftables rules, nor tell whether former ones are in force ({unknown}): \
             repair nft"
        ))),
    }
}

/// Returns the newly applied ruleset as nft lists it.
pub(super) fn applied_listing(ruleset: &Ruleset) -> anyhow::Result<String> {
    let missing = || {
        let table = ruleset.table();
        format!("another program removed table inet {table} right after its creation: find out which one")
    };
    ruleset.listing()?.with_context(missing)
}

/// Installs `ruleset` in place of `former`, which is in the kernel if `had_table`. Restores
/// `former` when the installation fails half-way.
pub(super) fn replace_rules(
    former: &Ruleset,
    had_table: bool,
    ruleset: &Ruleset,
    host: HostState,
) -> anyhow::Result<Installed> {
    let rules = for_host(ruleset, host);
    // nft applies a script as one transaction: a failure changes nothing.
    if !apply_or_explain(&rules)? {
        return Ok((rules.host(), None));
    }
    let listing = applied_listing(&rules).map_err(|error| {
        let undone = if had_table {
            former.for_host(rules.host()).apply()
        } else {
            nft::remove(&rules.table()).map(|_removed| ())
        };
        match undone {
            Ok(()) => error.context("cannot read back the new nftables rules, the former ones are in force"),
            Err(second) => error.context(format!(
                "cannot read back the new nftables rules, nor put the former ones back ({second:#}): they \
                 are restored when nft works again"
            )),
        }
    })?;
    Ok((rules.host(), Some(listing)))
}

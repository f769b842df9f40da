//! Detects other firewalls of this host, on which some of the relay's own nftables rules depend.

use std::path::Path;

use super::nft;

/// Returns whether another firewall filters packets to or from this host. That firewall's rules for
/// the relay's port may match on connection state, which does not exist for untracked connections.
/// A ruleset that cannot be read counts as a firewall, because tracking always works.
pub(super) fn filters_this_host() -> bool {
    let by_nftables = nft::list_chains().map_or(true, |json| filtering(&json));
    by_nftables || ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].into_iter().any(has_filter)
}

/// Returns whether nft's list of chains has a filter chain of another program at the input or
/// output hook.
fn filtering(json: &serde_json::Value) -> bool {
    let chains = json["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    chains.into_iter().any(|chain| {
        let is_ours = chain["table"].as_str().is_some_and(|table| table.starts_with(nft::TABLE));
        !is_ours && chain["type"] == "filter" && (chain["hook"] == "input" || chain["hook"] == "output")
    })
}

/// Returns whether nft's list of chains has a chain of any home relay on this host.
pub(super) fn has_relay(json: &serde_json::Value) -> bool {
    let chains = json["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    chains.into_iter().any(|chain| chain["table"].as_str().is_some_and(|table| table.starts_with(nft::TABLE)))
}

/// Returns whether legacy iptables has a filter table. The kernel lists the iptables tables in
/// `file`, which does not exist without the iptables modules.
fn has_filter(file: impl AsRef<Path>) -> bool {
    match std::fs::read_to_string(file) {
        Ok(tables) => tables.lines().any(|table| table == "filter"),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_input_and_output_filters_of_other_tables_count_as_a_firewall() {
        let chain = |table: &str, kind: &str, hook: &str| serde_json::json!({"nftables": [{"metainfo": {}}, {"chain": {"table": table, "type": kind, "hook": hook}}]});
        assert!(filtering(&chain("filter", "filter", "input")) && filtering(&chain("x", "filter", "output")));
        assert!(
            !filtering(&chain("filter", "filter", "forward")) && !filtering(&chain("n", "nat", "output"))
        );
        assert!(!filtering(&chain("home_relay", "filter", "output")) && !filtering(&serde_json::json!({})));
    }
}

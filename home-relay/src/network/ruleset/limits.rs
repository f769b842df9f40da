//! The limits on a client's connections.

use super::chain::drop_rule;
use crate::metrics::DropReason;

/// The largest number of a client's tracked connections, and of its new connections per second; 0
/// for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    pub(super) connections: u32,
    pub(super) rate: u32,
}

impl ConnectionLimits {
    /// Returns the nftables rules that limit a client's number of connections and its rate of new
    /// ones.
    pub(super) fn rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for (number, of) in [(4, "ip saddr"), (6, "ip6 saddr")] {
            let rate = self.rate;
            if rate > 0 {
                let burst = u64::from(rate) * 10;
                rules.push(drop_rule(
                    &format!(
                        "update @rate{number} {{ {of} limit rate over {rate}/second burst {burst} packets }}"
                    ),
                    DropReason::ConnectionRate,
                ));
            }
            if self.connections > 0 {
                rules.push(drop_rule(
                    &format!("add @connections{number} {{ {of} ct count over {} }}", self.connections),
                    DropReason::Connections,
                ));
            }
        }
        rules
    }
}

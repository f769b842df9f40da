//! Counts the packets that the nftables rules drop.

use mobile_netlink::netfilter;

use super::ruleset::COUNTERS;
use crate::metrics::DropReason;

/// The packets that the nftables rules have dropped, for each of [`COUNTERS`].
#[derive(Debug, Default)]
pub(super) struct DropCounts {
    /// The packet counts of the nftables counters, as last read.
    read: [u64; COUNTERS.len()],
    /// The packets dropped since the last call of [`Self::take`].
    dropped: [u64; COUNTERS.len()],
}

impl DropCounts {
    /// Reads the counters of the nftables table `table`.
    pub(super) fn update(&mut self, table: &str) {
        // If the counters cannot be read now, the next call counts these packets too.
        let counters = netfilter::counters(table).unwrap_or_default();
        for (index, (name, _)) in COUNTERS.iter().enumerate() {
            let Some((_, now)) = counters.iter().find(|(counter, _)| counter == name) else { continue };
            let before = std::mem::replace(&mut self.read[index], *now);
            // A lower count means that another program replaced the table.
            self.dropped[index] += if *now < before { *now } else { now - before };
        }
    }

    /// Follows the counters of a new table, which start at 0.
    pub(super) fn restart(&mut self) {
        self.read = Default::default();
    }

    /// Returns the packets dropped since the last call, for each reason.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (DropReason, u64)> + use<> {
        let dropped = std::mem::take(&mut self.dropped);
        COUNTERS.into_iter().zip(dropped).map(|((_, reason), packets)| (reason, packets))
    }
}

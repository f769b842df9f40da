//! What `[tunnel]` of either program can turn on and off.

use serde::{Deserialize, Serialize};

/// `compression`: whether inner packets are compressed, where both programs say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// They are not: the length of what is sent says nothing of what is in it.
    #[default]
    Off,
    /// They are, of flows that get smaller by it.
    Zstd,
}

impl Compression {
    /// Whether it is wanted at all.
    #[must_use]
    pub fn is_on(self) -> bool {
        self != Self::Off
    }
}

/// `offload`: in what size the kernel hands packets over at this program's device. What the other program sends is its own
/// choice, and is taken either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offloading {
    /// Up to 64 KiB at once, without checksums, as far as this kernel can.
    #[default]
    Auto,
    /// As on a wire: no larger than the MTU, with checksums.
    Off,
}

/// `queue`: which packet this program sends next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queueing {
    /// Flows take turns, none keeps a standing queue, and little stands below it (FQ-CoDel).
    #[default]
    Fair,
    /// The one that came first. A transfer fills what there is, and everything else waits behind it.
    Fifo,
}

impl Queueing {
    /// Whether flows take turns.
    #[must_use]
    pub fn is_fair(self) -> bool {
        self == Self::Fair
    }
}

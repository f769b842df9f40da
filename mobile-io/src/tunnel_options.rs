//! The values of the keys in `[tunnel]` that both programs have.

use serde::{Deserialize, Serialize};

/// The value of `compression`: whether inner packets are compressed, provided that both programs
/// enable it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Packets are not compressed, so that their length reveals nothing about their content.
    #[default]
    Off,
    /// Packets are compressed with zstd, in flows whose packets become smaller.
    Zstd,
}

impl Compression {
    /// Returns whether compression is enabled.
    #[must_use]
    pub fn is_on(self) -> bool {
        self != Self::Off
    }
}

/// The value of `offload`: in what size the kernel passes packets to this program at its device.
///
/// The peer chooses the size of its packets independently, and they are accepted in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offloading {
    /// Packets of up to 64 KiB without checksums, as far as the kernel supports that.
    #[default]
    Auto,
    /// Packets as on a wire: at most as large as the MTU, with checksums.
    Off,
}

/// The value of `queue`: in which order this program sends packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queueing {
    /// Flows take turns, none keeps a standing queue, and little data waits below the queue
    /// (FQ-CoDel).
    #[default]
    Fair,
    /// Packets are sent in the order of their arrival. A bulk transfer fills every buffer, and all
    /// other packets wait behind it.
    Fifo,
}

impl Queueing {
    /// Returns whether flows take turns.
    #[must_use]
    pub fn is_fair(self) -> bool {
        self == Self::Fair
    }
}

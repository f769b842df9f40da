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

/// The value of `offload`: how large the packets may be that the kernel passes to this program
/// through the TUN device.
///
/// The peer chooses the size of its packets independently; this program accepts large and small
/// packets in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offloading {
    /// The kernel passes packets of up to 64 KiB and without checksums, if it supports these
    /// offloads.
    #[default]
    Auto,
    /// The kernel passes packets as on a wire: at most as large as the MTU, with checksums.
    Off,
}

/// The value of `queue`: in which order this program sends packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queueing {
    /// Flows take turns, no flow keeps a standing queue, and little data waits in the kernel and
    /// the network, where packets cannot be reordered (FQ-CoDel).
    #[default]
    Fair,
    /// Packets are sent in the order of their arrival. A bulk transfer fills every buffer, and all
    /// other packets wait behind it.
    Fifo,
}

impl Queueing {
    /// Returns whether flows take turns, that is, the value is `fair`.
    #[must_use]
    pub fn is_fair(self) -> bool {
        self == Self::Fair
    }
}

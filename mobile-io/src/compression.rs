//! `[tunnel] compression`, which either program has: what is done only where both say so.

use serde::{Deserialize, Serialize};

/// Whether inner packets are compressed.
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

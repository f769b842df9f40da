//! A plain TCP connection, with nobody's help.

use anyhow::Result;

use super::{Peer, PeerKind, willing};
use crate::lab::Lab;

pub(super) const KIND: PeerKind =
    PeerKind { name: "direct", over_tcp: false, tools: &[], make: || Box::new(Direct), refusal: willing };

struct Direct;

impl Peer for Direct {
    fn start(&mut self, _lab: &Lab) -> Result<()> {
        Ok(())
    }
}

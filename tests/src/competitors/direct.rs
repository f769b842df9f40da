//! A plain TCP connection, without anything that keeps it across a handover.

use anyhow::Result;

use super::{Competitor, CompetitorKind, no_requirements};
use crate::lab::Lab;

pub(super) const KIND: CompetitorKind = CompetitorKind {
    name: "direct",
    over_tcp: false,
    tools: &[],
    make: || Box::new(Direct),
    unavailable_reason: no_requirements,
};

struct Direct;

impl Competitor for Direct {
    fn start(&mut self, _lab: &Lab) -> Result<()> {
        Ok(())
    }
}

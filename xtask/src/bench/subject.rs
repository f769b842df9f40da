//! Who carries the connections of a measurement, in a lab of their own.

use std::process::Command;

use anyhow::Result;
use mobile_tests::peers::{Peer, PeerKind};
use mobile_tests::{Lab, LabOptions, Testbed};

/// Somebody with everything running.
pub(crate) enum Subject {
    /// `mobile` and `home-relay`.
    Ours(Box<Testbed>),
    /// Somebody else, or nobody: a direct connection. It ends before its lab.
    Peer(Box<dyn Peer>, Box<Lab>),
}

impl Subject {
    /// `peer`, or ours.
    pub(crate) fn start(peer: Option<&PeerKind>, options: &LabOptions) -> Result<Self> {
        let Some(kind) = peer else { return Ok(Self::Ours(Box::new(Testbed::with(options)?))) };
        let lab = Lab::with(options)?;
        let mut peer = kind.make();
        peer.start(&lab)?;
        Ok(Self::Peer(peer, Box::new(lab)))
    }

    /// Ours, with `[tunnel] compression` at both ends.
    pub(crate) fn compressing(options: &LabOptions) -> Result<Self> {
        let mut bed = Testbed::installed(options)?;
        bed.agent.configure("tunnel", "compression", "zstd")?;
        bed.relay.configure("tunnel", "compression", "zstd")?;
        bed.start()?;
        Ok(Self::Ours(Box::new(bed)))
    }

    /// Where it runs.
    pub(crate) fn lab(&self) -> &Lab {
        match self {
            Self::Ours(bed) => &bed.lab,
            Self::Peer(_, lab) => lab,
        }
    }

    /// An application of the mobile host.
    pub(crate) fn application(&self, program: &str) -> Command {
        match self {
            Self::Ours(bed) => bed.agent.run(&[program]),
            Self::Peer(_, lab) => lab.host.command(program),
        }
    }

    /// The end: ours has left nothing behind and warned of nothing.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Ours(bed) => bed.finish(),
            Self::Peer(peer, lab) => {
                drop(peer);
                lab.passed();
                Ok(())
            }
        }
    }
}

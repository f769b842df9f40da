//! The actions that the machine requests of the manager.

use std::time::Duration;

use mobile_proto::PathId;

use crate::tunnel::cause::HandoverCause;
use crate::uplinks::policy::Families;

/// An instruction of the [`Machine`](super::Machine) to the manager, which performs the I/O.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Connect to the relay over this uplink. Report the outcome with
    /// [`transport_ready`](super::Machine::transport_ready) or
    /// [`path_lost`](super::Machine::path_lost).
    Connect { path: PathId, uplink: String, families: Families, timeout: Duration },
    /// Cancel a connection attempt that is in progress.
    Abort { path: PathId },
    /// Close an open path.
    Close { path: PathId },
    /// Probe every path, because a path may be on another network than before.
    Probe,
    /// Move the session to this path, and tell the relay to keep the `keep` paths open.
    Activate { path: PathId, keep: Vec<PathId> },
    /// Record a connection attempt that timed out; `opened` says whether TCP and TLS were
    /// established. The path is aborted or closed already.
    TimedOut { uplink: String, opened: bool },
    /// Count and log a completed handover.
    RecordHandover(Handover),
}

/// A completed handover between two paths.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Handover {
    /// The reason for the handover.
    pub(crate) cause: HandoverCause,
    /// The uplink of the old path.
    pub(crate) from: String,
    /// The uplink of the new path.
    pub(crate) to: String,
    /// The time from the end of the old path, or the best estimate of it, until the relay answered
    /// on the new path.
    pub(crate) blackout: Duration,
    /// The number of records that were sent again on the new path.
    pub(crate) replayed: u64,
    /// The number of packets that this host dropped since the previous handover.
    pub(crate) dropped: u64,
}

//! One path as the machine sees it: its uplink, its stage, and whether the relay answers on it.

use std::net::IpAddr;
use std::time::Instant;

use mobile_proto::PathId;

use super::super::cause::HandoverCause;
use crate::uplinks::policy::{Decision, Obstacle, Uplink};

/// The stage of a path on its way to being usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The TCP and TLS connection is being established.
    Dialing,
    /// The relay has authenticated itself in TLS, and the answer to HELLO is awaited. Holds the
    /// local address.
    Greeting(IpAddr),
    /// The relay has accepted the path by WELCOME. Holds the local address.
    Ready(IpAddr),
}

/// A path that carries the session or may come to carry it.
#[derive(Debug)]
pub(super) struct CandidatePath {
    pub(super) path: PathId,
    pub(super) uplink: String,
    pub(super) stage: Stage,
    pub(super) started: Instant,
    /// The time at which the path is closed unless the relay has accepted it by then.
    pub(super) deadline: Instant,
    /// When the path was marked as unresponsive; `None` while the relay answers on it.
    pub(super) unresponsive_since: Option<Instant>,
    /// Whether the settings of the relay changed since the path was opened, so that another path
    /// is to replace this one.
    pub(super) is_outdated: bool,
    /// The beginning of the current healthy period of a ready path; `None` if there is none.
    pub(super) healthy_since: Option<Instant>,
}

impl CandidatePath {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Returns whether the session may move to the path: the path is neither marked as unresponsive
    /// nor outdated.
    pub(super) fn is_responsive(&self) -> bool {
        self.unresponsive_since.is_none() && !self.is_outdated
    }

    /// Returns whether the relay answers on the path, outdated or not.
    pub(super) fn answers(&self) -> bool {
        self.is_ready() && self.unresponsive_since.is_none()
    }

    /// Returns the local address, once the socket has one.
    pub(super) fn local(&self) -> Option<IpAddr> {
        match self.stage {
            Stage::Dialing => None,
            Stage::Greeting(local) | Stage::Ready(local) => Some(local),
        }
    }

    /// Returns the reason why the path's uplink can no longer carry the path, if there is one.
    pub(super) fn obstacle(&self, uplinks: &[Uplink], decision: &Decision) -> Option<HandoverCause> {
        let local = self.local()?;
        let Some(uplink) = uplinks.iter().find(|uplink| uplink.name == self.uplink) else {
            return Some(HandoverCause::LinkGone);
        };
        let verdict = decision.verdicts.iter().find(|verdict| verdict.name == self.uplink);
        let route = if local.is_ipv4() { uplink.ipv4_route } else { uplink.ipv6_route };
        match verdict.and_then(|verdict| verdict.obstacle) {
            Some(Obstacle::Excluded | Obstacle::Tunnel | Obstacle::Loop) => Some(HandoverCause::LinkGone),
            Some(Obstacle::Down) => Some(HandoverCause::LinkDown),
            Some(Obstacle::NoCarrier) => Some(HandoverCause::CarrierLost),
            _ if ![&uplink.addresses, &uplink.deprecated].iter().any(|list| list.contains(&local)) => {
                Some(HandoverCause::AddressLost)
            }
            _ if route.is_none() => Some(HandoverCause::RouteLost),
            _ => None,
        }
    }
}

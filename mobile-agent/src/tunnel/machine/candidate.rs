//! One path as the decisions see it: which uplink it is on, how far it has come, and whether it is trusted.

use std::net::IpAddr;
use std::time::Instant;

use mobile_proto::PathId;

use super::super::cause::HandoverCause;
use crate::uplinks::policy::{Decision, Obstacle, Uplink};

/// How far a path has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// TCP and TLS are under way.
    Dialing,
    /// The relay has proved who it is; HELLO is under way.
    Greeting(IpAddr),
    /// The relay has welcomed us.
    Ready(IpAddr),
}

/// A path.
#[derive(Debug)]
pub(super) struct CandidatePath {
    pub(super) path: PathId,
    pub(super) uplink: String,
    pub(super) stage: Stage,
    pub(super) started: Instant,
    /// When it is given up, unless it is ready by then.
    pub(super) deadline: Instant,
    /// Since when it is suspected to be dead.
    pub(super) unresponsive_since: Option<Instant>,
    /// Since when nothing was wrong with it, if it is ready.
    pub(super) healthy_since: Option<Instant>,
}

impl CandidatePath {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Whether it may carry the session, or become able to.
    pub(super) fn is_responsive(&self) -> bool {
        self.unresponsive_since.is_none()
    }

    /// The address it is bound to, once it is.
    pub(super) fn local(&self) -> Option<IpAddr> {
        match self.stage {
            Stage::Dialing => None,
            Stage::Greeting(local) | Stage::Ready(local) => Some(local),
        }
    }

    /// Why it cannot go on, judged by its uplink.
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

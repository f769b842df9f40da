//! The report of `mobile uplinks`, and the note of `mobile use` about an unusable uplink.

use mobile_proto::{PathId, PathStats};

use super::{Agent, UnknownUplink};
use crate::status::{UplinkStatus, Uplinks};
use crate::tunnel::TunnelState;
use crate::uplinks::policy::{Obstacle, Uplink};

impl Agent {
    /// Returns the report of `mobile uplinks`.
    pub(crate) async fn uplinks(&self) -> Uplinks {
        let snapshot = self.session.tunnel.driver.snapshot().await;
        let paths = snapshot.map(|snapshot| snapshot.paths).unwrap_or_default();
        let state = self.tunnel_state();
        Uplinks { forced: state.forced.clone(), uplinks: list_uplinks(&state, &paths) }
    }
}

/// The state of an uplink as one word, with the reason and the next step where there are any.
type Condition = (&'static str, Option<String>, Option<String>);

fn list_uplinks(state: &TunnelState, paths: &[(PathId, PathStats)]) -> Vec<UplinkStatus> {
    let place = |name: &str| state.decision.usable.iter().position(|candidate| candidate == name);
    let mut list: Vec<(usize, UplinkStatus)> = state
        .uplinks
        .iter()
        .zip(&state.decision.verdicts)
        .map(|(uplink, verdict)| {
            let path = path_on(state, paths, &uplink.name);
            let (word, reason, next_step) = condition(state, uplink, verdict.obstacle, path);
            let status = UplinkStatus {
                name: uplink.name.clone(),
                state: word.to_owned(),
                reason,
                next_step,
                addresses: uplink.addresses.clone(),
                metric: uplink.ipv4_route.into_iter().chain(uplink.ipv6_route).min(),
                rtt_seconds: path.and_then(|path| path.srtt).map(|rtt| rtt.as_secs_f64()),
                loss_ratio: path.and_then(|path| path.loss),
            };
            (place(&uplink.name).unwrap_or(usize::MAX), status)
        })
        .collect();
    list.sort_by(|(left, a), (right, b)| left.cmp(right).then_with(|| a.name.cmp(&b.name)));
    list.into_iter().map(|(_, status)| status).collect()
}

/// Returns the statistics of the path on an uplink. An uplink has two paths while one replaces the
/// other; the responsive one counts.
fn path_on<'a>(state: &TunnelState, paths: &'a [(PathId, PathStats)], uplink: &str) -> Option<&'a PathStats> {
    let ready = state.ready.iter().filter(|(_, on)| on == uplink);
    let stats = ready.filter_map(|(id, _)| paths.iter().find(|(path, _)| path == id));
    stats.map(|(_, stats)| stats).min_by_key(|stats| stats.unresponsive)
}

fn condition(
    state: &TunnelState,
    uplink: &Uplink,
    obstacle: Option<Obstacle>,
    path: Option<&PathStats>,
) -> Condition {
    let active = state.active.as_ref().is_some_and(|(active, _)| active.uplink == uplink.name);
    let failed = state.history.problem(&uplink.name).map(|(problem, _)| problem);
    match (active, obstacle, failed) {
        (true, ..) => ("active", None, None),
        (_, Some(obstacle), _) => {
            let next_step = obstacle.next_step().map(str::to_owned);
            ("unusable", Some(obstacle.description().to_owned()), next_step)
        }
        _ if path.is_some_and(|path| !path.unresponsive) => ("standby", None, None),
        _ if path.is_some() => ("silent", Some("its path does not answer".to_owned()), None),
        (.., Some(problem)) => ("failing", Some(problem.cause.clone()), Some(problem.next_step.clone())),
        _ if state.connecting.contains(&uplink.name) => ("connecting", None, None),
        _ => ("usable", None, None),
    }
}

/// Returns a note for the user of `mobile use` if the named uplink is unusable at present, and an
/// error if no uplink has this name.
pub(super) fn note_on_forced(state: &TunnelState, name: &str) -> Result<Option<String>, UnknownUplink> {
    let Some(verdict) = state.decision.verdicts.iter().find(|verdict| verdict.name == name) else {
        let known: Vec<&str> = state.decision.verdicts.iter().map(|verdict| verdict.name.as_str()).collect();
        return Err(UnknownUplink { name: name.to_owned(), known: known.join(", ") });
    };
    Ok(verdict.obstacle.map(|obstacle| {
        format!(
            "{name} cannot carry the tunnel at present ({}{}): it is used as soon as it can, and \
            other uplinks until then",
            obstacle.description(),
            obstacle.next_step().map(|step| format!("; {step}")).unwrap_or_default()
        )
    }))
}

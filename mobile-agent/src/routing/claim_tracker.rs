//! Tracks the relay's latest assignment and which of its addresses and resolvers this host refuses,
//! and logs changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::assignment::Assignment;
use super::claim::{Claim, HostNetworks, Refusal, judge};
use super::objection::Objection;
use crate::status::Problem;

/// The parts of the relay's assignment that are refused at present, and counters of all refusals,
/// shared with status and metrics.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<RefusalState>);

#[derive(Debug, Default)]
struct RefusalState {
    now: Vec<Refusal>,
    counts: BTreeMap<&'static str, u64>,
}

/// The relay's latest accepted assignment, to be judged whenever the host's networks change.
#[derive(Debug)]
pub(super) struct ClaimTracker {
    pushed: Option<Assignment>,
    /// The reason why the latest assignment was refused as a whole, if it was; the previous
    /// assignment then stays in force.
    rejection: Option<Objection>,
    allowed: Vec<IpNet>,
    refused: Arc<Refusals>,
}

impl ClaimTracker {
    /// Creates a tracker with the assignment cached by an earlier run; `allowed` are the networks
    /// of `[tunnel] addresses`.
    pub(super) fn new(remembered: Option<Assignment>, allowed: &[IpNet], refused: Arc<Refusals>) -> Self {
        Self { pushed: remembered, rejection: None, allowed: allowed.to_vec(), refused }
    }

    /// Replaces the networks of `[tunnel] addresses`.
    pub(super) fn set_allowed(&mut self, allowed: Vec<IpNet>) {
        self.allowed = allowed;
    }

    /// Returns the latest assignment that was not refused as a whole; single addresses of it may be
    /// refused.
    pub(super) fn pushed(&self) -> Option<&Assignment> {
        self.pushed.as_ref()
    }

    /// Returns true unless the latest pushed assignment was refused as a whole.
    pub(super) fn is_accepted(&self) -> bool {
        self.rejection.is_none()
    }

    /// Replaces the assignment that [`Self::judge`] judges, unless the new one has to be refused as
    /// a whole. Returns whether it was accepted.
    pub(super) fn accept(&mut self, new: Assignment) -> bool {
        self.rejection = new.objection();
        let accepted = self.rejection.is_none();
        if accepted {
            self.pushed = Some(new);
        }
        accepted
    }

    /// Judges the latest assignment by the current networks of the host. Returns the part that is
    /// not refused, or `None` before the relay's first assignment.
    pub(super) fn judge(&self, host: &HostNetworks) -> Option<Assignment> {
        let verdict = self.pushed.as_ref().map(|pushed| judge(pushed, &self.allowed, host));
        let (in_force, mut refusals) =
            verdict.map_or((None, Vec::new()), |verdict| (Some(verdict.in_force), verdict.refusals));
        let assignment = |objection| Refusal { claim: Claim::Assignment, objection };
        refusals.extend(self.rejection.clone().map(assignment));
        self.refused.replace(refusals, in_force.as_ref());
        in_force
    }
}

impl Refusals {
    /// Returns the parts of the relay's assignment that are refused at present.
    pub(crate) fn now(&self) -> Vec<Refusal> {
        self.state().now.clone()
    }

    /// Returns how many parts of assignments were refused since the agent's start, for each reason.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state().counts.clone()
    }

    /// Returns the problem for `mobile status` if anything is refused; `addresses` are the
    /// persistent addresses in force.
    pub(crate) fn problem(&self, addresses: &[IpAddr]) -> Option<Problem> {
        problem(&self.now(), addresses)
    }

    /// Replaces the current refusals. Logs and counts the new ones, and logs addresses that are no
    /// longer refused.
    fn replace(&self, refusals: Vec<Refusal>, in_force: Option<&Assignment>) {
        let mut state = self.state();
        if state.now == refusals {
            return;
        }
        for refusal in refusals.iter().filter(|refusal| !state.now.contains(refusal)) {
            log_refusal(refusal);
        }
        let in_force = in_force.map(Assignment::addresses).unwrap_or_default();
        for refusal in &state.now {
            if let Claim::Address(address) = refusal.claim
                && in_force.contains(&address)
            {
                tracing::info!(%address, "a pushed address is no longer refused: it is in force");
            }
        }
        let new: Vec<&'static str> = refusals
            .iter()
            .filter(|refusal| !state.now.contains(refusal))
            .map(|refusal| refusal.objection.word())
            .collect();
        for word in new {
            *state.counts.entry(word).or_default() += 1;
        }
        state.now = refusals;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, RefusalState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the problem for the most important refusal: that of an address, or else of a whole
/// assignment, or else of a resolver.
fn problem(refusals: &[Refusal], addresses: &[IpAddr]) -> Option<Problem> {
    let worst = refusals.iter().min_by_key(|refusal| match refusal.claim {
        Claim::Address(_) => 0,
        Claim::Assignment => 1,
        Claim::Resolver(_) => 2,
    })?;
    let status = worst.to_status();
    let all: Vec<String> = refusals
        .iter()
        .filter(|refusal| matches!(refusal.claim, Claim::Address(_)))
        .map(|refusal| refusal.to_status().cause)
        .collect();
    let cause = if all.is_empty() { status.cause } else { all.join("; ") };
    let follows = match worst.claim {
        Claim::Address(_) if addresses.is_empty() => {
            "; no persistent address is in force, connections of mobile processes wait"
        }
        Claim::Address(address) if address.is_ipv4() => "; connections of mobile processes by IPv4 wait",
        Claim::Address(_) => "; connections of mobile processes by IPv6 wait",
        Claim::Resolver(_) => "; mobile processes do not use it",
        Claim::Assignment => "; the previous one stays in force",
    };
    Some(Problem { cause: format!("{cause}{follows}"), next_step: status.next_step })
}

fn log_refusal(refusal: &Refusal) {
    let (claim, reason, next_step) = (refusal.claim, refusal.objection.to_string(), refusal.next_step());
    match claim {
        Claim::Address(address) => tracing::error!(
            %address, reason, next_step,
            "refused an address that the relay pushed: mobile processes wait for another, or for \
            this one"
        ),
        Claim::Resolver(resolver) => tracing::warn!(
            %resolver, reason, next_step,
            "refused a resolver that the relay pushed: mobile processes do not use it"
        ),
        Claim::Assignment => {
            tracing::error!(
                reason,
                next_step,
                "refused an assignment that the relay pushed: the previous one stays in force"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(address: &str) -> Assignment {
        Assignment { ipv4: Some(address.parse().unwrap()), ipv6: None, mtu: 1500, dns: Vec::new() }
    }

    fn visited(net: &str) -> HostNetworks {
        HostNetworks { addresses: vec![("wlan0".into(), net.parse().unwrap())], ..HostNetworks::default() }
    }

    #[test]
    fn an_address_is_withdrawn_while_a_network_has_it_and_counted_each_time() {
        let refused = Arc::new(Refusals::default());
        let claims = ClaimTracker::new(Some(assigned("10.77.0.2")), &[], Arc::clone(&refused));
        let (home, cafe) = (visited("192.168.1.7/24"), visited("10.77.0.9/24"));
        for round in 1..=2 {
            assert_eq!(claims.judge(&home), Some(assigned("10.77.0.2")));
            assert_eq!((refused.now(), refused.problem(&[])), (Vec::new(), None));
            for _ in 0..3 {
                let in_force = claims.judge(&cafe).unwrap();
                assert_eq!(in_force, Assignment { ipv4: None, ..assigned("10.77.0.2") });
            }
            assert_eq!(refused.counts(), [("connected", round)].into());
            let problem = refused.problem(&[]).unwrap();
            assert!(problem.cause.contains("no persistent address") && problem.cause.contains("wlan0"));
        }
    }

    #[test]
    fn an_assignment_out_of_bounds_leaves_the_previous_one_in_force() {
        let refused = Arc::new(Refusals::default());
        let mut claims = ClaimTracker::new(None, &[], Arc::clone(&refused));
        let host = HostNetworks::default();
        assert_eq!(claims.judge(&host), None);
        assert!(claims.accept(assigned("10.77.0.2")));
        assert_eq!(claims.judge(&host), Some(assigned("10.77.0.2")));
        assert!(!claims.accept(Assignment { mtu: 40, ..assigned("10.77.0.3") }));
        assert_eq!(claims.judge(&host), Some(assigned("10.77.0.2")));
        assert_eq!(refused.counts(), [("mtu", 1)].into());
        assert!(claims.accept(assigned("10.77.0.3")));
        assert_eq!(claims.judge(&host), Some(assigned("10.77.0.3")));
        assert_eq!(refused.now(), []);
    }
}

//! The decisions under random lives: the shell stays in step, and the tunnel recovers.

use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

/// What the shell holds of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Connecting,
    Open,
}

#[derive(Debug, Clone)]
enum Step {
    Uplinks(Vec<(bool, bool, u8)>),
    Force(Option<usize>),
    Wait(u64),
    /// The path of this number moves on: TLS up, then welcomed.
    Advance(usize),
    Fail(usize, u8),
    Lose(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::vec((any::<bool>(), any::<bool>(), 1u8..4), 3).prop_map(Step::Uplinks),
        proptest::option::of(0usize..3).prop_map(Step::Force),
        (1u64..4000).prop_map(Step::Wait),
        any::<usize>().prop_map(Step::Advance),
        any::<usize>().prop_map(Step::Advance),
        (any::<usize>(), 0u8..3).prop_map(|(path, fault)| Step::Fail(path, fault)),
        (0u8..2).prop_map(Step::Lose),
    ]
}

fn uplinks(state: &[(bool, bool, u8)]) -> Vec<Uplink> {
    ["eth0", "wlan0", "wwan0"]
        .iter()
        .zip(state)
        .zip([100, 600, 700])
        .map(|((name, (carrier, route, last)), metric)| Uplink {
            carrier: *carrier,
            ipv4_default: route.then_some(metric),
            ..link(name, metric, *last)
        })
        .collect()
}

/// The shell: does what it is told and checks that it makes sense.
struct Shell {
    rig: Rig,
    paths: BTreeMap<PathId, (Stage, String)>,
    active: Option<PathId>,
}

impl Shell {
    fn obey(&mut self) {
        for action in self.rig.actions() {
            match action {
                Action::Connect { path, uplink, .. } => {
                    let known = self.paths.insert(path, (Stage::Connecting, uplink));
                    assert!(known.is_none(), "path {path} twice");
                }
                Action::Abort { path } => {
                    assert_eq!(self.paths.remove(&path).expect("aborts what it began").0, Stage::Connecting);
                }
                Action::Close { path } => {
                    assert_eq!(self.paths.remove(&path).expect("closes what is open").0, Stage::Open);
                    self.active.take_if(|active| *active == path);
                }
                Action::Activate { path } => {
                    assert_eq!(self.paths[&path].0, Stage::Open);
                    self.active = Some(path);
                    self.rig.machine.activated(path, 0);
                }
                Action::TimedOut { .. } | Action::Report(_) => {}
            }
        }
    }

    fn pick(&self, number: usize) -> Option<PathId> {
        let waiting: Vec<PathId> =
            self.paths.keys().copied().filter(|path| Some(*path) != self.active).collect();
        waiting.get(number.checked_rem(waiting.len())?).copied()
    }

    fn advance(&mut self, path: PathId) {
        let (stage, uplink) = self.paths[&path].clone();
        let now = self.rig.now;
        match stage {
            Stage::Connecting => {
                let uplinks = self.rig.machine.uplinks();
                let local = uplinks.iter().find(|known| known.name == uplink).unwrap().addresses[0];
                if self.rig.machine.transport_ready(now, path, local) {
                    self.paths.insert(path, (Stage::Open, uplink));
                }
            }
            Stage::Open => self.rig.machine.path_ready(now, path),
        }
    }

    fn take(&mut self, step: &Step) {
        let now = self.rig.now;
        match step {
            Step::Uplinks(state) => self.rig.machine.set_uplinks(now, uplinks(state)),
            Step::Force(which) => {
                let name = which.map(|which| ["eth0", "wlan0", "wwan0"][which].to_owned());
                self.rig.machine.force(now, name);
            }
            Step::Wait(time) => self.rig.wait(ms(*time)),
            Step::Advance(number) => {
                if let Some(path) = self.pick(*number) {
                    self.advance(path);
                }
            }
            Step::Fail(number, fault) => {
                if let Some(path) = self.pick(*number) {
                    let fault = [Fault::Uplink, Fault::Relay, Fault::Identity][usize::from(*fault)];
                    self.paths.remove(&path);
                    assert!(self.rig.machine.attempt_failed(now, path, fault).is_some());
                }
            }
            Step::Lose(cause) => {
                if let Some(path) = self.active.take() {
                    let cause = [Cause::Silent, Cause::TransportFailed][usize::from(*cause)];
                    self.paths.remove(&path);
                    assert!(self.rig.machine.path_lost(now, path, cause, now).is_some());
                }
            }
        }
        self.obey();
        self.check();
    }

    fn check(&self) {
        let machine = &self.rig.machine;
        assert_eq!(machine.active().map(|active| active.path), self.active);
        let trying = self.paths.keys().filter(|path| Some(**path) != self.active).count();
        assert_eq!(machine.connecting().count(), trying);
        if self.active.is_some() {
            assert!(trying <= 1, "beside an active path only a better one is tried");
            assert_eq!(machine.obstacle_of_active(), None);
        } else if !machine.decision().candidates.is_empty() && trying == 0 {
            let wake = machine.deadline().expect("something is going to be tried");
            assert!(wake <= self.rig.now + MAX_RETRY_IDENTITY.mul_f64(1.25));
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_shell_stays_in_step_and_the_tunnel_recovers(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut shell = Shell { rig: Rig::new(Vec::new()), paths: BTreeMap::new(), active: None };
        for step in &steps {
            shell.take(step);
        }
        // Everything works from here on: the best uplink is reached and everything else is closed.
        shell.take(&Step::Uplinks(vec![(true, true, 9); 3]));
        shell.take(&Step::Force(None));
        for _ in 0..200 {
            while let Some(path) = shell.pick(0) {
                shell.advance(path);
                shell.obey();
                shell.check();
            }
            shell.take(&Step::Wait(1000));
        }
        prop_assert_eq!(shell.rig.active(), Some("eth0"));
        prop_assert_eq!(shell.paths.len(), 1);
    }
}

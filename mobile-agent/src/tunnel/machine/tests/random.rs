//! Tests with random sequences of events that the machine and its caller stay consistent, and that
//! the tunnel recovers.

use std::collections::BTreeMap;

use super::*;
use crate::tunnel::PresentPaths;
use proptest::prelude::*;

/// The state of a path as the simulated manager knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum PathState {
    Connecting,
    Open,
    Ready,
}

#[derive(Debug, Clone)]
enum RandomEvent {
    Uplinks(Vec<(bool, bool, u8)>),
    Force(Option<usize>),
    Wait(u64),
    /// Completes the next stage of a path, chosen by this number: first TLS, then the relay's
    /// WELCOME.
    Advance(usize),
    Fail(usize, u8),
    Lose(u8),
    /// Marks a path, chosen by this number, as unresponsive.
    Silence(usize),
    Recover(usize),
    /// The relay answers on the active path.
    Confirm,
    /// A reload changed the relay (true) or this host's key (false).
    DialAnew(bool),
}

fn random_event() -> impl Strategy<Value = RandomEvent> {
    prop_oneof![
        proptest::collection::vec((any::<bool>(), any::<bool>(), 1u8..4), 3).prop_map(RandomEvent::Uplinks),
        proptest::option::of(0usize..3).prop_map(RandomEvent::Force),
        (1u64..4000).prop_map(RandomEvent::Wait),
        any::<usize>().prop_map(RandomEvent::Advance),
        any::<usize>().prop_map(RandomEvent::Advance),
        (any::<usize>(), 0u8..3).prop_map(|(path, fault)| RandomEvent::Fail(path, fault)),
        (0u8..3).prop_map(RandomEvent::Lose),
        any::<usize>().prop_map(RandomEvent::Silence),
        any::<usize>().prop_map(RandomEvent::Recover),
        any::<bool>().prop_map(RandomEvent::DialAnew),
        Just(RandomEvent::Confirm),
        Just(RandomEvent::Confirm),
    ]
}

fn uplinks(state: &[(bool, bool, u8)]) -> Vec<Uplink> {
    ["eth0", "wlan0", "wwan0"]
        .iter()
        .zip(state)
        .zip([100, 600, 700])
        .map(|((name, (carrier, route, last)), metric)| Uplink {
            carrier: *carrier,
            ipv4_route: route.then_some(metric),
            ..link(name, metric, *last)
        })
        .collect()
}

/// Stands in for the tunnel's manager: carries out the state machine's actions on simulated paths,
/// and checks that each action is possible in the present state of its path.
struct Shell {
    rig: Rig,
    paths: BTreeMap<PathId, (PathState, String)>,
    active: Option<PathId>,
    standby: bool,
}

impl Shell {
    fn new(standby: bool) -> Self {
        let rig = Rig::with_standby(Vec::new(), if standby { &["*"] } else { &[] });
        Self { rig, paths: BTreeMap::new(), active: None, standby }
    }

    fn run_actions(&mut self) {
        for action in self.rig.actions() {
            match action {
                Action::Connect { path, uplink, .. } => {
                    let known = self.paths.insert(path, (PathState::Connecting, uplink));
                    assert!(known.is_none(), "path {path} twice");
                }
                Action::Abort { path } => {
                    assert_eq!(
                        self.paths.remove(&path).expect("an aborted path was begun").0,
                        PathState::Connecting
                    );
                }
                Action::Close { path } => {
                    assert_ne!(
                        self.paths.remove(&path).expect("a closed path was open").0,
                        PathState::Connecting
                    );
                    self.active.take_if(|active| *active == path);
                }
                Action::Activate { path, keep } => {
                    assert_ne!(self.paths[&path].0, PathState::Connecting);
                    for kept in keep {
                        assert_ne!(self.paths[&kept].0, PathState::Connecting, "the relay knows a kept path");
                        assert_ne!(kept, path);
                    }
                    self.active = Some(path);
                    self.rig.machine.activated(path, 0, 0);
                }
                Action::TimedOut { .. } | Action::RecordHandover(_) | Action::Probe => {}
            }
        }
    }

    fn pick(&self, number: usize, which: impl Fn(PathState) -> bool) -> Option<PathId> {
        let open = self.paths.iter().filter(|(_, (state, _))| which(*state));
        let paths: Vec<PathId> = open.map(|(path, _)| *path).collect();
        paths.get(number.checked_rem(paths.len())?).copied()
    }

    fn advance(&mut self, path: PathId) {
        let (state, uplink) = self.paths[&path].clone();
        let now = self.rig.now;
        match state {
            PathState::Connecting => {
                let uplinks = self.rig.machine.uplinks();
                let local = uplinks.iter().find(|known| known.name == uplink).unwrap().addresses[0];
                if self.rig.machine.transport_ready(now, path, local) {
                    self.paths.insert(path, (PathState::Open, uplink));
                }
            }
            PathState::Open => {
                self.paths.insert(path, (PathState::Ready, uplink));
                self.rig.machine.path_ready(now, path);
            }
            PathState::Ready => {}
        }
    }

    fn confirm(&mut self) {
        if let Some(path) = self.active.filter(|path| self.paths[path].0 == PathState::Ready) {
            self.rig.machine.confirmed(self.rig.now, path);
        }
    }

    fn lose(&mut self, path: PathId, fault: Fault) {
        self.paths.remove(&path);
        self.active.take_if(|active| *active == path);
        assert!(self.rig.lose(path, fault).is_some());
    }

    fn apply(&mut self, event: &RandomEvent) {
        const FAULTS: [Fault; 3] = [Fault::Uplink, Fault::Relay, Fault::Identity];
        let now = self.rig.now;
        match event {
            RandomEvent::Uplinks(state) => self.rig.machine.set_uplinks(now, uplinks(state)),
            RandomEvent::Force(which) => {
                let name = which.map(|which| ["eth0", "wlan0", "wwan0"][which].to_owned());
                self.rig.machine.force(now, name);
            }
            RandomEvent::Wait(time) => self.rig.wait(ms(*time)),
            RandomEvent::Advance(number) => {
                if let Some(path) = self.pick(*number, |state| state != PathState::Ready) {
                    self.advance(path);
                }
            }
            RandomEvent::Fail(number, fault) => {
                if let Some(path) = self.pick(*number, |_| true) {
                    self.lose(path, FAULTS[usize::from(*fault)]);
                }
            }
            RandomEvent::Lose(fault) => {
                if let Some(path) = self.active {
                    self.lose(path, FAULTS[usize::from(*fault)]);
                }
            }
            RandomEvent::Silence(number) => {
                if let Some(path) = self.pick(*number, |state| state != PathState::Connecting) {
                    self.rig.machine.mark_unresponsive(now, path, now);
                }
            }
            RandomEvent::Recover(number) => {
                if let Some(path) = self.pick(*number, |state| state != PathState::Connecting) {
                    self.rig.machine.recovered(now, path);
                }
            }
            RandomEvent::Confirm => self.confirm(),
            RandomEvent::DialAnew(replace) => {
                let present = if *replace { PresentPaths::Replace } else { PresentPaths::Keep };
                self.rig.machine.dial_anew(now, present);
            }
        }
        self.run_actions();
        self.check();
    }

    fn check(&self) {
        let machine = &self.rig.machine;
        assert_eq!(machine.current.as_ref().map(|current| current.path), self.active);
        assert!(machine.active().is_none_or(|active| Some(active.path) == self.active));
        let known: Vec<_> = machine.paths.iter().map(|candidate| candidate.path).collect();
        assert!(known.iter().all(|path| self.paths.contains_key(path)) && known.len() == self.paths.len());
        let responsive: Vec<_> = machine
            .paths
            .iter()
            .filter(|candidate| candidate.is_responsive())
            .map(|candidate| candidate.uplink.as_str())
            .collect();
        for candidate in &machine.paths {
            assert_eq!(candidate.obstacle(machine.uplinks(), machine.decision()), None, "{candidate:?}");
        }
        let mut once = responsive.clone();
        once.sort_unstable();
        once.dedup();
        // Until the relay has answered on the path in use, no other path that may work is closed.
        if machine.current.as_ref().is_none_or(|current| current.confirmed) {
            assert_eq!(
                responsive.len(),
                once.len(),
                "one responsive path on each uplink: {:?}",
                machine.paths
            );
        }
        assert!(
            machine.paths.iter().all(|candidate| candidate.is_ready() || candidate.deadline > self.rig.now)
        );
        let ready = |path: PathId| self.paths[&path].0 == PathState::Ready;
        let works = machine.paths.iter().any(|candidate| candidate.is_ready() && candidate.is_responsive());
        if works {
            assert!(self.active.is_some_and(ready), "a working path is in use");
        }
        let usable = &machine.decision().usable;
        if !works && !usable.is_empty() && responsive.is_empty() {
            let wake = machine.deadline().expect("an attempt is scheduled");
            assert!(wake <= self.rig.now + MAX_RETRY_DELAY_IDENTITY.mul_f64(1.25));
        }
        assert!(machine.deadline().is_none_or(|wake| wake > self.rig.now), "the deadline is in the future");
    }
}

proptest! {
    #[test]
    fn under_random_events_the_manager_stays_consistent_and_the_tunnel_recovers(
        events in proptest::collection::vec(random_event(), 1..80),
        standby in any::<bool>(),
    ) {
        let mut shell = Shell::new(standby);
        for event in &events {
            shell.apply(event);
        }
        // From here on everything works: the best uplink is used, and every other path stands by or
        // is closed.
        shell.apply(&RandomEvent::Uplinks(vec![(true, true, 9); 3]));
        shell.apply(&RandomEvent::Force(None));
        for _ in 0..200 {
            while let Some(path) = shell.pick(0, |state| state != PathState::Ready) {
                shell.advance(path);
                shell.run_actions();
                shell.check();
            }
            shell.apply(&RandomEvent::Confirm);
            shell.apply(&RandomEvent::Wait(1000));
        }
        let active = shell.rig.active();
        prop_assert_eq!(active.as_deref(), Some("eth0"));
        prop_assert_eq!(shell.paths.len(), if shell.standby { 3 } else { 1 });
    }
}

//! The decisions under random lives: the shell stays in step, and the tunnel recovers.

use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

/// What the shell holds of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Connecting,
    Open,
    Ready,
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
    /// The path of this number goes silent, or answers again.
    Silence(usize),
    Recover(usize),
    /// The relay answers on the active path.
    Confirm,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::vec((any::<bool>(), any::<bool>(), 1u8..4), 3).prop_map(Step::Uplinks),
        proptest::option::of(0usize..3).prop_map(Step::Force),
        (1u64..4000).prop_map(Step::Wait),
        any::<usize>().prop_map(Step::Advance),
        any::<usize>().prop_map(Step::Advance),
        (any::<usize>(), 0u8..3).prop_map(|(path, fault)| Step::Fail(path, fault)),
        (0u8..3).prop_map(Step::Lose),
        any::<usize>().prop_map(Step::Silence),
        any::<usize>().prop_map(Step::Recover),
        Just(Step::Confirm),
        Just(Step::Confirm),
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

/// The shell: does what it is told and checks that it makes sense.
struct Shell {
    rig: Rig,
    paths: BTreeMap<PathId, (Stage, String)>,
    active: Option<PathId>,
    standby: bool,
}

impl Shell {
    fn new(standby: bool) -> Self {
        let rig = Rig::with_standby(Vec::new(), if standby { &["*"] } else { &[] });
        Self { rig, paths: BTreeMap::new(), active: None, standby }
    }

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
                    assert_ne!(self.paths.remove(&path).expect("closes what is open").0, Stage::Connecting);
                    self.active.take_if(|active| *active == path);
                }
                Action::Activate { path, keep } => {
                    assert_ne!(self.paths[&path].0, Stage::Connecting);
                    for kept in keep {
                        assert_ne!(self.paths[&kept].0, Stage::Connecting, "the relay knows it");
                        assert_ne!(kept, path);
                    }
                    self.active = Some(path);
                    self.rig.machine.activated(path, 0, 0);
                }
                Action::TimedOut { .. } | Action::Report(_) | Action::Probe => {}
            }
        }
    }

    fn pick(&self, number: usize, which: impl Fn(Stage) -> bool) -> Option<PathId> {
        let open = self.paths.iter().filter(|(_, (stage, _))| which(*stage));
        let paths: Vec<PathId> = open.map(|(path, _)| *path).collect();
        paths.get(number.checked_rem(paths.len())?).copied()
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
            Stage::Open => {
                self.paths.insert(path, (Stage::Ready, uplink));
                self.rig.machine.path_ready(now, path);
            }
            Stage::Ready => {}
        }
    }

    fn confirm(&mut self) {
        if let Some(path) = self.active.filter(|path| self.paths[path].0 == Stage::Ready) {
            self.rig.machine.confirmed(self.rig.now, path);
        }
    }

    fn lose(&mut self, path: PathId, fault: Fault) {
        self.paths.remove(&path);
        self.active.take_if(|active| *active == path);
        assert!(self.rig.lose(path, fault).is_some());
    }

    fn take(&mut self, step: &Step) {
        const FAULTS: [Fault; 3] = [Fault::Uplink, Fault::Relay, Fault::Identity];
        let now = self.rig.now;
        match step {
            Step::Uplinks(state) => self.rig.machine.set_uplinks(now, uplinks(state)),
            Step::Force(which) => {
                let name = which.map(|which| ["eth0", "wlan0", "wwan0"][which].to_owned());
                self.rig.machine.force(now, name);
            }
            Step::Wait(time) => self.rig.wait(ms(*time)),
            Step::Advance(number) => {
                if let Some(path) = self.pick(*number, |stage| stage != Stage::Ready) {
                    self.advance(path);
                }
            }
            Step::Fail(number, fault) => {
                if let Some(path) = self.pick(*number, |_| true) {
                    self.lose(path, FAULTS[usize::from(*fault)]);
                }
            }
            Step::Lose(fault) => {
                if let Some(path) = self.active {
                    self.lose(path, FAULTS[usize::from(*fault)]);
                }
            }
            Step::Silence(number) => {
                if let Some(path) = self.pick(*number, |stage| stage != Stage::Connecting) {
                    self.rig.machine.suspect(now, path, now);
                }
            }
            Step::Recover(number) => {
                if let Some(path) = self.pick(*number, |stage| stage != Stage::Connecting) {
                    self.rig.machine.recovered(now, path);
                }
            }
            Step::Confirm => self.confirm(),
        }
        self.obey();
        self.check();
    }

    fn check(&self) {
        let machine = &self.rig.machine;
        assert_eq!(machine.current.as_ref().map(|current| current.path), self.active);
        assert!(machine.active().is_none_or(|active| Some(active.path) == self.active));
        let known: Vec<_> = machine.lines.iter().map(|line| line.path).collect();
        assert!(known.iter().all(|path| self.paths.contains_key(path)) && known.len() == self.paths.len());
        let trusted: Vec<_> =
            machine.lines.iter().filter(|line| line.is_trusted()).map(|line| line.uplink.as_str()).collect();
        for line in &machine.lines {
            assert_eq!(line.obstacle(machine.uplinks(), machine.decision()), None, "{line:?}");
        }
        let mut once = trusted.clone();
        once.sort_unstable();
        once.dedup();
        // Before the path in use is proved, nothing that may work is closed.
        if machine.current.as_ref().is_none_or(|current| current.confirmed) {
            assert_eq!(trusted.len(), once.len(), "one trusted path an uplink: {:?}", machine.lines);
        }
        assert!(machine.lines.iter().all(|line| line.is_ready() || line.deadline > self.rig.now));
        let ready = |path: PathId| self.paths[&path].0 == Stage::Ready;
        let works = machine.lines.iter().any(|line| line.is_ready() && line.is_trusted());
        if works {
            assert!(self.active.is_some_and(ready), "what works is used");
        }
        let candidates = &machine.decision().candidates;
        if !works && !candidates.is_empty() && trusted.is_empty() {
            let wake = machine.deadline().expect("something is going to be tried");
            assert!(wake <= self.rig.now + MAX_RETRY_IDENTITY.mul_f64(1.25));
        }
        assert!(machine.deadline().is_none_or(|wake| wake > self.rig.now), "no spinning");
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_shell_stays_in_step_and_the_tunnel_recovers(
        steps in proptest::collection::vec(step(), 1..80),
        standby in any::<bool>(),
    ) {
        let mut shell = Shell::new(standby);
        for step in &steps {
            shell.take(step);
        }
        // Everything works from here on: the best uplink is reached, and all else stands by or is closed.
        shell.take(&Step::Uplinks(vec![(true, true, 9); 3]));
        shell.take(&Step::Force(None));
        for _ in 0..200 {
            while let Some(path) = shell.pick(0, |stage| stage != Stage::Ready) {
                shell.advance(path);
                shell.obey();
                shell.check();
            }
            shell.take(&Step::Confirm);
            shell.take(&Step::Wait(1000));
        }
        let active = shell.rig.active();
        prop_assert_eq!(active.as_deref(), Some("eth0"));
        prop_assert_eq!(shell.paths.len(), if shell.standby { 3 } else { 1 });
    }
}

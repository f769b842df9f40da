//! Scenarios that check the machine's decisions.

mod configure;
mod random;
mod standby;

use std::time::Duration;

use super::damping::{MAX_RETRY_DELAY, MAX_RETRY_DELAY_IDENTITY, RETRY_DELAY};
use super::reconcile::{ATTEMPT_TIMEOUT, UPLINK_STAGGER};
use super::*;
use globset::Glob;

const V4: Families = Families { ipv4: true, ipv6: false };

fn link(name: &str, metric: u32, last: u8) -> Uplink {
    Uplink {
        name: name.into(),
        up: true,
        carrier: true,
        addresses: vec![address(last)],
        deprecated: Vec::new(),
        ipv4_route: Some(metric),
        ipv6_route: None,
        gateways: Vec::new(),
        tunnel: false,
        mobile_reader: None,
    }
}

fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The machine under test, with a clock that the test controls.
struct Rig {
    machine: Machine,
    now: Instant,
}

impl Rig {
    /// Creates a rig whose machine opens no standby paths.
    fn new(uplinks: Vec<Uplink>) -> Self {
        Self::with_standby(uplinks, &[])
    }

    fn with_standby(uplinks: Vec<Uplink>, standby: &[&str]) -> Self {
        let standby = standby.iter().map(|glob| Glob::new(glob).unwrap().compile_matcher()).collect();
        let preferences = Preferences { prefer: Vec::new(), exclude: Vec::new(), standby };
        let machine = Machine::new(preferences, V4, || 0.5);
        let mut rig = Self { machine, now: Instant::now() };
        rig.machine.set_uplinks(rig.now, uplinks);
        rig
    }

    /// Returns a rig connected over eth0 (192.0.2.1), with wlan0 (192.0.2.2) as the second choice.
    fn connected() -> Self {
        let mut rig = Self::new(two_uplinks());
        let path = rig.expect_connect("eth0");
        rig.succeed(path, 1);
        assert_eq!(rig.actions(), []);
        rig
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    /// Removes the only pending action, which must be a connection attempt over this uplink, and
    /// returns its path.
    fn expect_connect(&mut self, uplink: &str) -> PathId {
        match &self.actions()[..] {
            [Action::Connect { path, uplink: over, .. }] if over == uplink => *path,
            other => panic!("expected a connect over {uplink}, not {other:?}"),
        }
    }

    /// Simulates a successful attempt while no path works: TCP and TLS are established, the session
    /// moves at once, and then the relay accepts the path. `last` is the last byte of the local
    /// address.
    fn succeed(&mut self, path: PathId, last: u8) {
        assert!(self.machine.transport_ready(self.now, path, address(last)));
        assert!(
            matches!(self.machine.poll_action(), Some(Action::Activate { path: moved, .. }) if moved == path)
        );
        self.machine.activated(path, 3, 2);
        self.machine.path_ready(self.now, path);
        self.machine.confirmed(self.now, path);
    }

    /// Simulates a successful attempt while another path works: TCP and TLS are established, the
    /// relay accepts the path, and only then the session moves. `last` is the last byte of the
    /// local address.
    fn succeed_beside(&mut self, path: PathId, last: u8) {
        assert!(self.machine.transport_ready(self.now, path, address(last)));
        assert_eq!(self.machine.poll_action(), None, "the session does not move before the welcome");
        self.machine.path_ready(self.now, path);
        assert!(
            matches!(self.machine.poll_action(), Some(Action::Activate { path: moved, .. }) if moved == path)
        );
        self.machine.activated(path, 7, 0);
        self.machine.confirmed(self.now, path);
    }

    /// Reports to the machine that a path is lost, and returns the role that the path had.
    fn lose(&mut self, path: PathId, fault: Fault) -> Option<PathRole> {
        let lost = self.machine.path_lost(self.now, path, HandoverCause::TransportFailed, fault, self.now);
        lost.map(|lost| lost.role)
    }

    fn recorded_handover(&mut self) -> Handover {
        let actions = self.actions();
        let handover = actions.iter().find_map(|action| match action {
            Action::RecordHandover(handover) => Some(handover.clone()),
            _ => None,
        });
        handover.unwrap_or_else(|| panic!("no handover in {actions:?}"))
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.machine.tick(self.now);
    }

    fn active(&self) -> Option<String> {
        self.machine.active().map(|active| active.uplink)
    }

    fn active_path(&self) -> PathId {
        self.machine.active().expect("a path is active").path
    }
}

fn two_uplinks() -> Vec<Uplink> {
    vec![link("eth0", 100, 1), link("wlan0", 600, 2)]
}

#[test]
fn the_best_uplink_is_tried_at_once_and_the_next_a_moment_later() {
    let mut rig = Rig::new(two_uplinks());
    rig.expect_connect("eth0");
    assert_eq!(rig.machine.deadline(), Some(rig.now + UPLINK_STAGGER));
    rig.wait(UPLINK_STAGGER);
    rig.expect_connect("wlan0");
}

#[test]
fn the_first_ready_path_wins_and_the_better_uplink_takes_over_without_a_blackout() {
    let mut rig = Rig::new(two_uplinks());
    let eth = rig.expect_connect("eth0");
    rig.wait(UPLINK_STAGGER);
    let wlan = rig.expect_connect("wlan0");
    rig.succeed(wlan, 2);
    assert_eq!(rig.active().as_deref(), Some("wlan0"));
    // The attempt over the better uplink continues.
    assert_eq!(rig.actions(), []);
    rig.succeed_beside(eth, 1);
    let actions = rig.actions();
    let [Action::RecordHandover(handover), Action::Close { path: closed }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(*closed, wlan, "the old path closes once the relay has answered on the new one");
    assert_eq!(
        (handover.cause, handover.blackout, handover.replayed),
        (HandoverCause::BetterUplink, Duration::ZERO, 7)
    );
    assert_eq!((handover.from.as_str(), handover.to.as_str()), ("wlan0", "eth0"));
}

#[test]
fn the_first_connection_is_no_handover() {
    let mut rig = Rig::connected();
    assert_eq!(rig.active().as_deref(), Some("eth0"));
    assert_eq!(rig.actions(), []);
}

#[test]
fn a_lost_carrier_closes_the_path_and_connects_over_the_next_uplink() {
    let mut rig = Rig::connected();
    let eth = rig.active_path();
    let mut links = two_uplinks();
    links[0].carrier = false;
    rig.machine.set_uplinks(rig.now, links);
    let actions = rig.actions();
    let [Action::Close { path: closed }, Action::Connect { path, uplink, .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((*closed, uplink.as_str()), (eth, "wlan0"));
    let path = *path;
    rig.now += ms(40);
    rig.succeed(path, 2);
    let handover = rig.recorded_handover();
    assert_eq!((handover.cause, handover.blackout), (HandoverCause::CarrierLost, ms(40)));
    assert_eq!((handover.replayed, handover.dropped), (3, 2));
}

#[test]
fn every_loss_of_the_active_uplink_has_its_cause() {
    for (cause, change) in [
        (HandoverCause::LinkDown, (|uplink: &mut Uplink| uplink.up = false) as fn(&mut Uplink)),
        (HandoverCause::CarrierLost, |uplink| uplink.carrier = false),
        (HandoverCause::AddressLost, |uplink| uplink.addresses.clear()),
        (HandoverCause::AddressLost, |uplink| uplink.addresses = vec![address(77)]),
        (HandoverCause::RouteLost, |uplink| uplink.ipv4_route = None),
        (HandoverCause::LinkGone, |uplink| uplink.name = "other".into()),
    ] {
        let mut rig = Rig::connected();
        let mut links = two_uplinks();
        change(&mut links[0]);
        rig.machine.set_uplinks(rig.now, links);
        assert_eq!(rig.machine.transition.outage.as_ref().unwrap().cause, cause);
        assert_eq!(rig.active(), None);
    }
}

#[test]
fn a_renumbered_uplink_is_connected_again_over_itself() {
    let mut rig = Rig::connected();
    let mut links = two_uplinks();
    links[0].addresses = vec![address(77)];
    rig.machine.set_uplinks(rig.now, links);
    let actions = rig.actions();
    assert!(
        matches!(&actions[..], [Action::Close { .. }, Action::Connect { uplink, .. }] if uplink == "eth0"),
        "{actions:?}"
    );
}

#[test]
fn a_forced_handover_opens_the_new_path_before_it_closes_the_old() {
    let mut rig = Rig::connected();
    rig.machine.force(rig.now, Some("wlan0".into()));
    let path = rig.expect_connect("wlan0");
    assert_eq!(rig.active().as_deref(), Some("eth0"));
    rig.succeed_beside(path, 2);
    assert_eq!(rig.recorded_handover().cause, HandoverCause::Forced);
    rig.machine.force(rig.now, None);
    rig.expect_connect("eth0");
}

#[test]
fn a_forced_uplink_that_dies_does_not_take_the_session_with_it() {
    let mut rig = Rig::connected();
    rig.machine.force(rig.now, Some("eth0".into()));
    let mut links = two_uplinks();
    links[0].carrier = false;
    rig.machine.set_uplinks(rig.now, links);
    let actions = rig.actions();
    assert!(matches!(&actions[..], [_, Action::Connect { uplink, .. }] if uplink == "wlan0"), "{actions:?}");
}

#[test]
fn a_restarted_relay_is_dialled_on_the_same_uplink_without_delay() {
    let mut rig = Rig::connected();
    rig.now += Duration::from_secs(100);
    let eth = rig.active_path();
    assert_eq!(rig.lose(eth, Fault::Relay), Some(PathRole::Active));
    let path = rig.expect_connect("eth0");
    // The refusal is the relay's fault, not the uplink's. So wlan0 is only the second choice, and
    // eth0 is tried again soon.
    assert_eq!(rig.lose(path, Fault::Relay), Some(PathRole::Attempt));
    let wlan = rig.expect_connect("wlan0");
    rig.lose(wlan, Fault::Relay);
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.machine.deadline(), Some(rig.now + RETRY_DELAY));
    rig.wait(RETRY_DELAY);
    rig.expect_connect("eth0");
}

#[test]
fn retry_delays_grow_to_a_limit_and_a_change_of_the_uplink_ends_them() {
    let mut rig = Rig::new(vec![link("eth0", 100, 1)]);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let path = rig.expect_connect("eth0");
        rig.lose(path, Fault::Relay);
        let pause = rig.machine.deadline().unwrap() - rig.now;
        pauses.push(pause);
        rig.wait(pause);
    }
    assert_eq!(
        pauses,
        [ms(50), ms(100), ms(200), ms(400), ms(800), MAX_RETRY_DELAY, MAX_RETRY_DELAY, MAX_RETRY_DELAY]
    );
    let path = rig.expect_connect("eth0");
    rig.lose(path, Fault::Relay);
    let mut changed = link("eth0", 100, 1);
    changed.gateways = vec![address(254)];
    rig.machine.set_uplinks(rig.now, vec![changed]);
    rig.expect_connect("eth0");
}

#[test]
fn a_refused_key_is_retried_slowly() {
    let mut rig = Rig::new(vec![link("eth0", 100, 1)]);
    let mut last = Duration::ZERO;
    for _ in 0..10 {
        let path = rig.expect_connect("eth0");
        rig.lose(path, Fault::Identity);
        last = rig.machine.deadline().unwrap() - rig.now;
        rig.wait(last);
    }
    assert_eq!(last, MAX_RETRY_DELAY_IDENTITY);
}

#[test]
fn a_hanging_attempt_times_out_and_is_repeated_with_a_longer_timeout() {
    let mut rig = Rig::new(vec![link("eth0", 100, 1)]);
    let path = rig.expect_connect("eth0");
    assert!(rig.machine.transport_ready(rig.now, path, address(1)));
    assert!(matches!(rig.actions()[..], [Action::Activate { .. }]));
    rig.wait(ATTEMPT_TIMEOUT);
    let actions = rig.actions();
    assert_eq!(actions, [Action::Close { path }, Action::TimedOut { uplink: "eth0".into(), opened: true }]);
    assert_eq!(rig.active(), None);
    rig.wait(RETRY_DELAY);
    match &rig.actions()[..] {
        [Action::Connect { timeout, .. }] => assert_eq!(*timeout, ATTEMPT_TIMEOUT * 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_better_uplink_that_fails_is_tried_ever_less_often_while_the_other_works() {
    let mut rig = Rig::new(vec![link("wlan0", 600, 2)]);
    let path = rig.expect_connect("wlan0");
    rig.succeed(path, 2);
    rig.machine.set_uplinks(rig.now, two_uplinks());
    let mut waits = Vec::new();
    for _ in 0..8 {
        let path = rig.expect_connect("eth0");
        rig.lose(path, Fault::Uplink);
        let start = rig.now;
        while rig.machine.connecting().next().is_none() {
            let deadline = rig.machine.deadline().unwrap();
            rig.wait(deadline - rig.now);
        }
        waits.push((rig.now - start).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(rig.active().as_deref(), Some("wlan0"));
}

#[test]
fn nothing_is_tried_without_a_usable_uplink_and_at_once_when_there_is_one() {
    let mut rig = Rig::connected();
    rig.machine.set_uplinks(rig.now, Vec::new());
    assert!(matches!(rig.actions()[..], [Action::Close { .. }]));
    rig.now += Duration::from_secs(20);
    rig.machine.tick(rig.now);
    assert_eq!(rig.machine.deadline(), None);
    rig.machine.set_uplinks(rig.now, two_uplinks());
    let path = rig.expect_connect("eth0");
    rig.succeed(path, 1);
    assert_eq!(rig.recorded_handover().blackout, Duration::from_secs(20));
}

#[test]
fn late_events_of_a_closed_path_are_ignored() {
    let mut rig = Rig::new(two_uplinks());
    let path = rig.expect_connect("eth0");
    rig.machine.set_uplinks(rig.now, vec![link("wlan0", 600, 2)]);
    let actions = rig.actions();
    assert!(matches!(&actions[..], [Action::Abort { .. }, Action::Connect { .. }]), "{actions:?}");
    assert!(!rig.machine.transport_ready(rig.now, path, address(1)));
    rig.machine.path_ready(rig.now, path);
    assert_eq!(rig.active(), None);
    assert_eq!(rig.lose(path, Fault::Uplink), None);
    assert_eq!(rig.machine.mark_unresponsive(rig.now, path, rig.now), None);
}

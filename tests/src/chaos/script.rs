//! The random script of a chaos test: which events happen, and when, as a pure function of the
//! seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::uplink::UplinkName;

/// The time between two events in milliseconds: short enough that effects overlap, long enough that
/// some sessions settle in between.
const PAUSE_MS: std::ops::Range<u64> = 200..2_200;

/// The duration of an event's effect in milliseconds: from hardly visible to TCP up to several of
/// its retransmission timeouts.
const LASTING_MS: std::ops::Range<u64> = 300..4_000;

/// The duration of an outage of all uplinks in milliseconds.
const OUTAGE_MS: std::ops::Range<u64> = 500..5_000;

/// The percentage of frames lost in each direction during a lossy time.
const LOSS_PERCENT: std::ops::RangeInclusive<u8> = 5..=20;

/// The kinds of events that a chaos test performs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// Kills the agent with SIGKILL and starts it again.
    AgentKilled,
    /// Kills the relay with SIGKILL and starts it again.
    RelayKilled,
    /// Kills both programs with SIGKILL and starts them again.
    BothKilled,
    /// Stops the agent with SIGTERM and starts it again.
    AgentRestarted,
    /// Stops the relay with SIGTERM and starts it again.
    RelayRestarted,
    /// Moves the relay to other addresses and lets its host name resolve to them.
    RelayMoved,
    /// Stops the agent with SIGSTOP, as in a suspend, and continues it later. Meanwhile its netlink
    /// socket overruns, and an uplink gets another address.
    Suspended,
    /// Selects an uplink with `mobile use DEVICE`.
    Use,
    /// Leaves the choice of the uplink to the agent again with `mobile use auto`.
    UseAuto,
    /// Takes away an uplink's carrier.
    CarrierCut,
    /// Sets an uplink's link down.
    LinkDown,
    /// Removes an uplink's addresses; the link stays.
    AddressGone,
    /// Removes an uplink's default routes; link and addresses stay.
    RouteGone,
    /// Removes an uplink's IPv4 addresses and routes, so that only IPv6 is left.
    Ipv4Gone,
    /// Removes an uplink's IPv6 addresses and routes, so that only IPv4 is left.
    Ipv6Gone,
    /// Gives the host other addresses on an uplink.
    Renumbered,
    /// Gives a visited network's router other addresses.
    GatewayChanged,
    /// Drops all packets that the host sends over an uplink, which keeps its carrier.
    SilentUp,
    /// Drops all packets that the host should receive over an uplink, which keeps its carrier.
    SilentDown,
    /// Drops all packets in both directions of an uplink, which keeps its carrier.
    SilentBoth,
    /// Drops some frames of an uplink at random.
    Loss,
    /// Multiplies an uplink's delay by ten.
    Slow,
    /// Divides an uplink's rate by ten.
    Narrow,
    /// Takes all uplinks away at the same time.
    Outage,
    /// Causes thousands of netlink events on the host.
    Storm,
    /// Plugs in a tethered telephone, a third uplink, and unplugs it later.
    Tether,
    /// Puts a captive portal in front of a visited network and removes it later.
    Portal,
}

impl EventKind {
    /// All kinds of events.
    pub const ALL: [Self; 27] = [
        Self::AgentKilled,
        Self::RelayKilled,
        Self::BothKilled,
        Self::AgentRestarted,
        Self::RelayRestarted,
        Self::RelayMoved,
        Self::Suspended,
        Self::Use,
        Self::UseAuto,
        Self::CarrierCut,
        Self::LinkDown,
        Self::AddressGone,
        Self::RouteGone,
        Self::Ipv4Gone,
        Self::Ipv6Gone,
        Self::Renumbered,
        Self::GatewayChanged,
        Self::SilentUp,
        Self::SilentDown,
        Self::SilentBoth,
        Self::Loss,
        Self::Slow,
        Self::Narrow,
        Self::Outage,
        Self::Storm,
        Self::Tether,
        Self::Portal,
    ];

    /// Returns whether the event ends one or both of the programs.
    #[must_use]
    pub fn is_restart(self) -> bool {
        matches!(
            self,
            Self::AgentKilled
                | Self::RelayKilled
                | Self::BothKilled
                | Self::AgentRestarted
                | Self::RelayRestarted
        )
    }

    /// Returns a short description of the kind, for output.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent killed",
            Self::RelayKilled => "relay killed",
            Self::BothKilled => "both killed",
            Self::AgentRestarted => "agent restarted",
            Self::RelayRestarted => "relay restarted",
            Self::RelayMoved => "relay moved, and its name with it",
            Self::Suspended => "suspended in a storm, and woken with another address",
            Self::Use => "mobile use",
            Self::UseAuto => "mobile use auto",
            Self::CarrierCut => "carrier cut",
            Self::LinkDown => "link down",
            Self::AddressGone => "address gone",
            Self::RouteGone => "route gone",
            Self::Ipv4Gone => "IPv6 only",
            Self::Ipv6Gone => "IPv4 only",
            Self::Renumbered => "renumbered",
            Self::GatewayChanged => "gateway changed",
            Self::SilentUp => "silent upwards",
            Self::SilentDown => "silent downwards",
            Self::SilentBoth => "silent both ways",
            Self::Loss => "loss",
            Self::Slow => "ten times the delay",
            Self::Narrow => "a tenth of the rate",
            Self::Outage => "no uplink at all",
            Self::Storm => "storm of netlink events",
            Self::Tether => "tether",
            Self::Portal => "captive portal",
        }
    }

    fn concerns_an_uplink(self) -> bool {
        !self.is_restart()
            && !matches!(self, Self::RelayMoved | Self::UseAuto | Self::Outage | Self::Storm | Self::Tether)
    }

    /// Returns whether an event of this kind has an effect that is undone after [`Event::lasting`].
    #[must_use]
    pub fn lasts(self) -> bool {
        let at_once = matches!(
            self,
            Self::RelayMoved
                | Self::Use
                | Self::UseAuto
                | Self::Renumbered
                | Self::GatewayChanged
                | Self::Storm
        );
        !self.is_restart() && !at_once
    }
}

/// One event of a chaos test's script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The time of the event since the start of the run.
    pub at: Duration,
    /// The kind of event.
    pub kind: EventKind,
    /// The uplink that the event changes; meaningless for kinds that concern no single uplink.
    pub uplink: UplinkName,
    /// The duration of the event's effect; meaningless for kinds that are not undone.
    pub lasting: Duration,
    /// The percentage of frames lost; meaningless for kinds other than [`EventKind::Loss`].
    pub percent: u8,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} s  {}", self.at.as_secs_f64(), self.kind.description())?;
        if self.kind == EventKind::Loss {
            write!(f, " of {} %", self.percent)?;
        }
        if self.kind.concerns_an_uplink() {
            write!(f, ", {}", self.uplink.device())?;
        }
        if self.kind.lasts() {
            write!(f, ", for {:.3} s", self.lasting.as_secs_f64())?;
        }
        Ok(())
    }
}

/// All events of one run of the chaos test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The events in the order of time.
    pub events: Vec<Event>,
}

impl Script {
    /// Creates the script of `count` events that `seed` determines.
    ///
    /// Kinds are dealt like cards: all of them occur before any occurs again. In the second half no
    /// program is restarted, because a leak shows only while a process lives.
    #[must_use]
    pub fn new(seed: u64, count: usize) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let (mut deck, mut at, mut events) = (Vec::new(), Duration::ZERO, Vec::with_capacity(count));
        while events.len() < count {
            let calm = events.len() >= count / 2;
            if calm {
                deck.retain(|kind: &EventKind| !kind.is_restart());
            }
            let Some(kind) = deck.pop() else {
                deck.extend(EventKind::ALL);
                deck.shuffle(&mut chance);
                continue;
            };
            at += Duration::from_millis(chance.random_range(PAUSE_MS));
            let lasting = if kind == EventKind::Outage { OUTAGE_MS } else { LASTING_MS };
            events.push(Event {
                at,
                kind,
                uplink: UplinkName::ALL[usize::from(chance.random_bool(0.5))],
                lasting: Duration::from_millis(chance.random_range(lasting)),
                percent: chance.random_range(LOSS_PERCENT),
            });
        }
        Self { events }
    }

    /// Returns the time of the event from which on no program is restarted, so that memory can be
    /// measured.
    #[must_use]
    pub fn calm_from(&self) -> Duration {
        self.events.get(self.events.len() / 2).map_or(Duration::ZERO, |event| event.at)
    }

    /// Returns the time of the last event.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.events.last().map_or(Duration::ZERO, |event| event.at)
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_script_and_another_makes_another() {
        assert_eq!(Script::new(7, 200), Script::new(7, 200));
        assert_ne!(Script::new(7, 200), Script::new(8, 200));
    }

    #[test]
    fn every_kind_occurs_in_the_first_half_and_all_but_restarts_in_the_second() {
        for seed in 0..50 {
            let script = Script::new(seed, 2 * EventKind::ALL.len());
            let kinds = |events: &[Event]| events.iter().map(|event| event.kind).collect::<BTreeSet<_>>();
            let (first, second) = script.events.split_at(script.events.len() / 2);
            assert_eq!(kinds(first), BTreeSet::from(EventKind::ALL));
            let calm: BTreeSet<_> = EventKind::ALL.into_iter().filter(|kind| !kind.is_restart()).collect();
            assert_eq!(kinds(second), calm);
            assert_eq!(script.calm_from(), second[0].at);
        }
    }

    #[test]
    fn events_come_in_order_and_keep_their_bounds() {
        let script = Script::new(3, 1_000);
        assert!(script.events.is_sorted_by_key(|event| event.at));
        for event in &script.events {
            assert!((5..=20).contains(&event.percent), "{event}");
            assert!((300..5_000).contains(&event.lasting.as_millis()), "{event}");
            assert!(event.kind == EventKind::Outage || event.lasting.as_millis() < 4_000, "{event}");
        }
        for uplink in UplinkName::ALL {
            assert!(script.events.iter().any(|event| event.uplink == uplink));
        }
        assert_eq!(script.events.len(), 1_000);
        assert_eq!(script.to_string().lines().count(), 1_000);
    }

    #[test]
    fn an_empty_script_has_no_end() {
        assert_eq!(Script::new(1, 0).end(), Duration::ZERO);
    }
}

//! What happens, and when: a pure function of a seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::uplink::UplinkName;

/// The pauses between events, in milliseconds: short enough that effects overlap, long enough that some sessions
/// settle in between.
const PAUSE_MS: std::ops::Range<u64> = 200..2_200;

/// How long an effect lasts, in milliseconds: from what TCP hardly sees to several of its timeouts.
const LASTING_MS: std::ops::Range<u64> = 300..4_000;

/// How long there is no uplink at all.
const OUTAGE_MS: std::ops::Range<u64> = 500..5_000;

/// The share of frames lost, in per cent, each way.
const LOSS_PERCENT: std::ops::RangeInclusive<u8> = 5..=20;

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SIGKILL, and a new start.
    AgentKilled,
    /// SIGKILL, and a new start.
    RelayKilled,
    /// Both at once, and new starts.
    BothKilled,
    /// SIGTERM, a clean end, and a new start.
    AgentRestarted,
    /// SIGTERM, a clean end, and a new start.
    RelayRestarted,
    /// The relay's name leads to other addresses, and only there it is reached.
    RelayMoved,
    /// The agent is stopped for a while, as in a suspend; its netlink socket overruns meanwhile, and the uplink has
    /// another address when it wakes.
    Suspended,
    /// `mobile use` of an uplink.
    Use,
    /// `mobile use auto`.
    UseAuto,
    /// The cable is pulled.
    CarrierCut,
    /// The link is set down.
    LinkDown,
    /// The addresses go, the link stays.
    AddressGone,
    /// The default routes go, link and addresses stay.
    RouteGone,
    /// The network offers IPv6 only.
    Ipv4Gone,
    /// The network offers IPv4 only.
    Ipv6Gone,
    /// Another address on the same link.
    Renumbered,
    /// Another router on the same link.
    GatewayChanged,
    /// What the host sends vanishes.
    SilentUp,
    /// What the host should receive vanishes.
    SilentDown,
    /// Everything vanishes.
    SilentBoth,
    /// Some frames are lost.
    Loss,
    /// Ten times the delay.
    Slow,
    /// A tenth of the rate.
    Narrow,
    /// Nothing is left of any uplink.
    Outage,
    /// Thousands of netlink events.
    Storm,
    /// A tethered telephone is plugged in, and pulled out later.
    Tether,
    /// A captive portal closes.
    Portal,
}

impl Kind {
    /// All of them.
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

    /// Whether a program ends in it.
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

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
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

    /// Whether what it does is undone after [`Event::lasting`].
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

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, from the start.
    pub at: Duration,
    /// What.
    pub kind: Kind,
    /// To which uplink, where it is one's.
    pub uplink: UplinkName,
    /// For how long, where it passes.
    pub lasting: Duration,
    /// The share of frames lost, where some are.
    pub percent: u8,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} s  {}", self.at.as_secs_f64(), self.kind.words())?;
        if self.kind == Kind::Loss {
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

/// Everything that happens in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// In order of time.
    pub events: Vec<Event>,
}

impl Script {
    /// The script of `count` events that `seed` stands for.
    ///
    /// Kinds are dealt like cards, all of them before the first comes again. In the second half no program ends: what
    /// one holds can only be seen to stay the same while it lives.
    #[must_use]
    pub fn new(seed: u64, count: usize) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let (mut deck, mut at, mut events) = (Vec::new(), Duration::ZERO, Vec::with_capacity(count));
        while events.len() < count {
            let calm = events.len() >= count / 2;
            if calm {
                deck.retain(|kind: &Kind| !kind.is_restart());
            }
            let Some(kind) = deck.pop() else {
                deck.extend(Kind::ALL);
                deck.shuffle(&mut chance);
                continue;
            };
            at += Duration::from_millis(chance.random_range(PAUSE_MS));
            let lasting = if kind == Kind::Outage { OUTAGE_MS } else { LASTING_MS };
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

    /// The first moment at which no program ends any more.
    #[must_use]
    pub fn calm_from(&self) -> Duration {
        self.events.get(self.events.len() / 2).map_or(Duration::ZERO, |event| event.at)
    }

    /// When the last event has come.
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
            let script = Script::new(seed, 2 * Kind::ALL.len());
            let kinds = |events: &[Event]| events.iter().map(|event| event.kind).collect::<BTreeSet<_>>();
            let (first, second) = script.events.split_at(script.events.len() / 2);
            assert_eq!(kinds(first), BTreeSet::from(Kind::ALL));
            let calm: BTreeSet<_> = Kind::ALL.into_iter().filter(|kind| !kind.is_restart()).collect();
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
            assert!(event.kind == Kind::Outage || event.lasting.as_millis() < 4_000, "{event}");
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

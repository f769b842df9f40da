//! The events of the handover benchmark, such as the loss of a link.

use std::time::Duration;

use mobile_tests::UplinkName;
use mobile_tests::pulse::PulseMode;

/// An event of the handover benchmark, which is a row of the table, or two rows for an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Event {
    /// The user switches to the other uplink with `mobile use`.
    Use,
    /// A better uplink comes up, and the old one goes down a second later.
    Better,
    /// The active uplink's link goes down and loses its address; the other uplink has a standby
    /// path.
    LinkDown,
    /// The active uplink's link goes down and loses its address, and there is no standby path.
    LinkDownCold,
    /// All packets on the active uplink are dropped, and its link stays up.
    Blackhole,
    /// There is no uplink for one second.
    #[value(name = "outage-1")]
    Outage1,
    /// There is no uplink for 10 s.
    #[value(name = "outage-10")]
    Outage10,
    /// There is no uplink for a minute.
    #[value(name = "outage-60")]
    Outage60,
    /// The agent is killed and started again at once.
    KillAgent,
    /// The relay is killed and started again at once.
    KillRelay,
}

impl Event {
    /// All events, in the order of the table.
    pub(crate) const ALL: [Self; 10] = [
        Self::Use,
        Self::Better,
        Self::LinkDown,
        Self::LinkDownCold,
        Self::Blackhole,
        Self::Outage1,
        Self::Outage10,
        Self::Outage60,
        Self::KillAgent,
        Self::KillRelay,
    ];

    /// Returns the event's title in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Use => "`mobile use` of the other uplink",
            Self::Better => "a better uplink appears, the old one goes 1 s later",
            Self::LinkDown => "link down and address gone, standby warm",
            Self::LinkDownCold => "the same, no standby",
            Self::Blackhole => "silent blackhole, link stays up",
            Self::Outage1 => "no uplink for 1 s, then one returns",
            Self::Outage10 => "no uplink for 10 s, then one returns",
            Self::Outage60 => "no uplink for 60 s, then one returns",
            Self::KillAgent => "agent SIGKILL, restarted at once",
            Self::KillRelay => "relay SIGKILL, restarted at once",
        }
    }

    /// Returns the length of an outage; `None` for other events. The gap of an outage counts from
    /// the return of an uplink.
    pub(crate) fn outage(self) -> Option<Duration> {
        match self {
            Self::Outage1 => Some(Duration::from_secs(1)),
            Self::Outage10 => Some(Duration::from_secs(10)),
            Self::Outage60 => Some(Duration::from_secs(60)),
            _ => None,
        }
    }

    /// Returns the directions in which the measuring application sends its numbered messages.
    pub(crate) fn modes(self) -> &'static [PulseMode] {
        if self.outage().is_some() { &[PulseMode::Echo, PulseMode::Down] } else { &[PulseMode::Echo] }
    }

    /// Returns whether a run of the event mostly waits, so that several labs may run in parallel.
    pub(crate) fn is_long(self) -> bool {
        self.outage().is_some_and(|length| length > Duration::from_secs(5))
    }

    /// Returns whether the event is measured with competitors too. Excluded are events that only
    /// `mobile` and `home-relay` have, and [`Self::LinkDownCold`], because competitors' standby
    /// paths cannot be turned off.
    pub(crate) fn is_for_competitors(self) -> bool {
        !matches!(self, Self::Use | Self::LinkDownCold | Self::KillAgent | Self::KillRelay)
    }

    /// Returns whether the event needs an agent configured without standby paths.
    pub(crate) fn is_without_standby(self) -> bool {
        self == Self::LinkDownCold
    }

    /// Returns whether another uplink must have a standby path before the event.
    pub(crate) fn needs_standby(self) -> bool {
        matches!(self, Self::Use | Self::LinkDown | Self::Blackhole)
    }

    /// Returns the uplink that is active before the event.
    pub(crate) fn starts_on(self) -> UplinkName {
        if self == Self::Better { UplinkName::Wlan } else { UplinkName::Eth }
    }
}

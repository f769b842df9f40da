//! The subject of a run of the handover benchmark: this project's programs or a competitor, in a
//! lab of its own.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mobile_tests::competitors::{Change, Competitor, CompetitorKind};
use mobile_tests::pulse::{Pulse, PulseMode};
use mobile_tests::{Agent, Lab, LabOptions, Testbed, UplinkName, program, wait_for};

use super::event::Event;

/// The timeout for opening a standby path, which takes a few round trips.
const STANDBY: Duration = Duration::from_secs(5);

/// The number of messages that the application sends before the event: half a second's, in which
/// effects of the start settle.
const BEFORE: u64 = 100;

/// A lab with the programs that keep its connections alive across handovers.
pub(crate) enum HandoverSubject {
    /// `mobile` and `home-relay` in their lab.
    Ours(Box<Testbed>),
    /// A competitor and its lab. The competitor is dropped first.
    Competitor(Box<dyn Competitor>, Box<Lab>),
}

impl HandoverSubject {
    /// Starts the lab and the programs as `event` requires them; `None` means mobile.
    pub(crate) fn start(competitor: Option<&CompetitorKind>, event: Event) -> Result<Self> {
        match competitor {
            None => {
                let mut bed = Testbed::installed(&LabOptions::default())?;
                if event.is_without_standby() {
                    without_standby(&bed.agent)?;
                }
                arrange(&bed.lab, event.starts_on())?;
                bed.relay.start()?;
                bed.agent.start()?;
                bed.agent.wait_active(event.starts_on())?;
                if event.needs_standby() {
                    wait_standby(&bed.agent, UplinkName::Wlan)?;
                }
                Ok(Self::Ours(Box::new(bed)))
            }
            Some(kind) => {
                let lab = Lab::new()?;
                arrange(&lab, event.starts_on())?;
                let mut competitor = kind.make();
                competitor.start(&lab)?;
                Ok(Self::Competitor(competitor, Box::new(lab)))
            }
        }
    }

    /// Returns the subject's lab.
    pub(crate) fn lab(&self) -> &Lab {
        match self {
            Self::Ours(bed) => &bed.lab,
            Self::Competitor(_, lab) => lab,
        }
    }

    /// Starts an application that measures gaps in its data, and waits for its first messages.
    pub(crate) fn pulse(&self, mode: PulseMode) -> Result<Pulse> {
        match self {
            Self::Ours(bed) => {
                let tool = program("labtool")?.display().to_string();
                let address = mode.server().to_string();
                Pulse::start(&mut bed.agent.run(&[&tool, "pulse", mode.name(), "tcp", &address]), BEFORE)
            }
            Self::Competitor(competitor, lab) => competitor.pulse(lab, mode, BEFORE),
        }
    }

    /// Runs a competitor's hook for a change of an uplink, as a network manager's dispatcher would;
    /// the agent needs none.
    pub(crate) fn hook(&mut self, change: Change) -> Result<()> {
        match self {
            Self::Ours(_) => Ok(()),
            Self::Competitor(competitor, lab) => competitor.hook(lab, change),
        }
    }

    /// Runs `mobile use` with an uplink.
    pub(crate) fn use_uplink(&mut self, name: UplinkName) -> Result<()> {
        self.ours()?.agent.cli(&["use", name.device()])?.ok().map(drop)
    }

    /// Kills the agent with SIGKILL and starts it again.
    pub(crate) fn restart_agent(&mut self) -> Result<()> {
        let bed = self.ours()?;
        bed.agent.kill()?;
        bed.agent.start()
    }

    /// Kills the relay with SIGKILL and starts it again.
    pub(crate) fn restart_relay(&mut self) -> Result<()> {
        let bed = self.ours()?;
        bed.relay.kill()?;
        bed.relay.start()
    }

    /// Checks that the tunnel is on the uplink to which the event must have moved it.
    pub(crate) fn verify(&mut self, event: Event) -> Result<()> {
        let Self::Ours(bed) = self else { return Ok(()) };
        let expected = match event {
            Event::Use | Event::LinkDown | Event::LinkDownCold | Event::Blackhole => UplinkName::Wlan,
            _ => UplinkName::Eth,
        };
        bed.agent.wait_active(expected)
    }

    fn ours(&mut self) -> Result<&mut Testbed> {
        match self {
            Self::Ours(bed) => Ok(bed),
            Self::Competitor(..) => bail!("this event is not measured of competitors"),
        }
    }
}

/// Configures the agent without standby paths; by default every uplink has one.
fn without_standby(agent: &Agent) -> Result<()> {
    agent.configure("uplink", "standby", Vec::<String>::new())
}

fn wait_standby(agent: &Agent, uplink: UplinkName) -> Result<()> {
    wait_for(&format!("a standby path on {}", uplink.device()), STANDBY, || {
        let output = agent.cli(&["uplinks", "--json"])?.ok()?;
        let uplinks: serde_json::Value = serde_json::from_str(&output)?;
        let list = uplinks["uplinks"].as_array().context("no list of uplinks")?;
        let stands_by = |one: &serde_json::Value| one["name"] == uplink.device() && one["state"] == "standby";
        if !list.iter().any(stands_by) {
            bail!("`uplinks` says {output}");
        }
        Ok(Some(()))
    })
}

/// Puts the lab's uplinks into the state before the event.
///
/// An event that starts on the worse uplink starts without the better one. The host knows the
/// hardware addresses of the gateways it has, as it does shortly after joining a network, but not
/// that of a gateway that comes with the event.
fn arrange(lab: &Lab, start: UplinkName) -> Result<()> {
    if start == UplinkName::Wlan {
        lab.eth().take_down()?;
    }
    for name in UplinkName::ALL {
        let uplink = lab.uplink(name);
        if uplink.has_carrier() {
            let gateway = uplink.gateway4().to_string();
            lab.host.run(&["ping", "-q", "-c", "1", "-W", "1", "-I", name.device(), &gateway])?;
        }
    }
    Ok(())
}

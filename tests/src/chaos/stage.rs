//! Performs the events of a chaos test's script in a lab, and undoes each when its time is over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::script::{Event, EventKind};
use crate::captive_portal::CaptivePortal;
use crate::lab::LabOptions;
use crate::link::Blackhole;
use crate::relay_name::{RelayLocation, RelayName};
use crate::storm::netlink_storm;
use crate::testbed::Testbed;
use crate::tether::Tether;
use crate::uplink::{Family, Uplink, UplinkName};

/// The rate of each uplink in bit/s: little enough that one or two cores keep up, enough for bulk
/// flows to fill.
pub(super) const RATE: u64 = 20_000_000;

/// The number of times that one storm adds and removes an address and a route; each time causes
/// several netlink events.
const STORM_FLIPS: usize = 1_000;

/// The number of times that an address and a route are added and removed to overrun the buffer of a
/// netlink socket that is not read meanwhile.
const OVERRUN_FLIPS: usize = 300;

/// The metric of the tethered uplink's default route, better than both other uplinks': the session
/// moves to the tether and must leave it again.
const TETHER_METRIC: u32 = 50;

/// The lab on which a chaos test performs its events.
pub(super) struct Stage {
    /// The lab with both programs.
    pub(super) bed: Testbed,
    tether: Option<Tether>,
    portals: [Option<CaptivePortal>; 2],
    relay: (RelayName, RelayLocation),
    undo: Vec<(Instant, EventKind, UplinkName)>,
}

impl Stage {
    /// Starts both programs with the settings `tunnel` of `[tunnel]`, and limits the uplinks'
    /// rates.
    pub(super) fn new(tunnel: &[(String, String)]) -> Result<Self> {
        let mut bed = Testbed::installed(&LabOptions::default())?;
        bed.configure_tunnel(tunnel)?;
        let place = RelayLocation::First;
        let relay = (RelayName::install(&mut bed, &place.addresses())?, place);
        bed.start()?;
        for name in UplinkName::ALL {
            bed.lab.uplink(name).link().set_rate(Some(RATE));
        }
        Ok(Self { bed, tether: None, portals: [None, None], relay, undo: Vec::new() })
    }

    /// Performs an event, and notes when [`Stage::undo_until`] must undo it if its effect lasts.
    pub(super) fn perform(&mut self, event: &Event) -> Result<()> {
        self.begin(event).with_context(|| format!("cannot perform the event: {event}"))?;
        if event.kind.lasts() {
            self.undo.push((Instant::now() + event.lasting, event.kind, event.uplink));
        }
        Ok(())
    }

    /// Undoes all events whose time is over at `now`. If several have changed one uplink, the first
    /// one undone repairs the uplink.
    pub(super) fn undo_until(&mut self, now: Instant) -> Result<()> {
        let (due, later): (Vec<_>, Vec<_>) = self.undo.drain(..).partition(|(at, ..)| *at <= now);
        self.undo = later;
        for (_, kind, uplink) in due {
            self.end(kind, uplink)
                .with_context(|| format!("cannot undo the event: {}", kind.description()))?;
        }
        Ok(())
    }

    /// Returns when the next event must be undone, or `None` if no effect lasts.
    pub(super) fn next_undo(&self) -> Option<Instant> {
        self.undo.iter().map(|(at, ..)| *at).min()
    }

    /// Undoes the effects of all events, brings both uplinks up and leaves the choice of the uplink
    /// to the agent.
    pub(super) fn repair(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.undo);
        for (_, kind, uplink) in pending {
            self.end(kind, uplink)?;
        }
        for name in UplinkName::ALL {
            self.bed.lab.uplink(name).bring_up()?;
        }
        self.bed.agent.cli(&["use", "auto"])?.ok().map(drop)
    }

    fn begin(&mut self, event: &Event) -> Result<()> {
        let Testbed { agent, relay, lab, .. } = &mut self.bed;
        let uplink: &Uplink = lab.uplink(event.uplink);
        let link = uplink.link();
        match event.kind {
            EventKind::AgentKilled => agent.kill().and_then(|()| agent.start()),
            EventKind::RelayKilled => relay.kill().and_then(|()| relay.start()),
            EventKind::BothKilled => {
                agent.kill()?;
                relay.kill()?;
                relay.start()?;
                agent.start()
            }
            EventKind::AgentRestarted => agent.stop().and_then(|()| agent.start()),
            EventKind::RelayRestarted => relay.stop().and_then(|()| relay.start()),
            EventKind::RelayMoved => self.move_relay(),
            EventKind::Suspended => self.suspend_agent(event.uplink, event.lasting),
            EventKind::Use => agent.cli(&["use", uplink.device()])?.ok().map(drop),
            EventKind::UseAuto => agent.cli(&["use", "auto"])?.ok().map(drop),
            // The event does not wait until the kernel has announced the change; that is the
            // agent's part.
            EventKind::CarrierCut => link.cut(),
            EventKind::LinkDown => uplink.take_down(),
            EventKind::AddressGone => uplink.remove_address(),
            EventKind::RouteGone => {
                Family::ALL.into_iter().try_for_each(|family| uplink.flush_routes(family))
            }
            EventKind::Ipv4Gone => uplink.remove_family(Family::Four),
            EventKind::Ipv6Gone => uplink.remove_family(Family::Six),
            // The uplink is brought up first, because only a reachable network answers DHCP.
            EventKind::Renumbered => uplink.bring_up().and_then(|()| uplink.renumber()),
            EventKind::GatewayChanged => uplink.bring_up().and_then(|()| uplink.change_gateway()),
            EventKind::SilentUp => silence(link, Blackhole::Up),
            EventKind::SilentDown => silence(link, Blackhole::Down),
            EventKind::SilentBoth => silence(link, Blackhole::Both),
            EventKind::Loss => {
                link.set_loss(f64::from(event.percent) / 100.0);
                Ok(())
            }
            EventKind::Slow => {
                link.set_delay(LabOptions::DELAY * 10);
                Ok(())
            }
            EventKind::Narrow => {
                link.set_rate(Some(RATE / 10));
                Ok(())
            }
            EventKind::Outage => {
                self.tether = None;
                lab.wlan().link().cut()?;
                lab.eth().take_down()
            }
            EventKind::Storm => netlink_storm(&lab.host, STORM_FLIPS),
            EventKind::Tether => self.plug_in_tether(),
            EventKind::Portal => self.install_portal(event.uplink),
        }
    }

    /// Moves the relay to its other address and changes its name's records.
    fn move_relay(&mut self) -> Result<()> {
        let (name, place) = &mut self.relay;
        *place = place.other();
        place.move_relay_here(&self.bed.lab)?;
        name.set(&place.addresses())
    }

    /// Stops the agent for the time `lasting`, in which netlink events overrun its sockets' buffers
    /// and an uplink gets other addresses.
    fn suspend_agent(&self, uplink: UplinkName, lasting: Duration) -> Result<()> {
        let Testbed { agent, lab, .. } = &self.bed;
        let uplink = lab.uplink(uplink);
        agent.signal(Signal::SIGSTOP)?;
        let asleep = Instant::now();
        netlink_storm(&lab.host, OVERRUN_FLIPS)?;
        uplink.bring_up()?;
        uplink.renumber()?;
        std::thread::sleep(lasting.saturating_sub(asleep.elapsed()));
        agent.signal(Signal::SIGCONT)
    }

    /// Plugs the telephone in. There is only one: it is unplugged first if it is plugged in.
    fn plug_in_tether(&mut self) -> Result<()> {
        self.tether = None;
        let tether = Tether::plug_in(&self.bed.lab, TETHER_METRIC)?;
        tether.link.set_rate(Some(RATE));
        self.tether = Some(tether);
        Ok(())
    }

    /// Installs a captive portal in the visited network of an uplink that has none.
    fn install_portal(&mut self, uplink: UplinkName) -> Result<()> {
        let portal = &mut self.portals[index(uplink)];
        if portal.is_none() {
            *portal = Some(CaptivePortal::install(&self.bed.lab.visited[index(uplink)])?);
        }
        Ok(())
    }

    fn end(&mut self, kind: EventKind, uplink: UplinkName) -> Result<()> {
        let lab = &self.bed.lab;
        let link = lab.uplink(uplink).link();
        match kind {
            EventKind::SilentUp | EventKind::SilentDown | EventKind::SilentBoth => {
                silence(link, Blackhole::None)
            }
            EventKind::Loss => {
                link.set_loss(0.0);
                Ok(())
            }
            EventKind::Slow => {
                link.set_delay(LabOptions::DELAY);
                Ok(())
            }
            EventKind::Narrow => {
                link.set_rate(Some(RATE));
                Ok(())
            }
            EventKind::Outage => lab.wlan().bring_up().and_then(|()| lab.eth().bring_up()),
            EventKind::Tether => {
                self.tether = None;
                Ok(())
            }
            EventKind::Portal => {
                self.portals[index(uplink)] = None;
                Ok(())
            }
            // Bringing the uplink up repairs every loss that a network manager can cause. A
            // suspended agent has been woken by `begin`.
            _ => lab.uplink(uplink).bring_up(),
        }
    }
}

fn silence(link: &crate::link::LinkEmulator, blackhole: Blackhole) -> Result<()> {
    link.set_blackhole(blackhole);
    Ok(())
}

fn index(name: UplinkName) -> usize {
    usize::from(name == UplinkName::Eth)
}

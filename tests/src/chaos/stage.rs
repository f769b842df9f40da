//! Carries events out, and undoes them when their time is over.

use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::script::{Event, Kind};
use crate::lab::LabOptions;
use crate::link::Blackhole;
use crate::portal::Portal;
use crate::relay_name::{RelayName, RelayPlace};
use crate::storm::netlink_storm;
use crate::testbed::Testbed;
use crate::tether::Tether;
use crate::uplink::{Family, Uplink, UplinkName};

/// Each uplink's rate: more than a core or two can be kept busy with, enough for bulk flows to fill.
pub(super) const RATE: u64 = 20_000_000;

/// Some thousand events each time.
const STORM_FLIPS: usize = 1_000;

/// More events than the buffer of a netlink socket holds when nobody reads.
const OVERRUN_FLIPS: usize = 300;

/// Better than both uplinks: the session moves to the tether, and has to leave it when it is pulled out.
const TETHER_METRIC: u32 = 50;

/// The lab while chaos is on.
pub(super) struct Stage {
    /// Both programs.
    pub(super) bed: Testbed,
    tether: Option<Tether>,
    portals: [Option<Portal>; 2],
    relay: (RelayName, RelayPlace),
    undo: Vec<(Instant, Kind, UplinkName)>,
}

impl Stage {
    /// Both programs running with these settings of `[tunnel]`, the uplinks as limited as real ones.
    pub(super) fn new(tunnel: &[(String, String)]) -> Result<Self> {
        let mut bed = Testbed::installed(&LabOptions::default())?;
        bed.configure_tunnel(tunnel)?;
        let place = RelayPlace::First;
        let relay = (RelayName::give(&mut bed, &place.addresses())?, place);
        bed.start()?;
        for name in UplinkName::ALL {
            bed.lab.uplink(name).link().set_rate(Some(RATE));
        }
        Ok(Self { bed, tether: None, portals: [None, None], relay, undo: Vec::new() })
    }

    /// Begins an event; what it lasts is undone by [`Stage::undo_until`].
    pub(super) fn perform(&mut self, event: &Event) -> Result<()> {
        self.begin(event).with_context(|| format!("cannot carry out: {event}"))?;
        if event.kind.lasts() {
            self.undo.push((Instant::now() + event.lasting, event.kind, event.uplink));
        }
        Ok(())
    }

    /// Undoes what is due at `now`. When effects overlap on one uplink, the first to end repairs it.
    pub(super) fn undo_until(&mut self, now: Instant) -> Result<()> {
        let (due, later): (Vec<_>, Vec<_>) = self.undo.drain(..).partition(|(at, ..)| *at <= now);
        self.undo = later;
        for (_, kind, uplink) in due {
            self.end(kind, uplink).with_context(|| format!("cannot undo: {}", kind.words()))?;
        }
        Ok(())
    }

    /// When the next effect ends.
    pub(super) fn next_undo(&self) -> Option<Instant> {
        self.undo.iter().map(|(at, ..)| *at).min()
    }

    /// Everything is as it should be again, and whatever was forced is left to the policy.
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
            Kind::AgentKilled => agent.kill().and_then(|()| agent.start()),
            Kind::RelayKilled => relay.kill().and_then(|()| relay.start()),
            Kind::BothKilled => {
                agent.kill()?;
                relay.kill()?;
                relay.start()?;
                agent.start()
            }
            Kind::AgentRestarted => agent.stop().and_then(|()| agent.start()),
            Kind::RelayRestarted => relay.stop().and_then(|()| relay.start()),
            Kind::RelayMoved => {
                let (name, place) = &mut self.relay;
                *place = place.other();
                place.move_relay_here(lab)?;
                name.set(&place.addresses())
            }
            Kind::Suspended => {
                agent.signal(Signal::SIGSTOP)?;
                let asleep = Instant::now();
                netlink_storm(&lab.host, OVERRUN_FLIPS)?;
                uplink.bring_up()?;
                uplink.renumber()?;
                std::thread::sleep(event.lasting.saturating_sub(asleep.elapsed()));
                agent.signal(Signal::SIGCONT)
            }
            Kind::Use => agent.cli(&["use", uplink.device()])?.ok().map(drop),
            Kind::UseAuto => agent.cli(&["use", "auto"])?.ok().map(drop),
            // Without waiting for the kernel to tell of it: that is the agent's part.
            Kind::CarrierCut => link.cut(),
            Kind::LinkDown => uplink.take_down(),
            Kind::AddressGone => uplink.remove_address(),
            Kind::RouteGone => Family::ALL.into_iter().try_for_each(|family| uplink.flush_routes(family)),
            Kind::Ipv4Gone => uplink.remove_family(Family::Four),
            Kind::Ipv6Gone => uplink.remove_family(Family::Six),
            // A network that answers DHCP is there.
            Kind::Renumbered => uplink.bring_up().and_then(|()| uplink.renumber()),
            Kind::GatewayChanged => uplink.bring_up().and_then(|()| uplink.change_gateway()),
            Kind::SilentUp => silence(link, Blackhole::Up),
            Kind::SilentDown => silence(link, Blackhole::Down),
            Kind::SilentBoth => silence(link, Blackhole::Both),
            Kind::Loss => {
                link.set_loss(f64::from(event.percent) / 100.0);
                Ok(())
            }
            Kind::Slow => {
                link.set_delay(LabOptions::DELAY * 10);
                Ok(())
            }
            Kind::Narrow => {
                link.set_rate(Some(RATE / 10));
                Ok(())
            }
            Kind::Outage => {
                self.tether = None;
                lab.wlan().link().cut()?;
                lab.eth().take_down()
            }
            Kind::Storm => netlink_storm(&lab.host, STORM_FLIPS),
            Kind::Tether => {
                // One telephone: it is pulled out first if it is there.
                self.tether = None;
                let tether = Tether::plug_in(lab, TETHER_METRIC)?;
                tether.link.set_rate(Some(RATE));
                self.tether = Some(tether);
                Ok(())
            }
            Kind::Portal => {
                let portal = &mut self.portals[index(event.uplink)];
                if portal.is_none() {
                    *portal = Some(Portal::close(&lab.visited[index(event.uplink)])?);
                }
                Ok(())
            }
        }
    }

    fn end(&mut self, kind: Kind, uplink: UplinkName) -> Result<()> {
        let lab = &self.bed.lab;
        let link = lab.uplink(uplink).link();
        match kind {
            Kind::SilentUp | Kind::SilentDown | Kind::SilentBoth => silence(link, Blackhole::None),
            Kind::Loss => {
                link.set_loss(0.0);
                Ok(())
            }
            Kind::Slow => {
                link.set_delay(LabOptions::DELAY);
                Ok(())
            }
            Kind::Narrow => {
                link.set_rate(Some(RATE));
                Ok(())
            }
            Kind::Outage => lab.wlan().bring_up().and_then(|()| lab.eth().bring_up()),
            Kind::Tether => {
                self.tether = None;
                Ok(())
            }
            Kind::Portal => {
                self.portals[index(uplink)] = None;
                Ok(())
            }
            // Every loss a network manager can cause; a suspended agent is awake already.
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

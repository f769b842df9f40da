//! Events on a laptop: suspend, changes of the network, a captive portal, a relay that moves, a
//! tether.

use std::time::Duration;

use mobile_tests::{
    CaptivePortal, Family, LabOptions, RelayLocation, RelayName, Testbed, Tether, UplinkName, addr, until,
    wait_for,
};
use nix::sys::signal::Signal;

use crate::{Outcome, assert_echo, echo_sessions, ip_of};

fn handovers(bed: &Testbed) -> anyhow::Result<u64> {
    Ok(bed.agent.status()?["handovers"].as_u64().expect("a count"))
}

type Waking = (&'static str, fn(&Testbed) -> Outcome, UplinkName);

/// Changes of the network while the laptop is suspended, each with the uplink that must carry the
/// tunnel afterwards.
const WAKINGS: [Waking; 5] = [
    ("the same network", |_| Ok(()), UplinkName::Eth),
    ("another address", |bed| bed.lab.eth().renumber(), UplinkName::Eth),
    ("another uplink", |bed| bed.lab.eth().take_down(), UplinkName::Wlan),
    ("another address of the other uplink", |bed| bed.lab.wlan().renumber(), UplinkName::Wlan),
    ("the first uplink again", |bed| bed.lab.eth().bring_up(), UplinkName::Eth),
];

#[test]
fn connections_go_on_after_a_suspend_whatever_network_the_laptop_wakes_in() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    for (what, change, uplink) in WAKINGS {
        bed.agent.signal(Signal::SIGSTOP)?;
        // Data sent while the agent is stopped waits in the kernel.
        for talk in &mut talks {
            talk.send_line("asleep")?;
        }
        change(&bed)?;
        // Longer than any timeout of an unanswered path.
        std::thread::sleep(Duration::from_secs(4));
        bed.agent.signal(Signal::SIGCONT)?;
        for talk in &mut talks {
            assert_eq!(talk.next_line()?, "asleep", "{what}");
        }
        bed.agent.wait_active(uplink)?;
        assert_echo(&mut talks, what)?;
    }
    bed.expect_quick_replug();
    // After waking, an agent may take its own sleep for the path's silence.
    bed.expect_warning("gone silent");
    bed.finish()
}

#[test]
fn renumbering_on_the_same_link_keeps_the_connections_and_the_uplink() -> Outcome {
    let bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    for _ in 0..3 {
        let before = handovers(&bed)?;
        bed.lab.eth().renumber()?;
        assert_echo(&mut talks, "renumbered")?;
        bed.agent.wait_status("the handover to be counted", |status| {
            status["handovers"].as_u64().is_some_and(|count| count > before)
        })?;
        bed.agent.wait_active(UplinkName::Eth)?;
        until("the uplink's new address to be known", || {
            bed.agent.uplink("eth0").is_ok_and(|link| {
                let addresses = link["addresses"].to_string();
                addresses.contains(&format!("{:?}", bed.lab.eth().address4().to_string()))
            })
        })?;
    }
    bed.finish()
}

#[test]
fn another_gateway_on_the_same_link_keeps_the_connections() -> Outcome {
    let bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    for _ in 0..2 {
        let old = bed.lab.eth().gateway4();
        bed.lab.eth().change_gateway()?;
        assert_ne!(bed.lab.eth().gateway4(), old);
        assert_echo(&mut talks, "by another router")?;
        bed.agent.wait_active(UplinkName::Eth)?;
    }
    bed.finish()
}

#[test]
fn an_uplink_without_a_default_route_is_not_used_and_says_why_until_the_route_appears() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    for family in Family::ALL {
        bed.lab.eth().flush_routes(family)?;
    }
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    let eth = bed.agent.uplink("eth0")?;
    assert_eq!(eth["state"], "unusable", "{eth}");
    assert!(eth["reason"].as_str().is_some_and(|reason| reason.contains("no default route")), "{eth}");
    assert!(!eth["addresses"].as_array().expect("a list").is_empty(), "{eth}");
    let mut talks = echo_sessions(&bed)?;
    bed.lab.eth().bring_up()?;
    bed.agent.wait_active(UplinkName::Eth)?;
    assert_echo(&mut talks, "after")?;
    bed.finish()
}

#[test]
fn behind_a_captive_portal_the_other_uplink_serves_until_the_portal_opens() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let portal = CaptivePortal::install(&bed.lab.visited[1])?;
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert!(portal.intercepted() > 0, "the agent never met the portal");
    let eth = bed.agent.uplink("eth0")?;
    assert_eq!(eth["state"], "failing", "{eth}");
    for (field, named) in [("reason", "another service answers at"), ("next_step", "captive portal")] {
        assert!(eth[field].as_str().is_some_and(|text| text.contains(named)), "{eth}");
    }
    let mut talks = echo_sessions(&bed)?;
    drop(portal);
    bed.agent.wait_active(UplinkName::Eth)?;
    assert_echo(&mut talks, "logged in")?;

    // The portal closes again, on the uplink in use.
    let portal = CaptivePortal::install(&bed.lab.visited[1])?;
    assert_echo(&mut talks, "locked out")?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    drop(portal);
    bed.agent.wait_active(UplinkName::Eth)?;
    assert_echo(&mut talks, "let in")?;
    bed.expect_warning("portal");
    bed.expect_warning("gone silent");
    bed.expect_warning("no answer from the relay");
    bed.finish()
}

#[test]
fn a_relay_whose_name_leads_to_another_address_later_is_found_there() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let name = RelayName::install(&mut bed, &RelayLocation::First.addresses())?;
    bed.start()?;
    let mut talks = echo_sessions(&bed)?;
    for place in [RelayLocation::Second, RelayLocation::First] {
        place.move_relay_here(&bed.lab)?;
        name.set(&place.addresses())?;
        assert_echo(&mut talks, "moved")?;
        bed.agent.wait_connected()?;
        let reached = bed.agent.status()?["relay"]["address"].as_str().expect("an address").to_owned();
        assert!(place.addresses().contains(&ip_of(&reached)), "{place:?}: {reached}");
    }
    bed.expect_warning("gone silent");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn uplinks_of_one_family_only_carry_the_session_when_the_relay_has_it() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let [four, six] = [addr::RELAY4.to_string(), addr::RELAY6.to_string()];
    let _name = RelayName::install(&mut bed, &RelayLocation::First.addresses())?;
    bed.lab.eth().remove_family(Family::Four)?;
    bed.lab.wlan().remove_family(Family::Six)?;
    bed.start()?;
    let mut talks = echo_sessions(&bed)?;
    let reached = |bed: &Testbed| -> anyhow::Result<String> {
        Ok(bed.agent.status()?["relay"]["address"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(reached(&bed)?, format!("[{six}]:443"));
    bed.lab.eth().take_down()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert_eq!(reached(&bed)?, format!("{four}:443"));
    assert_echo(&mut talks, "over IPv4 only")?;

    // The reverse: the path's family goes while the other family stays.
    bed.lab.eth().bring_up()?;
    bed.agent.wait_active(UplinkName::Eth)?;
    for (family, address) in [(Family::Four, format!("[{six}]:443")), (Family::Six, format!("{four}:443"))] {
        bed.lab.eth().bring_up()?;
        bed.lab.eth().remove_family(family)?;
        wait_for("the relay to be reached in the family that is left", mobile_tests::PATIENCE, || {
            let status = bed.agent.status()?;
            Ok((status["active_uplink"] == "eth0" && reached(&bed)? == address).then_some(()))
        })?;
        assert_echo(&mut talks, "one family left")?;
    }
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn an_uplink_without_the_relays_family_is_not_used_and_says_why() -> Outcome {
    let bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    // The endpoint is an IPv4 address.
    bed.lab.eth().remove_family(Family::Four)?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    let eth = bed.agent.uplink("eth0")?;
    assert_eq!(eth["state"], "unusable", "{eth}");
    assert!(eth["reason"].as_str().is_some_and(|reason| reason.contains("family")), "{eth}");
    assert_echo(&mut talks, "IPv6 only")?;
    bed.lab.eth().bring_up()?;
    bed.agent.wait_active(UplinkName::Eth)?;
    assert_echo(&mut talks, "both families")?;
    bed.finish()
}

#[test]
fn a_tether_carries_the_session_from_its_appearance_to_its_disappearance() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    let on = |device: &'static str| {
        move |status: &serde_json::Value| {
            status["session"] == "connected" && status["active_uplink"] == device
        }
    };
    for _ in 0..2 {
        let tether = Tether::plug_in(&bed.lab, 50)?;
        bed.agent.wait_status("the tunnel on the tether", on(Tether::DEVICE))?;
        assert_echo(&mut talks, "tethered")?;
        drop(tether);
        assert_echo(&mut talks, "pulled out")?;
        bed.agent.wait_status("the tunnel on eth0", on("eth0"))?;
        assert!(bed.agent.uplink(Tether::DEVICE).is_err(), "the tether is still listed");
    }

    // The only uplink.
    bed.lab.eth().take_down()?;
    bed.lab.wlan().take_down()?;
    let tether = Tether::plug_in(&bed.lab, 700)?;
    bed.agent.wait_status("the tunnel on the tether", on(Tether::DEVICE))?;
    assert_echo(&mut talks, "nothing else")?;
    drop(tether);
    bed.lab.eth().bring_up()?;
    assert_echo(&mut talks, "home again")?;
    bed.expect_quick_replug();
    bed.finish()
}

//! Third-party VPNs and the choice of the uplink: a VPN's device carries the tunnel only if
//! `prefer` names it, and the link below it remains an uplink.

use std::time::Duration;

use anyhow::ensure;
use mobile_tests::{Family, Testbed, UplinkName, Vpn, addr, port, until};
use serde_json::Value;

use crate::{Outcome, server};

/// A wait that is longer than a handover, and than an attempt to connect over another uplink.
const A_WHILE: Duration = Duration::from_secs(3);

/// Checks that the tunnel is on eth0, and that no handover has happened since the count was
/// `handovers`.
fn stays_on_eth(bed: &Testbed, handovers: &Value, when: &str) -> Outcome {
    let status = bed.agent.status()?;
    ensure!(status["session"] == "connected" && status["active_uplink"] == "eth0", "{when}: {status}");
    ensure!(status["handovers"] == *handovers, "{when}: handovers before: {handovers}; now: {status}");
    Ok(())
}

fn reason(bed: &Testbed, device: &str) -> anyhow::Result<String> {
    let uplink = bed.agent.uplink(device)?;
    ensure!(uplink["state"] == "unusable", "{uplink}");
    let word = |key: &str| uplink[key].as_str().unwrap_or_default().to_owned();
    Ok(format!("{}; {}", word("reason"), word("next_step")))
}

#[test]
fn a_vpn_with_the_better_default_route_does_not_get_the_tunnel() -> Outcome {
    let bed = Testbed::new()?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let handovers = bed.agent.status()?["handovers"].clone();
    let vpn = Vpn::ordinary(&bed.lab)?;
    vpn.pin(&bed.lab, bed.lab.eth())?;
    // The route as NetworkManager sets it.
    let device = vpn.device().to_owned();
    bed.lab.host.ip(&[&format!("route add default dev {device} metric 50")])?;
    until("the VPN to be known", || bed.agent.uplink(&device).is_ok())?;
    std::thread::sleep(A_WHILE);
    stays_on_eth(&bed, &handovers, "beside a VPN")?;
    let reason = reason(&bed, &device)?;
    ensure!(reason.contains("a tunnel") && reason.contains("[uplink] prefer"), "{reason}");
    ensure!(bed.agent.cli(&["uplinks"])?.ok()?.contains("a tunnel"), "`mobile uplinks` does not say why");
    // Naming the device by hand does not change that.
    let said = bed.agent.cli(&["use", &device])?.stderr;
    ensure!(said.contains("a tunnel"), "`mobile use` says: {said}");
    stays_on_eth(&bed, &handovers, "with a VPN named by `mobile use`")?;
    assert_eq!(talk.request("still here")?, "still here");
    bed.finish()
}

#[test]
fn below_a_vpn_that_replaced_the_default_route_the_link_still_carries_the_tunnel() -> Outcome {
    let mut bed = Testbed::new()?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    bed.lab.wlan().take_down()?;
    let vpn = Vpn::ordinary(&bed.lab)?;
    let (host, device) = (bed.lab.host.clone(), vpn.device().to_owned());
    vpn.pin(&bed.lab, bed.lab.eth())?;
    // The routes of a client that takes the default route.
    bed.lab.eth().flush_routes(Family::Four)?;
    host.ip(&[&format!("route add default dev {device}")])?;
    let through = |when: &str| -> Outcome {
        let seen = host.run(&["ip", "route", "get", &addr::RELAY4.to_string()])?;
        ensure!(seen.contains(&device), "{when}: the ordinary route is not the VPN's: {seen}");
        bed.agent.wait_active(UplinkName::Eth)
    };
    through("after the client has replaced the default route")?;
    assert_eq!(talk.request("still here")?, "still here");
    let routes = host.run(&["ip", "route", "show", "table", "7701"])?;
    let expected = format!("{} via {} dev eth0", addr::RELAY4, bed.lab.eth().gateway4());
    ensure!(routes.contains(&expected), "{routes}");
    // The next agent learns the router from the VPN's host route.
    for forget in [false, true] {
        bed.agent.stop()?;
        if forget {
            host.run(&["ip", "route", "flush", "table", "7701"])?;
        }
        bed.agent.start()?;
        bed.agent.wait_active(UplinkName::Eth)?;
        assert_eq!(talk.request("still here")?, "still here");
    }
    // Another program removes it.
    host.run(&["ip", "route", "flush", "table", "7701"])?;
    until("our route to come back", || {
        host.run(&["ip", "route", "show", "table", "7701"]).is_ok_and(|routes| routes.contains("eth0"))
    })?;
    // The VPN ends.
    host.ip(&[&format!("route del default dev {device}")])?;
    bed.lab.eth().set_routes()?;
    drop(vpn);
    until("our route to go", || {
        host.run(&["ip", "route", "show", "table", "7701"]).is_ok_and(|routes| routes.is_empty())
            && host.run(&["ip", "rule"]).is_ok_and(|rules| !rules.contains("7701"))
    })?;
    bed.agent.wait_active(UplinkName::Eth)?;
    assert_eq!(talk.request("still here")?, "still here");
    bed.finish()
}

#[test]
fn a_vpn_client_that_is_mobile_makes_no_loop() -> Outcome {
    let bed = Testbed::new()?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let handovers = bed.agent.status()?["handovers"].clone();
    let vpn = Vpn::start(&bed.lab, |argv| bed.agent.run(argv))?;
    let device = vpn.device().to_owned();
    bed.lab.host.ip(&[&format!("route add default dev {device} metric 50")])?;
    // The VPN works, through the tunnel.
    bed.lab.host.run(&["ping", "-c", "1", "-w", "10", "-I", &device, "10.99.0.1"])?;
    std::thread::sleep(A_WHILE);
    stays_on_eth(&bed, &handovers, "beside a mobile VPN")?;
    assert_eq!(talk.request("still here")?, "still here");
    bed.finish()
}

#[test]
fn a_vpn_that_prefer_names_gets_the_tunnel_unless_its_client_is_mobile() -> Outcome {
    let mut bed = Testbed::new()?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let device = Vpn::device_of(&bed.lab);
    bed.agent.configure("uplink", "prefer", vec![device.clone()])?;
    bed.agent.stop()?;
    bed.agent.start()?;
    bed.agent.wait_active(UplinkName::Eth)?;
    let vpn = Vpn::ordinary(&bed.lab)?;
    vpn.pin(&bed.lab, bed.lab.eth())?;
    let route = format!("route add default dev {device} metric 50");
    bed.lab.host.ip(&[&route])?;
    let active = |status: &Value| status["session"] == "connected" && status["active_uplink"] == *device;
    bed.agent.wait_status("the tunnel in the VPN", active)?;
    assert_eq!(talk.request("still here")?, "still here");
    drop(vpn);
    bed.agent.wait_active(UplinkName::Eth)?;

    let vpn = Vpn::start(&bed.lab, |argv| bed.agent.run(argv))?;
    bed.lab.host.ip(&[&route])?;
    until("the loop to be seen", || reason(&bed, &device).is_ok_and(|reason| reason.contains("come back")))?;
    let handovers = bed.agent.status()?["handovers"].clone();
    std::thread::sleep(A_WHILE);
    stays_on_eth(&bed, &handovers, "with a loop")?;
    assert_eq!(talk.request("still here")?, "still here");
    let named = format!("wireguard-go ({})", vpn.client().unwrap_or_default());
    ensure!(bed.agent.log().contains(&named), "the log does not name {named}");
    bed.expect_warning("refused as an uplink");
    bed.expect_warning("path lost");
    bed.expect_warning("has gone silent");
    bed.finish()
}

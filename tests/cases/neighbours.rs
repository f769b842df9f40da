//! Other software on the same host that changes routing: openvpn as a full tunnel, and Docker.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use mobile_tests::{
    Lab, LabOptions, LineProcess, PATIENCE, Process, Testbed, addr, finish_within, port, until,
};

use crate::{Outcome, ip_of, server, urls};

/// The source address that the server sees on traffic through openvpn, whose gateway is the lab's
/// router.
const FULL_TUNNEL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Returns the source addresses that the server sees on a new IPv4 connection of a mobile process
/// and of an ordinary one.
fn seen(bed: &Testbed) -> anyhow::Result<[IpAddr; 2]> {
    let fetch = ["curl", "-s", "-m", "10", &urls("/ip")[0]];
    let mobile = finish_within(&mut bed.agent.run(&fetch), None, PATIENCE)?.ok()?;
    Ok([ip_of(&mobile), ip_of(&bed.lab.host.run(&fetch)?)])
}

/// Starts openvpn's server on the lab's router, with a static key that both ends share.
fn openvpn_server(lab: &Lab) -> anyhow::Result<Process> {
    let key = lab.dir().join("static.key").display().to_string();
    lab.internet.run(&["openvpn", "--genkey", "secret", &key])?;
    lab.internet.feed(
        &["nft", "-f", "-"],
        "table ip theirs {\n chain postrouting {\n  type nat hook postrouting priority srcnat\n  \
         ip saddr 10.99.0.2 masquerade\n }\n}\n",
    )?;
    openvpn(lab, "server", &["--multihome", "--ifconfig", "10.99.0.1", "10.99.0.2"])
}

/// Starts openvpn's client on the host, which redirects the default route.
fn openvpn_client(lab: &Lab) -> anyhow::Result<Process> {
    let args =
        ["--remote", "198.51.100.1", "--ifconfig", "10.99.0.2", "10.99.0.1", "--redirect-gateway", "def1"];
    let mut client = openvpn(lab, "client", &args)?;
    client.wait_output("Initialization Sequence Completed", PATIENCE)?;
    Ok(client)
}

fn openvpn(lab: &Lab, name: &str, args: &[&str]) -> anyhow::Result<Process> {
    let ns = if name == "server" { &lab.internet } else { &lab.host };
    let mut command = ns.command("openvpn");
    command
        .args(["--dev", "vpn0", "--dev-type", "tun", "--cipher", "AES-256-CBC", "--ping", "1", "--secret"])
        .arg(lab.dir().join("static.key"))
        .args(args);
    Process::start(&format!("openvpn ({name})"), &mut command, &lab.dir().join(format!("openvpn-{name}.log")))
}

fn through_openvpn_but_for_mobile(bed: &Testbed) -> Outcome {
    let [mobile, ordinary] = seen(bed)?;
    ensure!(mobile == addr::RELAY4, "a mobile process is seen as {mobile}");
    ensure!(ordinary == FULL_TUNNEL, "an ordinary process is seen as {ordinary}: openvpn does not take it");
    Ok(())
}

#[test]
fn openvpn_with_redirect_gateway_started_after_the_agent_takes_everything_but_what_is_mobile() -> Outcome {
    let bed = Testbed::new()?;
    let _server = openvpn_server(&bed.lab)?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let mut client = openvpn_client(&bed.lab)?;
    through_openvpn_but_for_mobile(&bed)?;
    assert_eq!(talk.request("still here")?, "still here");
    // A handover while openvpn is active.
    bed.lab.eth().flush_routes(mobile_tests::Family::Four)?;
    bed.agent.wait_active(bed.lab.wlan().name)?;
    assert_eq!(seen(&bed)?[0], IpAddr::V4(addr::RELAY4));
    client.signal(nix::sys::signal::Signal::SIGTERM)?;
    client.wait(PATIENCE)?;
    assert_eq!(seen(&bed)?, [IpAddr::V4(addr::RELAY4), bed.lab.wlan().name.nat_address().into()]);
    assert_eq!(talk.request("still here")?, "still here");
    bed.finish()
}

#[test]
fn openvpn_with_redirect_gateway_started_before_the_agent_takes_everything_but_what_is_mobile() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let _server = openvpn_server(&bed.lab)?;
    let _client = openvpn_client(&bed.lab)?;
    bed.start()?;
    through_openvpn_but_for_mobile(&bed)?;
    bed.finish()
}

/// Sets up what Docker's daemon creates on a host: a bridge, forwarding, its chains, and a
/// container behind a veth pair.
fn docker(bed: &Testbed) -> anyhow::Result<LineProcess> {
    let host = &bed.lab.host;
    host.sysctl("net/ipv4/ip_forward", "1")?;
    host.ip(&[
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
    ])?;
    // The rules as iptables-nft writes them.
    host.feed(
        &["nft", "-f", "-"],
        "table ip filter {\n chain DOCKER-USER { return; }\n chain DOCKER { }\n\
         chain FORWARD {\n  type filter hook forward priority filter; policy drop\n  jump DOCKER-USER\n  \
         oifname docker0 ct state related,established accept\n  oifname docker0 jump DOCKER\n  \
         iifname docker0 oifname != docker0 accept\n  iifname docker0 oifname docker0 accept\n }\n}\n\
         table ip nat {\n chain POSTROUTING {\n  type nat hook postrouting priority srcnat\n  \
         ip saddr 172.17.0.0/16 oifname != docker0 masquerade\n }\n}\n",
    )?;
    let mut shell = host.command("unshare");
    let mut container = LineProcess::start(shell.args(["--net", "sh"]))?;
    // Once the shell answers, `unshare` has executed it, so the process id is the shell's.
    container.request("ip link set lo up; echo up")?;
    let pid = container.pid();
    host.ip(&[
        &format!("link add veth0 type veth peer name ceth0 netns {pid}"),
        "link set veth0 master docker0 up",
    ])?;
    container.request(
        "ip link set ceth0 up; ip address add 172.17.0.2/16 dev ceth0; ip route add default via 172.17.0.1; echo up",
    )?;
    Ok(container)
}

#[test]
fn beside_docker_mobile_processes_are_mobile_and_containers_cannot_be_attached() -> Outcome {
    let bed = Testbed::new()?;
    let mut container = docker(&bed)?;
    let fetch = format!("curl -s -m 10 {} | xargs echo", urls("/ip")[0]);
    let direct = IpAddr::V4(bed.lab.eth().name.nat_address());
    assert_eq!(ip_of(&container.request(&fetch)?), direct);
    assert_eq!(seen(&bed)?, [IpAddr::V4(addr::RELAY4), direct]);
    let said = bed.agent.cli(&["attach", &container.pid().to_string()])?;
    ensure!(said.code() == 1 && said.stderr.contains("in another network namespace"), "{said:?}");
    assert_eq!(ip_of(&container.request(&fetch)?), direct);
    assert_eq!(seen(&bed)?, [IpAddr::V4(addr::RELAY4), direct]);
    drop(container);
    until("the container's end", || bed.lab.host.run(&["ip", "link", "show", "veth0"]).is_err())?;
    // The agent's tables are of other families, so this flush must not matter.
    bed.lab.host.run(&["nft", "flush", "ruleset", "ip"])?;
    bed.finish()
}

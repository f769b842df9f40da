//! DNS redirection: whichever resolver a mobile process queries, the relay's resolver answers, and
//! the answer has the queried address as its source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mobile_tests::dns::{Resolver, Transport, over_tcp, with_resolver};
use mobile_tests::{LabOptions, PATIENCE, Testbed, addr, finish_within, port, program, until};

use crate::Outcome;

/// The answers of the relay's resolver to every name.
const RELAYS: [IpAddr; 2] = [IpAddr::V4(addr::SERVER4), IpAddr::V6(addr::SERVER6)];

/// The answers of the visited network's resolver to every name.
const VISITED4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const VISITED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1);
const VISITED: [IpAddr; 2] = [IpAddr::V4(VISITED4), IpAddr::V6(VISITED6)];

/// A testbed with one resolver in the visited network, and on the server one that the relay pushes
/// to the agent.
struct DnsTestbed {
    bed: Testbed,
    visited: Resolver,
    relays: Resolver,
}

impl DnsTestbed {
    fn new() -> anyhow::Result<Self> {
        let mut scene = Self::installed(&RELAYS)?;
        scene.bed.start()?;
        Ok(scene)
    }

    /// Installs both programs without starting them; the relay pushes the DNS servers `servers` to
    /// the agent.
    fn installed(servers: &[IpAddr]) -> anyhow::Result<Self> {
        let bed = Testbed::installed(&LabOptions::default())?;
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        bed.relay.configure("dns", "servers", servers)?;
        let visited = Resolver::start(&bed.lab.visited[1], VISITED4, VISITED6)?;
        let relays = Resolver::start(&bed.lab.server, addr::SERVER4, addr::SERVER6)?;
        Ok(Self { bed, visited, relays })
    }

    /// Returns the resolver addresses that DHCP and router advertisements of the visited network
    /// name.
    fn visited_addresses(&self) -> [IpAddr; 2] {
        [self.bed.lab.eth().gateway4().into(), self.bed.lab.eth().gateway6().into()]
    }

    /// Queries `resolver` from a mobile process. Returns the answered address and the source
    /// address of the answer.
    fn mobile(&self, transport: Transport, resolver: SocketAddr) -> anyhow::Result<(IpAddr, SocketAddr)> {
        let tool = program("labtool")?.display().to_string();
        let argv = [&tool, "dns", transport.name(), &resolver.to_string()];
        heard(&finish_within(&mut self.bed.agent.run(&argv), None, PATIENCE)?.ok()?)
    }

    /// Queries `resolver` from an ordinary process. Returns the answered address and the source
    /// address of the answer.
    fn ordinary(&self, transport: Transport, resolver: SocketAddr) -> anyhow::Result<(IpAddr, SocketAddr)> {
        let mut command = self.bed.lab.host.command(program("labtool")?);
        command.args(["dns", transport.name(), &resolver.to_string()]);
        heard(&finish_within(&mut command, None, PATIENCE)?.ok()?)
    }

    /// Returns the agent's counter of `event`, an event that its eBPF programs count.
    fn events(&self, event: &str) -> anyhow::Result<u64> {
        self.bed.agent.counter(&format!("mobile_selection_events_total{{event=\"{event}\"}}"))
    }
}

fn heard(said: &str) -> anyhow::Result<(IpAddr, SocketAddr)> {
    let (answer, from) = said.trim().split_once(" from ").expect("ANSWER from ADDRESS");
    Ok((answer.parse()?, from.parse()?))
}

fn at(address: IpAddr) -> SocketAddr {
    (address, port::DNS).into()
}

#[test]
fn the_relays_resolver_answers_in_the_name_of_the_one_that_was_asked() -> Outcome {
    let scene = DnsTestbed::new()?;
    for (family, resolver) in scene.visited_addresses().into_iter().enumerate() {
        for transport in Transport::ALL {
            let (answer, from) = scene.mobile(transport, at(resolver))?;
            assert_eq!((answer, from), (RELAYS[family], at(resolver)), "{transport:?}");
            let (answer, from) = scene.ordinary(transport, at(resolver))?;
            assert_eq!((answer, from), (VISITED[family], at(resolver)), "{transport:?}");
        }
    }
    assert!(
        scene
            .relays
            .asked_by()
            .iter()
            .all(|client| [IpAddr::V4(addr::RELAY4), addr::RELAY6.into()].contains(client))
    );
    assert_eq!(scene.visited.asked_by().len(), 6);
    assert_eq!(scene.events("dns_redirected")?, 6);
    assert_eq!(scene.events("dns_forgotten")?, 0);
    scene.bed.finish()
}

#[test]
fn ipv4_mapped_and_link_local_resolvers_and_public_ones_are_followed_too() -> Outcome {
    let scene = DnsTestbed::new()?;
    let IpAddr::V4(visited) = scene.visited_addresses()[0] else { unreachable!("IPv4 comes first") };
    for asked in [visited, Ipv4Addr::new(192, 0, 2, 99)] {
        let mapped = SocketAddr::new(asked.to_ipv6_mapped().into(), port::DNS);
        for transport in Transport::ALL {
            assert_eq!(scene.mobile(transport, mapped)?, (RELAYS[0], mapped), "{transport:?}");
        }
    }
    let link_local: SocketAddr = format!("[fe80::53%{}]:53", index_of(&scene.bed, "eth0")?).parse()?;
    for transport in [Transport::UdpConnected, Transport::Tcp] {
        let (answer, from) = scene.mobile(transport, link_local)?;
        assert_eq!((answer, from.ip()), (RELAYS[1], link_local.ip()), "{transport:?}");
    }
    assert_eq!(scene.visited.asked_by(), [] as [IpAddr; 0]);
    scene.bed.finish()
}

fn index_of(bed: &Testbed, device: &str) -> anyhow::Result<u32> {
    let link = bed.lab.host.run(&["ip", "-o", "link", "show", device])?;
    Ok(link.split(':').next().expect("INDEX: NAME").parse()?)
}

/// Returns the address that `getent` prints for a name, with `resolver` as the only name server in
/// `/etc/resolv.conf`.
fn getent(
    scene: &DnsTestbed,
    database: &str,
    resolver: IpAddr,
    mobile: bool,
    tcp: bool,
) -> anyhow::Result<IpAddr> {
    let argv = with_resolver(&scene.bed.lab, resolver, &["getent", database, "name.example"])?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut command =
        if mobile { scene.bed.agent.run(&argv) } else { scene.bed.lab.host.command_line(&argv) };
    if tcp {
        over_tcp(&mut command);
    }
    let said = finish_within(&mut command, None, PATIENCE)?.ok()?;
    Ok(said.split_whitespace().next().expect("ADDRESS TYPE NAME").parse()?)
}

#[test]
fn names_resolve_for_programs_of_the_c_library_and_nothing_is_asked_beside_the_tunnel() -> Outcome {
    let scene = DnsTestbed::new()?;
    let lab = &scene.bed.lab;
    let captures = ["eth0", "wlan0"].map(|device| lab.capture(&lab.host, device, "port 53"));
    let [eth, wlan] = captures;
    let (eth, wlan) = (eth?, wlan?);
    for resolver in scene.visited_addresses() {
        for (family, database) in ["ahostsv4", "ahostsv6"].into_iter().enumerate() {
            for tcp in [false, true] {
                assert_eq!(
                    getent(&scene, database, resolver, true, tcp)?,
                    RELAYS[family],
                    "{resolver} {tcp}"
                );
            }
        }
    }
    assert_eq!(scene.visited.asked_by(), [] as [IpAddr; 0]);
    // An ordinary process's query shows that the captures work.
    assert_eq!(getent(&scene, "ahostsv4", scene.visited_addresses()[0], false, false)?, VISITED[0]);
    until("the ordinary query and its answer", || eth.packets().len() >= 2)?;
    let packets = eth.stop()?;
    let visited = scene.visited_addresses()[0].to_string();
    assert_eq!(
        packets.len(),
        2 * scene.visited.asked_by().len(),
        "beside the tunnel:\n{}",
        packets.join("\n")
    );
    assert!(packets.iter().all(|packet| packet.contains(&visited)), "{packets:?}");
    assert_eq!(wlan.stop()?, [] as [String; 0]);
    scene.bed.finish()
}

#[test]
fn stubs_on_loopback_and_bypassed_resolvers_are_asked_themselves() -> Outcome {
    const STUB4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
    const STUB6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 1);
    let mut scene = DnsTestbed::installed(&RELAYS)?;
    let visited = scene.visited_addresses();
    let nets: Vec<String> = vec![format!("{}/32", visited[0]), format!("{}/128", visited[1])];
    scene.bed.agent.configure("routing", "bypass", nets)?;
    scene.bed.start()?;
    let _stub = Resolver::start(&scene.bed.lab.host, STUB4, STUB6)?;
    for transport in Transport::ALL {
        let [four, six] = [at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())];
        assert_eq!(scene.mobile(transport, four)?, (STUB4.into(), four), "{transport:?}");
        assert_eq!(scene.mobile(transport, six)?, (STUB6.into(), six), "{transport:?}");
        for (family, resolver) in visited.into_iter().enumerate() {
            assert_eq!(
                scene.mobile(transport, at(resolver))?,
                (VISITED[family], at(resolver)),
                "{transport:?}"
            );
        }
    }
    assert_eq!(scene.events("dns_redirected")?, 0);
    scene.bed.finish()
}

#[test]
fn without_a_resolver_of_the_relay_queries_go_where_they_are_sent_through_the_tunnel() -> Outcome {
    // The relay pushes no IPv6 resolver.
    let mut scene = DnsTestbed::installed(&RELAYS[..1])?;
    scene.bed.start()?;
    for transport in Transport::ALL {
        let [four, six] = [at(Ipv4Addr::new(192, 0, 2, 99).into()), at(RELAYS[1])];
        assert_eq!(scene.mobile(transport, four)?, (RELAYS[0], four), "{transport:?}");
        assert_eq!(scene.mobile(transport, six)?, (RELAYS[1], six), "{transport:?}");
    }
    assert_eq!(scene.events("dns_left")?, 3);
    scene.bed.finish()
}

#[test]
fn queries_follow_after_a_handover_and_a_killed_agent_and_what_the_relay_pushes_anew() -> Outcome {
    let mut scene = DnsTestbed::installed(&[])?;
    scene.bed.start()?;
    let resolver = at(scene.visited_addresses()[0]);
    scene.bed.relay.stop()?;
    scene.bed.relay.configure("dns", "servers", vec![addr::SERVER4.to_string()])?;
    scene.bed.relay.start()?;
    let pushed = |status: &serde_json::Value| status["dns"] == serde_json::json!([addr::SERVER4.to_string()]);
    scene.bed.agent.wait_status("the new resolver", pushed)?;
    for transport in Transport::ALL {
        assert_eq!(scene.mobile(transport, resolver)?, (RELAYS[0], resolver), "{transport:?}");
    }
    scene.bed.agent.kill()?;
    scene.bed.agent.start()?;
    scene.bed.agent.wait_connected()?;
    for transport in Transport::ALL {
        assert_eq!(scene.mobile(transport, resolver)?, (RELAYS[0], resolver), "{transport:?}");
    }
    // The queried resolver belongs to the network that the tunnel has left.
    scene.bed.lab.eth().cut()?;
    scene.bed.agent.wait_active(scene.bed.lab.wlan().name)?;
    for transport in Transport::ALL {
        assert_eq!(scene.mobile(transport, resolver)?, (RELAYS[0], resolver), "{transport:?}");
    }
    assert_eq!(scene.visited.asked_by(), [] as [IpAddr; 0]);
    scene.bed.expect_warning("relay");
    scene.bed.finish()
}

#[test]
fn explain_resolves_a_name_as_a_mobile_process_does() -> Outcome {
    let scene = DnsTestbed::new()?;
    let command = scene.bed.agent.command(&["explain", "name.example:22"]);
    let mut argv = vec![command.get_program().display().to_string()];
    argv.extend(command.get_args().map(|argument| argument.display().to_string()));
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let argv = with_resolver(&scene.bed.lab, scene.visited_addresses()[0], &argv)?;
    let done = finish_within(&mut scene.bed.lab.host.command_line(&argv), None, PATIENCE)?.ok()?;
    assert!(done.contains(&format!("connection to {}\n", addr::SERVER4)), "{done}");
    assert!(!done.contains(&VISITED4.to_string()), "{done}");
    scene.bed.finish()
}

//! Reachability through the relay: the destinations that a client may reach, and who may reach a
//! client.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use mobile_tests::{
    LabOptions, Ns, PATIENCE, TcpService, Testbed, UdpService, addr, finish_within, port, until,
};
use socket2::{Domain, Socket, Type};

use crate::Outcome;

/// The IPv4 /24 of a private network behind the relay: the relay has .1, a router with a web page
/// .2.
const LAN: &str = "192.168.77";
/// The IPv6 prefix of that private network.
const LAN6: &str = "fd77:1::";

/// The TCP and UDP services of one machine, which answer with the word "secret".
struct Services {
    _tcp: TcpService,
    _udp: UdpService,
}

impl Services {
    fn start(ns: &Ns, port: u16) -> anyhow::Result<Self> {
        let _tcp = TcpService::start(ns, port, |mut stream, _| {
            let _ = stream.write_all(b"secret");
        })?;
        Ok(Self { _tcp, _udp: UdpService::start(ns, port, |_, _| b"secret".to_vec())? })
    }
}

/// A UDP service of the client at its persistent address, which answers each datagram with the word
/// "secret".
struct Responder {
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Responder {
    fn start(ns: &Ns, address: IpAddr, port: u16) -> anyhow::Result<Self> {
        let socket = ns.enter(|| UdpSocket::bind((address, port)))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                    let _ = socket.send_to(b"secret", from);
                }
            }
        });
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Creates a machine in the private network behind the relay.
fn lan(bed: &Testbed) -> anyhow::Result<Ns> {
    let machine = bed.lab.machine("lan")?;
    bed.lab.wire((&bed.lab.relay, "lan0"), (&machine, "eth0"))?;
    bed.lab.relay.ip(&[
        &format!("address add {LAN}.1/24 brd + dev lan0"),
        &format!("address add {LAN6}1/64 dev lan0 nodad"),
    ])?;
    machine.ip(&[
        &format!("address add {LAN}.2/24 brd + dev eth0"),
        &format!("address add {LAN6}2/64 dev eth0 nodad"),
        &format!("route add default via {LAN}.1"),
        &format!("route add default via {LAN6}1"),
    ])?;
    Ok(machine)
}

/// The timeout of a connection attempt or an answer: many round trips.
const SOON: Duration = Duration::from_millis(1500);

/// Returns whether a TCP connection from `ns` to the address `to` receives the word "secret";
/// `from` is the source address, or `None` for the kernel's choice.
fn tells(ns: &Ns, from: Option<IpAddr>, to: &str, port: u16) -> anyhow::Result<bool> {
    let to = SocketAddr::new(to.parse()?, port);
    ns.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        if socket.connect_timeout(&to.into(), SOON).is_err() {
            return Ok(false);
        }
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream.read(&mut [0; 16]).is_ok_and(|read| read > 0))
    })
}

/// Returns whether a datagram from `ns` to the address `to` is answered; `from` is the source
/// address, or `None` for the kernel's choice.
fn tells_by_datagram(ns: &Ns, from: Option<IpAddr>, to: &str, port: u16) -> anyhow::Result<bool> {
    let to = SocketAddr::new(to.parse()?, port);
    ns.enter(|| {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse()? };
        let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.set_broadcast(true)?;
        Ok(socket.send_to(b"x", to).is_ok() && socket.recv_from(&mut [0; 16]).is_ok())
    })
}

/// Returns whether the client, from its persistent address, receives an answer from `to` over TCP,
/// and whether it receives one over UDP.
fn client_reaches(bed: &Testbed, to: &str, port: u16) -> anyhow::Result<(bool, bool)> {
    let is_ipv4 = to.parse::<IpAddr>()?.is_ipv4();
    let own = if is_ipv4 { bed.agent.address4.into() } else { IpAddr::from(bed.agent.address6) };
    let host = &bed.lab.host;
    Ok((tells(host, Some(own), to, port)?, tells_by_datagram(host, Some(own), to, port)?))
}

#[test]
fn a_neighbour_of_the_relay_reaches_no_client_and_no_private_network_through_it() -> Outcome {
    let bed = Testbed::new()?;
    let machine = lan(&bed)?;
    let _private = Services::start(&machine, 5353)?;
    let _mobile = [IpAddr::from(bed.agent.address4), bed.agent.address6.into()]
        .map(|address| Responder::start(&bed.lab.host, address, 5353).expect("an address of the host"));
    let _ssh = TcpService::start(&bed.lab.host, 22, |mut stream, _| {
        let _ = std::io::Write::write_all(&mut stream, b"SSH-2.0-secret");
    })?;
    // A host beside the relay, on the segment to its provider: the relay routes packets sent to its
    // hardware address.
    let neighbour = &bed.lab.internet;
    let (client4, client6) = (bed.agent.address4, bed.agent.address6);
    neighbour.ip(&[
        &format!("route add {client4}/32 via {}", addr::RELAY4),
        &format!("route add {client6}/128 via {}", addr::RELAY6),
        &format!("route add {LAN}.0/24 via {}", addr::RELAY4),
        &format!("route add {LAN6}/64 via {}", addr::RELAY6),
    ])?;
    for to in [client4.to_string(), client6.to_string(), format!("{LAN}.2"), format!("{LAN6}2")] {
        assert!(!tells_by_datagram(neighbour, None, &to, 5353)?, "{to} answers a neighbour of the relay");
    }
    for to in [client4.to_string(), client6.to_string()] {
        assert!(!tells(neighbour, None, &to, 22)?, "{to} lets a neighbour of the relay in");
    }
    until("both to be counted", || {
        let counted =
            |reason: &str| bed.relay.counter(&format!("homerelay_drops_total{{reason=\"{reason}\"}}"));
        ["unsolicited", "transit"].into_iter().all(|reason| counted(reason).is_ok_and(|count| count > 1))
    })?;
    // A host that was a router before stays one, and an operator may allow transit.
    bed.relay.configure("nat", "transit", "accept")?;
    bed.relay.cli(&["reload"])?.ok()?;
    assert!(tells_by_datagram(neighbour, None, &format!("{LAN}.2"), 5353)?, "transit is not let through");
    // The relay's own machine may connect to a client.
    bed.lab.relay.run(&["ping", "-n", "-c", "1", "-W", "5", &client4.to_string()])?;
    bed.finish()
}

#[test]
fn a_host_that_forwarded_before_the_relay_came_forwards_what_it_did() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let machine = lan(&bed)?;
    let _private = Services::start(&machine, 5353)?;
    bed.lab.relay.sysctl("net/ipv4/ip_forward", "1")?;
    bed.lab.relay.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    bed.lab.internet.ip(&[
        &format!("route add {LAN}.0/24 via {}", addr::RELAY4),
        &format!("route add {LAN6}/64 via {}", addr::RELAY6),
    ])?;
    bed.start()?;
    for to in [format!("{LAN}.2"), format!("{LAN6}2")] {
        assert!(tells_by_datagram(&bed.lab.internet, None, &to, 5353)?, "{to}");
    }
    bed.agent.stop()?;
    bed.relay.stop()?;
    bed.relay.cli(&["cleanup"])?.ok()?;
    assert_eq!(bed.lab.relay.run(&["sysctl", "-n", "net.ipv4.ip_forward"])?.trim(), "1");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn forwarding_that_the_relay_turned_on_is_its_own_after_a_restart_and_ends_with_cleanup() -> Outcome {
    let mut bed = Testbed::new()?;
    let machine = lan(&bed)?;
    let _private = Services::start(&machine, 5353)?;
    bed.lab.internet.ip(&[&format!("route add {LAN}.0/24 via {}", addr::RELAY4)])?;
    bed.relay.kill()?;
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    assert!(!tells_by_datagram(&bed.lab.internet, None, &format!("{LAN}.2"), 5353)?);
    let kept = || bed.lab.relay.run(&["sh", "-c", "cat /proc/sys/net/ipv6/conf/*/accept_ra"]);
    assert!(kept()?.contains('2'), "no device needs accept_ra=2");
    bed.agent.stop()?;
    bed.relay.stop()?;
    bed.relay.cli(&["cleanup"])?.ok()?;
    assert!(!kept()?.contains('2'), "{}", kept()?);
    for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        assert_eq!(bed.lab.relay.run(&["sysctl", "-n", setting])?.trim(), "0", "{setting}");
    }
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_client_reaches_the_internet_and_nothing_private_behind_the_relay() -> Outcome {
    let bed = Testbed::new()?;
    let machine = lan(&bed)?;
    // The cloud's metadata service, which virtual machines reach without a route, and the relay's
    // own services.
    machine.ip(&[
        "address add 169.254.169.254/32 dev lo",
        "address add 168.63.129.16/32 dev lo",
        "address add 100.100.100.200/32 dev lo",
        "address add fd00:ec2::254/128 dev lo nodad",
    ])?;
    for metadata in ["169.254.169.254", "168.63.129.16", "100.100.100.200"] {
        bed.lab.relay.ip(&[&format!("route add {metadata}/32 via {LAN}.2")])?;
    }
    bed.lab.relay.ip(&[&format!("route add fd00:ec2::254/128 via {LAN6}2")])?;
    let _private = Services::start(&machine, 8080)?;
    let _own = Services::start(&bed.lab.relay, 8080)?;
    let _server = Services::start(&bed.lab.server, 8080)?;
    let device = bed.lab.relay.run(&["ip", "-o", "-4", "address", "show", "home0"])?;
    let tunnel = device.split(&[' ', '/']).find(|word| word.starts_with("100.")).context("no address")?;
    for (host, expected) in [
        (addr::SERVER4.to_string(), true),
        (addr::SERVER6.to_string(), true),
        (format!("{LAN}.2"), false),
        (format!("{LAN6}2"), false),
        ("169.254.169.254".to_owned(), false),
        ("168.63.129.16".to_owned(), false),
        ("100.100.100.200".to_owned(), false),
        ("fd00:ec2::254".to_owned(), false),
        // The relay's own addresses.
        (addr::RELAY4.to_string(), false),
        (addr::RELAY6.to_string(), false),
        (format!("{LAN}.1"), false),
        (tunnel.to_owned(), false),
    ] {
        assert_eq!(client_reaches(&bed, &host, 8080)?, (expected, expected), "{host}");
    }
    // Directed broadcasts reach no program of the relay's machine, whatever clients may reach.
    assert!(!client_reaches(&bed, "198.51.100.255", 8080)?.1, "directed broadcast");
    let mut ping = bed.agent.run(&["ping", "-n", "-c", "1", "-W", "5", tunnel]);
    finish_within(&mut ping, None, PATIENCE)?
        .ok()
        .context("the relay's own address does not answer a ping")?;
    until("refused packets to be counted", || {
        bed.relay.counter("homerelay_drops_total{reason=\"reach\"}").is_ok_and(|count| count > 5)
    })?;
    bed.finish()
}

#[test]
fn what_a_client_reaches_is_set_for_all_and_for_one_and_changes_while_it_is_connected() -> Outcome {
    let bed = Testbed::new()?;
    let machine = lan(&bed)?;
    let _private = Services::start(&machine, 8080)?;
    let _server = Services::start(&bed.lab.server, 8080)?;
    let (private, public) = (format!("{LAN}.2"), addr::SERVER4.to_string());
    let both =
        || anyhow::Ok((client_reaches(&bed, &private, 8080)?.0, client_reaches(&bed, &public, 8080)?.0));
    let authorize = |reach: &str| -> Outcome {
        bed.relay.cli(&["authorize", "laptop", &bed.agent.public_key, "--reach", reach])?.ok()?;
        Ok(())
    };
    assert_eq!(both()?, (false, true));
    for (reach, expected) in [
        ("192.168.77.0/24", (true, false)),
        ("internet,192.168.77.2", (true, true)),
        ("all", (true, true)),
        ("none", (false, false)),
    ] {
        authorize(reach)?;
        assert_eq!(both()?, expected, "{reach}");
    }
    authorize("internet,192.168.77.0/24")?;
    assert_eq!(bed.relay.client("laptop")?["reach"], "internet,192.168.77.0/24");
    // An open connection ends when its destination becomes unreachable.
    let _echo = TcpService::echo(&machine, port::ECHO)?;
    let mut talk = bed.mobile_labtool(&["tcp", &format!("{private}:7")])?;
    talk.next_line()?;
    assert_eq!(talk.request("before")?, "before");
    authorize("default")?;
    assert!(bed.relay.client("laptop")?["reach"].is_null());
    talk.send_line("after")?;
    assert!(talk.next_line_within(Duration::from_secs(2)).is_err(), "it goes on");
    assert_eq!(both()?, (false, true));
    bed.relay.configure("clients", "reach", "all")?;
    assert_eq!(bed.relay.cli(&["reload"])?.ok()?, "[clients] reach\n");
    assert_eq!(both()?, (true, true));
    let bad = bed.relay.cli(&["authorize", "laptop", &bed.agent.public_key, "--reach", "lan"])?;
    assert!(bad.code() == 1 && bad.stderr.contains("192.168.1.0/24"), "{bad:?}");
    drop(talk);
    bed.finish()
}

#[test]
fn a_pushed_resolver_in_a_private_network_answers_clients_and_nothing_else_of_it_does() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let machine = lan(&bed)?;
    let _resolver = Services::start(&machine, 53)?;
    let _page = Services::start(&machine, 8080)?;
    let servers = vec![toml::Value::from(format!("{LAN}.2"))];
    bed.relay.configure("dns", "servers", servers)?;
    bed.start()?;
    let private = format!("{LAN}.2");
    assert_eq!(client_reaches(&bed, &private, 53)?, (true, true));
    assert_eq!(client_reaches(&bed, &private, 8080)?, (false, false));
    // A forwarded port also serves the private network, and the client's answers pass.
    let _mobile = Services::start(&bed.lab.host, 7)?;
    let _datagrams = Responder::start(&bed.lab.host, bed.agent.address4.into(), 8)?;
    for (protocol, to) in [("tcp", "laptop:7"), ("udp", "laptop:8")] {
        bed.relay.cli(&["forward", "add", protocol, "2001", to])?.ok()?;
    }
    let relay = format!("{LAN}.1");
    assert!(tells(&machine, None, &relay, 2001)?, "TCP");
    assert!(tells_by_datagram(&machine, None, &relay, 2001)?, "UDP");
    bed.finish()
}

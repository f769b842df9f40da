//! Real programs that connect by host name and survive a handover: all their DNS queries and
//! transfers use the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use mobile_tests::dns::{Resolver, with_resolver};
use mobile_tests::{
    Capture, LabOptions, LineProcess, PATIENCE, Postgres, Process, Services, Terminal, Testbed, UplinkName,
    addr, finish_within, http, port, until, wait_for,
};

use nix::sys::signal::Signal;

use crate::{Outcome, ip_of};

/// The relay's addresses, which the server sees as the source of a mobile process's connections.
const RELAY: [IpAddr; 2] = [IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)];

/// The rate of each uplink in bit/s during a transfer, and the size of the transfer in bytes: three
/// seconds at that rate.
const RATE: u64 = 8_000_000;
const SIZE: u64 = 3_000_000;

/// The bytes of a transfer that the relay must have forwarded before the uplink is cut.
const PROGRESS: u64 = 300_000;

/// A testbed for real programs, with a capture on each uplink of packets outside the tunnel.
///
/// The visited network's resolver answers with wrong addresses, the relay's resolver with the
/// server's.
struct ProgramTestbed {
    bed: Testbed,
    visited: Resolver,
    _relays: Resolver,
    beside: [Capture; 2],
}

impl ProgramTestbed {
    fn new() -> anyhow::Result<Self> {
        let mut bed = Testbed::installed(&LabOptions::default())?;
        let lab = &bed.lab;
        bed.relay.configure("dns", "servers", vec![addr::SERVER4.to_string(), addr::SERVER6.to_string()])?;
        // Documentation addresses that no host has.
        let astray = (Ipv4Addr::new(203, 0, 113, 80), Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 1));
        let visited = Resolver::start(&lab.visited[1], astray.0, astray.1)?;
        let relays = Resolver::start(&lab.server, addr::SERVER4, addr::SERVER6)?;
        let filter = format!("(tcp or udp) and not (tcp port 443 and host {})", addr::RELAY4);
        let [eth, wlan] = ["eth0", "wlan0"].map(|device| lab.capture(&lab.host, device, &filter));
        let beside = [eth?, wlan?];
        bed.start()?;
        Ok(Self { bed, visited, _relays: relays, beside })
    }

    /// Returns a mobile command for which `/etc/resolv.conf` names the visited network's resolver.
    fn run(&self, argv: &[&str]) -> anyhow::Result<Command> {
        let argv = with_resolver(&self.bed.lab, self.bed.lab.eth().gateway4().into(), argv)?;
        Ok(self.bed.agent.run(&argv.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// Starts the mobile command that [`Self::run`] returns, with its output in the file
    /// `name`.txt.
    fn start(&self, name: &str, argv: &[&str]) -> anyhow::Result<Process> {
        Process::start(name, &mut self.run(argv)?, &self.bed.lab.dir().join(format!("{name}.txt")))
    }

    fn file(&self, name: &str) -> String {
        self.bed.lab.dir().join(name).display().to_string()
    }

    /// Limits the rate of both uplinks in bit/s, so that a transfer takes seconds, or lifts the
    /// limit with `None`.
    fn limit(&self, rate: Option<u64>) {
        for uplink in [self.bed.lab.eth(), self.bed.lab.wlan()] {
            uplink.link().set_rate(rate);
        }
    }

    /// Returns the bytes that the relay has forwarded in both directions.
    fn passed(&self) -> anyhow::Result<u64> {
        let count = |session: &serde_json::Value, field: &str| session[field].as_u64().unwrap_or(0);
        let sessions = self.bed.relay.sessions()?;
        Ok(sessions.iter().map(|one| count(one, "rx_bytes") + count(one, "tx_bytes")).sum())
    }

    /// Cuts the uplink in the middle of the transfer that `process` makes, waits for the handover,
    /// and checks that the transfer succeeds.
    fn cut_amidst(&self, process: &mut Process) -> Outcome {
        let reached = self.passed()? + PROGRESS;
        wait_for("the transfer to be under way", PATIENCE, || {
            assert!(process.ended()?.is_none(), "it ended before the handover: {}", process.output());
            Ok((self.passed()? >= reached).then_some(()))
        })?;
        self.cut()?;
        assert!(process.ended()?.is_none(), "it ended before the handover: {}", process.output());
        let status = process.wait(PATIENCE * 2)?;
        assert!(status.success(), "{status}: {}", process.output());
        Ok(())
    }

    fn cut(&self) -> Outcome {
        self.bed.lab.eth().cut()?;
        self.bed.lab.eth().give_up_address()?;
        self.bed.agent.wait_active(UplinkName::Wlan)
    }

    /// Ends the case: checks that no query or packet took another way than the tunnel, and that the
    /// captures saw an ordinary connection, so that they worked.
    fn finish(self) -> Outcome {
        let Self { bed, visited, _relays, beside: [eth, wlan] } = self;
        assert_eq!(visited.asked_by(), [] as [IpAddr; 0]);
        let mut ordinary = bed.lab.host.command("curl");
        let url = format!("http://{}/ip", addr::SERVER4);
        let seen = finish_within(ordinary.args(["-s", &url]), None, PATIENCE)?.ok()?;
        assert_eq!(ip_of(&seen), IpAddr::V4(bed.lab.wlan().name.nat_address()));
        let own = format!("{}.", bed.lab.wlan().address4());
        wlan.wait_packet(&own)?;
        let packets = wlan.stop()?;
        let server = format!("{}.{}", addr::SERVER4, port::HTTP);
        assert!(packets.iter().all(|line| line.contains(&own) && line.contains(&server)), "{packets:#?}");
        assert_eq!(packets.iter().filter(|line| line.contains("[S]")).count(), 1, "{packets:#?}");
        assert_eq!(eth.stop()?, [] as [String; 0]);
        bed.finish()
    }
}

#[test]
fn curl_by_name_keeps_its_connection_over_a_handover() -> Outcome {
    for (flag, relay) in ["-4", "-6"].into_iter().zip(RELAY) {
        let scene = ProgramTestbed::new()?;
        let (seen, data) = (scene.file("seen"), scene.file("data"));
        scene.limit(Some(RATE));
        let bytes = format!("http://name.example/bytes/{SIZE}");
        let ip = "http://name.example/ip";
        // One connection for all requests, so the addresses before and after the transfer are
        // equal.
        let urls = ["-o", &format!("{seen}.1"), ip, "-o", &data, &bytes, "-o", &format!("{seen}.2"), ip];
        let mut curl = scene.start("curl", &[&["curl", "-sS", "--fail", flag][..], &urls].concat())?;
        scene.cut_amidst(&mut curl)?;
        let [before, after] = ["1", "2"].map(|end| std::fs::read_to_string(format!("{seen}.{end}")));
        let before = before?;
        assert_eq!((ip_of(&before), &before), (relay, &after?));
        let sum = scene.bed.lab.host.run(&["sha256sum", &data])?;
        assert_eq!(sum.split(' ').next(), Some(http::pattern_sum(SIZE).as_str()));
        scene.finish()?;
    }
    Ok(())
}

#[test]
fn rsync_over_ssh_copies_a_tree_there_and_back_over_handovers() -> Outcome {
    let mut scene = ProgramTestbed::new()?;
    let _sshd = Services::sshd(&scene.bed.lab.server, scene.bed.lab.dir(), &["name.example"])?;
    let [ours, theirs, back] = ["ours", "theirs", "back"].map(|name| scene.file(name));
    for (name, size) in [("a/b/large", SIZE), ("a/small", 17), ("empty", 0)] {
        let path = PathBuf::from(&ours).join(name);
        std::fs::create_dir_all(path.parent().expect("a folder"))?;
        http::pattern(size, std::io::BufWriter::new(std::fs::File::create(path)?))?;
    }
    let ssh = format!(
        "ssh -F none -i {} -o UserKnownHostsFile={} -o HostKeyAlias=name.example",
        scene.file("id"),
        scene.file("known_hosts")
    );
    let seen = scene.file("seen");
    let theirs_rsync = format!("echo $SSH_CLIENT >> {seen} && rsync");
    let there = format!("root@name.example:{theirs}/");
    let rsync = ["rsync", "-a", "-e", &ssh, "--rsync-path", &theirs_rsync];
    scene.limit(Some(RATE));
    let mut process = scene.start("rsync", &[&rsync[..], &[&format!("{ours}/"), &there]].concat())?;
    scene.cut_amidst(&mut process)?;
    scene.bed.lab.eth().bring_up()?;
    scene.bed.agent.wait_active(UplinkName::Eth)?;
    let mut process = scene.start("rsync-back", &[&rsync[..], &[&there, &format!("{back}/")]].concat())?;
    scene.cut_amidst(&mut process)?;
    for copy in [&theirs, &back] {
        scene.bed.lab.host.run(&["diff", "-r", &ours, copy])?;
    }
    let clients = std::fs::read_to_string(seen)?;
    assert_eq!(clients.lines().count(), 2, "{clients}");
    for client in clients.lines() {
        let address: IpAddr = client.split(' ').next().expect("ADDRESS PORT PORT").parse()?;
        assert!(RELAY.contains(&address), "{client}");
    }
    scene.bed.expect_quick_replug();
    scene.finish()
}

#[test]
fn a_go_program_with_a_resolver_of_its_own_scrapes_by_name_over_a_handover() -> Outcome {
    const PORT: u16 = 9090;
    let scene = ProgramTestbed::new()?;
    let lab = &scene.bed.lab;
    let prometheus = |name: &str, port: u16, jobs: &str| -> anyhow::Result<Vec<String>> {
        let file = scene.file(&format!("{name}.yml"));
        std::fs::write(&file, format!("global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n{jobs}"))?;
        Ok(vec![
            "prometheus".to_owned(),
            format!("--config.file={file}"),
            format!("--storage.tsdb.path={}", scene.file(name)),
            format!("--web.listen-address=0.0.0.0:{port}"),
        ])
    };
    let argv = prometheus("theirs", PORT, "")?;
    let mut command = lab.server.command_line(&argv);
    let mut theirs = Process::start("prometheus", &mut command, &lab.dir().join("theirs.txt"))?;
    theirs.wait_output("Server is ready", PATIENCE)?;
    let job = format!(
        "scrape_configs: [{{job_name: lab, static_configs: [{{targets: ['name.example:{PORT}']}}]}}]\n"
    );
    let argv = prometheus("ours", PORT + 1, &job)?;
    let mut command = scene.run(&argv.iter().map(String::as_str).collect::<Vec<_>>())?;
    let _ours =
        Process::start("prometheus", command.env("GODEBUG", "netdns=go"), &lab.dir().join("ours.txt"))?;
    let ask = |query: &str| -> anyhow::Result<f64> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", PORT + 1);
        let query = format!("query={query}");
        let said = lab.host.run(&["curl", "-s", "--data-urlencode", &query, &url])?;
        let json: serde_json::Value = serde_json::from_str(&said)?;
        let value = json.pointer("/data/result/0/value/1").and_then(serde_json::Value::as_str);
        Ok(value.unwrap_or("0").parse()?)
    };
    let scrapes = "count_over_time(up{job=\"lab\"}[1h])";
    until("the first scrapes", || {
        ask("sum_over_time(up{job=\"lab\"}[1h])").is_ok_and(|successes| successes >= 5.0)
    })?;
    // The server's connections, with their peers.
    let seen = || lab.server.run(&["ss", "-Htn", "state", "established", &format!("sport = :{PORT}")]);
    let before = seen()?;
    assert_eq!(before.lines().count(), 1, "{before}");
    let peer = before.split_whitespace().last().expect("a peer").to_owned();
    assert!(
        peer.starts_with(&format!("[::ffff:{}]:", addr::RELAY4))
            || peer.starts_with(&format!("{}:", addr::RELAY4))
            || peer.starts_with(&format!("[{}]:", addr::RELAY6)),
        "{before}"
    );
    let count = ask(scrapes)?;
    scene.cut()?;
    until("scrapes after the handover", || {
        ask(scrapes).is_ok_and(|now| now >= count + 10.0) && ask("up{job=\"lab\"}").is_ok_and(|up| up == 1.0)
    })?;
    drop(theirs);
    scene.finish()
}

#[test]
fn a_static_go_program_enrols_by_name_and_its_request_outlives_a_handover() -> Outcome {
    const PORT: u16 = 8080;
    let scene = ProgramTestbed::new()?;
    let lab = &scene.bed.lab;
    // Without a dynamic linker there is no C library that could intercept connect(); only the
    // kernel can.
    let segments = lab.server.run(&["readelf", "--program-headers", "--wide", "/usr/bin/scepclient"])?;
    assert!(segments.contains("LOAD") && !segments.contains("INTERP"), "it is not static: {segments}");
    let (depot, key, certificate) = (scene.file("depot"), scene.file("client.key"), scene.file("client.pem"));
    lab.server.run(&["scepserver", "ca", "-init", "-depot", &depot, "-keySize", "2048"])?;
    let mut server = lab.server.command("scepserver");
    server.args(["-depot", &depot, "-port", &PORT.to_string(), "-challenge", "lab"]);
    let server = Process::start("scepserver", &mut server, &lab.dir().join("scepserver.txt"))?;
    // The server prints "listening" before it listens, so check the socket.
    lab.server.wait_listening(PORT)?;
    // The server is stopped: its kernel accepts connection and request, and the answer waits for
    // the handover.
    server.signal(Signal::SIGSTOP)?;
    let url = format!("http://name.example:{PORT}/scep");
    let argv = [
        "scepclient",
        "-server-url",
        &url,
        "-challenge",
        "lab",
        "-private-key",
        &key,
        "-certificate",
        &certificate,
    ];
    let mut client = scene.start("scepclient", &argv)?;
    let requested = wait_for("the request", PATIENCE, || {
        let seen = lab.server.run(&["ss", "-Htn", "state", "established", &format!("sport = :{PORT}")])?;
        let full = |line: &&str| !line.starts_with("0 ");
        Ok(seen.lines().find(full).map(|line| line.split_whitespace().last().expect("a peer").to_owned()))
    })?;
    let peer: SocketAddr = requested.parse()?;
    assert!(RELAY.contains(&peer.ip().to_canonical()), "{requested}");
    scene.cut()?;
    assert!(client.ended()?.is_none(), "it ended before the handover: {}", client.output());
    let answer = lab.capture(&lab.server, "wan0", &format!("tcp port {PORT}"))?;
    server.signal(Signal::SIGCONT)?;
    let status = client.wait(PATIENCE)?;
    assert!(status.success(), "{status}: {}", client.output());
    // The connection from before the handover carried the whole answer.
    answer.wait_packet(&peer.port().to_string())?;
    let packets = answer.stop()?;
    assert!(packets.iter().all(|line| line.contains(&format!(".{}", peer.port()))), "{packets:#?}");
    assert!(packets.iter().all(|line| !line.contains("[S]")), "{packets:#?}");
    let issued = std::fs::read_to_string(&certificate)?;
    assert!(issued.starts_with("-----BEGIN CERTIFICATE-----"), "{issued}");
    drop(server);
    scene.finish()
}

/// The source of an asyncio client that exchanges lines with the server, and then fetches a page
/// with urllib.
const PYTHON: &str = "
import asyncio, sys, urllib.request
async def main():
    reader, writer = await asyncio.open_connection('name.example', 1001)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == 'fetch\\n':
            with urllib.request.urlopen('http://name.example/ip') as page:
                print(page.read().decode().strip(), flush=True)
            continue
        writer.write(line.encode())
        print((await reader.readline()).decode().strip(), flush=True)
asyncio.run(main())
";

#[test]
fn python_s_asyncio_and_urllib_go_on_over_a_handover() -> Outcome {
    let scene = ProgramTestbed::new()?;
    let mut python = LineProcess::start(&mut scene.run(&["python3", "-c", PYTHON])?)?;
    let before = python.request("who am I")?;
    assert!(RELAY.contains(&ip_of(&before)), "{before}");
    assert!(RELAY.contains(&ip_of(&python.request("fetch")?)));
    scene.cut()?;
    assert_eq!(python.request("who am I now")?, before);
    assert!(RELAY.contains(&ip_of(&python.request("fetch")?)));
    drop(python);
    scene.finish()
}

#[test]
fn a_browser_loads_a_page_and_what_belongs_to_it_over_a_handover() -> Outcome {
    let scene = ProgramTestbed::new()?;
    scene.limit(Some(RATE));
    let page = format!("http://name.example/page/{SIZE}");
    let profile = format!("--user-data-dir={}", scene.file("profile"));
    let mut chromium =
        scene.start("chromium", &[&CHROMIUM[..], &["--headless", "--dump-dom", &profile, &page]].concat())?;
    scene.cut_amidst(&mut chromium)?;
    let said = chromium.output();
    let seen = said.split_once("<p id=\"seen\">seen ").and_then(|(_, rest)| rest.split_once("</p>"));
    let (seen, _) = seen.unwrap_or_else(|| panic!("the page's script did not run: {said}"));
    assert!(RELAY.contains(&ip_of(seen)), "{seen}");
    scene.finish()
}

/// The command line of a browser without background traffic, which also runs as root.
pub(crate) const CHROMIUM: [&str; 9] = [
    "chromium",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

#[test]
fn a_database_transaction_stays_open_over_a_handover_and_an_outage() -> Outcome {
    let scene = ProgramTestbed::new()?;
    let _postgres = Postgres::start(&scene.bed.lab.server, scene.bed.lab.dir())?;
    let argv = ["psql", "-X", "-h", "name.example", "-U", "postgres", "-P", "pager=off"];
    let psql = Terminal::start(&mut scene.run(&argv)?)?;
    psql.expect("postgres=# ")?;
    psql.send("create table kept (word text); begin;\n")?;
    psql.send("select 'from ' || host(inet_client_addr()) || ' at ' || pg_backend_pid() as seen;\n")?;
    psql.expect("(1 row)")?;
    let shown = psql.transcript();
    let seen =
        shown.lines().map(str::trim).find(|line| line.starts_with("from ")).expect("the row").to_owned();
    let address: IpAddr = seen.split(' ').nth(1).expect("from ADDRESS").parse()?;
    assert!(RELAY.contains(&address), "{seen}");
    psql.send("insert into kept values ('before');\n")?;
    psql.expect("INSERT 0 1")?;
    scene.cut()?;
    psql.send("insert into kept values ('handed'), ('over');\n")?;
    psql.expect("INSERT 0 2")?;
    scene.bed.lab.wlan().take_down()?;
    scene.bed.agent.wait_status("the loss of the last uplink", |status| status["session"] == "no_uplink")?;
    // Sent during the outage.
    psql.send("insert into kept select 'outage' from generate_series(1, 3);\n")?;
    std::thread::sleep(Duration::from_secs(3));
    assert!(!psql.transcript().contains("INSERT 0 3"), "there was no outage:\n{}", psql.transcript());
    scene.bed.lab.wlan().bring_up()?;
    scene.bed.agent.wait_active(UplinkName::Wlan)?;
    psql.expect_within("INSERT 0 3", PATIENCE * 3)?;
    psql.send("commit; select 'still ' || pg_backend_pid() || ' has ' || count(*) as kept from kept;\n")?;
    let backend = seen.rsplit(' ').next().expect("a pid");
    psql.expect(&format!("still {backend} has 6"))?;
    drop(psql);
    scene.finish()
}

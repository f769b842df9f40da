//! Unauthorised parties at the relay's port, at the control sockets of both programs and at their
//! metrics.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use mobile_tests::{Agent, METRICS, Ns, Relay, Testbed, wait_for};

use crate::Outcome;

/// The number of connections to open, more than either program serves at a time.
const CROWD: usize = 40;

/// The time within which both programs must close the connections: the two timeouts of a connection
/// add up to 20 s, and the rest allows for a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Returns the status and the body of the metrics server's page at `path`, requested with the
/// header `Host: host`.
fn page(ns: &Ns, host: &str, path: &str) -> Result<(String, String)> {
    let (header, url) = (format!("Host: {host}"), format!("http://{METRICS}{path}"));
    let text = ns.run(&["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", "-H", &header, &url])?;
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    Ok((status.to_owned(), body.to_owned()))
}

#[test]
fn a_web_page_cannot_read_the_metrics_under_a_name_of_its_own() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    bed.relay.configure("metrics", "hosts", vec!["relay.example.org".to_owned()])?;
    bed.agent.configure("metrics", "hosts", vec!["laptop.example.org".to_owned()])?;
    bed.start()?;
    for (ns, own, metric) in [
        (&bed.lab.host, "laptop.example.org", "mobile_build_info"),
        (&bed.lab.relay, "relay.example.org", "homerelay_build_info"),
    ] {
        for path in ["/metrics", "/healthz"] {
            for foreign in
                ["evil.example", "evil.example:9478", "x.relay.example.org", "localhost.evil.example"]
            {
                let (status, body) = page(ns, foreign, path)?;
                assert_eq!(status, "421", "{foreign} {path}: {body}");
                assert!(
                    !body.contains(metric) && body.contains("[metrics] hosts"),
                    "{foreign} {path}: {body}"
                );
            }
            for known in [METRICS, "localhost", "localhost:9478", "[::1]:9478", own, &own.to_uppercase()] {
                assert_eq!(page(ns, known, path)?.0, "200", "{known} {path}");
            }
        }
        assert!(page(ns, own, "/metrics")?.1.contains(metric));
    }
    bed.finish()
}

/// Opens connections to the metrics server: some send requests without end and read nothing, and
/// others send nothing.
fn crowd_at_metrics(ns: &Ns) -> Result<Vec<TcpStream>> {
    ns.enter(|| {
        (0..CROWD)
            .map(|number| {
                let mut stream = TcpStream::connect(METRICS)?;
                stream.set_nonblocking(true)?;
                let request = format!("GET /metrics HTTP/1.1\r\nHost: {METRICS}\r\n\r\n");
                // Write as much as the buffers take.
                while number % 2 == 0 && stream.write_all(request.as_bytes()).is_ok() {}
                Ok(stream)
            })
            .collect()
    })
}

/// Opens connections to a control socket: some send `question` without end and read nothing, some
/// stop in the middle of the request, and some send nothing.
fn crowd_at_socket(path: &std::path::Path, question: &[u8]) -> Result<Vec<UnixStream>> {
    (0..CROWD)
        .map(|number| {
            let mut stream = UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            match number % 3 {
                0 => while stream.write_all(question).is_ok() {},
                // The connection may have been refused already.
                1 => drop(stream.write_all(&question[..5])),
                _ => {}
            }
            Ok(stream)
        })
        .collect()
}

/// Waits until the program under attack has closed every connection.
fn wait_left(crowd: &mut [impl std::io::Read]) -> Outcome {
    for stream in crowd {
        wait_for("a connection to be ended", DEADLINE, || {
            let mut buffer = [0; 65536];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return Ok(Some(())),
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                    Err(_reset) => return Ok(Some(())),
                }
            }
        })?;
    }
    Ok(())
}

#[test]
fn connections_that_are_idle_or_never_read_free_their_places() -> Outcome {
    let bed = Testbed::new()?;
    let (agent, relay): (&Agent, &Relay) = (&bed.agent, &bed.relay);
    let mut at_metrics = [crowd_at_metrics(&bed.lab.host)?, crowd_at_metrics(&bed.lab.relay)?];
    let mut at_relay = crowd_at_socket(&bed.lab.dir().join("relay.sock"), b"{\"verb\":\"clients\"}\n")?;
    let at = agent.config().with_file_name("agent.sock");
    let mut at_agent = crowd_at_socket(&at, b"\"status\"\n")?;
    // The slots are free again although the other ends have neither read nor closed anything.
    wait_for("the relay's commands to be answered", DEADLINE, || {
        Ok(relay.cli(&["sessions"])?.status.success().then_some(()))
    })?;
    wait_for("the agent's commands to be answered", DEADLINE, || {
        Ok(agent.cli(&["status"])?.status.success().then_some(()))
    })?;
    for ns in [&bed.lab.host, &bed.lab.relay] {
        wait_for("the metrics to be served", DEADLINE, || {
            Ok((page(ns, METRICS, "/metrics")?.0 == "200").then_some(()))
        })?;
    }
    for crowd in &mut at_metrics {
        wait_left(crowd)?;
    }
    wait_left(&mut at_relay)?;
    wait_left(&mut at_agent)?;
    bed.finish()
}

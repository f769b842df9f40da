//! TCP connections of mobile processes survive an outage: their senders see a closed window, wait,
//! and continue at once.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mobile_tests::{LineProcess, PATIENCE, Process, TcpService, Testbed, UplinkName, http, port, wait_for};

use crate::{Outcome, echo_sessions, server, urls};

/// The length of the outage. Without a freeze, TCP would give up after 3 s with the retries that
/// [`impatient`] sets.
const OUTAGE: Duration = Duration::from_secs(20);

/// The time from the tunnel's return within which data must flow in both directions.
///
/// A retransmission timer that has backed off for [`OUTAGE`] takes far longer; a busy test machine
/// takes less.
const RESUME: Duration = Duration::from_secs(3);

/// The time from the tunnel's return within which bulk transfers on a slow link must make progress:
/// they first retransmit the data in flight and begin with a small congestion window.
const BULK_RESUME: Duration = Duration::from_secs(5);

/// The time from the tunnel's return within which data must flow if both programs were restarted: a
/// sender's retransmission timer has backed off during the outage.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The size of each bulk transfer in bytes, the uplinks' rate in bit/s, at which the outage begins
/// during the transfer, and the bytes that count as progress.
const SIZE: u64 = 30_000_000;
const RATE: u64 = 20_000_000;
const PROGRESS: u64 = 500_000;

/// A port at which the server sends an increasing number every [`TICK`], whatever the client does.
const TICKS: u16 = 1102;
const TICK: Duration = Duration::from_millis(50);

#[test]
fn connections_outlive_an_outage_of_20_s_with_data_pending_both_ways() -> Outcome {
    let bed = Testbed::new()?;
    impatient(&bed)?;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let _ticks = TcpService::start(&bed.lab.server, TICKS, move |mut stream, _| {
        while writeln!(stream, "{}", counter.fetch_add(1, Ordering::Relaxed)).is_ok() {
            std::thread::sleep(TICK);
        }
    })?;
    let mut echoes = echo_sessions(&bed)?;
    let [four, _] = server(TICKS);
    let mut ticks = bed.mobile_labtool(&["tcp", &four])?;
    ticks.next_line()?;
    ticks.next_line()?;

    bed.lab.eth().cut()?;
    bed.lab.wlan().cut()?;
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < OUTAGE {
        for talk in &mut echoes {
            talk.send_line(&format!("during {count}"))?;
        }
        count += 1;
        std::thread::sleep(Duration::from_millis(250));
    }
    bed.lab.wlan().bring_up()?;
    bed.agent.wait_active(UplinkName::Wlan)?;

    let back = Instant::now();
    let last_tick = sent.load(Ordering::Relaxed);
    for talk in &mut echoes {
        talk.send_line("after")?;
        assert_eq!(lines_until(talk, back, RESUME, |line| line == "after")?, count_of_lines(count));
    }
    lines_until(&mut ticks, back, RESUME, |line| line.parse::<u64>().is_ok_and(|tick| tick > last_tick))?;
    bed.finish()
}

#[test]
fn bulk_transfers_both_ways_outlive_an_outage_that_ends_them_otherwise() -> Outcome {
    let bed = Testbed::new()?;
    impatient(&bed)?;
    for uplink in UplinkName::ALL {
        bed.lab.uplink(uplink).link().set_rate(Some(RATE));
    }
    let (up, down, answer) = ("upload", "download", "answer");
    let file = |name: &str| bed.lab.dir().join(name);
    let text = |name: &str| file(name).display().to_string();
    http::pattern(SIZE, BufWriter::new(File::create(file(up))?))?;
    let start = |name: &str, args: &[&str]| {
        let mut command = bed.agent.run(&[&["curl", "-sS", "--fail"], args].concat());
        Process::start("curl", &mut command, &file(&format!("{name}.txt")))
    };
    let mut transfers = [
        start(up, &["-T", &text(up), "-o", &text(answer), &urls("/sum")[0]])?,
        start(down, &["-o", &text(down), &urls(&format!("/bytes/{SIZE}"))[1]])?,
    ];
    // Returns the bytes that have arrived at either end.
    let passed = || -> anyhow::Result<[u64; 2]> {
        let uploaded = bed.relay.sessions()?.iter().filter_map(|session| session["rx_bytes"].as_u64()).sum();
        Ok([uploaded, std::fs::metadata(file(down)).map_or(0, |meta| meta.len())])
    };
    let progress = |what: &str, from: [u64; 2], patience: Duration| {
        wait_for(what, patience, || {
            let now = passed()?;
            Ok((now[0] >= from[0] + PROGRESS && now[1] >= from[1] + PROGRESS).then_some(()))
        })
    };
    progress("data both ways", [0; 2], PATIENCE)?;

    bed.lab.eth().cut()?;
    bed.lab.wlan().cut()?;
    std::thread::sleep(OUTAGE / 2);
    let before = passed()?;
    bed.lab.wlan().bring_up()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    let back = Instant::now();
    progress("data both ways after the outage", before, BULK_RESUME)?;
    eprintln!("data both ways {:?} after the tunnel's return", back.elapsed());
    bed.lab.wlan().link().set_rate(None);
    for transfer in &mut transfers {
        let status = transfer.wait(PATIENCE * 3)?;
        assert!(status.success(), "curl: {status}: {}", transfer.output());
    }
    assert_eq!(std::fs::read_to_string(file(answer))?.trim(), http::pattern_sum(SIZE));
    let sum = bed.lab.host.run(&["sha256sum", &text(down)])?;
    assert_eq!(sum.split(' ').next(), Some(http::pattern_sum(SIZE).as_str()));
    bed.finish()
}

/// Regression test. In both directions, data that one end's TCP had received was never acknowledged
/// to the other end, and both ends saw a closed window. Both then sent only sequence numbers that
/// the other end refuses as old, and the connection ended a minute later.
#[test]
fn both_programs_killed_in_an_outage_end_no_connection_with_data_in_flight_both_ways() -> Outcome {
    let mut bed = Testbed::new()?;
    for uplink in UplinkName::ALL {
        // Ten ticks and their acknowledgements are always in flight.
        bed.lab.uplink(uplink).set_delay(TICK * 5);
    }
    let service = NumberService::start(&bed)?;
    let [four, _] = server(TICKS);
    let mut ticks = bed.mobile_labtool(&["tcp", &four])?;
    let mut said = 0;
    let mut say = |ticks: &mut LineProcess, count: u32, pause: Duration| -> anyhow::Result<u64> {
        for _ in 0..count {
            said += 1;
            ticks.send_line(&format!("{said:01000}"))?;
            std::thread::sleep(pause);
        }
        Ok(said)
    };
    say(&mut ticks, 40, TICK)?;
    bed.lab.eth().cut()?;
    bed.lab.wlan().cut()?;
    // As much as the buffers behind a closed window hold.
    say(&mut ticks, 20, OUTAGE / 40)?;
    bed.agent.kill()?;
    bed.relay.kill()?;
    bed.lab.wlan().bring_up()?;
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;

    let back = Instant::now();
    let (last_tick, last_said) = (service.sent.load(Ordering::Relaxed), say(&mut ticks, 1, TICK)?);
    let heard = Cell::new(0);
    let lines = lines_until(&mut ticks, back, LONGEST_PAUSE, |line| {
        heard.set(line.parse().unwrap_or(0));
        heard.get() > last_tick
    })?;
    // The first line says that it is connected.
    assert_eq!(lines, 1 + heard.get() + 1, "each tick was heard, from 0");
    wait_for("what was said last", LONGEST_PAUSE, || {
        Ok((service.received.load(Ordering::Relaxed) >= last_said).then_some(()))
    })?;
    bed.expect_warnings_of_all_kinds();
    bed.finish()
}

#[test]
fn a_connection_made_in_an_outage_is_there_at_its_end() -> Outcome {
    let bed = Testbed::new()?;
    bed.lab.eth().cut()?;
    bed.lab.wlan().cut()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    // The first SYN waits in the tunnel's queue, and more are sent meanwhile.
    std::thread::sleep(OUTAGE);
    assert_eq!(talk.take_lines(), Vec::<String>::new());
    bed.lab.wlan().bring_up()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    let back = Instant::now();
    assert!(talk.next_line_within(RESUME)?.starts_with("connected "));
    eprintln!("connected {:?} after the tunnel's return", back.elapsed());
    assert_eq!(talk.request("hello")?, "hello");
    bed.finish()
}

/// A service at the port [`TICKS`] that sends an increasing number every [`TICK`], and receives
/// numbers.
struct NumberService {
    /// The next number to send.
    sent: Arc<AtomicU64>,
    /// The last number received, if the client has sent all numbers from 1 in order.
    received: Arc<AtomicU64>,
    _service: TcpService,
}

impl NumberService {
    fn start(bed: &Testbed) -> anyhow::Result<Self> {
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counters = (Arc::clone(&sent), Arc::clone(&received));
        let _service = TcpService::start(&bed.lab.server, TICKS, move |stream, _| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Each line is too long to be retransmitted together with the next one.
                    while writeln!(&stream, "{:01000}", counters.0.fetch_add(1, Ordering::Relaxed)).is_ok() {
                        std::thread::sleep(TICK);
                    }
                });
                for (line, expected) in BufReader::new(&stream).lines().map_while(Result::ok).zip(1..) {
                    // Lines after a wrong one do not count.
                    if line.parse() != Ok(expected) {
                        break;
                    }
                    counters.1.store(expected, Ordering::Relaxed);
                }
            });
        })?;
        Ok(Self { sent, received, _service })
    }
}

/// Makes TCP at both ends give up after three retransmissions (`tcp_retries2`).
fn impatient(bed: &Testbed) -> Outcome {
    for ns in [&bed.lab.host, &bed.lab.server] {
        ns.sysctl("net/ipv4/tcp_retries2", "3")?;
    }
    Ok(())
}

/// Reads lines until one satisfies `wanted`, and returns the count of lines read, that one
/// included. Fails once `patience` has passed since `since`.
fn lines_until(
    talk: &mut LineProcess,
    since: Instant,
    patience: Duration,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<u64> {
    for count in 1.. {
        let line = talk.next_line_within(patience.saturating_sub(since.elapsed()))?;
        if wanted(&line) {
            let number = line.trim_start_matches('0');
            eprintln!("{number}: {:?} after the tunnel's return", since.elapsed());
            return Ok(count);
        }
        assert!(!line.starts_with('!'), "{line}");
    }
    unreachable!("an endless count ended")
}

/// Returns the count of lines to expect: all `during` lines that were sent in the outage, and the
/// next one.
fn count_of_lines(during: u64) -> u64 {
    during + 1
}

//! Inner TCP outlives an outage: its senders are told that there is no room, wait, and go on at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mobile_tests::{Talk, TcpService, Testbed, UplinkName, port};

use crate::{Outcome, server};

/// How long nothing gets through: with the retries below, TCP gives up after 3 s.
const OUTAGE: Duration = Duration::from_secs(20);

/// How soon after the tunnel's return data flows, in both directions.
const RESUME: Duration = Duration::from_millis(300);

/// A port of the server where it sends a number every so often, whatever the client does.
const TICKS: u16 = 1002;
const TICK: Duration = Duration::from_millis(50);

#[test]
fn connections_outlive_an_outage_of_20_s_with_data_pending_both_ways() -> Outcome {
    let bed = Testbed::new()?;
    for ns in [&bed.lab.host, &bed.lab.server] {
        ns.sysctl("net/ipv4/tcp_retries2", "3")?;
    }
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let _ticks = TcpService::start(&bed.lab.server, TICKS, move |mut stream, _| {
        while writeln!(stream, "{}", counter.fetch_add(1, Ordering::Relaxed)).is_ok() {
            std::thread::sleep(TICK);
        }
    })?;
    let mut echoes = Vec::new();
    for address in server(port::ECHO) {
        let mut talk = bed.mobile_talk(&["tcp", &address])?;
        talk.hear()?;
        assert_eq!(talk.ask("before")?, "before");
        echoes.push(talk);
    }
    let [four, _] = server(TICKS);
    let mut ticks = bed.mobile_talk(&["tcp", &four])?;
    ticks.hear()?;
    ticks.hear()?;

    bed.lab.eth().cut()?;
    bed.lab.wlan().cut()?;
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < OUTAGE {
        for talk in &mut echoes {
            talk.say(&format!("during {count}"))?;
        }
        count += 1;
        std::thread::sleep(Duration::from_millis(250));
    }
    bed.lab.wlan().bring_up()?;
    bed.agent.wait_active(UplinkName::Wlan)?;

    let back = Instant::now();
    let last_tick = sent.load(Ordering::Relaxed);
    for talk in &mut echoes {
        talk.say("after")?;
        assert_eq!(heard_until(talk, back, |line| line == "after")?, count_of_lines(count));
    }
    heard_until(&mut ticks, back, |line| line.parse::<u64>().is_ok_and(|tick| tick > last_tick))?;
    bed.finish()
}

/// How many lines came, within the bound, up to the one that is `wanted`.
fn heard_until(talk: &mut Talk, since: Instant, wanted: impl Fn(&str) -> bool) -> anyhow::Result<u64> {
    for count in 1.. {
        let line = talk.hear_within(RESUME.saturating_sub(since.elapsed()))?;
        if wanted(&line) {
            eprintln!("{line}: {:?} after the tunnel's return", since.elapsed());
            return Ok(count);
        }
        assert!(!line.starts_with('!'), "{line}");
    }
    unreachable!("an endless count ended")
}

/// Every line of the outage comes, and then the one behind it.
fn count_of_lines(during: u64) -> u64 {
    during + 1
}

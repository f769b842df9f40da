//! Bulk transfers survive every kind of handover without a wrong byte.

use std::path::Path;
use std::time::Duration;

use mobile_tests::{PATIENCE, Process, Testbed, Uplink, UplinkName, http, until, wait_for};

use crate::{Outcome, urls};

/// The size of each transfer in bytes.
const SIZE: u64 = 100_000_000;

/// The rate of each uplink in bit/s until the tenth handover, so low that the transfer cannot end
/// before that handover.
const RATE: u64 = 40_000_000;

/// The bytes that the transfer must have moved since the last handover before the next one is
/// caused.
const PROGRESS: u64 = 1_000_000;

type Step = (&'static str, fn(&Testbed) -> Outcome, UplinkName);

/// Ten changes that each cause a handover, with the uplink that must carry the tunnel afterwards.
/// Each kind occurs at least twice or in both directions.
const STEPS: [Step; 10] = [
    ("carrier lost", |bed| bed.lab.eth().cut(), UplinkName::Wlan),
    ("better uplink appears", |bed| bed.lab.eth().bring_up(), UplinkName::Eth),
    ("address lost", |bed| bed.lab.eth().remove_address(), UplinkName::Wlan),
    ("renumbered in place", |bed| bed.lab.wlan().renumber(), UplinkName::Wlan),
    ("better uplink appears", |bed| bed.lab.eth().bring_up(), UplinkName::Eth),
    ("route lost", |bed| bed.lab.eth().remove_route(), UplinkName::Wlan),
    ("better uplink appears", |bed| bed.lab.eth().bring_up(), UplinkName::Eth),
    ("renumbered in place", |bed| bed.lab.eth().renumber(), UplinkName::Eth),
    (
        "carrier lost",
        |bed| bed.lab.eth().cut().and_then(|()| bed.lab.eth().give_up_address()),
        UplinkName::Wlan,
    ),
    ("better uplink appears", |bed| bed.lab.eth().bring_up(), UplinkName::Eth),
];

#[test]
fn a_download_of_100_mb_survives_ten_handovers_intact() -> Outcome {
    let mut bed = Testbed::new()?;
    limit(&bed, Some(RATE));
    let file = bed.lab.dir().join("download");
    let [url, _] = urls(&format!("/bytes/{SIZE}"));
    let mut curl = curl(&bed, &["-o", path(&file), &url])?;
    ten_handovers(&bed, &mut curl, |_| Ok(std::fs::metadata(&file).map(|meta| meta.len()).unwrap_or(0)))?;
    let status = curl.wait(Duration::from_secs(60))?;
    assert!(status.success(), "curl: {status}: {}", curl.output());
    let sum = bed.lab.host.run(&["sha256sum", path(&file)])?;
    assert_eq!(sum.split(' ').next(), Some(http::pattern_sum(SIZE).as_str()));
    assert_one_path_per_uplink(&bed)?;
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn an_upload_of_100_mb_survives_ten_handovers_intact() -> Outcome {
    let mut bed = Testbed::new()?;
    limit(&bed, Some(RATE));
    let file = bed.lab.dir().join("upload");
    http::pattern(SIZE, std::io::BufWriter::new(std::fs::File::create(&file)?))?;
    let answer = bed.lab.dir().join("answer");
    let [url, _] = urls("/sum");
    let mut curl = curl(&bed, &["-T", path(&file), "-o", path(&answer), &url])?;
    ten_handovers(&bed, &mut curl, |bed| {
        let sessions = bed.relay.sessions()?;
        Ok(sessions.iter().filter_map(|session| session["rx_bytes"].as_u64()).sum())
    })?;
    let status = curl.wait(Duration::from_secs(60))?;
    assert!(status.success(), "curl: {status}: {}", curl.output());
    assert_eq!(std::fs::read_to_string(&answer)?.trim(), http::pattern_sum(SIZE));
    assert_one_path_per_uplink(&bed)?;
    bed.expect_quick_replug();
    bed.finish()
}

/// Tests an upload to a server that announces a small MSS: such servers exist, and with
/// segmentation offload their small segments also enter the tunnel as one large packet.
#[test]
fn an_upload_in_small_segments_arrives() -> Outcome {
    const SMALL: u64 = 3_000_000;
    let bed = Testbed::new()?;
    let file = bed.lab.dir().join("upload");
    http::pattern(SMALL, std::io::BufWriter::new(std::fs::File::create(&file)?))?;
    let answer = bed.lab.dir().join("answer");
    let route = bed.lab.server.run(&["ip", "-4", "route", "show", "default"])?;
    // The least TCP_MAXSEG that Linux accepts, and an MSS that a constrained host may announce.
    for mss in ["256", "88"] {
        let words: Vec<&str> = route.split_whitespace().collect();
        bed.lab.server.run(&[&["ip", "-4", "route", "replace"], &words[..], &["advmss", mss]].concat())?;
        let [url, _] = urls("/sum");
        let mut curl = curl(&bed, &["-T", path(&file), "-o", path(&answer), &url])?;
        let status = curl.wait(Duration::from_secs(60))?;
        assert!(status.success(), "curl with an MSS of {mss}: {status}: {}", curl.output());
        assert_eq!(std::fs::read_to_string(&answer)?.trim(), http::pattern_sum(SMALL));
    }
    bed.finish()
}

#[test]
fn a_download_survives_the_death_of_either_program_and_an_outage() -> Outcome {
    let mut bed = Testbed::new()?;
    limit(&bed, Some(RATE));
    let file = bed.lab.dir().join("download");
    // About 16 s at the limited rate.
    let size = SIZE - 20_000_000;
    let [_, url] = urls(&format!("/bytes/{size}"));
    let mut curl = curl(&bed, &["-o", path(&file), &url])?;
    let passed = || Ok::<_, anyhow::Error>(std::fs::metadata(&file).map_or(0, |meta| meta.len()));
    let progress = |what: &str| {
        let reached = passed()? + PROGRESS;
        // After an outage the sender's retransmission timer decides when data flows.
        wait_for(&format!("data after {what}"), PATIENCE * 3, || Ok((passed()? >= reached).then_some(())))
    };
    progress("the start")?;
    bed.agent.kill()?;
    bed.agent.start()?;
    progress("the agent's death")?;
    bed.relay.kill()?;
    bed.relay.start()?;
    progress("the relay's death")?;
    bed.lab.eth().take_down()?;
    bed.lab.wlan().take_down()?;
    bed.agent.wait_status("the loss of the last uplink", |status| status["session"] == "no_uplink")?;
    std::thread::sleep(Duration::from_secs(3));
    bed.lab.wlan().bring_up()?;
    progress("the outage")?;
    assert!(curl.ended()?.is_none(), "the transfer ended before the outage");
    limit(&bed, None);
    let status = curl.wait(Duration::from_secs(60))?;
    assert!(status.success(), "curl: {status}: {}", curl.output());
    let sum = bed.lab.host.run(&["sha256sum", path(&file)])?;
    assert_eq!(sum.split(' ').next(), Some(http::pattern_sum(size).as_str()));
    bed.expect_warning("relay");
    bed.finish()
}

pub(crate) fn curl(bed: &Testbed, args: &[&str]) -> anyhow::Result<Process> {
    let mut command = bed.agent.run(&[&["curl", "-sS", "--fail"], args].concat());
    Process::start("curl", &mut command, &bed.lab.dir().join("curl.txt"))
}

fn ten_handovers(
    bed: &Testbed,
    curl: &mut Process,
    passed: impl Fn(&Testbed) -> anyhow::Result<u64>,
) -> Outcome {
    let mut handovers = 0;
    let mut reached = 0;
    for (number, (what, act, uplink)) in STEPS.iter().enumerate() {
        let what = format!("handover {} ({what})", number + 1);
        wait_for(&format!("data before {what}"), PATIENCE, || {
            if let Some(status) = curl.ended()? {
                panic!("curl ended before {what}: {status}: {}", curl.output());
            }
            Ok((passed(bed)? >= reached + PROGRESS).then_some(()))
        })?;
        act(bed)?;
        let mut seen = 0;
        bed.agent
            .wait_status(&what, |status| {
                seen = status["handovers"].as_u64().unwrap_or(0);
                status["session"] == "connected"
                    && status["active_uplink"] == uplink.device()
                    && seen > handovers
            })
            .map_err(|error| error.context(what))?;
        handovers = seen;
        reached = passed(bed)?;
    }
    assert!(curl.ended()?.is_none(), "the transfer ended before the tenth handover had been proven");
    limit(bed, None);
    Ok(())
}

/// Checks that the relay has exactly two paths of one session, one for each uplink, of which one is
/// active. The paths from before the handovers must be closed.
fn assert_one_path_per_uplink(bed: &Testbed) -> Outcome {
    assert_eq!(bed.relay.sessions()?.len(), 1);
    until("the relay to hold one path an uplink", || bed.relay.paths().is_ok_and(|paths| paths.len() == 2))?;
    bed.relay.active_peer()?;
    // The TCP connections that the kernel counts.
    until("two established connections at the relay", || {
        bed.lab
            .relay
            .run(&["ss", "-Htn", "state", "established", "sport = :443"])
            .is_ok_and(|list| list.lines().count() == 2)
    })
}

pub(crate) fn limit(bed: &Testbed, rate: Option<u64>) {
    for uplink in [bed.lab.eth(), bed.lab.wlan()] {
        let uplink: &Uplink = uplink;
        uplink.link().set_rate(rate);
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("the lab's paths are plain")
}

//! The round trip of a keystroke during a bulk transfer that fills the uplink.

use std::time::Duration;

use anyhow::{Context, ensure};
use mobile_tests::{PATIENCE, Process, Testbed, finish_within, port, program};

use crate::{Outcome, server};

/// The rate of each uplink in bit/s, as ordinary access links have.
const RATE: u64 = 10_000_000;

/// The greatest allowed ratio of the round trip during a bulk transfer to that of an idle tunnel.
///
/// With the fair queue the ratio is below 2. With a FIFO of 250 ms it is 11 for a direct connection
/// and 16 for a tunnel that fills the FIFO. The bound leaves room for a busy machine.
const BOUND: f64 = 5.0;

/// Measures keystrokes of a mobile process to the echo service, and returns the median round trip
/// in milliseconds.
pub(crate) fn echo(bed: &Testbed) -> anyhow::Result<f64> {
    let [server, _] = server(port::ECHO);
    let tool = program("labtool")?.display().to_string();
    let mut command = bed.agent.run(&[&tool, "keystrokes", &server, "20", "5"]);
    let said = finish_within(&mut command, None, PATIENCE)?.ok()?;
    let report: serde_json::Value = serde_json::from_str(said.trim()).with_context(|| said.clone())?;
    report["median_ms"].as_f64().with_context(|| said.clone())
}

/// Checks that a keystroke's round trip stays within [`BOUND`] times `idle` while the shell command
/// `bulk`, a transfer of the kind `what`, runs.
fn stays_quick_beside(bed: &Testbed, idle: f64, what: &str, bulk: &str) -> Outcome {
    let log = bed.lab.dir().join(format!("{what}.txt"));
    let mut transfer = Process::start(what, &mut bed.agent.run(&["sh", "-c", bulk]), &log)?;
    // By then the transfer has reached its rate, and would have filled a FIFO.
    std::thread::sleep(Duration::from_secs(3));
    let beside = echo(bed)?;
    ensure!(transfer.ended()?.is_none(), "the {what} has ended: {}", transfer.output());
    eprintln!("echo: {idle:.1} ms alone, {beside:.1} ms beside a {what}");
    ensure!(beside < BOUND * idle, "{what}: {idle} ms alone, {beside} ms beside it");
    Ok(())
}

#[test]
fn a_keystroke_passes_a_bulk_transfer_in_either_direction() -> Outcome {
    let bed = Testbed::new()?;
    bed.lab.eth().link().set_offload(false)?;
    bed.lab.eth().link().set_rate(Some(RATE));
    let idle = echo(&bed)?;
    let [discard, _] = server(port::DISCARD);
    let (host, port) = discard.rsplit_once(':').context("an address and a port")?;
    let upload = format!("exec cat /dev/zero > /dev/tcp/{host}/{port}");
    stays_quick_beside(&bed, idle, "upload", &format!("exec bash -c '{upload}'"))?;
    let [url, _] = crate::urls("/bytes/1000000000");
    stays_quick_beside(&bed, idle, "download", &format!("exec curl -sS -o /dev/null {url}"))?;
    bed.finish()
}

//! A keystroke beside a bulk transfer, on an uplink that the transfer fills.

use std::time::Duration;

use anyhow::{Context, ensure};
use mobile_tests::{PATIENCE, Process, Testbed, finish_within, port, program};

use crate::{Outcome, server};

/// An ordinary uplink's rate.
const RATE: u64 = 10_000_000;

/// The queue's own figure is below 2; a FIFO of a quarter of a second makes it 11 for a direct connection, and 16 for a tunnel
/// that fills it. Between them is room for a machine that does other things as well.
const BOUND: f64 = 5.0;

/// The median of an echo's round trips, in milliseconds.
pub(crate) fn echo(bed: &Testbed) -> anyhow::Result<f64> {
    let [server, _] = server(port::ECHO);
    let tool = program("labtool")?.display().to_string();
    let mut command = bed.agent.run(&[&tool, "keystrokes", &server, "20", "5"]);
    let said = finish_within(&mut command, None, PATIENCE)?.ok()?;
    let report: serde_json::Value = serde_json::from_str(said.trim()).with_context(|| said.clone())?;
    report["median_ms"].as_f64().with_context(|| said.clone())
}

/// Beside `bulk`, which runs until it is dropped.
fn stays_quick_beside(bed: &Testbed, idle: f64, what: &str, bulk: &str) -> Outcome {
    let log = bed.lab.dir().join(format!("{what}.txt"));
    let mut transfer = Process::start(what, &mut bed.agent.run(&["sh", "-c", bulk]), &log)?;
    // It has found its pace, and would have filled the FIFO long ago.
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

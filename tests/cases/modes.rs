//! Sessions and transfers with the non-default value of each setting in `[tunnel]`: segmentation
//! offload, compression and the fair queue.
//!
//! The chaos test also runs with these settings: `cargo xtask test chaos --tunnel KEY=VALUE`.

use std::time::Duration;

use anyhow::{Context, ensure};
use mobile_tests::{LabOptions, Process, Testbed, UplinkName, http, port};

use crate::transfer::{curl, limit, path};
use crate::{Outcome, latency, server, urls};

/// A setting of `[tunnel]` at both programs: its key and its value.
type Setting = (&'static str, &'static str);

const OFFLOAD: Setting = ("offload", "off");
const QUEUE: Setting = ("queue", "fifo");
const COMPRESSION: Setting = ("compression", "zstd");

/// The size of each transfer in bytes.
const SIZE: u64 = 20_000_000;

/// The rate of each uplink in bit/s, at which a transfer takes some seconds, enough for an uplink
/// to go and return.
const RATE: u64 = 40_000_000;

fn testbed(settings: &[Setting]) -> anyhow::Result<Testbed> {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.configure_tunnel(settings)?;
    bed.start()?;
    Ok(bed)
}

/// Checks that an echo session, a download and an upload of text at the same time survive the loss
/// of an uplink and its return.
fn outlive_handovers(settings: &[Setting]) -> Outcome {
    let mut bed = testbed(settings)?;
    limit(&bed, Some(RATE));
    let [echo, _] = server(port::ECHO);
    let mut session = bed.mobile_labtool(&["tcp", &echo])?;
    session.next_line()?;
    let (file, text, answer) =
        (bed.lab.dir().join("download"), bed.lab.dir().join("text"), bed.lab.dir().join("answer"));
    let line = "What compresses well, whatever the mode is that it is sent in. ";
    std::fs::write(&text, line.repeat(SIZE as usize / line.len()))?;
    let [[download, _], [upload, _]] = [urls(&format!("/bytes/{SIZE}")), urls("/sum")];
    let mut transfers = [
        curl(&bed, &["-o", path(&file), &download])?,
        curl(&bed, &["-T", path(&text), "-o", path(&answer), &upload])?,
    ];
    for (number, uplink) in [(1, UplinkName::Wlan), (2, UplinkName::Eth), (3, UplinkName::Wlan)] {
        // Some megabytes pass between two handovers.
        std::thread::sleep(Duration::from_millis(700));
        if uplink == UplinkName::Wlan {
            bed.lab.eth().cut()?;
        } else {
            bed.lab.eth().bring_up()?;
        }
        bed.agent.wait_active(uplink)?;
        let typed = format!("after handover {number}");
        assert_eq!(session.request(&typed)?, typed);
    }
    limit(&bed, None);
    for transfer in &mut transfers {
        let status = transfer.wait(Duration::from_secs(60))?;
        ensure!(status.success(), "curl: {status}: {}", transfer.output());
    }
    let sum = |file| bed.lab.host.run(&["sha256sum", path(file)]);
    assert_eq!(sum(&file)?.split(' ').next(), Some(http::pattern_sum(SIZE).as_str()));
    assert_eq!(sum(&text)?.split(' ').next(), Some(std::fs::read_to_string(&answer)?.trim()));
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn sessions_and_transfers_outlive_handovers_without_offload() -> Outcome {
    outlive_handovers(&[OFFLOAD])
}

#[test]
fn sessions_and_transfers_outlive_handovers_without_the_fair_queue() -> Outcome {
    outlive_handovers(&[QUEUE])
}

#[test]
fn sessions_and_transfers_outlive_handovers_with_compression() -> Outcome {
    outlive_handovers(&[COMPRESSION])
}

#[test]
fn sessions_and_transfers_outlive_handovers_with_all_modes_the_other_way_round() -> Outcome {
    outlive_handovers(&[OFFLOAD, QUEUE, COMPRESSION])
}

#[test]
fn without_offload_no_packet_on_either_device_is_larger_than_the_mtu() -> Outcome {
    for (offload, large) in [("auto", true), ("off", false)] {
        let bed = testbed(&[("offload", offload)])?;
        let devices = [(&bed.lab.host, "mobile0"), (&bed.lab.relay, "home0")];
        let captures = devices
            .map(|(ns, device)| bed.lab.capture(ns, device, "greater 1501"))
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (file, answer) = (bed.lab.dir().join("download"), bed.lab.dir().join("answer"));
        let [[download, _], [upload, _]] = [urls(&format!("/bytes/{SIZE}")), urls("/sum")];
        let (file, answer) = (path(&file), path(&answer));
        for args in [&["-o", file, &download][..], &["-T", file, "-o", answer, &upload]] {
            let mut transfer = curl(&bed, args)?;
            let status = transfer.wait(Duration::from_secs(60))?;
            ensure!(status.success(), "curl: {status}: {}", transfer.output());
        }
        for capture in captures {
            let packets = capture.stop()?;
            ensure!(packets.is_empty() != large, "offload {offload}: {} large packets", packets.len());
        }
        bed.finish()?;
    }
    Ok(())
}

/// Proves that the setting `queue = "fifo"` has an effect: without the fair queue a keystroke
/// during an upload waits behind the queued data.
#[test]
fn without_the_fair_queue_a_keystroke_waits_behind_an_upload() -> Outcome {
    let bed = testbed(&[QUEUE])?;
    bed.lab.eth().link().set_offload(false)?;
    bed.lab.eth().link().set_rate(Some(10_000_000));
    let idle = latency::echo(&bed)?;
    let [discard, _] = server(port::DISCARD);
    let (host, port) = discard.rsplit_once(':').context("an address and a port")?;
    let upload = format!("exec cat /dev/zero > /dev/tcp/{host}/{port}");
    let log = bed.lab.dir().join("upload.txt");
    let mut transfer = Process::start("upload", &mut bed.agent.run(&["bash", "-c", &upload]), &log)?;
    std::thread::sleep(Duration::from_secs(3));
    let beside = latency::echo(&bed)?;
    ensure!(transfer.ended()?.is_none(), "the upload has ended: {}", transfer.output());
    // With the fair queue the ratio is below 2.
    ensure!(beside > 2.5 * idle, "{idle} ms alone, {beside} ms beside an upload");
    bed.finish()
}

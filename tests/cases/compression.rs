//! The tunnel compresses packets if both ends are configured to, also after a handover, and
//! `status` reports that.

use std::fmt::Write as _;
use std::time::Duration;

use mobile_tests::{Direction, LabOptions, PATIENCE, Process, Testbed, UplinkName, wait_for};

use crate::{Outcome, urls};

/// Returns text that compresses about as well as a log file.
fn log(lines: u32) -> String {
    let mut text = String::new();
    for line in 0..lines {
        let number = line.wrapping_mul(2_654_435_761);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{line:08} INFO request {number:08x} from 10.0.{}.{}: 200 OK",
            line % 7,
            number % 251
        );
    }
    text
}

fn testbed(agent: &str, relay: &str) -> anyhow::Result<Testbed> {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.agent.configure("tunnel", "compression", agent)?;
    bed.relay.configure("tunnel", "compression", relay)?;
    bed.start()?;
    Ok(bed)
}

#[test]
fn an_upload_of_text_is_compressed_on_both_sides_of_a_handover() -> Outcome {
    let bed = testbed("zstd", "zstd")?;
    for uplink in UplinkName::ALL {
        bed.lab.uplink(uplink).link().set_rate(Some(8_000_000));
    }
    let (file, answer) = (bed.lab.dir().join("log"), bed.lab.dir().join("answer"));
    let text = log(400_000);
    std::fs::write(&file, &text)?;
    let [url, _] = urls("/sum");
    let mut command = bed.agent.run(&["curl", "-sS", "-T"]);
    command.arg(&file).arg("-o").arg(&answer).arg(&url);
    let mut curl = Process::start("curl", &mut command, &bed.lab.dir().join("curl.txt"))?;
    wait_for("a part of the upload", PATIENCE, || {
        let sent = bed.agent.status()?["traffic"]["sent_bytes"].as_u64();
        Ok(sent.filter(|&sent| sent > 3_000_000))
    })?;
    bed.lab.eth().cut()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    let before = bed.agent.status()?["traffic"]["sent_compressed_bytes"].as_u64();
    let status = curl.wait(Duration::from_secs(60))?;
    assert!(status.success(), "curl: {status}: {}", curl.output());
    let sum = bed.lab.host.run(&["sha256sum", &file.display().to_string()])?;
    assert_eq!(sum.split(' ').next(), Some(std::fs::read_to_string(&answer)?.trim()));

    let status = bed.agent.status()?;
    let count = |name: &str| status["traffic"][name].as_u64().unwrap_or_default();
    assert_eq!(status["compression"], "zstd", "{status}");
    assert!(
        count("sent_compressed_bytes") > before.unwrap_or_default(),
        "nothing after the handover: {status}"
    );
    assert!(count("sent_compressible_bytes") > text.len() as u64, "{status}");
    assert!(count("sent_compressed_bytes") * 3 < count("sent_compressible_bytes"), "{status}");
    let carried: u64 =
        UplinkName::ALL.iter().map(|&it| bed.lab.uplink(it).link().counters(Direction::Up).bytes).sum();
    assert!(carried * 2 < text.len() as u64, "{carried} bytes on the uplinks for {}", text.len());
    let said = bed.agent.cli(&["status"])?.ok()?;
    assert!(said.contains("compressed zstd, sent "), "{said}");
    let series = "mobile_compressed_bytes_total{direction=\"sent\"}";
    assert_eq!(bed.agent.counter(series)?, count("sent_compressed_bytes"));
    bed.finish()
}

#[test]
fn a_relay_that_does_not_allow_compression_gets_plain_packets_and_status_says_so() -> Outcome {
    let bed = testbed("zstd", "off")?;
    bed.agent.wait_status("the relay's refusal", |status| status["compression"] == "refused")?;
    let mut talk = bed.mobile_labtool(&["tcp", "192.0.2.2:7"])?;
    assert!(talk.next_line()?.starts_with("connected"));
    let line = "again and again ".repeat(60);
    assert_eq!(talk.request(&line)?, line.trim_end());
    assert_eq!(bed.agent.status()?["traffic"]["sent_compressible_bytes"], 0);
    drop(talk);
    bed.finish()
}

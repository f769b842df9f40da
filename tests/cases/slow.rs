//! Slow and lossy paths: the agent does not abandon a path that still works.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use mobile_tests::{
    LabOptions, LineProcess, Ns, PATIENCE, Process, Services, Testbed, addr, http, port, until, wait_for,
};

use crate::{Outcome, server, urls};

/// The time for which the path is slow or lossy: many times the timeout after which a path without
/// answers is abandoned.
const LASTING: Duration = Duration::from_secs(10);

/// The time within which the echo session must end once the path has recovered: the tunnel's TCP
/// first waits for its retransmission timer.
const RECOVERY: Duration = Duration::from_secs(60);

/// The rate of an ordinary uplink in bit/s.
const RATE: u64 = 10_000_000;

/// The size of the upload in bytes: too large to end while the path is slow or lossy.
const SIZE: u64 = 50_000_000;

/// An echo session and a bulk upload beside it.
struct Load {
    echo: LineProcess,
    upload: Process,
    /// The number of handovers before the path becomes slow or lossy.
    handovers: u64,
    /// The time within which a path with a full queue must use bbr as its congestion control. The
    /// agent may mistake a grown delay for competing traffic, and then use another congestion
    /// control for a while.
    patience: Duration,
}

impl Load {
    /// Starts the echo session and the upload; the echo session lasts a little longer than
    /// [`LASTING`].
    fn start(bed: &Testbed) -> anyhow::Result<Self> {
        let file = bed.lab.dir().join("upload");
        http::pattern(SIZE, std::io::BufWriter::new(std::fs::File::create(&file)?))?;
        let [url, _] = urls("/sum");
        let mut curl = bed.agent.run(&["curl", "-sS", "--fail", "-T", &file.display().to_string(), &url]);
        let upload = Process::start("curl", &mut curl, &bed.lab.dir().join("curl.txt"))?;
        let [server, _] = server(port::ECHO);
        let seconds = (LASTING + Duration::from_secs(2)).as_secs().to_string();
        let echo = bed.mobile_labtool(&["gaps", &server, "50", &seconds])?;
        // Both have reached their pace before anything changes.
        std::thread::sleep(Duration::from_secs(1));
        let handovers = bed.agent.status()?["handovers"].as_u64().expect("a count");
        Ok(Self { echo, upload, handovers, patience: Duration::ZERO })
    }

    /// Checks that the echo session and the upload survive on the path over eth0, then lets the
    /// path recover and checks that nothing was lost.
    fn stays_on_eth(mut self, bed: &Testbed, what: &str) -> Outcome {
        std::thread::sleep(LASTING);
        let status = bed.agent.status()?;
        assert_eq!(status["handovers"], self.handovers, "{what}: {status}");
        assert_eq!(status["active_uplink"], "eth0", "{what}: {status}");
        assert!(self.upload.ended()?.is_none(), "{what}: the upload has ended: {}", self.upload.output());
        wait_for("a path that is full to go by rate", self.patience, || {
            Ok(has_congestion_control(bed, "bbr").then_some(()))
        })
        .context(what.to_owned())?;
        bed.lab.eth().set_delay(LabOptions::DELAY);
        bed.lab.eth().link().set_loss(0.0);
        bed.lab.eth().link().set_rate(None);
        let report = self.echo.next_line_within(RECOVERY)?;
        eprintln!("{what}: {report}");
        let report: serde_json::Value = serde_json::from_str(&report).with_context(|| report.clone())?;
        assert!(report["answers"].as_u64().is_some_and(|answers| answers > 20), "{what}: {report}");
        let status = self.upload.wait(RECOVERY)?;
        assert!(status.success(), "{what}: {}", self.upload.output());
        assert_eq!(self.upload.output().trim(), http::pattern_sum(SIZE), "{what}");
        Ok(())
    }
}

/// Limits the rate of eth0, without segmentation offload, so that single segments are lost and
/// queued.
fn limit_rate(bed: &Testbed) -> Outcome {
    bed.lab.eth().link().set_offload(false)?;
    bed.lab.eth().link().set_rate(Some(RATE));
    Ok(())
}

/// Returns whether the tunnel's TCP connection over eth0 has the congestion control `control`.
fn has_congestion_control(bed: &Testbed, control: &str) -> bool {
    let on_eth = format!("%{}:", bed.lab.eth().device());
    let paths = bed.lab.host.run(&["ss", "-tinHO", "state", "established", "dport = :443"]);
    let matches = |path: &str| path.contains(&on_eth) && path.contains(&format!(" {control} "));
    paths.is_ok_and(|paths| paths.lines().any(matches))
}

fn a_change_is_no_reason_to_leave(what: &str, change: impl Fn(&Testbed)) -> Outcome {
    let bed = Testbed::new()?;
    limit_rate(&bed)?;
    let load = Load::start(&bed)?;
    change(&bed);
    load.stays_on_eth(&bed, what)?;
    bed.finish()
}

/// Checks that a path is not paced from its first byte on hosts whose default is bbr, since the
/// kernel never stops pacing a connection.
#[test]
fn on_hosts_with_bbr_a_path_uses_bbr_only_once_it_is_bandwidth_limited() -> Outcome {
    let hosts = LabOptions { congestion_control: Some("bbr".into()), ..LabOptions::default() };
    let bed = Testbed::with(&hosts)?;
    let ends = [(&bed.lab.host, "dport = :443"), (&bed.lab.relay, "sport = :443")];
    let paths = |(ns, port): (&Ns, &str)| ns.run(&["ss", "-tinHO", "state", "established", port]);
    for end in ends {
        let paths = paths(end)?;
        // A path with retransmissions may have switched: on a busy machine acknowledgements come
        // late.
        let mut begun = paths.lines().filter(|path| !path.contains(" retrans:"));
        assert!(begun.all(|path| path.contains(" cubic ")) && !paths.is_empty(), "{paths}");
    }
    limit_rate(&bed)?;
    let _server = Services::iperf3(&bed.lab.server, bed.lab.dir())?;
    let address = addr::SERVER4.to_string();
    let mut iperf3 = bed.agent.run(&["iperf3", "--client", &address, "--time", "60", "--bidir"]);
    let _transfers = Process::start("iperf3", &mut iperf3, &bed.lab.dir().join("iperf3.txt"))?;
    for end in ends {
        until("a full path to go by rate", || paths(end).is_ok_and(|paths| paths.contains(" bbr ")))?;
    }
    bed.finish()
}

/// Checks that a path does not yield the uplink to a competing upload, as it would with bbr: the
/// tunnel then got a third of a plain connection's share.
#[test]
fn beside_a_competing_upload_a_path_restores_cubic_and_returns_to_bbr_once_alone() -> Outcome {
    let bed = Testbed::new()?;
    limit_rate(&bed)?;
    let upload = |mut command: Command, name: &str, address: Ipv4Addr| -> anyhow::Result<Process> {
        command.args(["--client", &address.to_string(), "--time", "300"]);
        Process::start(name, &mut command, &bed.lab.dir().join(format!("{name}.txt")))
    };
    let theirs = bed.lab.dir().join("theirs");
    std::fs::create_dir(&theirs)?;
    let _servers =
        [Services::iperf3(&bed.lab.relay, &theirs)?, Services::iperf3(&bed.lab.server, bed.lab.dir())?];
    let mut other = bed.lab.host.command("iperf3");
    other.args(["--congestion", LabOptions::CONGESTION_CONTROL]);
    let mut other = upload(other, "theirs", addr::RELAY4)?;
    let _ours = upload(bed.agent.run(&["iperf3"]), "ours", addr::SERVER4)?;
    until("a full path to go by rate", || has_congestion_control(&bed, "bbr"))?;
    until("the queue to be found somebody else's", || has_congestion_control(&bed, "cubic"))?;
    other.kill()?;
    // Each time competing traffic is detected, the next attempt comes later.
    wait_for("the path to go by rate again", 3 * PATIENCE, || {
        Ok(has_congestion_control(&bed, "bbr").then_some(()))
    })?;
    // Longer than the detection of competing traffic takes.
    std::thread::sleep(Duration::from_secs(4));
    anyhow::ensure!(
        has_congestion_control(&bed, "bbr"),
        "alone on the uplink, its own queue was taken for somebody else's"
    );
    bed.finish()
}

#[test]
fn five_per_cent_loss_is_no_reason_to_leave_an_uplink() -> Outcome {
    a_change_is_no_reason_to_leave("5 % loss", |bed| bed.lab.eth().link().set_loss(0.05))
}

#[test]
fn twenty_per_cent_loss_is_no_reason_to_leave_an_uplink() -> Outcome {
    a_change_is_no_reason_to_leave("20 % loss", |bed| bed.lab.eth().link().set_loss(0.2))
}

#[test]
fn a_tenth_of_the_rate_in_the_middle_of_an_upload_is_no_reason_to_leave_an_uplink() -> Outcome {
    a_change_is_no_reason_to_leave("a tenth of the rate", |bed| {
        bed.lab.eth().link().set_rate(Some(RATE / 10));
    })
}

#[test]
fn ten_times_the_delay_in_the_middle_of_an_upload_is_no_reason_to_leave_an_uplink() -> Outcome {
    let bed = Testbed::new()?;
    limit_rate(&bed)?;
    let load = Load::start(&bed)?;
    bed.lab.eth().set_delay(LabOptions::DELAY * 10);
    Load { patience: PATIENCE, ..load }.stays_on_eth(&bed, "ten times the delay")?;
    bed.finish()
}

#[test]
fn an_uplink_that_is_slow_from_the_start_is_used_and_kept() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.lab.eth().set_delay(LabOptions::DELAY * 10);
    limit_rate(&bed)?;
    // An attempt over the other uplink begins before this one is complete; the first path may be
    // the other one.
    bed.start()?;
    Load::start(&bed)?.stays_on_eth(&bed, "slow from the start")?;
    bed.finish()
}

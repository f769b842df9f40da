//! Who is measured, each in a lab of its own, and one measurement.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mobile_tests::peers::{Peer, PeerKind};
use mobile_tests::{Lab, LabOptions, PATIENCE, Process, Services, Testbed, UplinkName, addr, finish_within};
use serde_json::Value;

use super::super::effort::Effort;
use super::Shape;

/// The figures of one run of iperf3.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// As the receiver counted.
    pub(crate) mbits: f64,
    /// Seconds of processor time for each GB, of the tunnel's processes at the host and at the relay.
    pub(crate) effort: Option<[f64; 2]>,
}

/// Somebody with everything running.
pub(crate) struct Subject {
    name: &'static str,
    _iperf3: Process,
    way: Way,
}

/// Ends before its lab.
enum Way {
    Direct(Box<Lab>),
    Ours(Box<Testbed>),
    Peer(Box<dyn Peer>, Box<Lab>),
}

impl Subject {
    /// No tunnel.
    pub(crate) fn direct(options: &LabOptions) -> Result<Self> {
        Self::with("direct", Way::Direct(Box::new(Lab::with(options)?)))
    }

    /// `mobile` and `home-relay`.
    pub(crate) fn ours(options: &LabOptions) -> Result<Self> {
        Self::with("mobile", Way::Ours(Box::new(Testbed::with(options)?)))
    }

    /// Somebody else's tunnel.
    pub(crate) fn peer(kind: &PeerKind, options: &LabOptions) -> Result<Self> {
        let lab = Lab::with(options)?;
        let mut peer = kind.make();
        peer.start(&lab)?;
        Self::with(kind.name, Way::Peer(peer, Box::new(lab)))
    }

    fn with(name: &'static str, way: Way) -> Result<Self> {
        let lab = way.lab();
        Ok(Self { name, _iperf3: Services::iperf3(&lab.server, lab.dir())?, way })
    }

    /// As tables name it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Runs iperf3 once.
    pub(crate) fn sample(&self, shape: &Shape, seconds: u32) -> Result<Sample> {
        for uplink in UplinkName::ALL {
            self.way.lab().uplink(uplink).set_delay(shape.delay);
        }
        let mut iperf3 = self.way.iperf3();
        iperf3
            .args(["--json", "--client", &addr::SERVER4.to_string(), "--time", &seconds.to_string()])
            .args(shape.flags);
        let before = self.way.effort()?;
        let finished = finish_within(&mut iperf3, None, PATIENCE + Duration::from_secs(seconds.into()))?;
        let after = self.way.effort()?;
        let (mbits, bytes) = received(&finished.ok().context("iperf3")?)?;
        let effort = before.zip(after).map(|(before, after)| {
            [0, 1].map(|side| {
                let nanoseconds = after[side].nanoseconds.saturating_sub(before[side].nanoseconds);
                // Nanoseconds for a byte are seconds for a GB.
                nanoseconds as f64 / bytes.max(1.0)
            })
        });
        Ok(Sample { mbits, effort })
    }

    /// The end: ours has left nothing behind and warned of nothing.
    pub(crate) fn finish(self) -> Result<()> {
        match self.way {
            Way::Ours(bed) => bed.finish(),
            Way::Direct(lab) => {
                lab.passed();
                Ok(())
            }
            Way::Peer(peer, lab) => {
                drop(peer);
                lab.passed();
                Ok(())
            }
        }
    }
}

impl Way {
    fn lab(&self) -> &Lab {
        match self {
            Self::Ours(bed) => &bed.lab,
            Self::Direct(lab) | Self::Peer(_, lab) => lab,
        }
    }

    fn iperf3(&self) -> Command {
        match self {
            Self::Ours(bed) => bed.agent.run(&["iperf3"]),
            Self::Direct(lab) | Self::Peer(_, lab) => lab.host.command("iperf3"),
        }
    }

    /// What the tunnel has used up to now at the host and at the relay.
    fn effort(&self) -> Result<Option<[Effort; 2]>> {
        let pids = match self {
            Self::Direct(_) => None,
            Self::Ours(bed) => bed.relay.pid().zip(bed.agent.pid()).map(|(relay, host)| [relay, host]),
            Self::Peer(peer, _) => peer.processes(),
        };
        let Some([relay, host]) = pids else { return Ok(None) };
        Ok(Some([Effort::of_tree(host)?, Effort::of_tree(relay)?]))
    }
}

/// Mbit/s and bytes that arrived, from iperf3's JSON.
pub(in crate::bench) fn received(text: &str) -> Result<(f64, f64)> {
    let json: Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    let number = |name: &str| {
        let value = json.pointer(&format!("/end/sum_received/{name}")).and_then(Value::as_f64);
        value.with_context(|| {
            format!("iperf3 reports no result: {}", json.get("error").unwrap_or(&Value::Null))
        })
    };
    Ok((number("bits_per_second")? / 1e6, number("bytes")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf3_s_own_error_is_told() {
        let error = received(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
        let json = r#"{"end":{"sum_received":{"bits_per_second":2.5e9,"bytes":1e9}}}"#;
        assert_eq!(received(json).unwrap(), (2500.0, 1e9));
    }
}

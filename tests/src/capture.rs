//! Packet captures with tcpdump.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::ns::Ns;
use crate::process::Process;
use crate::wait::{PATIENCE, until};

/// A running tcpdump, killed when dropped.
pub struct Capture {
    tcpdump: Process,
    lines: PathBuf,
}

impl Capture {
    /// Starts a capture of the packets on `device` that match `filter`. No packet that is sent
    /// after the return is missed.
    pub(crate) fn start(ns: &Ns, device: &str, filter: &str, dir: &Path) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lines = dir.join(format!("capture-{device}-{number}.txt"));
        let log = dir.join(format!("tcpdump-{device}-{number}.log"));
        // The shell only separates tcpdump's packets and its messages into two files.
        let mut command = ns.command("sh");
        command.args([
            "-c",
            "exec tcpdump -Z root -i \"$0\" -nlU --immediate-mode \"$1\" 2>\"$2\"",
            device,
            filter,
        ]);
        command.arg(&log);
        let mut tcpdump = Process::start("tcpdump", &mut command, &lines)?;
        until("tcpdump to listen", || {
            let output = std::fs::read_to_string(&log).unwrap_or_default();
            output.contains("listening on") || tcpdump.ended().is_ok_and(|status| status.is_some())
        })?;
        if tcpdump.ended()?.is_some() {
            bail!("tcpdump ended at once: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        Ok(Self { tcpdump, lines })
    }

    /// Returns the packets captured so far, as lines of tcpdump's output.
    #[must_use]
    pub fn packets(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.lines).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Waits until the line of a captured packet contains `text`.
    pub fn wait_packet(&self, text: &str) -> Result<()> {
        until(&format!("a packet with {text:?}"), || self.packets().iter().any(|line| line.contains(text)))
    }

    /// Stops tcpdump and returns all captured packets, as lines of its output.
    pub fn stop(mut self) -> Result<Vec<String>> {
        if let Some(status) = self.tcpdump.ended()? {
            bail!("tcpdump ended by itself ({status}): the capture is not complete");
        }
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(PATIENCE).context("tcpdump did not stop")?;
        Ok(self.packets())
    }
}

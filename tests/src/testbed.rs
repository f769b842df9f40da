//! A lab with an agent and a relay: the starting point of nearly every case.

use anyhow::{Result, bail, ensure};

use crate::binaries::program;
use crate::lab::{Lab, LabOptions};
use crate::line_process::LineProcess;
use crate::product::{Agent, Relay};
use crate::uplink::UplinkName;
use crate::wait::until;

/// A lab with `home-relay` installed on the relay's machine and `mobile` on the host.
pub struct Testbed {
    /// The agent on the mobile host.
    pub agent: Agent,
    /// The relay on its own machine.
    pub relay: Relay,
    /// The lab in which the agent and the relay run.
    pub lab: Lab,
    expected: Vec<String>,
}

impl Testbed {
    /// Starts both programs in a default lab, connected over eth0.
    pub fn new() -> Result<Self> {
        Self::with(&LabOptions::default())
    }

    /// Starts both programs in a lab made with `options`, connected over eth0.
    pub fn with(options: &LabOptions) -> Result<Self> {
        let mut bed = Self::installed(options)?;
        bed.start()?;
        Ok(bed)
    }

    /// Installs both programs and authorises the agent, without starting either.
    pub fn installed(options: &LabOptions) -> Result<Self> {
        let lab = Lab::with(options)?;
        let relay = Relay::install(&lab)?;
        let agent = Agent::install(&lab, &relay)?;
        Ok(Self { agent, relay, lab, expected: Vec::new() })
    }

    /// Changes settings of `[tunnel]` of both programs, which take effect at the next start.
    pub fn configure_tunnel<K: AsRef<str>, V: AsRef<str>>(&self, settings: &[(K, V)]) -> Result<()> {
        for (key, value) in settings {
            self.agent.configure("tunnel", key.as_ref(), value.as_ref())?;
            self.relay.configure("tunnel", key.as_ref(), value.as_ref())?;
        }
        Ok(())
    }

    /// Starts both programs and waits until the session is connected over eth0.
    pub fn start(&mut self) -> Result<()> {
        self.relay.start()?;
        self.agent.start()?;
        self.agent.wait_active(UplinkName::Eth)?;
        self.agent.wait_address()
    }

    /// Starts `labtool` with the MOBILE attribute.
    pub fn mobile_labtool(&self, args: &[&str]) -> Result<LineProcess> {
        let tool = program("labtool")?.display().to_string();
        LineProcess::start(&mut self.agent.run(&[&[tool.as_str()], args].concat()))
    }

    /// Starts `labtool` as an ordinary process.
    pub fn ordinary_labtool(&self, args: &[&str]) -> Result<LineProcess> {
        LineProcess::start(self.lab.host.command(program("labtool")?).args(args))
    }

    /// Declares that the case makes one of the programs warn: log lines that contain `text` do not
    /// fail the case.
    pub fn expect_warning(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Declares that the programs may log any warning, but no error and no panic.
    pub fn expect_warnings_of_all_kinds(&mut self) {
        self.expect_warning("WARN ");
    }

    /// Declares that the case restores a link's carrier soon after taking it away, as when a cable
    /// is unplugged and plugged in again.
    ///
    /// The kernel may then still wait for an answer to its neighbour solicitation of the gateway,
    /// and fail a `connect()` with "no route to host". The agent logs a warning and tries again.
    pub fn expect_quick_replug(&mut self) {
        self.expect_warning("No route to host");
    }

    /// Ends a passing case: stops both programs, runs their `cleanup`, and checks that no kernel
    /// object is left.
    ///
    /// Fails if one of the programs has logged a warning that the case did not declare.
    pub fn finish(mut self) -> Result<()> {
        if self.agent.is_running() {
            self.agent.stop()?;
        }
        self.agent.cli(&["cleanup"])?.ok()?;
        if self.relay.is_running() {
            self.relay.stop()?;
        }
        self.relay.cli(&["cleanup"])?.ok()?;
        self.assert_clean()?;
        for (name, log) in [("mobile", self.agent.log()), ("home-relay", self.relay.log())] {
            self.assert_no_warning(name, &log)?;
        }
        self.lab.passed();
        Ok(())
    }

    /// Checks that no kernel object of either program is left.
    pub fn assert_clean(&self) -> Result<()> {
        let (agent, lab) = (&self.agent, &self.lab);
        ensure!(!agent.pin_dir.exists(), "pins are left in {}", agent.pin_dir.display());
        // Processes of the lab may still leave the cgroup one by one.
        until("the mobile cgroup to go", || !agent.cgroup.exists())?;
        for (ns, device) in [(&lab.host, "mobile0"), (&lab.relay, "home0")] {
            let links = ns.run(&["ip", "-o", "link"])?;
            ensure!(!links.contains(&format!("{device}:")), "{device} is left in {}:\n{links}", ns.name());
        }
        for family in ["-4", "-6"] {
            let rules = lab.host.run(&["ip", family, "rule"])?;
            ensure!(
                !["lookup 7700", "lookup 7701"].iter().any(|table| rules.contains(table)),
                "rules are left:\n{rules}"
            );
            let routes = lab.host.run(&["ip", family, "route", "show", "table", "all"])?;
            ensure!(
                !["table 7700", "table 7701"].iter().any(|table| routes.contains(table)),
                "routes are left:\n{routes}"
            );
            ensure!(!routes.contains("mobile0"), "routes are left:\n{routes}");
        }
        for ns in [&lab.host, &lab.relay] {
            let rules = ns.run(&["nft", "list", "ruleset"])?;
            ensure!(rules.trim().is_empty(), "nftables rules are left in {}:\n{rules}", ns.name());
        }
        Ok(())
    }

    fn assert_no_warning(&self, name: &str, log: &str) -> Result<()> {
        let bad = |line: &&str| {
            let loud = line.contains("WARN ") || line.contains("ERROR ") || line.contains("panicked at");
            loud && !self.expected.iter().any(|text| line.contains(text))
        };
        let lines: Vec<&str> = log.lines().filter(bad).collect();
        if !lines.is_empty() {
            bail!("{name} logged a warning that this case does not expect:\n{}", lines.join("\n"));
        }
        Ok(())
    }
}

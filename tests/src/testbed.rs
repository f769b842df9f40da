//! A lab with both programs running: what nearly every case starts from.

use anyhow::{Result, bail, ensure};

use crate::binaries::program;
use crate::lab::{Lab, LabOptions};
use crate::product::{Agent, Relay};
use crate::talk::Talk;
use crate::uplink::UplinkName;
use crate::wait::until;

/// The lab, a relay and an agent.
pub struct Testbed {
    /// `mobile` on the host.
    pub agent: Agent,
    /// `home-relay` on the relay's machine.
    pub relay: Relay,
    /// Everything else.
    pub lab: Lab,
    expected: Vec<String>,
}

impl Testbed {
    /// Both programs running and connected over eth0.
    pub fn new() -> Result<Self> {
        Self::with(&LabOptions::default())
    }

    /// The same in a lab made to order.
    pub fn with(options: &LabOptions) -> Result<Self> {
        let mut bed = Self::installed(options)?;
        bed.start()?;
        Ok(bed)
    }

    /// Both programs installed and authorised, and not yet running.
    pub fn installed(options: &LabOptions) -> Result<Self> {
        let lab = Lab::with(options)?;
        let relay = Relay::install(&lab)?;
        let agent = Agent::install(&lab, &relay)?;
        Ok(Self { agent, relay, lab, expected: Vec::new() })
    }

    /// `[tunnel]` of both programs; takes effect at their next start.
    pub fn configure_tunnel<K: AsRef<str>, V: AsRef<str>>(&self, settings: &[(K, V)]) -> Result<()> {
        for (key, value) in settings {
            self.agent.configure("tunnel", key.as_ref(), value.as_ref())?;
            self.relay.configure("tunnel", key.as_ref(), value.as_ref())?;
        }
        Ok(())
    }

    /// Starts both and waits for the session.
    pub fn start(&mut self) -> Result<()> {
        self.relay.start()?;
        self.agent.start()?;
        self.agent.wait_active(UplinkName::Eth)?;
        self.agent.wait_address()
    }

    /// A `labtool` process with the MOBILE attribute.
    pub fn mobile_talk(&self, args: &[&str]) -> Result<Talk> {
        let tool = program("labtool")?.display().to_string();
        Talk::start(&mut self.agent.run(&[&[tool.as_str()], args].concat()))
    }

    /// An ordinary `labtool` process.
    pub fn ordinary_talk(&self, args: &[&str]) -> Result<Talk> {
        Talk::start(self.lab.host.command(program("labtool")?).args(args))
    }

    /// Declares that the case makes one of the programs warn: lines containing `text` are no failure.
    pub fn expect_warning(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Declares that the case is rough with the programs: they may warn of anything, but make no error and no panic.
    pub fn expect_warnings_of_all_kinds(&mut self) {
        self.expect_warning("WARN ");
    }

    /// Declares that the case plugs a cable in again soon after it was pulled. The kernel may then still be asking for
    /// the gateway's hardware address, into the void, and says "no route to host" to whoever connects meanwhile: a
    /// warning of the agent, which tries again.
    pub fn expect_quick_replug(&mut self) {
        self.expect_warning("No route to host");
    }

    /// The end of a passing case: both programs stop and clean up, leave nothing, and have not warned of
    /// anything the case did not declare.
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

    /// Nothing that the programs made in the kernel is left.
    pub fn assert_clean(&self) -> Result<()> {
        let (agent, lab) = (&self.agent, &self.lab);
        ensure!(!agent.pin_dir.exists(), "pins are left in {}", agent.pin_dir.display());
        // Processes of the lab may still leave it one by one.
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
            bail!("{name} warned of what this case does not expect:\n{}", lines.join("\n"));
        }
        Ok(())
    }
}

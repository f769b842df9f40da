//! Installs and controls `mobile` by its own commands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use toml::Value as Toml;

use super::{METRICS, Program, RELAY_PORT, Relay, VERB_PATIENCE, set, set_value};
use crate::addr;
use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::{CommandOutput, Process, finish_within};
use crate::uplink::UplinkName;
use crate::wait::{PATIENCE, wait_for};

/// The agent `mobile` on a machine of the lab.
pub struct Agent {
    program: Program,
    /// The agent's public key, as `keygen` printed it.
    pub public_key: String,
    /// The persistent IPv4 address that the relay has assigned.
    pub address4: Ipv4Addr,
    /// The persistent IPv6 address that the relay has assigned.
    pub address6: Ipv6Addr,
    /// The path of the mobile cgroup.
    pub cgroup: PathBuf,
    /// The path at which systemd would create the cgroup of `mobile.slice`; the lab does not create
    /// it.
    pub slice: PathBuf,
    /// The directory of the agent's pinned eBPF programs.
    pub pin_dir: PathBuf,
}

impl Agent {
    /// Creates the agent's key and configuration on the mobile host, and authorises the agent at
    /// `relay` as the client `laptop`, without starting it.
    pub fn install(lab: &Lab, relay: &Relay) -> Result<Self> {
        Self::install_in(lab, &lab.host, "laptop", relay)
    }

    /// Creates the agent's key and configuration on another machine of the lab, and authorises the
    /// agent at `relay` as the client `name`, without starting it.
    pub fn install_in(lab: &Lab, ns: &Ns, name: &str, relay: &Relay) -> Result<Self> {
        let dir = lab.dir().join(name);
        std::fs::create_dir(&dir)?;
        let program =
            Program::new("mobile", lab, ns, dir.join("agent.toml"), lab.dir().join(format!("{name}.log")))?;
        program.edit(|config| {
            set(config, "relay", "endpoint", format!("{}:{RELAY_PORT}", addr::RELAY4));
            set(config, "relay", "public_key", relay.public_key.as_str());
            set(config, "identity", "private_key_file", dir.join("agent.key"));
        })?;
        let public_key = program.stdout(&["keygen"])?.trim().to_owned();
        let addresses = relay.authorize(name, &public_key)?;
        Self::finish_install(lab, name, program, public_key, &addresses)
    }

    /// Installs the agent on the machine `ns` with the invitation for the client `name`, which
    /// `mobile enroll` reads from stdin, without starting it.
    pub fn enroll_in(lab: &Lab, ns: &Ns, name: &str, relay: &Relay, invitation: &str) -> Result<Self> {
        let dir = lab.dir().join(name);
        let program =
            Program::new("mobile", lab, ns, dir.join("agent.toml"), lab.dir().join(format!("{name}.log")))?;
        let mut enroll = program.command(&["enroll", "-"]);
        enroll.env("MOBILE_STATE_DIR", dir.join("state"));
        let said = finish_within(&mut enroll, Some(invitation.as_bytes()), VERB_PATIENCE)?.ok()?;
        let addresses = said.lines().map(|line| Ok(line.parse()?)).collect::<Result<Vec<IpAddr>>>()?;
        let public_key = relay.client(name)?["public_key"].as_str().unwrap_or_default().to_owned();
        Self::finish_install(lab, name, program, public_key, &addresses)
    }

    /// Configures paths and a firewall mark for this agent alone, so that several agents can run on
    /// one machine.
    fn finish_install(
        lab: &Lab,
        name: &str,
        program: Program,
        public_key: String,
        addresses: &[IpAddr],
    ) -> Result<Self> {
        let dir = lab.dir().join(name);
        let cgroup = lab.cgroup().path().join(format!("mobile-{name}"));
        let slice = lab.cgroup().path().join(format!("mobile-{name}.slice"));
        let pin_dir = PathBuf::from(format!("{}-{name}", lab.pin_dir().display()));
        program.edit(|config| {
            // The eBPF programs of all labs see all processes, so each agent needs its own mark.
            set_value(config, "routing", "mark", Toml::Integer(lab.mark(name).into()));
            set_value(config, "routing", "mark_mask", Toml::Integer(0xffff_0000));
            set(config, "cgroup", "path", cgroup.clone());
            set(config, "cgroup", "slice", slice.clone());
            set(config, "bpf", "pin_dir", pin_dir.clone());
            set(config, "control", "socket", dir.join("agent.sock"));
            set(config, "state", "dir", dir.join("state"));
            set(config, "metrics", "listen", METRICS);
        })?;
        let address4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let address6 = addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        Ok(Self {
            program,
            public_key,
            address4: address4.context("the relay gave no IPv4 address")?,
            address6: address6.context("the relay gave no IPv6 address")?,
            cgroup,
            slice,
            pin_dir,
        })
    }

    /// Changes a setting in the configuration file, which takes effect at the next start.
    pub fn configure(&self, section: &str, key: &str, value: impl Into<Toml>) -> Result<()> {
        let value = value.into();
        self.program.edit(|config| set_value(config, section, key, value))
    }

    /// Removes a setting from the configuration file, so that the default applies from the next
    /// start on.
    pub fn use_default(&self, section: &str, key: &str) -> Result<()> {
        self.program.edit(|config| {
            if let Some(Toml::Table(section)) = config.get_mut(section) {
                section.remove(key);
            }
        })
    }

    /// Starts the daemon `mobile agent` and waits until it answers commands, connected or not.
    pub fn start(&mut self) -> Result<()> {
        self.program.start("agent", &["status"])
    }

    /// Waits until the session is connected: a path is active and the persistent addresses are set.
    pub fn wait_connected(&self) -> Result<()> {
        self.wait_status("a session", |status| status["session"] == "connected")
    }

    /// Waits until `uplink` carries the tunnel.
    pub fn wait_active(&self, uplink: UplinkName) -> Result<()> {
        self.wait_status(&format!("the tunnel on {}", uplink.device()), |status| {
            status["session"] == "connected" && status["active_uplink"] == uplink.device()
        })
    }

    /// Waits until the host has its persistent IPv4 address, shortly after the first session
    /// begins.
    pub(crate) fn wait_address(&self) -> Result<()> {
        let shown = || self.program.ns.run(&["ip", "-o", "-4", "address"]);
        wait_for("the persistent address", PATIENCE, || Ok(shown()?.contains("/32 ").then_some(())))
    }

    /// Waits until the output of `mobile status --json` satisfies `condition`; `what` describes it
    /// in an error.
    pub fn wait_status(&self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Result<()> {
        let mut last = Value::Null;
        let waited = wait_for(what, PATIENCE, || {
            last = self.status()?;
            Ok(condition(&last).then_some(()))
        });
        waited.with_context(|| format!("the last status: {last}"))
    }

    /// Returns the output of `mobile status --json`.
    pub fn status(&self) -> Result<Value> {
        self.program.json(&["status", "--json"])
    }

    /// Sets an environment variable for the daemon's next starts.
    pub fn set_variable(&mut self, name: &'static str, value: impl Into<String>) {
        self.program.variables.push((name, value.into()));
    }

    /// Makes the daemon's next starts go through the command `argv`, which executes its further
    /// arguments.
    pub fn start_under(&mut self, argv: &[&str]) {
        self.program.wrapper = argv.iter().map(|&arg| arg.to_owned()).collect();
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.program.signal(signal)
    }

    /// Returns every network device that `mobile uplinks --json` lists.
    pub fn uplinks(&self) -> Result<Vec<Value>> {
        let answer = self.program.json(&["uplinks", "--json"])?;
        answer["uplinks"].as_array().cloned().context("`uplinks --json` has no list")
    }

    /// Returns the entry of one network device in `mobile uplinks --json`.
    pub fn uplink(&self, device: &str) -> Result<Value> {
        let links = self.uplinks()?;
        links.into_iter().find(|link| link["name"] == device).with_context(|| format!("no {device}"))
    }

    /// Returns the value of one series of a metric, named with its labels, from the agent's
    /// metrics.
    pub fn counter(&self, series: &str) -> Result<u64> {
        let page = self.program.ns.run(&["curl", "-s", &format!("http://{METRICS}/metrics")])?;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {series} in:\n{page}"))?.parse()?)
    }

    /// Kills the daemon with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// Stops the daemon with SIGTERM and checks that it ends with success.
    pub fn stop(&mut self) -> Result<()> {
        self.program.stop()
    }

    /// Waits until the daemon has ended with success, after `mobile cleanup` has told it to.
    pub fn wait_ended(&mut self) -> Result<()> {
        self.program.wait_ended()
    }

    /// Returns whether the case has started the daemon and neither killed nor stopped it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.program.daemon.is_some()
    }

    /// Runs a command (verb) of `mobile` with the lab's configuration file, and returns its output.
    pub fn cli(&self, args: &[&str]) -> Result<CommandOutput> {
        self.program.cli(args)
    }

    /// Returns a command that runs a verb of `mobile` with the lab's configuration file, not yet
    /// started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.program.command(args)
    }

    /// Returns the command `mobile run -- ARGV`, not yet started.
    pub fn run(&self, argv: &[&str]) -> Command {
        let mut command = self.program.ns.command(&self.program.binary);
        command.arg("run").arg("--config").arg(&self.program.config).arg("--").args(argv);
        command
    }

    /// Returns the daemon's log since its first start.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Returns the path of the agent's configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.program.config
    }

    /// Returns the path of the program `mobile`.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.program.binary
    }

    /// Returns the daemon's process id, or `None` if it is not running.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.program.daemon.as_ref().map(Process::pid)
    }
}

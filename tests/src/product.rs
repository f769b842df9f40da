//! The two programs under test, installed as a person would: by their own commands, in files of the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use toml::{Table, Value as Toml};

use crate::binaries::program;
use crate::lab::{Lab, addr};
use crate::ns::Ns;
use crate::process::{Finished, Process, finish_within};
use crate::uplink::UplinkName;
use crate::wait::{PATIENCE, wait_for};

/// The longest any verb of the programs may take.
const VERB_PATIENCE: Duration = Duration::from_secs(20);

/// Where both serve metrics, each in its own namespace.
pub const METRICS: &str = "127.0.0.1:9478";

/// The relay's port: the one that passes where only HTTPS does.
pub const RELAY_PORT: u16 = 443;

/// One of the two programs: a binary, its configuration file, and perhaps a running daemon.
struct Program {
    name: &'static str,
    binary: PathBuf,
    ns: Ns,
    config: PathBuf,
    log: PathBuf,
    daemon: Option<Process>,
}

impl Program {
    fn new(name: &'static str, ns: &Ns, config: PathBuf, log: PathBuf) -> Result<Self> {
        Ok(Self { name, binary: program(name)?, ns: ns.clone(), config, log, daemon: None })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.ns.command(&self.binary);
        command.args(args).arg("--config").arg(&self.config);
        command
    }

    fn cli(&self, args: &[&str]) -> Result<Finished> {
        finish_within(&mut self.command(args), None, VERB_PATIENCE)
            .with_context(|| format!("{} {}", self.name, args.join(" ")))
    }

    fn answer(&self, args: &[&str]) -> Result<String> {
        self.cli(args)?.ok().with_context(|| format!("{} {}", self.name, args.join(" ")))
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.answer(args)?)?)
    }

    fn edit(&self, change: impl FnOnce(&mut Table)) -> Result<()> {
        let mut table: Table = std::fs::read_to_string(&self.config).unwrap_or_default().parse()?;
        change(&mut table);
        std::fs::write(&self.config, toml::to_string(&table)?)?;
        Ok(())
    }

    fn start(&mut self, verb: &str, ready: &[&str]) -> Result<()> {
        ensure!(self.daemon.is_none(), "{} is running already", self.name);
        let mut daemon = Process::start(self.name, &mut self.command(&[verb]), &self.log)?;
        wait_for(&format!("{} {} to answer", self.name, ready.join(" ")), PATIENCE, || {
            if let Some(status) = daemon.ended()? {
                // Not "not yet" but never: report it as the answer.
                return Ok(Some(Err(anyhow::anyhow!(
                    "{} {verb} ended: {status}: {}",
                    self.name,
                    daemon.output()
                ))));
            }
            Ok(self.cli(ready)?.status.success().then_some(Ok(())))
        })??;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.daemon.take().with_context(|| format!("{} is not running", self.name))?.kill()
    }

    fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().with_context(|| format!("{} is not running", self.name))?;
        daemon.signal(Signal::SIGTERM)?;
        let status = daemon.wait(PATIENCE)?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// `home-relay` in the relay's namespace.
pub struct Relay {
    program: Program,
    /// Its public key, as `init` printed it.
    pub public_key: String,
}

impl Relay {
    /// Makes key and configuration with `home-relay init`; does not start it.
    pub fn install(lab: &Lab) -> Result<Self> {
        let dir = lab.dir();
        let program =
            Program::new("home-relay", &lab.relay, dir.join("relay.toml"), dir.join("home-relay.log"))?;
        let listen = format!("[::]:{RELAY_PORT}");
        let public_key = program.answer(&["init", "--listen", &listen])?.trim().to_owned();
        program.edit(|config| {
            set(config, "admin", "socket", lab.dir().join("relay.sock"));
            set(config, "state", "dir", lab.dir().join("relay-state"));
            set(config, "metrics", "listen", METRICS);
        })?;
        Ok(Self { program, public_key })
    }

    /// Changes its configuration; takes effect at the next start.
    pub fn configure(&self, section: &str, key: &str, value: impl Into<Toml>) -> Result<()> {
        let value = value.into();
        self.program.edit(|config| set_value(config, section, key, value))
    }

    /// Starts `serve` and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        self.program.start("serve", &["sessions"])
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) -> Result<()> {
        self.program.stop()
    }

    /// Whether `serve` was started and not ended by us.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.program.daemon.is_some()
    }

    /// Runs a verb of `home-relay` with its configuration.
    pub fn cli(&self, args: &[&str]) -> Result<Finished> {
        self.program.cli(args)
    }

    /// A verb of `home-relay` as a command not yet started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.program.command(args)
    }

    /// Lets a client in and returns its persistent addresses.
    pub fn authorize(&self, name: &str, public_key: &str) -> Result<Vec<IpAddr>> {
        let said = self.program.answer(&["authorize", name, public_key])?;
        said.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// The live sessions.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        match self.program.json(&["sessions", "--json"])? {
            Value::Array(sessions) => Ok(sessions),
            other => anyhow::bail!("`sessions --json` printed {other}"),
        }
    }

    /// The paths of all sessions together.
    pub fn paths(&self) -> Result<Vec<Value>> {
        let sessions = self.sessions()?;
        Ok(sessions
            .iter()
            .flat_map(|session| session["paths"].as_array().cloned().unwrap_or_default())
            .collect())
    }

    /// What it has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.program.config
    }
}

/// `mobile` on the mobile host.
pub struct Agent {
    program: Program,
    /// Its public key, as `keygen` printed it.
    pub public_key: String,
    /// The persistent IPv4 address.
    pub address4: Ipv4Addr,
    /// The persistent IPv6 address.
    pub address6: Ipv6Addr,
    /// The mobile cgroup.
    pub cgroup: PathBuf,
    /// Where its programs are pinned.
    pub pin_dir: PathBuf,
}

impl Agent {
    /// Makes key and configuration, and lets `relay` authorise it; does not start it.
    pub fn install(lab: &Lab, relay: &Relay) -> Result<Self> {
        Self::install_in(lab, &lab.host, "laptop", relay)
    }

    /// The same on another machine of the lab, as the client `name`.
    pub fn install_in(lab: &Lab, ns: &Ns, name: &str, relay: &Relay) -> Result<Self> {
        let dir = lab.dir().join(name);
        std::fs::create_dir(&dir)?;
        let program =
            Program::new("mobile", ns, dir.join("agent.toml"), lab.dir().join(format!("{name}.log")))?;
        let cgroup = lab.group().path().join(format!("mobile-{name}"));
        let pin_dir = PathBuf::from(format!("{}-{name}", lab.pin_dir().display()));
        program.edit(|config| {
            set(config, "relay", "endpoint", format!("{}:{RELAY_PORT}", addr::RELAY4));
            set(config, "relay", "public_key", relay.public_key.as_str());
            set(config, "identity", "private_key_file", dir.join("agent.key"));
            // Programs of all labs see all processes: each agent needs a mark of its own.
            set_value(config, "routing", "mark", Toml::Integer(lab.mark(name).into()));
            set_value(config, "routing", "mark_mask", Toml::Integer(0xffff_0000));
            set(config, "cgroup", "path", cgroup.clone());
            set(config, "bpf", "pin_dir", pin_dir.clone());
            set(config, "control", "socket", dir.join("agent.sock"));
            set(config, "state", "dir", dir.join("state"));
            set(config, "metrics", "listen", METRICS);
        })?;
        let public_key = program.answer(&["keygen"])?.trim().to_owned();
        let addresses = relay.authorize(name, &public_key)?;
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
            address4: address4.context("`authorize` gave no IPv4 address")?,
            address6: address6.context("`authorize` gave no IPv6 address")?,
            cgroup,
            pin_dir,
        })
    }

    /// Changes its configuration; takes effect at the next start.
    pub fn configure(&self, section: &str, key: &str, value: impl Into<Toml>) -> Result<()> {
        let value = value.into();
        self.program.edit(|config| set_value(config, section, key, value))
    }

    /// Starts `agent` and waits until it answers, connected or not.
    pub fn start(&mut self) -> Result<()> {
        self.program.start("agent", &["status"])
    }

    /// Waits until a path is active.
    pub fn wait_connected(&self) -> Result<()> {
        self.wait_status("a session", |status| status["session"] == "connected")
    }

    /// Waits until `uplink` carries the tunnel.
    pub fn wait_active(&self, uplink: UplinkName) -> Result<()> {
        self.wait_status(&format!("the tunnel on {}", uplink.device()), |status| {
            status["session"] == "connected" && status["active_uplink"] == uplink.device()
        })
    }

    /// Waits until the status satisfies `condition`.
    pub fn wait_status(&self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Result<()> {
        let mut last = Value::Null;
        let waited = wait_for(what, PATIENCE, || {
            last = self.status()?;
            Ok(condition(&last).then_some(()))
        });
        waited.with_context(|| format!("the last status: {last}"))
    }

    /// `mobile status --json`.
    pub fn status(&self) -> Result<Value> {
        self.program.json(&["status", "--json"])
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) -> Result<()> {
        self.program.stop()
    }

    /// Whether `agent` was started and not ended by us.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.program.daemon.is_some()
    }

    /// Runs a verb of `mobile` with its configuration.
    pub fn cli(&self, args: &[&str]) -> Result<Finished> {
        self.program.cli(args)
    }

    /// A verb of `mobile` as a command not yet started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.program.command(args)
    }

    /// `mobile run -- ARGV`, not yet started.
    pub fn run(&self, argv: &[&str]) -> Command {
        let mut command = self.program.ns.command(&self.program.binary);
        command.arg("run").arg("--config").arg(&self.program.config).arg("--").args(argv);
        command
    }

    /// What it has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.program.config
    }

    /// The program itself.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.program.binary
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.program.daemon.as_ref().map(Process::pid)
    }
}

fn set(config: &mut Table, section: &str, key: &str, value: impl AsRef<Path>) {
    set_value(config, section, key, Toml::String(value.as_ref().display().to_string()));
}

fn set_value(config: &mut Table, section: &str, key: &str, value: Toml) {
    let section = config.entry(section).or_insert_with(|| Toml::Table(Table::new()));
    if let Toml::Table(section) = section {
        section.insert(key.to_owned(), value);
    }
}

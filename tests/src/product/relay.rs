//! Installs and controls `home-relay` by its own commands.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use toml::Value as Toml;

use super::{METRICS, Program, RELAY_PORT, set, set_value};
use crate::addr;
use crate::lab::Lab;
use crate::process::{CommandOutput, Process};

/// The program `home-relay` on the relay's machine of the lab.
pub struct Relay {
    program: Program,
    /// The relay's public key, as `init` printed it.
    pub public_key: String,
}

impl Relay {
    /// Creates the relay's key and configuration with `home-relay init`, without starting the
    /// relay.
    pub fn install(lab: &Lab) -> Result<Self> {
        let dir = lab.dir();
        let program =
            Program::new("home-relay", lab, &lab.relay, dir.join("relay.toml"), dir.join("home-relay.log"))?;
        let listen = format!("[::]:{RELAY_PORT}");
        let public_key = program.stdout(&["init", "--listen", &listen])?.trim().to_owned();
        program.edit(|config| {
            set(config, "admin", "socket", lab.dir().join("relay.sock"));
            set(config, "state", "dir", lab.dir().join("relay-state"));
            set(config, "metrics", "listen", METRICS);
        })?;
        Ok(Self { program, public_key })
    }

    /// Changes a setting in the configuration file, which takes effect at the next start or reload.
    pub fn configure(&self, section: &str, key: &str, value: impl Into<Toml>) -> Result<()> {
        let value = value.into();
        self.program.edit(|config| set_value(config, section, key, value))
    }

    /// Starts the daemon `home-relay serve` and waits until it answers commands.
    pub fn start(&mut self) -> Result<()> {
        self.program.start("serve", &["sessions"])
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

    /// Kills the daemon with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// Stops the daemon with SIGTERM and checks that it ends with success.
    pub fn stop(&mut self) -> Result<()> {
        self.program.stop()
    }

    /// Returns whether the case has started the daemon and neither killed nor stopped it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.program.daemon.is_some()
    }

    /// Runs a command (verb) of `home-relay` with the lab's configuration file, and returns its
    /// output.
    pub fn cli(&self, args: &[&str]) -> Result<CommandOutput> {
        self.program.cli(args)
    }

    /// Returns a command that runs a verb of `home-relay` with the lab's configuration file, not
    /// yet started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.program.command(args)
    }

    /// Authorises a client and returns its persistent addresses.
    pub fn authorize(&self, name: &str, public_key: &str) -> Result<Vec<IpAddr>> {
        let output = self.program.stdout(&["authorize", name, public_key])?;
        output.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// Invites a client with `home-relay invite`, with the relay's address in the lab as the
    /// endpoint. Returns the invitation.
    pub fn invite(&self, name: &str, options: &[&str]) -> Result<String> {
        let endpoint = format!("{}:{RELAY_PORT}", addr::RELAY4);
        self.program.stdout(&[&["invite", name, "--endpoint", &endpoint], options].concat())
    }

    /// Returns a client's entry in the output of `home-relay clients --json`.
    pub fn client(&self, name: &str) -> Result<Value> {
        let clients = self.program.json(&["clients", "--json"])?;
        let found = clients.as_array().and_then(|all| all.iter().find(|entry| entry["name"] == name));
        found.cloned().with_context(|| format!("no {name} in {clients}"))
    }

    /// Returns the value of one series of a metric, named with its labels, from the relay's
    /// metrics.
    pub fn counter(&self, series: &str) -> Result<u64> {
        let page = self.program.ns.run(&["curl", "-s", &format!("http://{METRICS}/metrics")])?;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {series} in:\n{page}"))?.parse()?)
    }

    /// Returns the daemon's process id, or `None` if it is not running.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.program.daemon.as_ref().map(Process::pid)
    }

    /// Returns the sessions that `home-relay sessions --json` lists.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        match self.program.json(&["sessions", "--json"])? {
            Value::Array(sessions) => Ok(sessions),
            other => anyhow::bail!("`sessions --json` printed {other}"),
        }
    }

    /// Returns the paths of all sessions that `home-relay sessions --json` lists.
    pub fn paths(&self) -> Result<Vec<Value>> {
        let sessions = self.sessions()?;
        Ok(sessions
            .iter()
            .flat_map(|session| session["paths"].as_array().cloned().unwrap_or_default())
            .collect())
    }

    /// Returns the client's address on the active path. Fails unless exactly one path is active.
    pub fn active_peer(&self) -> Result<SocketAddr> {
        let paths = self.paths()?;
        let active: Vec<&Value> = paths.iter().filter(|path| path["active"] == true).collect();
        let [path] = active[..] else { anyhow::bail!("not one active path: {paths:?}") };
        let peer = path["peer"].as_str().with_context(|| format!("an active path without a peer: {path}"))?;
        Ok(peer.parse()?)
    }

    /// Returns the daemon's log since its first start.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Returns the path of the relay's configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.program.config
    }
}

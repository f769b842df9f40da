//! Installs and drives `home-relay` by its own commands.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use toml::Value as Toml;

use super::{METRICS, Program, RELAY_PORT, set, set_value};
use crate::lab::{Lab, addr};
use crate::process::{CommandOutput, Process};

/// `home-relay` in the relay's namespace.
pub struct Relay {
    program: Program,
    /// The relay's public key, as `init` printed it.
    pub public_key: String,
}

impl Relay {
    /// Creates key and configuration with `home-relay init`, without starting the relay.
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

    /// Changes a setting of the configuration; takes effect at the next start or reload.
    pub fn configure(&self, section: &str, key: &str, value: impl Into<Toml>) -> Result<()> {
        let value = value.into();
        self.program.edit(|config| set_value(config, section, key, value))
    }

    /// Starts `serve` and waits until it answers commands.
    pub fn start(&mut self) -> Result<()> {
        self.program.start("serve", &["sessions"])
    }

    /// Sets an environment variable for the daemon's next starts.
    pub fn set_variable(&mut self, name: &'static str, value: impl Into<String>) {
        self.program.variables.push((name, value.into()));
    }

    /// Makes the daemon's next starts go through `argv`, a command that executes its further
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

    /// Returns whether `serve` was started and neither killed nor stopped by the case.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.program.daemon.is_some()
    }

    /// Runs a verb of `home-relay` with the lab's configuration.
    pub fn cli(&self, args: &[&str]) -> Result<CommandOutput> {
        self.program.cli(args)
    }

    /// Returns a command that runs a verb of `home-relay`, not yet started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        self.program.command(args)
    }

    /// Authorises a client and returns its persistent addresses.
    pub fn authorize(&self, name: &str, public_key: &str) -> Result<Vec<IpAddr>> {
        let output = self.program.stdout(&["authorize", name, public_key])?;
        output.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// Invites a client, with the relay's address in the lab as the endpoint, and returns the
    /// printed line.
    pub fn invite(&self, name: &str, options: &[&str]) -> Result<String> {
        let endpoint = format!("{}:{RELAY_PORT}", addr::RELAY4);
        self.program.stdout(&[&["invite", name, "--endpoint", &endpoint], options].concat())
    }

    /// Returns a client's entry of `clients --json`.
    pub fn client(&self, name: &str) -> Result<Value> {
        let clients = self.program.json(&["clients", "--json"])?;
        let found = clients.as_array().and_then(|all| all.iter().find(|entry| entry["name"] == name));
        found.cloned().with_context(|| format!("no {name} in {clients}"))
    }

    /// Returns the value of a metric, given with its labels.
    pub fn counter(&self, series: &str) -> Result<u64> {
        let page = self.program.ns.run(&["curl", "-s", &format!("http://{METRICS}/metrics")])?;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {series} in:\n{page}"))?.parse()?)
    }

    /// Returns the daemon's process id.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.program.daemon.as_ref().map(Process::pid)
    }

    /// Returns the live sessions.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        match self.program.json(&["sessions", "--json"])? {
            Value::Array(sessions) => Ok(sessions),
            other => anyhow::bail!("`sessions --json` printed {other}"),
        }
    }

    /// Returns the paths of all sessions.
    pub fn paths(&self) -> Result<Vec<Value>> {
        let sessions = self.sessions()?;
        Ok(sessions
            .iter()
            .flat_map(|session| session["paths"].as_array().cloned().unwrap_or_default())
            .collect())
    }

    /// Returns the address that the only active path comes from.
    pub fn active_peer(&self) -> Result<SocketAddr> {
        let paths = self.paths()?;
        let active: Vec<&Value> = paths.iter().filter(|path| path["active"] == true).collect();
        let [path] = active[..] else { anyhow::bail!("not one active path: {paths:?}") };
        let peer = path["peer"].as_str().with_context(|| format!("an active path without a peer: {path}"))?;
        Ok(peer.parse()?)
    }

    /// Returns the log of all starts.
    #[must_use]
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Returns the path of the configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.program.config
    }
}

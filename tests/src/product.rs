//! The two programs under test, `mobile` and `home-relay`, installed by their own commands with
//! files in the lab's directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use toml::{Table, Value as Toml};

use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::{CommandOutput, Process, finish_within};
use crate::wait::{PATIENCE, wait_for};

mod agent;
mod relay;

pub use agent::Agent;
pub use relay::Relay;

/// The timeout of every command (verb) of the programs, except the daemons.
const VERB_PATIENCE: Duration = Duration::from_secs(20);

/// The address at which both programs serve metrics, each in its own namespace.
pub const METRICS: &str = "127.0.0.1:9478";

/// The TCP port of the relay, which also networks that allow only HTTPS let pass.
pub const RELAY_PORT: u16 = 443;

/// One of the two programs: a binary, its configuration file and, while it runs, the daemon.
struct Program {
    name: &'static str,
    binary: PathBuf,
    ns: Ns,
    config: PathBuf,
    log: PathBuf,
    daemon: Option<Process>,
    /// The words of a command through which the daemon is started and which executes its further
    /// arguments; empty to start the daemon directly.
    wrapper: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl Program {
    fn new(name: &'static str, lab: &Lab, ns: &Ns, config: PathBuf, log: PathBuf) -> Result<Self> {
        Ok(Self {
            name,
            binary: lab.program(name)?,
            ns: ns.clone(),
            config,
            log,
            daemon: None,
            wrapper: Vec::new(),
            variables: Vec::new(),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.ns.command(&self.binary);
        command.args(args).arg("--config").arg(&self.config);
        command
    }

    fn cli(&self, args: &[&str]) -> Result<CommandOutput> {
        finish_within(&mut self.command(args), None, VERB_PATIENCE)
            .with_context(|| format!("{} {}", self.name, args.join(" ")))
    }

    fn stdout(&self, args: &[&str]) -> Result<String> {
        self.cli(args)?.ok().with_context(|| format!("{} {}", self.name, args.join(" ")))
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.stdout(args)?)?)
    }

    fn edit(&self, change: impl FnOnce(&mut Table)) -> Result<()> {
        let mut table: Table = std::fs::read_to_string(&self.config).unwrap_or_default().parse()?;
        change(&mut table);
        std::fs::write(&self.config, toml::to_string(&table)?)?;
        Ok(())
    }

    fn start(&mut self, verb: &str, ready: &[&str]) -> Result<()> {
        ensure!(self.daemon.is_none(), "{} is running already", self.name);
        let plain = self.command(&[verb]);
        let mut command = match self.wrapper.split_first() {
            Some((program, args)) => {
                let mut command = self.ns.command(program);
                command.args(args).arg(plain.get_program()).args(plain.get_args());
                command
            }
            None => plain,
        };
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut daemon = Process::start(self.name, &mut command, &self.log)?;
        wait_for(&format!("{} {} to answer", self.name, ready.join(" ")), PATIENCE, || {
            if let Some(status) = daemon.ended()? {
                // The daemon has ended, so waiting longer is pointless: return the error as the
                // result.
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

    fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().with_context(|| format!("{} is not running", self.name))?.signal(signal)
    }

    fn kill(&mut self) -> Result<()> {
        self.daemon.take().with_context(|| format!("{} is not running", self.name))?.kill()
    }

    fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.wait_ended().context("after SIGTERM")
    }

    fn wait_ended(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().with_context(|| format!("{} is not running", self.name))?;
        let status = daemon.wait(PATIENCE)?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
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

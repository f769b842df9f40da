//! `mobile run`: sets the MOBILE attribute on itself, then execs the command as the calling user.
//!
//! After the exec nothing of ours is left: exit status, signals, terminal and working directory are the command's.
//! Exit status before it: 125 our failure, 126 not executable, 127 not found. Without an agent the command is never
//! run: it would go direct.

use std::cell::LazyCell;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;
use mobile_io::text::printable;

use crate::config::Config;
use crate::control::protocol::{Answer, Request};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::instance::{self, Instance};

/// Our own failure.
const FAILED: u8 = 125;
/// The command is there but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

const UNSET: &str = "the agent did not set the MOBILE attribute";

/// Returns only when something went wrong.
pub(super) fn run(config: Option<&Path>, command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        super::complain(&anyhow::anyhow!("no command: write `mobile run -- CMD ARG...`"));
        return ExitCode::from(FAILED);
    };
    match become_mobile(config, program) {
        Ok(instance) => instance.iter().for_each(|instance| warn_of(instance, program)),
        Err(error) => {
            super::complain(&error.context(format!("{} was not run", program.display())));
            return ExitCode::from(FAILED);
        }
    }
    let error = Command::new(program).args(arguments).exec();
    let status = exec_status(&error);
    super::complain(&anyhow::Error::new(error).context(format!("cannot run {}", program.display())));
    ExitCode::from(status)
}

/// Also says who may do the connecting in place of the command: looked for while the kernel moves this process into the mobile
/// cgroup, for which it waits several milliseconds.
fn become_mobile(config: Option<&Path>, program: &OsStr) -> anyhow::Result<Option<Instance>> {
    let config = Config::of_client(config)?;
    let mut agent = super::agent_of(&config)?;
    agent.send_request(&Request::Run).context(UNSET)?;
    let instance = instance_of(&config, program);
    match super::accepted(agent.read_reply()).context(UNSET)? {
        Answer::Done => Ok(instance),
        other => Err(super::unexpected(&other)),
    }
}

fn instance_of(config: &Config, program: &OsStr) -> Option<Instance> {
    let cgroup = LazyCell::new(|| MobileCgroup::existing(config.cgroup.path.as_deref()).ok().flatten());
    // Nobody is accused on a guess: a process that cannot be judged counts as mobile.
    let is_mobile = |pid| cgroup.as_ref().is_none_or(|cgroup| cgroup.is_mobile(pid).unwrap_or(true));
    instance::of_command(program, is_mobile)
}

/// Nothing follows from it: the command runs.
fn warn_of(instance: &Instance, program: &OsStr) {
    let pids: Vec<String> = instance.pids.iter().map(ToString::to_string).collect();
    super::complain(&anyhow::anyhow!(
        "{} already runs outside the tunnel, as process {} ({}): what it takes over from this one goes direct. \
         End it first, or, for its next connections: mobile attach {}",
        program.display(),
        instance.pid,
        printable(&instance.command),
        pids.join(" ")
    ));
}

fn exec_status(error: &io::Error) -> u8 {
    if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_failures_have_the_shells_statuses() {
        let missing = Command::new("/nonexistent/program").exec();
        assert_eq!(exec_status(&missing), NOT_FOUND);
        let directory = Command::new("/").exec();
        assert_eq!(exec_status(&directory), NOT_EXECUTABLE);
    }
}

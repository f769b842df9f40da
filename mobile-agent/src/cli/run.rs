//! The verb `mobile run`, which makes itself mobile and then executes the command as the calling
//! user.
//!
//! After `exec` nothing of this program remains: exit status, signals, terminal and working
//! directory are the command's. Before `exec`, the exit status is 125 for an error of `mobile`
//! itself, 126 for a command that cannot be executed and 127 for one that does not exist. Without
//! an agent the command is not run, because it would go direct.

use std::cell::LazyCell;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;
use mobile_host::text::printable;

use crate::config::Config;
use crate::footprint;
use crate::protocol::{Reply, Request};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::instance::{self, Instance};

/// Exit status of an error of `mobile` itself.
const FAILED: u8 = 125;
/// Exit status of a command that exists but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status of a command that does not exist.
const NOT_FOUND: u8 = 127;

const NOT_MOBILE: &str = "the agent did not make this process mobile";

/// Runs the command in place of this process; returns only on an error.
pub(super) fn run(config: Option<&Path>, command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        super::complain(&anyhow::anyhow!("no command given: write `mobile run -- CMD ARG...`"));
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

/// Makes this process mobile. If an instance of `program` that runs outside the tunnel may do the
/// command's work in this process's place, as a running browser does, returns that instance.
///
/// The search for such an instance takes place while the kernel moves this process into the mobile
/// cgroup, which takes several milliseconds.
fn become_mobile(config: Option<&Path>, program: &OsStr) -> anyhow::Result<Option<Instance>> {
    let path = config;
    let config = footprint::for_client(path)?;
    let mut agent = super::agent_of(path, &config)?;
    agent.send_request(&Request::Run).context(NOT_MOBILE)?;
    let instance = instance_of(&config, program);
    match super::accepted(agent.read_reply()).context(NOT_MOBILE)? {
        Reply::Done => Ok(instance),
        other => Err(super::unexpected(&other)),
    }
}

fn instance_of(config: &Config, program: &OsStr) -> Option<Instance> {
    let cgroup = LazyCell::new(|| MobileCgroup::existing(config.cgroup.path.as_deref()).ok().flatten());
    // Do not warn on a guess: a process that cannot be examined counts as mobile.
    let is_mobile = |pid| cgroup.as_ref().is_none_or(|cgroup| cgroup.is_mobile(pid).unwrap_or(true));
    instance::of_command(program, is_mobile)
}

/// Warns that a running instance of the program may do the command's work outside the tunnel. The
/// command runs all the same.
fn warn_of(instance: &Instance, program: &OsStr) {
    let pids: Vec<String> = instance.pids.iter().map(ToString::to_string).collect();
    super::complain(&anyhow::anyhow!(
        "{} already runs outside the tunnel, as process {} ({}), and may do the work of this command there: \
         end that process first, or make its next connections mobile: mobile attach {}",
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

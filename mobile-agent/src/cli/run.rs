//! `mobile run`: sets the MOBILE attribute on itself, then execs the command as the calling user.
//!
//! After the exec nothing of ours is left: exit status, signals, terminal and working directory are the command's.
//! Exit status before it: 125 our failure, 126 not executable, 127 not found. Without an agent the command is never
//! run: it would go direct.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::control::protocol::{Answer, Request};

/// Our own failure.
const FAILED: u8 = 125;
/// The command is there but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

/// Returns only when something went wrong.
pub(super) fn run(config: Option<&Path>, command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        super::complain(&anyhow::anyhow!("no command: write `mobile run -- CMD ARG...`"));
        return ExitCode::from(FAILED);
    };
    if let Err(error) = become_mobile(config) {
        super::complain(&error.context(format!("{} was not run", program.display())));
        return ExitCode::from(FAILED);
    }
    let error = Command::new(program).args(arguments).exec();
    let status = exec_status(&error);
    super::complain(&anyhow::Error::new(error).context(format!("cannot run {}", program.display())));
    ExitCode::from(status)
}

fn become_mobile(config: Option<&Path>) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    match super::ask(&mut agent, &Request::Run).context("the agent did not set the MOBILE attribute")? {
        Answer::Done => Ok(()),
        other => Err(super::unexpected(&other)),
    }
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

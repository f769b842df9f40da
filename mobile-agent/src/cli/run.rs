//! The verb `mobile run`, which makes itself mobile and then executes the command as the calling
//! user.
//!
//! After `exec` nothing of this program remains: exit status, signals, terminal and working
//! directory are the command's. Before `exec`, the exit status is 125 for an error of `mobile`
//! itself, 126 for a command that cannot be executed and 127 for one that does not exist. Without
//! an agent the command is not run, because it would go direct. Without a session it is run, and
//! its connections wait; stderr says so, and says again when there is one.

use std::cell::LazyCell;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use mobile_host::control::Client;
use mobile_host::text::printable;
use socket2::{Domain, Socket, Type};

use super::{near_verb, session_watcher};
use crate::config::Config;
use crate::footprint;
use crate::protocol::{NoSession, Reply, Request};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::instance::{self, Instance};
use crate::status::Problem;

/// Exit status of an error of `mobile` itself.
const FAILED: u8 = 125;
/// Exit status of a command that exists but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status of a command that does not exist.
const NOT_FOUND: u8 = 127;

const NOT_MOBILE: &str = "the agent did not make this process mobile";

/// Runs a command that was given without the verb `run`, as [`run`] does. Names the verb that the
/// user may have meant.
pub(super) fn run_bare(config: Option<&Path>, command: &[OsString]) -> ExitCode {
    if let Some(name) = command.first().filter(|name| !name.as_bytes().contains(&b'/')) {
        let shown = printable(&name.to_string_lossy()).into_owned();
        if !instance::is_on_path(name) {
            let meant = near_verb::of_unknown(name).map(|verb| format!("did you mean `mobile {verb}`?"));
            let next_step = meant.as_deref().unwrap_or("`mobile --help` lists the verbs");
            super::complain(&anyhow::anyhow!(
                "{shown} is neither a verb of mobile nor a command on PATH: {next_step}"
            ));
            return ExitCode::from(NOT_FOUND);
        }
        if let Some(verb) = near_verb::of_command(name).filter(|_| io::stderr().is_terminal()) {
            eprintln!("mobile: running the command {shown}; the verb is `mobile {verb}`");
        }
    }
    run(config, command, false)
}

/// Runs the command in place of this process; returns only on an error. Without a session, says so
/// on stderr, or fails if `require_session` is set.
pub(super) fn run(config: Option<&Path>, command: &[OsString], require_session: bool) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        super::complain(&anyhow::anyhow!("no command given: write `mobile run -- CMD ARG...`"));
        return ExitCode::from(FAILED);
    };
    match become_mobile(config, program, require_session) {
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
fn become_mobile(
    config: Option<&Path>,
    program: &OsStr,
    require_session: bool,
) -> anyhow::Result<Option<Instance>> {
    let path = config;
    let config = footprint::for_client(path)?;
    let mut agent = super::agent_of(path, &config)?;
    let no_session = no_session(&mut agent)?;
    if let Some(NoSession { problem: Problem { cause, next_step }, .. }) = &no_session {
        ensure!(!require_session, "no session: {}: {}", printable(cause), printable(next_step));
        // The command runs without a watcher too.
        if let Err(error) = session_watcher::start(&config.control.socket) {
            super::complain(&error.context("cannot watch for the session"));
        }
    }
    agent.send_request(&Request::Run).context(NOT_MOBILE)?;
    let instance = instance_of(&config, program);
    match super::accepted(agent.read_reply()).context(NOT_MOBILE)? {
        Reply::Done => {}
        other => return Err(super::unexpected(&other)),
    }
    ensure!(
        is_marked() || self::no_session(&mut agent)?.is_some_and(|none| none.open),
        "the eBPF programs do not mark its sockets, which would go direct: restart the agent; `mobile check` \
         names the cause"
    );
    no_session.iter().for_each(warn_of_no_session);
    Ok(instance)
}

/// Returns why there is no session; `None` if there is one.
fn no_session(agent: &mut Client) -> anyhow::Result<Option<NoSession>> {
    match super::ask(agent, &Request::Session)? {
        Reply::Session(no_session) => Ok(no_session),
        other => Err(super::unexpected(&other)),
    }
}

/// Returns whether a new socket of this process gets a mark; true if that cannot be determined.
fn is_marked() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None);
    socket.and_then(|socket| socket.mark()).map_or(true, |mark| mark != 0)
}

/// Says on stderr that there is no session, why, and what happens to connections.
fn warn_of_no_session(NoSession { problem, open }: &NoSession) {
    let (cause, next_step) = (printable(&problem.cause), printable(&problem.next_step));
    let effect = if *open {
        "new connections go direct, because [routing] on_failure is \"open\""
    } else {
        "connections wait for one, Ctrl-C to stop"
    };
    eprintln!("mobile: no session: {cause}; {effect} (next step: {next_step})");
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

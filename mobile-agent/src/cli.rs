//! The command line: one module for each verb of `mobile`, and the functions that the verbs share.
//!
//! [`args`] defines the grammar. Most verbs send one request to the running agent over the control
//! socket ([`ask`]) and print the reply as a table, as sentences or, with `--json`, as JSON.
//! `check`, `explain`, `keygen` and `enroll` work without an agent. All output passes [`print()`],
//! which escapes control characters, and a failed verb ends with status 1 and one line on stderr.

mod agent_toml;
pub(crate) mod args;
mod attach;
mod bypass;
mod check;
mod cleanup;
mod connect;
mod enroll;
mod enrolment;
mod explain;
mod fetch_assignment;
mod key;
mod keygen;
mod near_verb;
mod prepare_slice;
mod ps;
mod reload;
mod run;
mod session_watcher;
mod status;
mod table;
mod watch;

use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use mobile_host::control::{Client, ControlError};
use mobile_host::error_chain;
use mobile_host::text::{printable, printable_json, printable_lines};

use self::args::{Cli, Verb};
use crate::config::Config;
use crate::protocol::{Reply, Request};
use crate::{daemon, footprint, processes};

/// Exit status of a verb that failed. clap itself exits with 2 for a command line that it cannot
/// parse.
const FAILED: u8 = 1;

/// Parses the command line, runs the verb and reports its error.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = cli.config.as_deref();
    let done = match cli.verb {
        Verb::Run { command, require_session } => return run::run(config, &command, require_session),
        Verb::Bare(command) => return run::run_bare(config, &command),
        Verb::Attach { name: Some(name), .. } => attach::attach_named(config, &name),
        Verb::Attach { name: None, pids } => attach::attach(config, pids),
        Verb::Detach { pids } => attach::detach(config, pids),
        Verb::Ps { json } => ps::ps(config, json),
        Verb::Status { json, watch: true } => watch::watch(config, json),
        Verb::Status { json, watch: false } => status::status(config, json),
        Verb::Uplinks { json } => status::uplinks(config, json),
        Verb::Use { uplink } => status::force(config, &uplink),
        Verb::Bypass { what } => bypass::bypass(config, &what),
        Verb::Reload { json } => reload::reload(config, json),
        Verb::Check { json } => check::check(config, json),
        Verb::Explain { target, json } => explain::explain(config, &target, json),
        Verb::Keygen { out } => keygen::keygen(config, out),
        Verb::Key { what: None } => key::key(config),
        Verb::Key { what: Some(args::Key::Rotate) } => key::rotate(config),
        Verb::Enroll { invitation } => enroll::enroll(config, &invitation),
        Verb::Cleanup { unless_shutdown } => cleanup::cleanup(config, cli.log.as_deref(), unless_shutdown),
        Verb::PrepareSlice => prepare_slice::prepare_slice(config),
        Verb::Agent => daemon::main(config, cli.log.as_deref()),
        Verb::AgentProcessHelper => processes::main(cli.log.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// Writes an error and its causes to stderr.
fn complain(error: &anyhow::Error) {
    mobile_host::log::print_fatal(&format!("mobile: {}", printable_lines(&error_chain(error))));
}

/// Writes text to stdout and escapes its control characters except line breaks. A reader that
/// closes early (`| head`) is no error.
///
/// The caller must replace line breaks inside a field of the output.
fn print(text: &str) -> anyhow::Result<()> {
    print_on(&printable_lines(text)).map(drop)
}

/// Writes unescaped text to stdout. Returns `Break` if the reader has closed the pipe.
fn print_on(text: &str) -> anyhow::Result<ControlFlow<()>> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// Encodes a value as an indented JSON document.
fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot encode the output as JSON")?;
    text.push('\n');
    Ok(printable_json(&text).into_owned())
}

/// Writes a value to stdout as JSON.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&json(value)?)
}

/// Starts a Tokio runtime for verbs that use the network or the kernel themselves instead of asking
/// the agent.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Connects to the agent at the control socket that the configuration names.
fn agent(config: Option<&Path>) -> anyhow::Result<Client> {
    agent_of(config, &footprint::for_client(config)?)
}

/// Connects to the agent of a configuration, loaded from the file that `--config` names. An agent
/// of another file is an error; without `--config`, any agent at the default socket will do.
fn agent_of(path: Option<&Path>, config: &Config) -> anyhow::Result<Client> {
    let mut agent = footprint::connect(path, &config.control.socket).map_err(not_connected)?;
    if path.is_some() {
        connect::check_owner(&mut agent, &config.control.socket, &config.file)?;
    }
    Ok(agent)
}

/// Converts an error of connecting to the agent. If no agent runs, adds how to start it.
fn not_connected(error: ControlError) -> anyhow::Error {
    match error {
        ControlError::NotRunning { .. } => anyhow::anyhow!(
            "no agent is running ({error}): start it with `systemctl start mobile`, or `mobile agent` in the foreground"
        ),
        error => error.into(),
    }
}

/// Sends a request to the agent and returns the reply. A refusal is an error.
fn ask(client: &mut Client, request: &Request) -> anyhow::Result<Reply> {
    accepted(client.call(request))
}

/// Turns a refusal of the agent into an error.
fn accepted(reply: Result<Reply, ControlError>) -> anyhow::Result<Reply> {
    match reply? {
        Reply::Refused(reason) => bail!("{}", printable(&reason)),
        reply => Ok(reply),
    }
}

/// Returns the error for a reply of the wrong kind, which an agent of another version may send.
fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!(
        "the agent sent an unexpected reply ({reply:?}): it is of another version than this program, restart it"
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("mobile").chain(args.iter().copied()))
    }

    fn command(args: &[&str]) -> Vec<OsString> {
        match parse(args).unwrap().verb {
            Verb::Run { command, .. } | Verb::Bare(command) => command,
            other => panic!("{args:?} is not a command: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_everything_after_the_command_as_its_own() {
        assert_eq!(command(&["run", "--", "ls", "-l", "--config", "x"]), ["ls", "-l", "--config", "x"]);
        assert_eq!(command(&["run", "ls", "-l", "--", "--json"]), ["ls", "-l", "--", "--json"]);
        assert_eq!(command(&["run", "status"]), ["status"]);
        assert_eq!(command(&["run", "--", "--odd"]), ["--odd"]);
    }

    #[test]
    fn a_command_that_is_no_verb_is_run_as_in_the_paper() {
        assert_eq!(command(&["telnet", "remotehost"]), ["telnet", "remotehost"]);
        assert_eq!(command(&["ssh", "-p", "22", "--help"]), ["ssh", "-p", "22", "--help"]);
        let cli = parse(&["--config", "f.toml", "ssh", "--config", "theirs"]).unwrap();
        assert_eq!(cli.config.as_deref(), Some(Path::new("f.toml")));
        assert!(matches!(cli.verb, Verb::Bare(command) if command == ["ssh", "--config", "theirs"]));
    }

    #[test]
    fn without_an_agent_the_error_says_how_to_start_it() {
        let path = "/nonexistent/agent.sock";
        let error = error_chain(&not_connected(Client::connect(Path::new(path)).unwrap_err()));
        let start = "start it with `systemctl start mobile`, or `mobile agent` in the foreground";
        let cause = format!("cannot connect to {path}: No such file or directory");
        assert_eq!(error, format!("no agent is running ({cause}): {start}"));
    }

    #[test]
    fn every_verb_takes_config() {
        for verb in [
            &["run", "--config", "F", "--", "true"][..],
            &["attach", "--config", "F", "1"],
            &["detach", "1", "--config", "F"],
            &["ps", "--config", "F"],
            &["status", "--json", "--config", "F"],
            &["uplinks", "--config", "F"],
            &["use", "eth0", "--config", "F"],
            &["reload", "--json", "--config", "F"],
            &["bypass", "list", "--config", "F"],
            &["bypass", "add", "10.0.0.0/8", "--config", "F"],
            &["check", "--json", "--config", "F"],
            &["explain", "example.org:22", "--config", "F"],
            &["keygen", "--config", "F"],
            &["key", "--config", "F"],
            &["key", "rotate", "--config", "F"],
            &["enroll", "-", "--config", "F"],
            &["cleanup", "--config", "F"],
            &["cleanup", "--unless-shutdown", "--config", "F"],
            &["prepare-slice", "--config", "F"],
            &["agent", "--config", "F"],
        ] {
            assert_eq!(parse(verb).unwrap().config.as_deref(), Some(Path::new("F")), "{verb:?}");
        }
    }

    #[test]
    fn misuse_is_refused() {
        for args in [
            &["run"][..],
            &["attach"],
            &["attach", "0"],
            &["attach", "-5"],
            &["attach", "--name", "ssh", "7"],
            &["use"],
            &["enroll"],
            &["--nonsense", "ls"],
            &["bypass"],
            &["bypass", "add", "printer"],
        ] {
            assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}

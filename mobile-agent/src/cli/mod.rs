//! The command line: verbs, and what they share.

pub(crate) mod args;
mod attach;
mod bypass;
mod check;
mod cleanup;
mod enroll;
mod explain;
mod keygen;
mod prepare_slice;
mod ps;
mod run;
mod status;
mod table;
mod trial;
mod watch;

use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use mobile_io::control::{Client, ControlError};
use mobile_io::text::{printable, printable_json, printable_lines};

use self::args::{Cli, Verb};
use crate::config::Config;
use crate::control::protocol::{Answer, Request};
use crate::{daemon, processes};

pub(crate) use cleanup::remove_everything;

/// Exit status when the verb failed. clap itself exits with 2 for what it does not understand.
const FAILED: u8 = 1;

/// Parses, does, reports.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = cli.config.as_deref();
    let done = match cli.verb {
        Verb::Run { command } | Verb::Bare(command) => return run::run(config, &command),
        Verb::Attach { pids } => attach::attach(config, pids),
        Verb::Detach { pids } => attach::detach(config, pids),
        Verb::Ps { json } => ps::ps(config, json),
        Verb::Status { json, watch: true } => watch::watch(config, json),
        Verb::Status { json, watch: false } => status::status(config, json),
        Verb::Uplinks { json } => status::uplinks(config, json),
        Verb::Use { uplink } => status::force(config, &uplink),
        Verb::Bypass { what } => bypass::bypass(config, &what),
        Verb::Check { json } => check::check(config, json),
        Verb::Explain { target } => explain::explain(config, &target),
        Verb::Keygen { out } => keygen::keygen(config, out),
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

/// Says on stderr what went wrong, with its causes.
fn complain(error: &anyhow::Error) {
    mobile_io::log::print_fatal(&format!("mobile: {}", printable_lines(&story(error))));
}

/// The error and its causes in one line. Some libraries repeat the cause in the error itself: once is enough.
pub(crate) fn story(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told.push_str(": ");
            told.push_str(&cause);
        }
    }
    told
}

/// Writes the answer to stdout; a reader that closes early (`| head`) is no failure. Escapes
/// control sequences, whoever wrote them. The caller keeps each field on its line.
fn print(text: &str) -> anyhow::Result<()> {
    print_on(&printable_lines(text)).map(drop)
}

/// The same of an answer that goes on, as long as somebody reads.
fn print_on(text: &str) -> anyhow::Result<ControlFlow<()>> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// An answer as one JSON document.
fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot encode the answer")?;
    text.push('\n');
    Ok(printable_json(&text).into_owned())
}

/// Writes it.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&json(value)?)
}

/// For verbs that look for themselves.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Connects to the agent that the configuration names.
fn agent(config: Option<&Path>) -> anyhow::Result<Client> {
    agent_of(&Config::of_client(config)?)
}

/// The same of one already read.
fn agent_of(config: &Config) -> anyhow::Result<Client> {
    Client::connect(&config.control.socket).context("no agent here: start it with `mobile agent`")
}

/// One question, one answer; a refusal is an error.
fn ask(client: &mut Client, request: &Request) -> anyhow::Result<Answer> {
    accepted(client.call(request))
}

/// What the agent answered; a refusal is an error.
fn accepted(answer: Result<Answer, ControlError>) -> anyhow::Result<Answer> {
    match answer? {
        Answer::Refused(reason) => bail!("{}", printable(&reason)),
        answer => Ok(answer),
    }
}

/// What an agent of another version may answer.
fn unexpected(answer: &Answer) -> anyhow::Error {
    anyhow::anyhow!(
        "the agent's answer does not fit the question ({answer:?}): restart the agent, it is of another version"
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
            Verb::Run { command } | Verb::Bare(command) => command,
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
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("connection refused");
        let error =
            anyhow::Error::new(cause).context("nobody answers (connection refused)").context("no agent");
        assert_eq!(story(&error), "no agent: nobody answers (connection refused)");
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
            &["bypass", "list", "--config", "F"],
            &["bypass", "add", "10.0.0.0/8", "--config", "F"],
            &["check", "--json", "--config", "F"],
            &["explain", "example.org:22", "--config", "F"],
            &["keygen", "--config", "F"],
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

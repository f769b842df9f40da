//! The command line: one module per command.
//!
//! Results go to stdout and messages to stderr. The exit status is 0 on success, 1 on failure, and
//! 2 on wrong usage. `args` defines the arguments; commands that concern a running relay go over
//! the admin socket.

pub(crate) mod args;
mod authorize;
mod backup;
mod check;
mod cleanup;
mod clients;
mod forward;
pub(crate) mod init;
mod invite;
mod key;
mod reload;
mod running;
mod status;
mod table;

pub(crate) use self::args::Cli;
use self::args::{Init, Verb};
use crate::config;

impl Cli {
    /// Runs the command.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        mobile_host::log::init(self.log.as_deref(), "HOME_RELAY_LOG")?;
        let config = || config::Config::load(&self.config);
        let of_running = || running::config(&self.config);
        match self.verb {
            Verb::Init(options) => init::run(&self.config, &options),
            Verb::Serve => crate::server::serve(&self.config, config()?),
            Verb::Authorize(who) => authorize::run(&of_running()?, who),
            Verb::Invite(options) => invite::run(&of_running()?, options),
            Verb::Revoke { name } => clients::revoke(&of_running()?, name),
            Verb::Clients(format) => clients::clients(&of_running()?, format.json),
            Verb::Sessions(format) => clients::sessions(&of_running()?, format.json),
            Verb::Forward(verb) => forward::run(&of_running()?, verb),
            Verb::Key { verb, format } => key::run(&of_running()?, verb.as_ref(), format.json),
            Verb::Move(options) => key::run_move(&of_running()?, options),
            Verb::Reload(format) => reload::run(&config()?, format.json),
            Verb::Check(format) => check::run(&self.config, format.json),
            Verb::Status(format) => status::run(&self.config, format.json),
            Verb::Backup { file } => backup::backup(&self.config, &file),
            Verb::Restore(options) => backup::restore(&self.config, &options),
            Verb::Cleanup { unless_shutdown } => cleanup::run(&self.config, unless_shutdown),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::{CommandFactory as _, Parser as _};
    use mobile_transport::keys::PublicKey;

    use super::args::OutputFormat;
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["home-relay"], args].concat())
    }

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_config_option_may_precede_or_follow_the_verb() {
        for args in [["--config", "x.toml", "serve"], ["serve", "--config", "x.toml"]] {
            let cli = parse(&args).unwrap();
            assert_eq!(cli.config, PathBuf::from("x.toml"));
            assert!(matches!(cli.verb, Verb::Serve));
        }
        assert_eq!(parse(&["serve"]).unwrap().config, PathBuf::from("/etc/home-relay/relay.toml"));
    }

    #[test]
    fn arguments_are_validated_before_the_command_runs() {
        let key = PublicKey::from_bytes([7; 32]).to_string();
        assert!(parse(&["authorize", "laptop", &key]).is_ok());
        let error = parse(&["authorize", "laptop", "hello"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for bad in [["--expires", "soon"], ["--endpoint", "relay"], ["--ipv4", "fd00::2"]] {
            assert_eq!(parse(&[&["invite", "x"][..], &bad].concat()).unwrap_err().exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn only_listing_commands_accept_json() {
        assert!(matches!(
            parse(&["clients", "--json"]).unwrap().verb,
            Verb::Clients(OutputFormat { json: true })
        ));
        assert!(matches!(parse(&["sessions"]).unwrap().verb, Verb::Sessions(OutputFormat { json: false })));
        assert!(parse(&["serve", "--json"]).is_err());
    }
}

//! The command line: few verbs; stdout is the answer, stderr the rest; exit 0 done, 1 failed, 2 usage.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_io::keys::PublicKey;

use crate::config;

mod cleanup;
mod clients;
mod init;
mod table;

/// The home virtual device: keeps the persistent addresses of mobile hosts on this machine.
#[derive(Debug, Parser)]
#[command(name = "home-relay", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// How much to log to stderr: error, warn, info, debug or trace (default info, or $HOME_RELAY_LOG).
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a configuration and a key; print the relay's public key.
    Init(Init),
    /// Serve clients, in the foreground.
    Serve,
    /// Let a client in; print the persistent addresses it gets.
    Authorize {
        /// What to call it.
        name: String,
        /// Its public key, as `mobile keygen` prints it.
        public_key: PublicKey,
    },
    /// Shut a client out, at once.
    Revoke {
        /// The name it was authorised with.
        name: String,
    },
    /// List the clients and their persistent addresses.
    Clients(Format),
    /// List the live sessions and their paths.
    Sessions(Format),
    /// Remove every kernel object of ours: the device and the nftables table.
    Cleanup,
}

/// What `init` writes.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where clients will connect.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:443")]
    pub(crate) listen: SocketAddr,
    /// The pool of persistent IPv4 addresses; a random /20 of 100.64.0.0/10 by default.
    #[arg(long, value_name = "CIDR")]
    pub(crate) ipv4: Option<Ipv4Net>,
    /// The pool of persistent IPv6 addresses; a random unique local /64 by default.
    #[arg(long, value_name = "CIDR")]
    pub(crate) ipv6: Option<Ipv6Net>,
}

#[derive(Debug, Args)]
struct Format {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Does what was asked.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        mobile_io::log::init(self.log.as_deref(), "HOME_RELAY_LOG")?;
        let config = || config::Config::load(&self.config);
        match self.verb {
            Verb::Init(options) => init::run(&self.config, &options),
            Verb::Serve => crate::server::serve(config()?),
            Verb::Authorize { name, public_key } => clients::authorize(&config()?, name, public_key),
            Verb::Revoke { name } => clients::revoke(&config()?, name),
            Verb::Clients(format) => clients::clients(&config()?, format.json),
            Verb::Sessions(format) => clients::sessions(&config()?, format.json),
            Verb::Cleanup => cleanup::run(&config()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["home-relay"], args].concat())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn config_goes_before_or_after_the_verb() {
        for args in [["--config", "x.toml", "serve"], ["serve", "--config", "x.toml"]] {
            let cli = parse(&args).unwrap();
            assert_eq!(cli.config, PathBuf::from("x.toml"));
            assert!(matches!(cli.verb, Verb::Serve));
        }
        assert_eq!(parse(&["serve"]).unwrap().config, PathBuf::from("/etc/home-relay/relay.toml"));
    }

    #[test]
    fn a_key_is_checked_before_anything_is_done() {
        let key = PublicKey::from_bytes([7; 32]).to_string();
        assert!(parse(&["authorize", "laptop", &key]).is_ok());
        let error = parse(&["authorize", "laptop", "hello"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn json_is_a_flag_of_the_lists() {
        assert!(matches!(parse(&["clients", "--json"]).unwrap().verb, Verb::Clients(Format { json: true })));
        assert!(matches!(parse(&["sessions"]).unwrap().verb, Verb::Sessions(Format { json: false })));
        assert!(parse(&["serve", "--json"]).is_err());
    }
}

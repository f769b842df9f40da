//! What may be typed. Nothing but clap and what is typed here: `cargo xtask gen` makes man pages and completions of this
//! very file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_io::keys::PublicKey;

/// Where a packaged relay has its configuration.
pub(crate) const DEFAULT_PATH: &str = "/etc/home-relay/relay.toml";

/// The home virtual device: keeps the persistent addresses of mobile hosts on this machine.
#[derive(Debug, Parser)]
#[command(name = "home-relay", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(crate) config: PathBuf,
    /// How much to log to stderr: error, warn, info, debug or trace (default info, or $HOME_RELAY_LOG).
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
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
    /// Have the running relay read its configuration anew; print what changed, and what only a restart changes.
    Reload(Format),
    /// Look whether this machine can serve: key, port, forwarding, nftables, other firewalls. Exit 1 if not.
    Check(Format),
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
pub(crate) struct Format {
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

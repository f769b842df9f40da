//! What may be typed. Nothing but clap and what is typed here: `cargo xtask gen` makes man pages and completions of this
//! very file.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_io::invitation::is_endpoint;
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
    /// Let a client in, or change its addresses; print the persistent addresses it has.
    Authorize(Authorize),
    /// Print an invitation: one line, for `mobile enroll` on the laptop. It lets in one client, once.
    Invite(Invite),
    /// Shut a client out, at once; or withdraw the invitation of that name.
    Revoke {
        /// The name it was authorised or invited with.
        name: String,
    },
    /// List the clients, who is invited, and their persistent addresses.
    Clients(Format),
    /// List the live sessions and their paths.
    Sessions(Format),
    /// Lead a port of this host to a client.
    #[command(subcommand)]
    Forward(ForwardVerb),
    /// Have the running relay read its configuration anew; print what changed, and what only a restart changes.
    Reload(Format),
    /// Look whether this machine can serve: key, port, forwarding, nftables, other firewalls. Exit 1 if not.
    Check(Format),
    /// Remove every kernel object of ours: the device and the nftables table.
    Cleanup {
        /// Leave everything while systemd shuts the machine down, or enters rescue mode. For
        /// `home-relay-cleanup.service`.
        #[arg(long)]
        unless_shutdown: bool,
    },
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

/// Who is let in.
#[derive(Debug, Args)]
pub(crate) struct Authorize {
    /// What to call it.
    #[arg(required_unless_present = "from")]
    pub(crate) name: Option<String>,
    /// Its public key, as `mobile keygen` prints it.
    #[arg(required_unless_present = "from")]
    pub(crate) public_key: Option<PublicKey>,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    /// Let it reach "internet", "all", "none", or networks with commas between them; "default":
    /// what `[clients] reach` says.
    #[arg(long, value_name = "REACH")]
    pub(crate) reach: Option<String>,
    /// Let in everybody in this file, NAME PUBLIC_KEY a line (`-`: stdin); print the names with the addresses.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "public_key", "ipv4", "ipv6", "reach"])]
    pub(crate) from: Option<PathBuf>,
}

/// Addresses of the operator's choice.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Addresses {
    /// The persistent IPv4 address; what it has, or a free one, by default.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The persistent IPv6 address; what it has, or a free one, by default.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// Who is invited, and to where.
#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// What to call the client.
    pub(crate) name: String,
    /// Show it as a QR code too, on stderr.
    #[arg(long)]
    pub(crate) qr: bool,
    /// How long it holds: 30m, 24h, 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(crate) expires: Duration,
    /// Where the client will find this relay; by default what `[listen]` says.
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoint: Option<String>,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
}

/// A number of seconds, minutes, hours or days; a year at most.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a duration from 1s to 365d was expected, such as 30m, 24h or 7d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| (1..=365 * 24 * 3600).contains(seconds)).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

fn endpoint(text: &str) -> Result<String, String> {
    match is_endpoint(text) {
        true => Ok(text.to_owned()),
        false => Err("HOST:PORT was expected, such as relay.example.org:443 or [2001:db8::1]:443".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ForwardVerb {
    /// Lead it there from now on, also after a restart.
    Add {
        /// Which kind of port.
        protocol: Protocol,
        /// The port of this host.
        port: NonZero<u16>,
        /// The client and its port.
        #[arg(value_name = "CLIENT:PORT")]
        to: Target,
    },
    /// No longer; connections that are open go on.
    Del {
        /// Which kind of port.
        protocol: Protocol,
        /// The port of this host.
        port: NonZero<u16>,
    },
    /// List them.
    List(Format),
}

/// What has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// `laptop:22`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The client's name.
    pub(crate) client: String,
    /// Its port.
    pub(crate) port: NonZero<u16>,
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (client, port) = text.rsplit_once(':').ok_or("name the client's port too, as in laptop:22")?;
        let port = port.parse().map_err(|_| "the port is a number from 1 to 65535, as in laptop:22")?;
        Ok(Self { client: client.to_owned(), port })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Format {
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_a_unit_and_bounded() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for bad in [
            "",
            "h",
            "0s",
            "24",
            "1.5h",
            "-1h",
            "366d",
            "5µ",
            "99999999999999999999d",
            "9223372036854775807d",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}

//! The definition of the command line. Depends on nothing but clap and the types of arguments,
//! because `cargo xtask gen` includes this file to write man pages and completions.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_host::network::{parse_ipv4, parse_ipv6};
use mobile_transport::invitation::is_endpoint;
use mobile_transport::keys::PublicKey;

/// The configuration file of a packaged relay.
pub(crate) const DEFAULT_PATH: &str = "/etc/home-relay/relay.toml";

/// Home relay: gives mobile hosts persistent addresses and forwards their packets.
#[derive(Debug, Parser)]
#[command(name = "home-relay", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Use this configuration file; `init` writes it. The key, socket and state of a file outside
    /// /etc/home-relay are beside it, named after it, unless it sets others.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(crate) config: PathBuf,
    /// Set the log level: error, warn, info, debug or trace (default: $HOME_RELAY_LOG, else info).
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write a configuration and a private key; print the public key.
    Init(Init),
    /// Serve clients in the foreground.
    Serve,
    /// Authorise a client, or change its addresses; print its persistent addresses.
    Authorize(Authorize),
    /// Print an invitation: one line for `mobile enroll` on the laptop, valid for one client, once.
    Invite(Invite),
    /// Revoke a client and end its session at once, or withdraw an invitation.
    Revoke {
        /// The name of the client or invitation.
        name: String,
    },
    /// List clients and pending invitations with their persistent addresses.
    Clients(OutputFormat),
    /// List running sessions and their paths.
    Sessions(OutputFormat),
    /// Forward ports of this host to clients.
    #[command(subcommand)]
    Forward(ForwardVerb),
    /// Print the public key; during a rotation, also the next key and which clients know it.
    Key {
        #[command(subcommand)]
        verb: Option<KeyVerb>,
        #[command(flatten)]
        format: OutputFormat,
    },
    /// Tell clients another endpoint of this relay, which they try first from then on; without
    /// arguments, print it and which clients know it.
    Move(Move),
    /// Make the running relay reload its configuration; print the changed keys, and on stderr those
    /// that need a restart.
    Reload(OutputFormat),
    /// Check whether this host can serve: key, port, forwarding, nftables, other firewalls. Exits
    /// with 1 if it cannot.
    Check(OutputFormat),
    /// Show the state of the relay: its process, key, addresses, clients, traffic and warnings.
    /// Exits with 1 if it is not running.
    Status(OutputFormat),
    /// Back up configuration, private key, clients, invitations and forwards into one new file,
    /// also while the relay runs. The file holds the private key.
    Backup {
        /// The file to write (`-`: stdout).
        file: PathBuf,
    },
    /// Restore a backup, here or on another machine, while no relay runs.
    Restore(Restore),
    /// Remove the relay's kernel objects: the device and the nftables table.
    Cleanup {
        /// Remove nothing while systemd shuts the machine down or enters rescue mode; for
        /// `home-relay-cleanup.service`.
        #[arg(long)]
        unless_shutdown: bool,
    },
}

/// The options of `init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Listen on this address and port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:443", value_parser = listen_address)]
    pub(crate) listen: SocketAddr,
    /// Use this pool of persistent IPv4 addresses (default: a random /20 of 100.64.0.0/10).
    #[arg(long, value_name = "CIDR", value_parser = parse_ipv4)]
    pub(crate) ipv4: Option<Ipv4Net>,
    /// Use this pool of persistent IPv6 addresses (default: a random unique local /64).
    #[arg(long, value_name = "CIDR", value_parser = parse_ipv6)]
    pub(crate) ipv6: Option<Ipv6Net>,
}

/// The arguments of `authorize`.
#[derive(Debug, Args)]
pub(crate) struct Authorize {
    /// The name of the client.
    #[arg(required_unless_present = "from")]
    pub(crate) name: Option<String>,
    /// The public key of the client, as `mobile keygen` prints it.
    #[arg(required_unless_present = "from")]
    pub(crate) public_key: Option<PublicKey>,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    /// Set the destinations that the client may reach: "internet", "all", "none", networks
    /// separated by commas, or "default" to follow `[clients] reach`.
    #[arg(long, value_name = "REACH")]
    pub(crate) reach: Option<String>,
    /// Authorise all clients in this file, one NAME PUBLIC_KEY per line (`-`: stdin); print each
    /// name with its addresses.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "public_key", "ipv4", "ipv6", "reach"])]
    pub(crate) from: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Make the relay's next key and announce it to clients, which then accept both keys. Repeat
    /// with --finish when they know it.
    Rotate(Rotate),
}

/// The options of `key rotate`.
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Make the next key the relay's key; refused while a client does not know it.
    #[arg(long)]
    pub(crate) finish: bool,
    /// Finish although these clients are locked out by it.
    #[arg(long, requires = "finish")]
    pub(crate) force: bool,
    /// Withdraw the next key.
    #[arg(long, conflicts_with = "finish")]
    pub(crate) cancel: bool,
}

/// The arguments of `move`.
#[derive(Debug, Args)]
pub(crate) struct Move {
    /// The new endpoint: a name, an IPv4 address or an [IPv6 address], and a port.
    #[arg(value_name = "HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoint: Option<String>,
    /// Withdraw the announced endpoint: clients return to that of their configuration.
    #[arg(long, conflicts_with = "endpoint")]
    pub(crate) cancel: bool,
}

/// Persistent addresses that the operator chooses.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Addresses {
    /// Assign this persistent IPv4 address (default: the present one, else a free one).
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// Assign this persistent IPv6 address (default: the present one, else a free one).
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// The arguments of `invite`.
#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// The name of the client.
    pub(crate) name: String,
    /// Also print the invitation as a QR code on stderr.
    #[arg(long)]
    pub(crate) qr: bool,
    /// Let the invitation expire after this time, such as 30m, 24h or 7d.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(crate) expires: Duration,
    /// Put this relay endpoint into the invitation (default: that of `home-relay
    /// move`, else `[listen] endpoint`, else `address`).
    #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoint: Option<String>,
    #[command(flatten)]
    pub(crate) addresses: Addresses,
}

/// Parses a duration from 1 s to 365 days.
fn duration(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600);
    mobile_host::duration::parse(text)
        .ok()
        .filter(|duration| bounds.contains(duration))
        .ok_or_else(|| "write a duration from 1s to 365d, such as 30m, 24h or 7d".to_owned())
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as 192.0.2.1:443, or [::]:443 for all".to_owned())
}

fn endpoint(text: &str) -> Result<String, String> {
    match is_endpoint(text) {
        true => Ok(text.to_owned()),
        false => Err("expected HOST:PORT, such as relay.example.org:443 or [2001:db8::1]:443".to_owned()),
    }
}

/// The arguments of `restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The backup (`-`: stdin).
    pub(crate) file: PathBuf,
    /// Rename files that are there to `….before-restore`; without this option they are an error.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ForwardVerb {
    /// Forward a port to a client, at once and after restarts.
    Add {
        /// The protocol of the port.
        protocol: Protocol,
        /// The port of this host.
        port: NonZero<u16>,
        /// The client's name and port.
        #[arg(value_name = "CLIENT:PORT")]
        to: ForwardTarget,
    },
    /// Stop forwarding a port; open connections continue.
    Del {
        /// The protocol of the port.
        protocol: Protocol,
        /// The port of this host.
        port: NonZero<u16>,
    },
    /// List the forwarded ports.
    List(OutputFormat),
}

/// The protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The destination of a port forward, such as `laptop:22`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardTarget {
    /// The client's name.
    pub(crate) client: String,
    /// The client's port.
    pub(crate) port: NonZero<u16>,
}

impl FromStr for ForwardTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (client, port) = text.rsplit_once(':').ok_or("name the client's port too, as in laptop:22")?;
        let port = port.parse().map_err(|_| "the port is a number from 1 to 65535, as in laptop:22")?;
        Ok(Self { client: client.to_owned(), port })
    }
}

#[derive(Debug, Args)]
pub(crate) struct OutputFormat {
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_are_bounded() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for bad in ["", "h", "0s", "24", "-1h", "366d", "5µ", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}

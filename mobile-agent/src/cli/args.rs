//! What may be typed. Nothing of the agent here: `cargo xtask gen` makes man pages and completions of this very file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ipnet::IpNet;

/// Keeps the connections of chosen processes alive while the links change.
#[derive(Debug, Parser)]
#[command(name = "mobile", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// The agent's configuration [default: /etc/mobile/agent.toml].
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// How much to log, to stderr: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", global = true)]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command with the MOBILE attribute; `mobile CMD ARG...` is the same where CMD is no verb.
    Run {
        /// The command and its arguments.
        #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Give running processes the MOBILE attribute; their next connections take the tunnel.
    Attach {
        /// Process ids.
        #[arg(value_name = "PID", required = true, value_parser = clap::value_parser!(i32).range(1..))]
        pids: Vec<i32>,
    },
    /// Take the MOBILE attribute from running processes; their next connections go direct.
    Detach {
        /// Process ids.
        #[arg(value_name = "PID", required = true, value_parser = clap::value_parser!(i32).range(1..))]
        pids: Vec<i32>,
    },
    /// List the mobile processes and their connections on the MOBILE route.
    Ps {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the session, the persistent addresses, the active uplink and the last handover.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Again and again, once a second, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Show what can carry the tunnel, and why or why not.
    Uplinks {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put one uplink before all others, or leave the choice to the policy again.
    Use {
        /// An interface name, or `auto`.
        #[arg(value_name = "IFNAME|auto")]
        uplink: String,
    },
    /// Change or list the networks that mobile processes reach directly; lasts until the agent ends.
    Bypass {
        #[command(subcommand)]
        what: Bypass,
    },
    /// Look whether this machine can run it: kernel, files, relay over each uplink, rules in the way. Exit 1 if not.
    Check {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell which hook, mark, rule, route and source address a connection gets, and why.
    Explain {
        /// A process id: its attribute, its sockets and its next connection. Or where to: a name or address, with a
        /// port or without.
        #[arg(value_name = "PID|HOST[:PORT]")]
        target: String,
    },
    /// Make this host's private key and print the public one, for `home-relay authorize`.
    Keygen {
        /// Where to write the private key [default: what the configuration says].
        #[arg(long, value_name = "KEYFILE")]
        out: Option<PathBuf>,
    },
    /// Redeem an invitation: make this host's key, have the relay let it in, write the configuration, print the
    /// persistent addresses.
    Enroll {
        /// The line that `home-relay invite` printed; `-` to read it from stdin, out of sight of other users.
        #[arg(value_name = "INVITATION")]
        invitation: String,
    },
    /// Remove every kernel object of the agent: device, rules, routes, eBPF pins, cgroup. Stops a running agent.
    Cleanup {
        /// Leave everything while systemd shuts the machine down, or enters rescue mode: mobile
        /// processes that still run then wait instead of going direct. For
        /// `mobile-cleanup.service`.
        #[arg(long)]
        unless_shutdown: bool,
    },
    /// Have the agent make what systemd will run in `mobile.slice` mobile. For
    /// `mobile-slice.service`, without which nothing starts in the slice.
    PrepareSlice,
    /// The daemon, in the foreground.
    Agent,
    /// Look into and change other processes for the agent, which starts it by itself.
    #[command(hide = true)]
    AgentProcessHelper,
    #[command(external_subcommand)]
    Bare(Vec<OsString>),
}

/// What is to become of a network that mobile processes reach directly.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Bypass {
    /// Mobile processes reach this network directly.
    Add {
        /// Such as 192.168.1.0/24; an address stands for itself.
        #[arg(value_name = "NET", value_parser = net)]
        net: IpNet,
    },
    /// They do not any more.
    Del {
        /// A network that `list` names.
        #[arg(value_name = "NET", value_parser = net)]
        net: IpNet,
    },
    /// What they reach directly, one network a line.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A network, or an address as a network of one.
fn net(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "a network was expected, such as 192.168.1.0/24".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(net("192.168.1.7"), Ok("192.168.1.7/32".parse().unwrap()));
        assert_eq!(net("fd00::/8"), Ok("fd00::/8".parse().unwrap()));
        assert!(net("printer").is_err());
        assert!(net("10.0.0.0/33").is_err());
    }
}

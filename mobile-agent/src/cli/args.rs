//! The command line's grammar: verbs, arguments and help texts, as clap derives them.
//!
//! This file is self-contained: `cargo xtask gen` includes it to generate the man pages and the
//! shell completions.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ipnet::IpNet;

/// Keep the connections of chosen processes alive when the host changes networks.
#[derive(Debug, Parser)]
#[command(name = "mobile", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Read the agent's configuration from FILE [default: /etc/mobile/agent.toml]. The key, socket
    /// and state of another FILE are beside it, named after it, unless it sets others.
    /// MOBILE_CONTROL_SOCKET names the agent's socket if the file may not be read.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Log messages of this level and above to stderr: error, warn, info, debug or trace [default:
    /// info].
    #[arg(long, value_name = "LEVEL", global = true)]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command as a mobile process; `mobile CMD ARG...` is short for this if CMD is no verb.
    Run {
        /// Fail with status 125 if there is no session, instead of running the command.
        #[arg(long)]
        require_session: bool,
        /// The command and its arguments.
        #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Make running processes mobile: their next connections use the tunnel.
    Attach {
        /// Attach every process of the command NAME that you may attach.
        #[arg(long, value_name = "NAME", conflicts_with = "pids")]
        name: Option<String>,
        /// IDs of the processes.
        #[arg(
            value_name = "PID",
            required_unless_present = "name",
            value_parser = clap::value_parser!(i32).range(1..)
        )]
        pids: Vec<i32>,
    },
    /// Make running processes ordinary again: their next connections go direct.
    Detach {
        /// IDs of the processes.
        #[arg(value_name = "PID", required = true, value_parser = clap::value_parser!(i32).range(1..))]
        pids: Vec<i32>,
    },
    /// List the mobile processes, their open connections and their TCP traffic through the tunnel.
    Ps {
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the session, the persistent addresses, the active uplink and the last handovers.
    Status {
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
        /// Refresh the display once a second until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// List the uplinks: which can carry the tunnel, and why others cannot.
    Uplinks {
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prefer one uplink over all others; `auto` returns the choice to the configured policy.
    Use {
        /// The name of a network interface, or `auto`.
        #[arg(value_name = "IFNAME|auto")]
        uplink: String,
    },
    /// Change or list the networks that mobile processes reach without the tunnel, until the agent
    /// ends.
    Bypass {
        #[command(subcommand)]
        what: Bypass,
    },
    /// Make the running agent read its configuration and key again. Connections continue; prints
    /// the settings that changed, and on stderr those that need a restart.
    Reload {
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check whether this host can run the agent: kernel, files, conflicting rules, and the relay
    /// over each uplink. Exits with 1 if something fails.
    Check {
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Explain which hook, mark, rule, route and source address a connection gets, and why.
    Explain {
        /// A process ID, to explain the process's sockets and its next connection; or a name or
        /// address, with or without a port, to explain a connection to that host.
        #[arg(value_name = "PID|HOST[:PORT]")]
        target: String,
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Generate this host's private key and print the public key, for `home-relay authorize`.
    Keygen {
        /// Write the private key to KEYFILE [default: `[identity] private_key_file` of the
        /// configuration].
        #[arg(long, value_name = "KEYFILE")]
        out: Option<PathBuf>,
    },
    /// Print this host's public key, by which the relay knows it.
    Key {
        #[command(subcommand)]
        what: Option<Key>,
    },
    /// Enrol this host with a relay: redeem an invitation, generate the key, write the
    /// configuration and print the persistent addresses.
    Enroll {
        /// The line that `home-relay invite` printed; `-` reads it from stdin, which hides it from
        /// other users.
        #[arg(value_name = "INVITATION")]
        invitation: String,
    },
    /// Stop the agent and remove all its kernel objects: device, rules, routes, eBPF programs and
    /// cgroup.
    Cleanup {
        /// Remove nothing while systemd shuts the machine down or enters rescue mode, so that
        /// mobile processes that still run wait instead of going direct. `mobile-cleanup.service`
        /// uses this.
        #[arg(long)]
        unless_shutdown: bool,
    },
    /// Have the agent make processes of `mobile.slice` mobile before systemd starts any.
    /// `mobile-slice.service` runs this; if it fails, nothing starts in the slice.
    PrepareSlice,
    /// Run the agent in the foreground.
    Agent,
    /// Inspect and change other processes on behalf of the agent, which starts this helper itself.
    #[command(hide = true)]
    AgentProcessHelper,
    #[command(external_subcommand)]
    Bare(Vec<OsString>),
}

/// Changes of this host's key.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Key {
    /// Replace this host's key. The relay keeps its name, addresses and forwards, and accepts the
    /// old key until the new one has opened a session.
    Rotate,
}

/// Changes to the list of networks that mobile processes reach without the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Bypass {
    /// Let mobile processes reach a network directly, without the tunnel.
    Add {
        /// The network, such as 192.168.1.0/24; an address means that host alone.
        #[arg(value_name = "NET", value_parser = mobile_host::network::parse)]
        net: IpNet,
    },
    /// Stop bypassing a network; traffic to it uses the tunnel again.
    Del {
        /// A network that `mobile bypass list` shows.
        #[arg(value_name = "NET", value_parser = mobile_host::network::parse)]
        net: IpNet,
    },
    /// List the bypassed networks, one a line.
    List {
        /// Print the output as JSON.
        #[arg(long)]
        json: bool,
    },
}

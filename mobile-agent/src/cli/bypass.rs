//! The verb `mobile bypass`, with its subcommands `add NET`, `del NET` and `list`.

use std::net::SocketAddr;
use std::path::Path;

use ipnet::IpNet;
use mobile_host::control::Client;
use mobile_host::text::printable;

use super::args::Bypass;
use crate::protocol::{Process, Reply, Request};

/// Asks the agent to change or list the bypassed networks.
pub(super) fn bypass(config: Option<&Path>, what: &Bypass) -> anyhow::Result<()> {
    let request = match what {
        Bypass::Add { net } => Request::Bypass { net: *net, add: true },
        Bypass::Del { net } => Request::Bypass { net: *net, add: false },
        Bypass::List { .. } => Request::Bypasses,
    };
    let mut agent = super::agent(config)?;
    let broken = match what {
        Bypass::Add { net } => connections_to(net, &mut agent)?,
        Bypass::Del { .. } | Bypass::List { .. } => String::new(),
    };
    match (super::ask(&mut agent, &request)?, what) {
        (Reply::Bypasses(nets), Bypass::List { json: true }) => super::print_json(&nets),
        (Reply::Bypasses(nets), Bypass::List { json: false }) => {
            super::print(&nets.iter().map(|net| format!("{net}\n")).collect::<String>())
        }
        (Reply::Done, Bypass::Add { net }) => {
            let net = net.trunc();
            super::print(&format!("mobile processes reach {net} directly until the agent ends\n{broken}"))
        }
        (Reply::Done, Bypass::Del { net }) => {
            let net = net.trunc();
            super::print(&format!(
                "new connections of mobile processes to {net} use the tunnel; open direct ones to it break\n"
            ))
        }
        (Reply::Noted(note), Bypass::Add { .. } | Bypass::Del { .. }) => {
            eprintln!("mobile: {}", printable(&note));
            Ok(())
        }
        (other, _) => Err(super::unexpected(&other)),
    }
}

/// Lists the connections through the tunnel to `net`: they break when it is bypassed, because their
/// packets then leave by the uplink with a persistent address, which no answer reaches there.
fn connections_to(net: &IpNet, agent: &mut Client) -> anyhow::Result<String> {
    match super::ask(agent, &Request::Processes)? {
        Reply::Processes(processes) => Ok(render(net, &processes)),
        other => Err(super::unexpected(&other)),
    }
}

fn render(net: &IpNet, processes: &[Process]) -> String {
    let mut text = String::new();
    for process in processes {
        for socket in &process.connections {
            let remote = socket.remote.parse::<SocketAddr>();
            if remote.is_ok_and(|remote| net.contains(&remote.ip())) {
                let (pid, command) = (process.pid, printable(&process.command));
                text.push_str(&format!(
                    "  breaks {} {} -> {} of process {pid} ({command}): reconnect it\n",
                    socket.protocol, socket.local, socket.remote
                ));
            }
        }
    }
    text
}

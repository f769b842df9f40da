//! The verb `mobile ps`, which lists the mobile processes with their users, their connections
//! through the tunnel and their TCP traffic.

use std::path::Path;

use crate::protocol::{Process, Reply, Request, Traffic};

/// Prints the mobile processes. Root and members of the control group see all of them, other users
/// their own.
pub(super) fn ps(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    let processes = match super::ask(&mut agent, &Request::Processes)? {
        Reply::Processes(processes) => processes,
        other => return Err(super::unexpected(&other)),
    };
    if json { super::print_json(&processes) } else { super::print(&render(&processes)) }
}

fn render(processes: &[Process]) -> String {
    let rows: Vec<[String; 7]> = processes
        .iter()
        .map(|process| {
            [
                process.pid.to_string(),
                process.user.clone(),
                process.connections.len().to_string(),
                tcp(process, |tcp| tcp.connections),
                tcp(process, |tcp| tcp.bytes_sent),
                tcp(process, |tcp| tcp.bytes_received),
                process.command.clone(),
            ]
        })
        .collect();
    let mut text = String::new();
    let header = ["PID", "USER", "OPEN", "TCP TOTAL", "BYTES OUT", "BYTES IN", "COMMAND"];
    for (line, process) in super::table::table(header, &rows)
        .lines()
        .zip(std::iter::once(None).chain(processes.iter().map(Some)))
    {
        text.push_str(line);
        text.push('\n');
        for socket in process.map(|process| &process.connections[..]).unwrap_or_default() {
            text.push_str(&format!("  {} {} -> {}\n", socket.protocol, socket.local, socket.remote));
        }
    }
    text
}

/// Formats one counter of the process's TCP traffic, or `-` if the kernel does not tell.
fn tcp(process: &Process, counter: impl Fn(&Traffic) -> u64) -> String {
    process.tcp.as_ref().map_or_else(|| "-".to_owned(), |tcp| counter(tcp).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Connection;

    #[test]
    fn connections_are_listed_below_their_process() {
        let socket = Connection {
            protocol: "tcp".into(),
            local: "10.77.0.2:40000".into(),
            remote: "192.0.2.9:23".into(),
        };
        let process = |pid, connections| Process {
            pid,
            uid: 0,
            user: "root".into(),
            command: "telnet".into(),
            connections,
            tcp: (pid == 12).then_some(Traffic { connections: 3, bytes_sent: 1_000_000, bytes_received: 7 }),
        };
        let text = render(&[process(12, vec![socket]), process(13, Vec::new())]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let cells = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>();
        assert_eq!(cells(1), ["12", "root", "1", "3", "1000000", "7", "telnet"]);
        assert_eq!(lines[2], "  tcp 10.77.0.2:40000 -> 192.0.2.9:23");
        assert_eq!(cells(3), ["13", "root", "0", "-", "-", "-", "telnet"]);
    }
}

//! `mobile ps`: the mobile processes and their connections on the MOBILE route.

use std::path::Path;

use crate::control::protocol::{Answer, Process, Request};

/// Root, and members of the control group, see all; others their own.
pub(super) fn ps(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    let processes = match super::ask(&mut agent, &Request::Processes)? {
        Answer::Processes(processes) => processes,
        other => return Err(super::unexpected(&other)),
    };
    if json { super::print_json(&processes) } else { super::print(&render(&processes)) }
}

fn render(processes: &[Process]) -> String {
    let rows: Vec<[String; 4]> = processes
        .iter()
        .map(|process| {
            [
                process.pid.to_string(),
                process.user.clone(),
                process.connections.len().to_string(),
                process.command.clone(),
            ]
        })
        .collect();
    let mut text = String::new();
    for (line, process) in super::table::table(["PID", "USER", "CONNECTIONS", "COMMAND"], &rows)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Connection;

    #[test]
    fn connections_stand_below_their_process() {
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
        };
        let text = render(&[process(12, vec![socket]), process(13, Vec::new())]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("12"));
        assert_eq!(lines[2], "  tcp 10.77.0.2:40000 -> 192.0.2.9:23");
        assert!(lines[3].starts_with("13"));
    }
}

//! The verbs `mobile attach` and `mobile detach`, which change the MOBILE attribute of running
//! processes.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use mobile_host::text::printable;

use crate::protocol::{Change, Reply, Request};
use crate::selection::process;

/// Asks the agent to make the processes mobile.
pub(super) fn attach(config: Option<&Path>, pids: Vec<i32>) -> anyhow::Result<()> {
    change(config, &Request::Attach { pids }, "mobile", "still go direct")
}

/// Asks the agent to make every process of the command `name` mobile that the user may change.
/// Fails if no process was changed.
pub(super) fn attach_named(config: Option<&Path>, name: &str) -> anyhow::Result<()> {
    let pids = process::of_command(name).context("cannot list the processes")?;
    ensure!(!pids.is_empty(), "no process of the command {} runs", printable(name));
    let mut changes = ask(config, &Request::Attach { pids })?;
    if changes.iter().any(|change| change.error.is_none()) {
        // Others may be another user's, or have ended.
        changes.retain(|change| change.error.is_none());
    }
    report(&changes, "mobile", "still go direct")
}

/// Asks the agent to make the processes ordinary.
pub(super) fn detach(config: Option<&Path>, pids: Vec<i32>) -> anyhow::Result<()> {
    change(config, &Request::Detach { pids }, "not mobile", "still use the tunnel")
}

fn change(config: Option<&Path>, request: &Request, state: &str, route: &str) -> anyhow::Result<()> {
    report(&ask(config, request)?, state, route)
}

fn ask(config: Option<&Path>, request: &Request) -> anyhow::Result<Vec<Change>> {
    match super::ask(&mut super::agent(config)?, request)? {
        Reply::Changed(changes) => Ok(changes),
        other => Err(super::unexpected(&other)),
    }
}

fn report(changes: &[Change], state: &str, route: &str) -> anyhow::Result<()> {
    super::print(&render(changes, state, route))?;
    let mut failed = 0;
    for change in changes {
        if let Some(error) = &change.error {
            super::complain(&anyhow::anyhow!("{}", printable(error)));
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} processes were not changed", changes.len());
    }
    Ok(())
}

fn render(changes: &[Change], state: &str, route: &str) -> String {
    let mut text = String::new();
    for change in changes.iter().filter(|change| change.error.is_none()) {
        let command = printable(change.command.as_deref().unwrap_or("?"));
        text.push_str(&format!("{} ({command}) is {state}\n", change.pid));
        if !change.kept.is_empty() {
            text.push_str(&format!("  {} open sockets {route}:\n", change.kept.len()));
        }
        for socket in &change.kept {
            text.push_str(&format!("    {} {} -> {}\n", socket.protocol, socket.local, socket.remote));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Connection;

    #[test]
    fn output_lists_sockets_that_keep_their_route_and_omits_failed_changes() {
        let socket =
            Connection { protocol: "tcp".into(), local: "192.0.2.1:5".into(), remote: "192.0.2.9:22".into() };
        let changes = [
            Change { pid: 7, command: Some("s\nh".into()), error: None, kept: vec![socket] },
            Change { pid: 8, command: None, error: Some("no such process".into()), kept: Vec::new() },
        ];
        let text = render(&changes, "mobile", "still go direct");
        assert_eq!(
            text,
            "7 (s\\nh) is mobile\n  1 open sockets still go direct:\n    tcp 192.0.2.1:5 -> 192.0.2.9:22\n"
        );
    }
}

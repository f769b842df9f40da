//! `mobile attach` and `mobile detach`: the attribute of running processes.

use std::path::Path;

use anyhow::bail;
use mobile_io::text::printable;

use crate::control::protocol::{Change, Reply, Request};

/// Sets the attribute.
pub(super) fn attach(config: Option<&Path>, pids: Vec<i32>) -> anyhow::Result<()> {
    change(config, &Request::Attach { pids }, "mobile", "keep going direct")
}

/// Clears it.
pub(super) fn detach(config: Option<&Path>, pids: Vec<i32>) -> anyhow::Result<()> {
    change(config, &Request::Detach { pids }, "not mobile", "keep the MOBILE route")
}

fn change(config: Option<&Path>, request: &Request, done: &str, keep: &str) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    let changes = match super::ask(&mut agent, request)? {
        Reply::Changed(changes) => changes,
        other => return Err(super::unexpected(&other)),
    };
    super::print(&report(&changes, done, keep))?;
    let mut failed = 0;
    for change in &changes {
        if let Some(error) = &change.error {
            super::complain(&anyhow::anyhow!("{}", printable(error)));
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} processes unchanged", changes.len());
    }
    Ok(())
}

fn report(changes: &[Change], done: &str, keep: &str) -> String {
    let mut text = String::new();
    for change in changes.iter().filter(|change| change.error.is_none()) {
        let command = printable(change.command.as_deref().unwrap_or("?"));
        text.push_str(&format!("{} ({command}) is {done}\n", change.pid));
        if !change.kept.is_empty() {
            text.push_str(&format!("  its {} open sockets {keep}:\n", change.kept.len()));
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
    use crate::control::protocol::Connection;

    #[test]
    fn sockets_that_keep_their_route_are_told_and_failures_are_not_success() {
        let socket =
            Connection { protocol: "tcp".into(), local: "192.0.2.1:5".into(), remote: "192.0.2.9:22".into() };
        let changes = [
            Change { pid: 7, command: Some("s\nh".into()), error: None, kept: vec![socket] },
            Change { pid: 8, command: None, error: Some("no such process".into()), kept: Vec::new() },
        ];
        let text = report(&changes, "mobile", "keep going direct");
        assert_eq!(
            text,
            "7 (s\\nh) is mobile\n  its 1 open sockets keep going direct:\n    tcp 192.0.2.1:5 -> 192.0.2.9:22\n"
        );
    }
}

//! All end-to-end cases, with a module for each topic. A case's name is the property it checks.

mod accounts;
mod agent_reload;
mod agents;
mod backup;
mod beside;
mod check;
mod clib;
mod clients;
mod command;
mod compression;
mod crash;
mod crowd;
mod dns;
mod enrolment;
mod failure;
mod foreign_changes;
mod forward;
mod freeze;
mod guides;
mod handed_over;
mod hostile_relay;
mod injection;
mod journal;
mod json;
mod lab;
mod laptop;
mod latency;
mod leaks;
mod lifecycle;
mod managers;
mod matrix;
mod metrics;
mod modes;
mod neighbours;
mod ordinary_user;
mod other_configuration;
mod outage;
mod packages;
mod programs;
mod refusals;
mod relay_connections;
mod relay_reach;
mod relay_recovery;
mod reload;
mod restart;
mod rotation;
mod router;
mod routing;
mod rules;
mod scale;
mod selection;
mod sessions;
mod silence;
mod slow;
mod storm;
mod strangers;
mod systemd;
mod transfer;
mod validation;
mod verbs;
mod vpn;
mod watch;

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use mobile_tests::{LabOptions, LineProcess, PATIENCE, Testbed, addr, finish_within, port};

/// The result of a case.
type Outcome = anyhow::Result<()>;

/// Returns `address:port` of the server, for IPv4 and IPv6.
fn server(port: u16) -> [String; 2] {
    [format!("{}:{port}", addr::SERVER4), format!("[{}]:{port}", addr::SERVER6)]
}

/// Returns the server's URLs of `path`, for IPv4 and IPv6.
fn urls(path: &str) -> [String; 2] {
    [format!("http://{}{path}", addr::SERVER4), format!("http://[{}]{path}", addr::SERVER6)]
}

/// Installs both programs without starting them; the links have no delay.
fn installed_without_delay() -> anyhow::Result<Testbed> {
    Testbed::installed(&LabOptions { delay: Some(Duration::ZERO), ..LabOptions::default() })
}

/// Opens an echo session of a mobile process over each family, and checks that both work.
fn echo_sessions(bed: &Testbed) -> anyhow::Result<Vec<LineProcess>> {
    let mut sessions = Vec::new();
    for server in server(port::ECHO) {
        let mut session = bed.mobile_labtool(&["tcp", &server])?;
        session.next_line()?;
        sessions.push(session);
    }
    assert_echo(&mut sessions, "before")?;
    Ok(sessions)
}

/// Asserts that a line sent over each echo session comes back as the next one.
fn assert_echo(sessions: &mut [LineProcess], line: &str) -> Outcome {
    for session in sessions {
        assert_eq!(session.request(line)?, line);
    }
    Ok(())
}

/// Copies a program with `cp`, since a program that any process has open for writing cannot be
/// executed.
///
/// If this process wrote the copy, a child that another case forks meanwhile could inherit the
/// writable descriptor.
fn copy(bed: &Testbed, from: &OsStr, to: &Path) -> Outcome {
    let mut cp = bed.lab.host.command("cp");
    finish_within(cp.arg(from).arg(to), None, PATIENCE)?.ok()?;
    Ok(())
}

/// Returns the IP address in the text `address:port`, as the server reports the source of a
/// request.
fn ip_of(seen: &str) -> std::net::IpAddr {
    seen.trim()
        .parse::<std::net::SocketAddr>()
        .unwrap_or_else(|_| panic!("{seen:?} is no socket address"))
        .ip()
}

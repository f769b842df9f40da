//! The data behind `mobile explain`: which hook, mark, rule, route and source address a connection
//! gets.
//!
//! The route is the kernel's own answer for the destination and the mark (`RTM_GETROUTE`), not a
//! second implementation of the routing rules. [`render`] turns it into sentences.

mod render;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use mobile_host::text::read_lossy;
use mobile_netlink::{Family, Netlink};
use serde::Serialize;

use crate::config::Config;
use crate::selection::cgroup::{CgroupError, MobileCgroup};
use crate::selection::{deadline, instance, process};
use crate::uplinks::links::REMOTE_ADDRESSES;
use render::{HostState, NewConnection, Outcome};

/// Timeout for resolving a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of addresses or sockets that are explained; the rest is only counted.
const MAX_LISTED: usize = 32;

/// The output of `mobile explain --json`, whose keys docs/use/json.md lists.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// Sentences about the process and its open sockets; empty for a host.
    notes: Vec<String>,
    /// The connections that a process would make.
    connections: Vec<ExplainedConnection>,
}

/// A connection that a process would make.
#[derive(Debug, Serialize)]
struct ExplainedConnection {
    /// The text line above the sentences.
    #[serde(skip)]
    heading: String,
    /// The destination.
    to: IpAddr,
    /// Whether the process is mobile.
    mobile: bool,
    /// The device of the route; `None` without a route.
    device: Option<String>,
    /// The source address of the route, if it names one.
    source: Option<IpAddr>,
    /// What becomes of the connection, as one word.
    result: Outcome,
    /// The hook, the rule, the route and the result, a sentence each.
    reasons: Vec<String>,
}

impl Explanation {
    /// Returns the explanation as text for people.
    pub(crate) fn text(&self) -> String {
        let mut text: String = self.notes.iter().map(|note| format!("{note}\n")).collect();
        for connection in &self.connections {
            text.push_str(&format!("{}:\n", connection.heading));
            connection.reasons.iter().for_each(|reason| text.push_str(&format!("  {reason}\n")));
        }
        text
    }
}

/// Explains a process, if `target` is a process ID, or connections to a host. `session` tells
/// whether the tunnel has a session, if that is known.
pub(crate) async fn explain(
    config: &Config,
    session: Option<bool>,
    target: &str,
) -> anyhow::Result<Explanation> {
    let explainer = Explainer::new(config, session).await?;
    match target.parse::<i32>() {
        Ok(pid) => explainer.process(pid).await,
        Err(_) => explainer.host(target).await,
    }
}

/// The configuration and the state of this host, from which explanations are made.
struct Explainer<'a> {
    config: &'a Config,
    netlink: Netlink,
    host: HostState<'a>,
    /// The persistent addresses, read from the host virtual device, because that requires neither
    /// an agent nor root.
    persistent: Vec<IpAddr>,
}

impl<'a> Explainer<'a> {
    async fn new(config: &'a Config, session: Option<bool>) -> anyhow::Result<Self> {
        let netlink = Netlink::new()?;
        let links: HashMap<u32, String> =
            netlink.links().await?.into_iter().map(|link| (link.index, link.name)).collect();
        let addresses = netlink.all_addresses().await?;
        let persistent = addresses
            .iter()
            .filter(|address| address.global && links.get(&address.index) == Some(&config.tunnel.device))
            .map(|address| address.net.addr())
            .collect();
        let rules = netlink.all_rules().await?;
        let programs = match std::fs::read_dir(&config.bpf.pin_dir) {
            Ok(mut pins) => Some(pins.next().is_some()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
        };
        Ok(Self {
            config,
            netlink,
            persistent,
            host: HostState {
                routing: &config.routing,
                device: &config.tunnel.device,
                links,
                rules,
                programs,
                open: deadline::has_passed(&config.bpf.pin_dir).unwrap_or(false),
                session,
            },
        })
    }

    async fn process(&self, pid: i32) -> anyhow::Result<Explanation> {
        ensure!(pid > 0, "{pid} is not a process ID");
        let process = process::read(pid).with_context(|| format!("there is no process {pid}"))?;
        let cgroup = match MobileCgroup::existing(self.config.cgroup.path.as_deref()) {
            Ok(cgroup) => cgroup,
            Err(CgroupError::NoCgroup2(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let mobile = match &cgroup {
            Some(cgroup) => cgroup.clone().with_slice(self.config.cgroup.slice.as_deref()).is_mobile(pid)?,
            None => false,
        };
        let own = read_lossy(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("?").to_owned();
        let mut notes = vec![render::attribute(&process, mobile, &own)];
        let is_mobile = |pid| cgroup.as_ref().is_some_and(|cgroup| cgroup.is_mobile(pid).unwrap_or(true));
        if let Some(instance) = mobile.then(|| instance::of_process(pid, is_mobile)).flatten() {
            notes.push(render::instance(&process, &instance));
        }
        if std::fs::read_dir(format!("/proc/{pid}/fd")).is_err() {
            notes.push(
                "its sockets: not visible, because only root may inspect another user's process".to_owned(),
            );
        }
        for connection in process.connections.iter().take(MAX_LISTED) {
            let remote = connection.remote.ip();
            // A socket with a persistent address got it from the route of the mark.
            let marked = self.persistent.contains(&connection.local.ip());
            let route = self.netlink.lookup(remote, self.mark(marked)).await?;
            notes.push(self.host.socket(connection, mobile, marked, route.as_ref()));
        }
        if process.connections.len() > MAX_LISTED {
            notes.push(format!("{} more sockets are not listed", process.connections.len() - MAX_LISTED));
        }
        let mut connections = Vec::new();
        for to in REMOTE_ADDRESSES {
            let heading = format!("its next {} connection", Family::from(to));
            connections.push(self.connection(heading, NewConnection { mobile, to }).await?);
        }
        Ok(Explanation { notes, connections })
    }

    async fn host(&self, target: &str) -> anyhow::Result<Explanation> {
        let addresses = resolve(target).await?;
        let mut connections = Vec::new();
        for &to in addresses.iter().take(MAX_LISTED) {
            for mobile in [true, false] {
                let heading = if mobile {
                    format!("connection to {to}\nfrom a mobile process")
                } else {
                    "from an ordinary process".to_owned()
                };
                connections.push(self.connection(heading, NewConnection { mobile, to }).await?);
            }
        }
        Ok(Explanation { notes: Vec::new(), connections })
    }

    async fn connection(&self, heading: String, new: NewConnection) -> anyhow::Result<ExplainedConnection> {
        let NewConnection { mobile, to } = new;
        let route = self.netlink.lookup(to, self.mark(self.host.is_marked(mobile))).await?;
        let route = route.as_ref();
        Ok(ExplainedConnection {
            heading,
            to,
            mobile,
            device: route.and_then(|route| route.oif).map(|oif| self.host.name(oif)),
            source: route.and_then(|route| route.source),
            result: self.host.outcome(new, route).0,
            reasons: self.host.new_connection(new, route),
        })
    }

    fn mark(&self, mobile: bool) -> u32 {
        // The mark of connected sockets does not change.
        if mobile { self.config.routing.mark } else { 0 }
    }
}

/// Resolves a name or an address, either with or without a port.
async fn resolve(target: &str) -> anyhow::Result<Vec<IpAddr>> {
    let host = host_of(target);
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![address.to_canonical()]);
    }
    let resolved = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, 0)))
        .await
        .with_context(|| format!("cannot resolve {host}: the resolver does not answer"))?
        .with_context(|| format!("{host} is not a process ID, and cannot be resolved as a name"))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in resolved.map(|socket: SocketAddr| socket.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Returns the host of `host:port`; the port has no influence on the route.
fn host_of(target: &str) -> &str {
    if let Some(rest) = target.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match target.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && port.parse::<u16>().is_ok() => host,
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_be_given_with_a_port() {
        for (target, host) in [
            ("example.org", "example.org"),
            ("example.org:22", "example.org"),
            ("192.0.2.9:443", "192.0.2.9"),
            ("2001:db8::9", "2001:db8::9"),
            ("[2001:db8::9]:443", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
        ] {
            assert_eq!(host_of(target), host);
        }
    }
}

//! Turns the facts about this host into the findings of `mobile check`: whether each fact is a
//! problem, and what to do about it. All functions are pure.

mod network;
mod platform;

use std::net::IpAddr;

use mobile_host::check::{Finding, Level};
use mobile_transport::keys::PublicKey;

use super::fact_error::FactError;
use super::facts::{ConfigFile, Facts, StartFacts};
use super::reach::Outcome;
use crate::config::{OnFailure, RelayIdentity};
use crate::selection::deadline::GRACE_PERIOD;
use crate::status::{FilterKind, Ingress, SessionState};
use crate::tunnel::cause::Fault;

/// The beginning of the text of the finding with the topic `agent` if the agent has a session; the
/// name of the uplink follows.
const CONNECTED: &str = "running, connected over";

/// The next step that a finding names if only root can check its subject.
const AS_ROOT: &str = "run `mobile check` as root";

/// The beginning of the topic of a finding about the relay; the name of the uplink follows.
const RELAY_OVER: &str = "relay over ";

/// Returns all findings about this host, in the order of the report.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let platform = &facts.platform;
    let mut findings = vec![platform::kernel(&platform.kernel)];
    findings.push(config(&facts.config));
    findings.extend(identity(&facts.config, &facts.relay, &facts.key));
    findings.extend(platform::objects(platform, facts.root));
    findings.extend(ingress(facts));
    findings.push(if platform.ipv6 {
        Finding::ok("IPv6", "enabled")
    } else {
        Finding::ok("IPv6", "disabled on this host: mobile processes use IPv4 only")
    });
    match &facts.links {
        Ok(links) => findings.extend(network::judge(links, &facts.routing)),
        Err(error) => findings.push(netlink(error)),
    }
    findings.extend(resolved(facts));
    findings.extend(facts.reached.iter().flat_map(|reached| relay(reached)));
    if facts.reached.is_none() && !facts.root {
        findings.push(needs_root("relay", "whether it answers over each uplink and accepts this host's key"));
    }
    findings.push(resolvers(facts));
    findings.push(on_failure(facts));
    findings.push(agent(facts));
    findings
}

/// Returns the findings about an agent that is to start: those of [`judge`] that do not depend on
/// the network outside this host, or on objects that the start itself creates.
pub(super) fn judge_start(facts: &StartFacts) -> Vec<Finding> {
    let mut findings = vec![platform::kernel(&facts.platform.kernel), config(&facts.config)];
    findings.extend(identity(&facts.config, &facts.relay, &facts.key));
    findings.extend(platform::objects(&facts.platform, false));
    findings.push(match &facts.table {
        Ok(links) => network::table(links, &facts.routing),
        Err(error) => netlink(error),
    });
    findings
}

fn netlink(error: &FactError) -> Finding {
    Finding::fail("netlink", error, "see the kernel's message: the agent needs netlink")
}

/// Returns the finding about a topic that only root can check.
fn needs_root(topic: &str, what: impl std::fmt::Display) -> Finding {
    Finding::skipped(topic, format!("{what}: not checked, needs root"), AS_ROOT)
}

/// Returns the effect of the failed findings on the agent, as a sentence. At least one finding must
/// have failed.
pub(crate) fn consequence(findings: &[Finding]) -> &'static str {
    let mut failed = findings.iter().filter(|finding| finding.level == Level::Fail);
    let is_outside = |topic: &str| matches!(topic, "relay name" | "uplinks") || topic.starts_with(RELAY_OVER);
    if findings.iter().any(|finding| finding.topic == "agent" && finding.seen.starts_with(CONNECTED)) {
        "the agent is connected, but its next handover or start may fail"
    } else if failed.all(|finding| is_outside(&finding.topic)) {
        "there is no session until an uplink reaches the relay"
    } else {
        "the agent may not work before this is corrected"
    }
}

fn config(file: &ConfigFile) -> Finding {
    match file {
        ConfigFile::Read(path) => Finding::ok("config", path.display().to_string()),
        ConfigFile::NotEnrolled => {
            Finding::fail("config", "this host is not enrolled", "run `mobile enroll INVITATION`")
        }
        ConfigFile::NotAllowed(path) => needs_root("config", path.display()),
        ConfigFile::Invalid(error) => Finding::fail(
            "config",
            error,
            "correct the file; the findings below are for the default settings",
        ),
    }
}

fn identity(
    config: &ConfigFile,
    relay: &Result<RelayIdentity, FactError>,
    key: &Result<Option<PublicKey>, FactError>,
) -> Vec<Finding> {
    match config {
        ConfigFile::Read(_) => {}
        ConfigFile::NotAllowed(_) => return vec![needs_root("key", "the private key")],
        ConfigFile::NotEnrolled | ConfigFile::Invalid(_) => return Vec::new(),
    }
    let relay = relay
        .as_ref()
        .err()
        .map(|error| Finding::fail("config", error, "add it to the file: the agent needs it to start"));
    let key = match key {
        Ok(Some(public)) => Finding::ok("key", format!("{public}; only its owner may read the private key")),
        Ok(None) => needs_root("key", "the private key, which only its owner may read"),
        Err(error) => {
            Finding::fail("key", error, "fix the key file as the message says: the agent needs it to start")
        }
    };
    relay.into_iter().chain([key]).collect()
}

/// Judges the ingress filter of the running agent, or whether nftables accepts the filter that an
/// agent would install. Returns `None` if neither is known.
fn ingress(facts: &Facts) -> Option<Finding> {
    const NEXT: &str = "install nftables, on a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and \
                        CONFIG_NF_TABLES_ARP; the agent retries every 30 s";
    let running = facts.agent.as_ref().ok().and_then(Option::as_ref).map(|status| &status.ingress);
    if let Some(Ingress { filter: FilterKind::Ebpf, problem: Some(problem), .. }) = running {
        let seen = format!(
            "an eBPF classifier on each device filters instead of nftables ({problem}): it misses devices that \
             appear while no agent runs"
        );
        return Some(Finding::warn("ingress", seen, NEXT));
    }
    let problem = match (running, &facts.platform.nftables) {
        (Some(ingress), _) => ingress.problem.as_deref(),
        (None, Some(tried)) => tried.as_ref().err().map(FactError::as_str),
        (None, None) if facts.root => return None,
        (None, None) => return Some(needs_root("ingress", "the filter for packets to a persistent address")),
    };
    Some(match problem {
        None => {
            let seen = "nftables drops packets to a persistent address that do not come through the tunnel";
            Finding::ok("ingress", seen)
        }
        Some(problem) => {
            let seen = format!(
                "no filter ({problem}): a visited network can find out the persistent addresses and forge packets to them"
            );
            Finding::warn("ingress", seen, NEXT)
        }
    })
}

fn resolved(facts: &Facts) -> Option<Finding> {
    let (Ok(relay), Some(resolved)) = (&facts.relay, &facts.resolved) else { return None };
    let endpoint = &relay.endpoint;
    Some(match resolved {
        Ok(addresses) => {
            let addresses: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            Finding::ok("relay name", format!("{endpoint} resolves to {}", addresses.join(", ")))
        }
        Err(error) => Finding::fail(
            "relay name",
            format!("cannot resolve {endpoint}: {error}"),
            "check [relay] endpoint and this host's resolver",
        ),
    })
}

/// Judges the attempts to reach the relay. An uplink that does not reach the relay is only a
/// warning while another one does; a key that is not accepted is a failure.
fn relay(reached: &[(String, Outcome)]) -> Vec<Finding> {
    let any = reached.iter().any(|(_, outcome)| outcome.is_ok());
    reached
        .iter()
        .map(|(uplink, outcome)| {
            let topic = format!("{RELAY_OVER}{uplink}");
            match outcome {
                Ok(reached) => {
                    let took = reached.took.as_millis();
                    let seen =
                        format!("{} answered and accepted this host's key in {took} ms", reached.address);
                    Finding::ok(topic, seen)
                }
                Err(failure) => {
                    let (seen, next) = (&failure.problem.cause, &failure.problem.next_step);
                    if any && failure.fault != Fault::Identity {
                        Finding::warn(topic, seen, next)
                    } else {
                        Finding::fail(topic, seen, next)
                    }
                }
            }
        })
        .collect()
}

fn resolvers(facts: &Facts) -> Finding {
    let outside: Vec<&IpAddr> = facts.resolvers.iter().filter(|server| !server.is_loopback()).collect();
    if outside.is_empty() {
        return Finding::ok(
            "resolver",
            "local: DNS queries of mobile processes go to the local resolver, which uses the direct route",
        );
    }
    let pushed = match &facts.agent {
        Ok(Some(status)) => status.dns.as_slice(),
        _ => &[],
    };
    let is_redirected = |server: &&IpAddr| pushed.iter().any(|pushed| pushed.is_ipv4() == server.is_ipv4());
    if outside.iter().all(is_redirected) {
        let pushed: Vec<String> = pushed.iter().map(ToString::to_string).collect();
        return Finding::ok(
            "resolver",
            format!("DNS queries of mobile processes go to the relay's resolvers: {}", pushed.join(", ")),
        );
    }
    let outside: Vec<String> = outside.into_iter().map(ToString::to_string).collect();
    Finding::warn(
        "resolver",
        format!(
            "/etc/resolv.conf names {}, and no resolver of the relay is known: mobile processes query it through \
             the tunnel, where a resolver of the visited network may not answer",
            outside.join(", ")
        ),
        "set [dns] servers in /etc/home-relay/relay.toml on the relay and run `systemctl reload home-relay` there, \
         or use a local stub resolver (systemd-resolved, dnsmasq) on this host",
    )
}

/// Reports whether new connections of mobile processes wait or use the ordinary route while there
/// is no session. Both values of `[routing] on_failure` are valid, but the user should know which
/// one is set.
fn on_failure(facts: &Facts) -> Finding {
    let grace = GRACE_PERIOD.as_secs();
    if matches!((&facts.config, &facts.agent), (ConfigFile::NotAllowed(_), Ok(None) | Err(_))) {
        return needs_root("on_failure", "what happens to connections without a session");
    }
    match (facts.routing.on_failure, facts.open) {
        (OnFailure::Closed, _) => {
            Finding::ok("on_failure", "closed: without a session, connections of mobile processes wait")
        }
        (OnFailure::Open, Some(true)) => Finding::warn(
            "on_failure",
            "open: there is no session, so new connections of mobile processes go direct",
            "see the findings `relay over` and `agent`; with [routing] on_failure = \"closed\" they would wait",
        ),
        (OnFailure::Open, _) => Finding::ok(
            "on_failure",
            format!("open: after {grace} s without a session, new connections of mobile processes go direct"),
        ),
    }
}

fn agent(facts: &Facts) -> Finding {
    match &facts.agent {
        Ok(None) => Finding::ok(
            "agent",
            "not running; start it with `systemctl start mobile`, or `mobile agent` in the foreground",
        ),
        Err(error) if error.is_denied() => Finding::skipped("agent", error, AS_ROOT),
        Err(error) => Finding::fail("agent", error, "restart the agent, unless the message says otherwise"),
        Ok(Some(status)) => {
            let seen = match status.session {
                SessionState::Connected => {
                    let uplink = status.active_uplink.as_deref().unwrap_or("no uplink");
                    return Finding::ok("agent", format!("{CONNECTED} {uplink}"));
                }
                SessionState::Connecting => "running, connecting",
                SessionState::NoUplink => "running, without a usable uplink",
                SessionState::Refused => "running, refused by the relay or refusing its key",
            };
            match &status.problem {
                Some(problem) => {
                    Finding::warn("agent", format!("{seen}: {}", problem.cause), &problem.next_step)
                }
                None => Finding::warn("agent", seen, "run `mobile uplinks` to see why"),
            }
        }
    }
}

#[cfg(test)]
mod tests;

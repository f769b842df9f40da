//! Turns the facts about this host into the findings of `mobile check`: whether each fact is a
//! problem, and what to do about it. All functions are pure.

use std::net::IpAddr;

use mobile_host::check::{Finding, Level};
use mobile_netlink::ListedRule;

use super::facts::{Bpffs, ConfigFile, Facts, Links};
use super::reach::Outcome;
use crate::config::{OnFailure, Routing};
use crate::routing::conflicting_rules::{conflicting_rules, is_listed_as_ours, rule_priority};
use crate::selection::deadline::GRACE_PERIOD;
use crate::selection::oldest_kernel::{OLDEST, OLDEST_LONGTERM};
use crate::status::{FilterKind, Ingress, Refusal, SessionState};
use crate::tunnel::cause::Fault;

/// The first kernel with the socket option `TCP_RTO_MAX_MS`, with which mobile sockets retransmit
/// within 10 s after an outage.
const BOUNDED_RTO_KERNEL: (u32, u32) = (6, 15);

/// The maximum number of links that are listed if none is usable, because a host may have a
/// thousand.
const MAX_LISTED_LINKS: usize = 8;

/// The beginning of the text of the finding with the topic `agent` if the agent has a session; the
/// name of the uplink follows.
const CONNECTED: &str = "running, connected over";

/// The next step that a finding names if only root can check its subject.
const AS_ROOT: &str = "run `mobile check` as root";

/// The beginning of the topic of a finding about the relay; the name of the uplink follows.
const RELAY_OVER: &str = "relay over ";

/// Returns all findings about this host, in the order of the report.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(&facts.kernel)];
    if !facts.root {
        let seen = "an ordinary user cannot check the eBPF programs, the TUN device and the relay";
        findings.push(Finding::warn("rights", seen, AS_ROOT));
    }
    findings.push(config(&facts.config));
    findings.extend(identity(facts));
    findings.push(match &facts.cgroup2 {
        Ok(mount) => Finding::ok("cgroup2", format!("mounted at {}", mount.display())),
        Err(error) => {
            Finding::fail("cgroup2", error, "correct this as the message says: the agent needs it to start")
        }
    });
    findings.push(bpffs(facts.bpffs));
    findings.extend(programs(facts));
    findings.extend(facts.tun.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("TUN", "a device with segmentation offload (IFF_VNET_HDR) can be opened"),
        Err(error) => {
            Finding::fail("TUN", error, "run `modprobe tun`; in a container, pass /dev/net/tun to it")
        }
    }));
    findings.extend(ingress(facts));
    findings.push(if facts.ipv6 {
        Finding::ok("IPv6", "enabled")
    } else {
        Finding::ok("IPv6", "disabled on this host: mobile processes use IPv4 only")
    });
    match &facts.links {
        Ok(links) => {
            findings.extend(rules(links, &facts.routing));
            findings.push(table(links, &facts.routing));
            findings.extend(refused(facts));
            findings.extend(conflicts(links));
            findings.extend(rp_filter(links));
            findings.extend(uplinks(links));
        }
        Err(error) => findings.push(Finding::fail(
            "netlink",
            error,
            "see the kernel's message: the agent needs netlink",
        )),
    }
    findings.extend(resolved(facts));
    findings.extend(facts.reached.iter().flat_map(|reached| relay(reached)));
    findings.push(resolvers(facts));
    findings.push(on_failure(facts));
    findings.push(agent(facts));
    findings
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

const NO_BPF: &str = "check that the kernel has CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, and that neither a container \
                      nor kernel lockdown forbids bpf(2) to root";

fn programs(facts: &Facts) -> Option<Finding> {
    match &facts.programs {
        Some(Ok(())) => Some(Finding::ok("eBPF", "the programs load and attach")),
        Some(Err(error)) => Some(Finding::fail("eBPF", error, NO_BPF)),
        None => facts.root.then(|| {
            let next = "mount cgroup2, then run `mobile check` again";
            Finding::warn("eBPF", "not checked, because cgroup2 is not mounted", next)
        }),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Finding::warn(
            "kernel",
            format!("the kernel release {release:?} has no version number, such as 6.12"),
            format!("check that it is Linux {OLDEST_LONGTERM} or later"),
        );
    };
    let version = (major, minor);
    if version < OLDEST {
        let seen = format!(
            "Linux {release} is too old: it cannot identify network namespaces (SO_NETNS_COOKIE, 5.14)"
        );
        let next = format!("install Linux {OLDEST_LONGTERM} or later");
        return Finding::fail("kernel", seen, next);
    }
    let slow = if version < BOUNDED_RTO_KERNEL {
        "; before 6.15 a mobile TCP connection may stay silent for up to two minutes after a long outage"
    } else {
        ""
    };
    let oldest =
        format!("the oldest supported series is {OLDEST_LONGTERM}, because of SO_NETNS_COOKIE (5.14)");
    Finding::ok("kernel", format!("Linux {release}; {oldest}{slow}"))
}

fn config(file: &ConfigFile) -> Finding {
    match file {
        ConfigFile::Read(path) => Finding::ok("config", path.display().to_string()),
        ConfigFile::NotEnrolled => {
            Finding::fail("config", "this host is not enrolled", "run `mobile enroll INVITATION`")
        }
        ConfigFile::NotAllowed(error) => Finding::warn(
            "config",
            error,
            format!("{AS_ROOT}; the findings below are for the default settings"),
        ),
        ConfigFile::Invalid(error) => Finding::fail(
            "config",
            error,
            "correct the file; the findings below are for the default settings",
        ),
    }
}

fn identity(facts: &Facts) -> Vec<Finding> {
    if !matches!(facts.config, ConfigFile::Read(_)) {
        return Vec::new();
    }
    let relay = facts
        .relay
        .as_ref()
        .err()
        .map(|error| Finding::fail("config", error, "add it to the file: the agent needs it to start"));
    let key = match &facts.key {
        Ok(Some(public)) => Finding::ok("key", format!("{public}; only its owner may read the private key")),
        Ok(None) => Finding::ok("key", "only its owner may read it, so it was not checked"),
        Err(error) => {
            Finding::fail("key", error, "fix the key file as the message says: the agent needs it to start")
        }
    };
    relay.into_iter().chain([key]).collect()
}

fn bpffs(bpffs: Bpffs) -> Finding {
    match bpffs {
        Bpffs::Mounted => Finding::ok("bpffs", "mounted"),
        Bpffs::Mountable => Finding::ok("bpffs", "not mounted yet: the agent mounts it at /sys/fs/bpf"),
        Bpffs::Elsewhere => Finding::fail(
            "bpffs",
            "[bpf] pin_dir is not on a BPF file system",
            "set [bpf] pin_dir to a directory below /sys/fs/bpf",
        ),
        Bpffs::Missing => Finding::fail(
            "bpffs",
            "the kernel has no BPF file system",
            "use a kernel with CONFIG_BPF_SYSCALL",
        ),
    }
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
    let problem = match (running, &facts.nftables) {
        (Some(ingress), _) => ingress.problem.as_deref(),
        (None, Some(tried)) => tried.as_ref().err().map(String::as_str),
        (None, None) => return None,
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

/// Judges the routing rules of other programs that come before the agent's rules, or match the
/// agent's firewall mark.
fn rules(links: &Links, routing: &Routing) -> Vec<Finding> {
    let Routing { mark, mark_mask, .. } = *routing;
    let others = || links.rules.iter().filter(|rule| !is_listed_as_ours(rule, routing));
    // The priority of the agent's rules, or the one they will have when the agent starts.
    let there = links.rules.iter().filter(|rule| is_listed_as_ours(rule, routing) && rule.fwmark.is_some());
    let rule_priority = there
        .map(|rule| rule.priority)
        .min()
        .or_else(|| rule_priority(&links.rules, routing))
        .unwrap_or(routing.rule_priority);
    let before =
        |rule: &ListedRule| conflicting_rules(&links.rules, routing, rule_priority).any(|it| it == rule);
    let mut findings: Vec<Finding> = conflicting_rules(&links.rules, routing, rule_priority)
        .map(|rule| {
            let next = format!(
                "restart the agent, which puts its rules first; if the other rule comes first again, set [routing] \
                 rule_priority below {}",
                rule.priority
            );
            if rule.suppresses_default_route {
                let seen = format!(
                    "the {} rule `{rule}` comes before the agent's ({rule_priority}): mobile processes reach the \
                     networks of this host directly",
                    rule.family
                );
                Finding::warn("rules", seen, next)
            } else {
                let seen = format!(
                    "the {} rule `{rule}` comes before the agent's ({rule_priority}) and takes every packet of \
                     mobile processes (wg-quick and other full-tunnel VPNs add such rules)",
                    rule.family
                );
                Finding::fail("rules", seen, next)
            }
        })
        .collect();
    findings.extend(
        others()
            .filter(|rule| rule.priority > 0 && !before(rule))
            .filter(|rule| rule.conflicts_with_mark(mark, mark_mask))
            .map(|rule| {
                let seen =
                    format!("the {} rule `{rule}` matches the mark of mobile sockets too", rule.family);
                Finding::warn(
                    "mark",
                    seen,
                    "choose another [routing] mark, with bits that no other program uses",
                )
            }),
    );
    if findings.is_empty() {
        findings
            .push(Finding::ok("rules", "no rule of another program takes the packets of mobile processes"));
    }
    findings
}

fn table(links: &Links, routing: &Routing) -> Finding {
    let table = &routing.table;
    let next = "set [routing] table to a number that no other program uses";
    if let Some((dst, device)) = links.foreign_routes.first() {
        return Finding::fail(
            "table",
            format!("another program uses table {table}: it has a route to {dst} over {device}"),
            next,
        );
    }
    match links.rules.iter().find(|rule| rule.table == Some(*table) && !is_listed_as_ours(rule, routing)) {
        Some(rule) => Finding::fail(
            "table",
            format!("another program uses table {table}: the rule `{rule}` leads there"),
            next,
        ),
        None => Finding::ok("table", format!("no other program uses table {table}")),
    }
}

/// Judges the parts of the relay's assignment that this host refuses. A refused resolver is only a
/// warning, but without an address the connections of mobile processes wait.
fn refused(facts: &Facts) -> Vec<Finding> {
    let finding = |refusal: &Refusal| match refusal.kind.as_str() {
        "resolver" => Finding::warn("resolver", &refusal.cause, &refusal.next_step),
        _ => Finding::fail("addresses", &refusal.cause, &refusal.next_step),
    };
    facts.refused.iter().map(finding).collect()
}

/// Judges whether a device of this host has a persistent address or is on a network that contains
/// one. Returns `None` if no persistent address is known.
fn conflicts(links: &Links) -> Option<Finding> {
    let held = links.persistent.iter().find_map(|address| {
        let holder = links.local.iter().find(|(_, net)| net.contains(address));
        holder.map(|(device, net)| (address, device, net))
    });
    let Some((address, device, net)) = held else {
        let persistent: Vec<String> = links.persistent.iter().map(ToString::to_string).collect();
        return (!persistent.is_empty()).then(|| Finding::ok("addresses", persistent.join(", ")));
    };
    let next = "choose another [pool] on the relay (`home-relay init` chooses a random one)";
    Some(if net.addr() == *address {
        Finding::fail("addresses", format!("{device} has the persistent address {address}"), next)
    } else {
        Finding::warn(
            "addresses",
            format!("the network {net} on {device} contains the persistent address {address}"),
            next,
        )
    })
}

fn rp_filter(links: &Links) -> Option<Finding> {
    // The value 1 is strict. A single uplink has the default route, so a strict filter does no
    // harm.
    let strict: Vec<&str> = links
        .rp_filter
        .iter()
        .filter(|(_, filter)| *filter == 1)
        .map(|(device, _)| device.as_str())
        .collect();
    let several = links.rp_filter.len() > 1;
    match (several, strict.is_empty()) {
        (false, _) => None,
        (true, true) => Some(Finding::ok("rp_filter", "not strict on any uplink")),
        (true, false) => Some(Finding::warn(
            "rp_filter",
            format!(
                "strict on {}: replies are dropped on an uplink that does not have the default route",
                strict.join(", ")
            ),
            "run `sysctl -w net.ipv4.conf.all.rp_filter=2`, which is systemd's setting",
        )),
    }
}

fn uplinks(links: &Links) -> Option<Finding> {
    if !links.decision.usable.is_empty() {
        return None;
    }
    let listed = links.decision.verdicts.iter().take(MAX_LISTED_LINKS).filter_map(|verdict| {
        verdict.obstacle.map(|obstacle| format!("{}: {}", verdict.name, obstacle.description()))
    });
    let listed: Vec<String> = listed.collect();
    let seen = if listed.is_empty() { "this host has no link".to_owned() } else { listed.join(", ") };
    Some(Finding::fail("uplinks", format!("no uplink can carry the tunnel: {seen}"), "connect to a network"))
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
        Err(error) => Finding::fail("agent", error, "restart the agent"),
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
#[path = "judge/tests.rs"]
mod tests;

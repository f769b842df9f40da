//! What the facts mean, and what to do: pure.

use std::net::IpAddr;

use mobile_io::check::Finding;
use mobile_io::netlink::ListedRule;

use super::facts::{Bpffs, Facts, Links};
use super::reach::Outcome;
use crate::config::{OnFailure, Routing};
use crate::routing::rivals::{self, is_listed_as_ours};
use crate::selection::deadline::GRACE;
use crate::selection::floor::{OLDEST, OLDEST_LONGTERM};
use crate::status::{FilterKind, Ingress, Refusal, SessionState};
use crate::tunnel::cause::Fault;

/// TCP_RTO_MAX_MS: mobile sockets repeat within 10 s of the end of an outage.
const QUICK_RETRIES: (u32, u32) = (6, 15);

/// More links than these are not told of, where none is usable: a host may have a thousand.
const MAX_LINKS: usize = 8;

/// What to do where only root can look.
const AS_ROOT: &str = "run `mobile check` as root";

/// All findings.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(&facts.kernel)];
    if !facts.root {
        let seen = "an ordinary user may not look at the eBPF programs, the TUN device and the relay";
        findings.push(Finding::warn("rights", seen, AS_ROOT));
    }
    findings.push(match &facts.config {
        Ok(path) => Finding::ok("config", path.display().to_string()),
        Err(error) => Finding::fail("config", error, "correct the file; what follows is of the defaults"),
    });
    findings.extend(identity(facts));
    findings.push(match &facts.cgroup2 {
        Ok(mount) => Finding::ok("cgroup2", format!("mounted at {}", mount.display())),
        Err(error) => Finding::fail("cgroup2", error, "the agent cannot start without it"),
    });
    findings.push(bpffs(facts.bpffs));
    findings.extend(facts.programs.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("eBPF", "the programs load and attach"),
        Err(error) => Finding::fail("eBPF", error, NO_BPF),
    }));
    findings.extend(facts.tun.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("TUN", "a device with whole packets (IFF_VNET_HDR) can be opened"),
        Err(error) => Finding::fail("TUN", error, "`modprobe tun`; in a container, pass it /dev/net/tun"),
    }));
    findings.extend(ingress(facts));
    findings.push(if facts.ipv6 {
        Finding::ok("IPv6", "enabled")
    } else {
        Finding::ok("IPv6", "disabled on this host: mobile processes have IPv4 only")
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
        Err(error) => findings.push(Finding::fail("netlink", error, "see what the kernel says above")),
    }
    findings.extend(resolved(facts));
    findings.extend(facts.reached.iter().flat_map(|reached| relay(reached)));
    findings.push(resolvers(facts));
    findings.push(on_failure(facts));
    findings.push(agent(facts));
    findings
}

const NO_BPF: &str = "see that the kernel has CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, that nothing (a container, \
                      kernel lockdown) forbids bpf() to root, and that cgroup2 is there";

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Finding::warn(
            "kernel",
            format!("{release}: not a version I know"),
            format!("see that it is {OLDEST_LONGTERM} or later"),
        );
    };
    let version = (major, minor);
    if version < OLDEST {
        let seen = format!("Linux {release} does not tell network namespaces apart (SO_NETNS_COOKIE, 5.14)");
        let next =
            format!("Linux {OLDEST_LONGTERM} is the oldest series that works: install that or a later one");
        return Finding::fail("kernel", seen, next);
    }
    let slow = if version < QUICK_RETRIES {
        "; before 6.15 a mobile TCP connection may pause two minutes after a long outage"
    } else {
        ""
    };
    let oldest =
        format!("{OLDEST_LONGTERM} is the oldest series that works, because of SO_NETNS_COOKIE (5.14)");
    Finding::ok("kernel", format!("Linux {release}; {oldest}{slow}"))
}

fn identity(facts: &Facts) -> Vec<Finding> {
    if facts.config.is_err() {
        return Vec::new();
    }
    let relay =
        facts.relay.as_ref().err().map(|error| {
            Finding::fail("config", error, "add it to the file: the agent does not start without")
        });
    let key = match &facts.key {
        Ok(Some(public)) => Finding::ok("key", format!("{public}, readable by its owner only")),
        Ok(None) => Finding::ok("key", "readable by its owner only, and so not read"),
        Err(error) => Finding::fail("key", error, "the agent does not start without its key"),
    };
    relay.into_iter().chain([key]).collect()
}

fn bpffs(bpffs: Bpffs) -> Finding {
    match bpffs {
        Bpffs::Mounted => Finding::ok("bpffs", "mounted"),
        Bpffs::Mountable => Finding::ok("bpffs", "not mounted; the agent mounts it at /sys/fs/bpf"),
        Bpffs::Elsewhere => Finding::fail(
            "bpffs",
            "[bpf] pin_dir is on another file system",
            "name a directory below /sys/fs/bpf in [bpf] pin_dir",
        ),
        Bpffs::Missing => Finding::fail(
            "bpffs",
            "the kernel has no BPF file system",
            "use a kernel with CONFIG_BPF_SYSCALL",
        ),
    }
}

/// Judges the ingress filter: the running agent's, or the one that an agent would install.
fn ingress(facts: &Facts) -> Option<Finding> {
    const NEXT: &str = "install nftables, on a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and \
                        CONFIG_NF_TABLES_ARP; the agent tries again every 30 s";
    let running = facts.agent.as_ref().ok().and_then(Option::as_ref).map(|status| &status.ingress);
    if let Some(Ingress { filter: FilterKind::Ebpf, problem: Some(problem), .. }) = running {
        let seen = format!(
            "an eBPF classifier on each device, which misses those that appear while no agent runs, filters instead of \
             nftables ({problem})"
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
            let seen = "nftables drops what is addressed to a persistent address and comes beside the tunnel";
            Finding::ok("ingress", seen)
        }
        Some(problem) => {
            let seen = format!(
                "no filter ({problem}): a visited network can probe for the persistent addresses and forge packets to them"
            );
            Finding::warn("ingress", seen, NEXT)
        }
    })
}

/// Rules of others that come before ours, or share its mark.
fn rules(links: &Links, routing: &Routing) -> Vec<Finding> {
    let Routing { mark, mark_mask, .. } = *routing;
    let others = || links.rules.iter().filter(|rule| !is_listed_as_ours(rule, routing));
    // Where ours are, or will be when the agent starts.
    let there = links.rules.iter().filter(|rule| is_listed_as_ours(rule, routing) && rule.fwmark.is_some());
    let rule_priority = there
        .map(|rule| rule.priority)
        .min()
        .or_else(|| rivals::place(&links.rules, routing))
        .unwrap_or(routing.rule_priority);
    let before =
        |rule: &ListedRule| rivals::before(&links.rules, routing, rule_priority).any(|it| it == rule);
    let mut findings: Vec<Finding> = rivals::before(&links.rules, routing, rule_priority)
        .map(|rule| {
            let next = format!(
                "restart the agent, which puts its rules first; if they do not stay there, set [routing] \
                 rule_priority below {}",
                rule.priority
            );
            if rule.suppresses_default_route {
                let seen = format!(
                    "the {} rule `{rule}` comes before ours ({rule_priority}): mobile processes reach the networks \
                     of this host directly",
                    rule.family
                );
                Finding::warn("rules", seen, next)
            } else {
                let seen = format!(
                    "the {} rule `{rule}` comes before ours ({rule_priority}) and takes every packet of mobile \
                     processes (wg-quick and other full tunnels make such rules)",
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
                let seen = format!("the {} rule `{rule}` is for the mark of mobile sockets too", rule.family);
                Finding::warn("mark", seen, "choose another [routing] mark, with bits nobody else uses")
            }),
    );
    if findings.is_empty() {
        findings.push(Finding::ok("rules", "none of anybody else's takes the packets of mobile processes"));
    }
    findings
}

fn table(links: &Links, routing: &Routing) -> Finding {
    let table = &routing.table;
    let next = "set [routing] table to a number nobody uses";
    if let Some((dst, device)) = links.foreign_routes.first() {
        return Finding::fail(
            "table",
            format!("somebody else uses table {table}: it has a route to {dst} over {device}"),
            next,
        );
    }
    match links.rules.iter().find(|rule| rule.table == Some(*table) && !is_listed_as_ours(rule, routing)) {
        Some(rule) => {
            Finding::fail("table", format!("somebody else uses table {table}: the rule `{rule}`"), next)
        }
        None => Finding::ok("table", format!("{table} is ours alone")),
    }
}

/// Judges what the relay pushed and this host refuses. Without an address mobile processes wait.
fn refused(facts: &Facts) -> Vec<Finding> {
    let finding = |refusal: &Refusal| match refusal.kind.as_str() {
        "resolver" => Finding::warn("resolver", &refusal.cause, &refusal.next_step),
        _ => Finding::fail("addresses", &refusal.cause, &refusal.next_step),
    };
    facts.refused.iter().map(finding).collect()
}

/// Networks of this host that hold a persistent address.
fn conflicts(links: &Links) -> Option<Finding> {
    let held = links.persistent.iter().find_map(|address| {
        let holder = links.local.iter().find(|(_, net)| net.contains(address));
        holder.map(|(device, net)| (address, device, net))
    });
    let Some((address, device, net)) = held else {
        let known: Vec<String> = links.persistent.iter().map(ToString::to_string).collect();
        return (!known.is_empty()).then(|| Finding::ok("addresses", known.join(", ")));
    };
    let next = "choose another pool on the relay ([pool]; `home-relay init` takes a random one)";
    Some(if net.addr() == *address {
        Finding::fail("addresses", format!("{device} has the persistent address {address}"), next)
    } else {
        Finding::warn(
            "addresses",
            format!("the network {net} on {device} holds the persistent {address}"),
            next,
        )
    })
}

fn rp_filter(links: &Links) -> Option<Finding> {
    // 1 is strict. A single uplink holds the default route, and strict does it no harm.
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
                "strict on {}: answers on an uplink that does not hold the default route are dropped",
                strict.join(", ")
            ),
            "`sysctl -w net.ipv4.conf.all.rp_filter=2`, as systemd sets it",
        )),
    }
}

fn uplinks(links: &Links) -> Option<Finding> {
    if !links.decision.candidates.is_empty() {
        return None;
    }
    let told = links.decision.verdicts.iter().take(MAX_LINKS).filter_map(|verdict| {
        verdict.obstacle.map(|obstacle| format!("{}: {}", verdict.name, obstacle.words()))
    });
    let told: Vec<String> = told.collect();
    let seen = if told.is_empty() { "this host has no link".to_owned() } else { told.join(", ") };
    Some(Finding::fail("uplinks", format!("none can carry the tunnel: {seen}"), "connect to a network"))
}

fn resolved(facts: &Facts) -> Option<Finding> {
    let (Ok(relay), Some(resolved)) = (&facts.relay, &facts.resolved) else { return None };
    let endpoint = &relay.endpoint;
    Some(match resolved {
        Ok(found) => {
            let found: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
            Finding::ok("relay name", format!("{endpoint} is {}", found.join(", ")))
        }
        Err(error) => Finding::fail(
            "relay name",
            format!("{endpoint} cannot be resolved: {error}"),
            "check [relay] endpoint and the resolver of this host",
        ),
    })
}

/// An uplink that does not lead to the relay is no failure while another does; a key that is not accepted is.
fn relay(reached: &[(String, Outcome)]) -> Vec<Finding> {
    let any = reached.iter().any(|(_, outcome)| outcome.is_ok());
    reached
        .iter()
        .map(|(uplink, outcome)| {
            let topic = format!("relay over {uplink}");
            match outcome {
                Ok(reached) => {
                    let took = reached.took.as_millis();
                    let seen =
                        format!("{} answers and accepts this host's key, in {took} ms", reached.address);
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
        return Finding::ok("resolver", "local: names of mobile processes are asked on the direct route");
    }
    let pushed = match &facts.agent {
        Ok(Some(status)) => status.dns.as_slice(),
        _ => &[],
    };
    let followed = |server: &&IpAddr| pushed.iter().any(|pushed| pushed.is_ipv4() == server.is_ipv4());
    if outside.iter().all(followed) {
        let pushed: Vec<String> = pushed.iter().map(ToString::to_string).collect();
        return Finding::ok("resolver", format!("mobile processes ask the relay's: {}", pushed.join(", ")));
    }
    let outside: Vec<String> = outside.into_iter().map(ToString::to_string).collect();
    Finding::warn(
        "resolver",
        format!(
            "/etc/resolv.conf names {}, and the relay is not known to push a resolver: mobile processes ask it through \
             the tunnel, where the visited network's own may not answer",
            outside.join(", ")
        ),
        "on the relay: set [dns] servers; or use a local stub resolver (systemd-resolved, dnsmasq) here",
    )
}

/// What new connections do without a session: either is a choice, and nobody is to be surprised by it.
fn on_failure(facts: &Facts) -> Finding {
    let grace = GRACE.as_secs();
    match (facts.routing.on_failure, facts.open) {
        (OnFailure::Closed, _) => Finding::ok("on_failure", "closed: mobile processes wait for a session"),
        (OnFailure::Open, Some(true)) => Finding::warn(
            "on_failure",
            "open: there is no session, so new connections of mobile processes go directly now",
            "see `relay over` and `agent` here; [routing] on_failure = \"closed\" makes them wait",
        ),
        (OnFailure::Open, _) => Finding::ok(
            "on_failure",
            format!("open: after {grace} s without a session mobile processes connect directly"),
        ),
    }
}

fn agent(facts: &Facts) -> Finding {
    match &facts.agent {
        Ok(None) => Finding::ok("agent", "not running; `mobile agent` starts it"),
        Err(error) => Finding::fail("agent", error, "restart the agent"),
        Ok(Some(status)) => {
            let seen = match status.session {
                SessionState::Connected => {
                    let uplink = status.active_uplink.as_deref().unwrap_or("no uplink");
                    return Finding::ok("agent", format!("running, connected over {uplink}"));
                }
                SessionState::Connecting => "running, connecting",
                SessionState::NoUplink => "running, without a usable uplink",
                SessionState::Refused => "running, refused",
            };
            match &status.problem {
                Some(problem) => {
                    Finding::warn("agent", format!("{seen}: {}", problem.cause), &problem.next_step)
                }
                None => Finding::warn("agent", seen, "see `mobile uplinks`"),
            }
        }
    }
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;

//! The way of a connection in words: pure.

use std::collections::HashMap;
use std::net::IpAddr;

use mobile_io::netlink::{Family, ListedRule, RouteLookup};
use mobile_io::text::printable;

use crate::config::Routing;
use crate::selection::instance::Instance;
use crate::selection::process::{Connection, Process};

/// What the words are made of.
pub(super) struct Known<'a> {
    /// `[routing]`.
    pub(super) routing: &'a Routing,
    /// The host virtual device.
    pub(super) device: &'a str,
    /// Names of devices.
    pub(super) links: HashMap<u32, String>,
    /// Everybody's rules, in their order.
    pub(super) rules: Vec<ListedRule>,
    /// Whether the programs are in force; `None`: this user may not see.
    pub(super) programs: Option<bool>,
    /// Whether new connections of mobile processes go directly for want of a session, as far as this user may see.
    pub(super) open: bool,
}

/// A connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// Of a mobile process.
    pub(super) mobile: bool,
    /// Where to.
    pub(super) to: IpAddr,
}

/// Who it is, and whether it is mobile.
pub(super) fn attribute(process: &Process, mobile: bool, cgroup: &str) -> String {
    let Process { pid, comm, .. } = process;
    let verdict = if mobile { "is mobile" } else { "is not mobile" };
    let place = if mobile { "in the mobile cgroup" } else { "outside the mobile cgroup" };
    let (comm, cgroup) = (printable(comm), printable(cgroup));
    format!("process {pid} ({comm}) {verdict}: it is {place}, at {cgroup}\n")
}

/// Who may do the connecting in its place.
pub(super) fn instance(process: &Process, instance: &Instance) -> String {
    let Instance { pid, command, pids } = instance;
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let (own, command) = (printable(&process.comm), printable(command));
    format!(
        "{own} also runs outside the tunnel and takes work from others, as process {pid} ({command}): what this one hands \
         to it goes direct; for its next connections: mobile attach {}\n",
        pids.join(" ")
    )
}

impl Known<'_> {
    /// Whether a new connection of a mobile process, or of another, gets the mark.
    pub(super) fn is_marked(&self, mobile: bool) -> bool {
        mobile && !self.open
    }

    /// Hook and mark, rule, route, and what it comes to.
    pub(super) fn case(&self, case: Case, way: Option<&RouteLookup>) -> String {
        let Routing { mark, mark_mask, .. } = *self.routing;
        let mut lines = Vec::new();
        lines.push(match (case.mobile, self.programs) {
            (false, _) => "no mark: the hooks leave sockets of ordinary processes alone".to_owned(),
            (true, _) if self.open => {
                "no mark now: there is no session, and [routing] on_failure is \"open\"".to_owned()
            }
            (true, Some(false)) => {
                format!("no mark now: no eBPF programs are in force (start the agent); with them {mark:#x}")
            }
            (true, _) => {
                let version = if case.to.is_ipv4() { 4 } else { 6 };
                format!(
                    "mark {mark:#x}/{mark_mask:#x}, set by the hooks sock_create, connect{version} and \
                     sendmsg{version}"
                )
            }
        });
        lines.push(self.rule(case, way));
        lines.push(self.route(way));
        lines.push(self.outcome(case, way));
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// One socket that has its route, in one line.
    pub(super) fn socket(&self, connection: &Connection, mobile: bool, way: Option<&RouteLookup>) -> String {
        let Connection { transport, local, remote } = connection;
        let protocol = transport.word();
        let kind = if mobile { "on the MOBILE route" } else { "on an ordinary route" };
        format!("its socket {protocol} {local} -> {remote}: {kind}, {}\n", self.route(way))
    }

    /// The kernel names the table, not the rule that led there: that is the first that fits.
    fn rule(&self, case: Case, way: Option<&RouteLookup>) -> String {
        let family = Family::from(case.to);
        let mark = if self.is_marked(case.mobile) { self.routing.mark } else { 0 };
        let fits = |rule: &&ListedRule| rule.family == family && rule.matches_mark(mark, u32::MAX);
        let Some(way) = way else {
            let ours = |rule: &&ListedRule| rule.table == Some(self.routing.table);
            return match self.rules.iter().filter(fits).find(ours) {
                Some(rule) => format!("rule `{rule}`"),
                None => "no rule leads to a route".to_owned(),
            };
        };
        let table = table_of(way);
        match self.rules.iter().filter(fits).find(|rule| rule.table == Some(table)) {
            Some(rule) => format!("rule `{rule}`"),
            None => format!("a rule that asks for more than the mark leads to table {table}"),
        }
    }

    fn route(&self, way: Option<&RouteLookup>) -> String {
        let Some(way) = way else { return "no route: unreachable".to_owned() };
        let mut text = format!("route of table {}", table_of(way));
        if let Some(gateway) = way.gateway {
            text.push_str(&format!(" via {gateway}"));
        }
        if let Some(oif) = way.oif {
            text.push_str(&format!(" dev {}", self.name(oif)));
        }
        if let Some(source) = way.source {
            text.push_str(&format!(", source address {source}"));
        }
        text
    }

    fn outcome(&self, case: Case, way: Option<&RouteLookup>) -> String {
        let table = self.routing.table;
        let bypass = self.routing.bypass.iter().find(|net| net.contains(&case.to));
        let tunnel = |way: &RouteLookup| way.oif.is_some_and(|oif| self.name(oif) == self.device);
        match (case.mobile, way) {
            (true, None) if self.open => "so it fails: this host has no route there".to_owned(),
            (true, None) => format!(
                "so it waits: table {table} has no route through the tunnel yet, and fails closed rather than go \
                 direct"
            ),
            (false, None) => "so it fails: this host has no route there".to_owned(),
            (_, Some(way)) if way.local => "so it stays on this host".to_owned(),
            (_, Some(way)) if tunnel(way) => {
                format!(
                    "so it goes through the tunnel, from {} and over whatever uplink is active",
                    self.device
                )
            }
            (true, Some(_)) if self.open => {
                "so it goes directly, as will every new one until there is a session again".to_owned()
            }
            (true, Some(_)) => match bypass {
                Some(net) => {
                    format!(
                        "so it goes directly: the bypass has {net} (`mobile bypass list`), which table {table} throws back"
                    )
                }
                None if is_link_local(case.to) => "so it goes directly: it never leaves the link".to_owned(),
                None => "so it goes directly, although the process is mobile: no rule of ours leads there \
                         first; see `mobile check`"
                    .to_owned(),
            },
            (false, Some(_)) => "so it goes directly".to_owned(),
        }
    }

    fn name(&self, index: u32) -> String {
        self.links.get(&index).cloned().unwrap_or_else(|| format!("device {index}"))
    }
}

/// What mobile processes, too, send to the link itself.
fn is_link_local(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => to.is_link_local() || to.is_multicast() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_unicast_link_local() || to.is_multicast(),
    }
}

/// Until somebody adds a rule, the kernel keeps the local table (255) in the main one, and says so.
fn table_of(way: &RouteLookup) -> u32 {
    if way.local { 255 } else { way.table }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(priority: u32, fwmark: Option<(u32, u32)>, table: u32) -> ListedRule {
        ListedRule {
            priority,
            family: Family::V4,
            table: Some(table),
            fwmark,
            from: None,
            inverted: false,
            has_other_selectors: false,
            suppresses_default_route: false,
        }
    }

    fn known(routing: &Routing) -> Known<'_> {
        Known {
            routing,
            device: "mobile0",
            links: HashMap::from([(2, "eth0".to_owned()), (7, "mobile0".to_owned())]),
            rules: vec![
                rule(0, None, 255),
                rule(4900, Some((routing.mark, routing.mark_mask)), 7700),
                rule(32766, None, 254),
            ],
            programs: Some(true),
            open: false,
        }
    }

    fn way(table: u32, oif: u32) -> RouteLookup {
        let (gateway, source) = ("10.22.0.1".parse().ok(), "10.22.0.2".parse().ok());
        RouteLookup { table, local: false, oif: Some(oif), gateway, source }
    }

    const TO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const MOBILE: Case = Case { mobile: true, to: TO };
    const ORDINARY: Case = Case { mobile: false, to: TO };

    #[track_caller]
    fn assert_says(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn a_mobile_connection_is_told_with_mark_rule_route_and_source() {
        let routing = Routing::default();
        let source = "10.77.0.2".parse().ok();
        let text = known(&routing).case(MOBILE, Some(&RouteLookup { gateway: None, source, ..way(7700, 7) }));
        assert_says(
            &text,
            &[
                "mark 0x4d000000/0xff000000, set by the hooks sock_create, connect4 and sendmsg4",
                "rule `4900: from all fwmark 0x4d000000/0xff000000 lookup 7700`",
                "route of table 7700 dev mobile0, source address 10.77.0.2",
                "so it goes through the tunnel",
            ],
        );
    }

    #[test]
    fn an_ordinary_connection_and_a_bypassed_one_go_directly() {
        let mut routing = Routing::default();
        let text = known(&routing).case(ORDINARY, Some(&way(254, 2)));
        assert_says(
            &text,
            &["no mark", "`32766: from all lookup main`", "via 10.22.0.1 dev eth0", "so it goes directly\n"],
        );
        let text = known(&routing).case(MOBILE, Some(&way(254, 2)));
        assert_says(&text, &["although the process is mobile"]);
        routing.bypass.push("192.0.2.0/24".parse().unwrap());
        let text = known(&routing).case(MOBILE, Some(&way(254, 2)));
        assert_says(&text, &["the bypass has 192.0.2.0/24", "lookup main"]);
    }

    #[test]
    fn what_goes_directly_for_want_of_a_session_is_told_so() {
        let routing = Routing::default();
        let open = Known { open: true, ..known(&routing) };
        assert!(!open.is_marked(true));
        let text = open.case(MOBILE, Some(&way(254, 2)));
        assert_says(&text, &["on_failure is \"open\"", "lookup main", "so it goes directly, as will"]);
        assert_says(&open.case(MOBILE, None), &["so it fails"]);
    }

    #[test]
    fn what_stays_on_this_host_is_of_the_local_table_wherever_the_kernel_keeps_it() {
        let routing = Routing::default();
        for table in [254, 255] {
            let text = known(&routing).case(MOBILE, Some(&RouteLookup { local: true, ..way(table, 1) }));
            assert_says(&text, &["`0: from all lookup local`", "route of table 255", "stays on this host"]);
        }
    }

    #[test]
    fn what_has_no_way_waits_when_it_is_mobile() {
        let routing = Routing::default();
        let text = known(&routing).case(MOBILE, None);
        assert_says(&text, &["lookup 7700", "unreachable", "so it waits"]);
        assert_says(&known(&routing).case(ORDINARY, None), &["so it fails"]);
        let known = Known { programs: Some(false), ..known(&routing) };
        assert_says(&known.case(MOBILE, None), &["no eBPF programs are in force"]);
    }
}

use super::*;
use crate::selection::process::Transport;

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

fn host(routing: &Routing) -> HostState<'_> {
    HostState {
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
        session: Some(true),
    }
}

fn route(table: u32, oif: u32) -> RouteLookup {
    let (gateway, source) = ("10.22.0.1".parse().ok(), "10.22.0.2".parse().ok());
    RouteLookup { table, local: false, oif: Some(oif), gateway, source }
}

const TO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
const MOBILE: NewConnection = NewConnection { mobile: true, to: TO };
const ORDINARY: NewConnection = NewConnection { mobile: false, to: TO };

#[track_caller]
fn assert_says(lines: &[String], parts: &[&str]) {
    let text = lines.join("\n") + "\n";
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_mobile_connection_is_described_with_mark_rule_route_and_source() {
    let routing = Routing::default();
    let source = "10.77.0.2".parse().ok();
    let text =
        host(&routing).new_connection(MOBILE, Some(&RouteLookup { gateway: None, source, ..route(7700, 7) }));
    assert_says(
        &text,
        &[
            "mark 0x4d000000/0xff000000, set by the hooks sock_create, connect4 and sendmsg4",
            "rule `4900: from all fwmark 0x4d000000/0xff000000 lookup 7700`",
            "route of table 7700 dev mobile0, source address 10.77.0.2",
            "result: goes through the tunnel",
        ],
    );
    let waiting = HostState { session: Some(false), ..host(&routing) };
    let text = waiting.new_connection(MOBILE, Some(&route(7700, 7)));
    assert_says(&text, &["result: waits, because there is no session"]);
}

#[test]
fn an_ordinary_connection_and_a_bypassed_one_go_directly() {
    let mut routing = Routing::default();
    let text = host(&routing).new_connection(ORDINARY, Some(&route(254, 2)));
    assert_says(
        &text,
        &[
            "no mark",
            "`32766: from all lookup main`",
            "via 10.22.0.1 dev eth0",
            "result: goes directly, because the process is not mobile\n",
        ],
    );
    let text = host(&routing).new_connection(MOBILE, Some(&route(254, 2)));
    assert_says(&text, &["although the process is mobile"]);
    routing.bypass.push("192.0.2.0/24".parse().unwrap());
    routing.bypass.push("192.0.0.0/16".parse().unwrap());
    let text = host(&routing).new_connection(MOBILE, Some(&route(254, 2)));
    assert_says(
        &text,
        &[
            "table 7700 has a throw route for the bypassed network 192.0.2.0/24, so the next rules apply: rule \
             `32766: from all lookup main`",
            "result: goes directly over eth0, because 192.0.2.0/24 is bypassed",
        ],
    );
    let text = host(&routing).new_connection(ORDINARY, Some(&route(254, 2)));
    assert!(!text.concat().contains("bypassed"), "{text:?}");
}

#[test]
fn a_bypassed_connection_does_not_wait_for_the_tunnel() {
    let routing = Routing { bypass: vec!["192.0.2.0/24".parse().unwrap()], ..Routing::default() };
    let text = host(&routing).new_connection(MOBILE, None);
    assert_says(&text, &["no later rule has a route", "result: fails, because 192.0.2.0/24 is bypassed"]);
    let open = HostState { open: true, session: Some(false), ..host(&routing) };
    let text = open.new_connection(MOBILE, Some(&route(254, 2)));
    assert_says(&text, &["because 192.0.2.0/24 is bypassed"]);
}

#[test]
fn a_bypassed_socket_of_a_mobile_process_is_described_with_the_network() {
    let routing = Routing { bypass: vec!["192.0.2.0/24".parse().unwrap()], ..Routing::default() };
    let (local, remote) = ("10.22.0.2:5000".parse().unwrap(), "192.0.2.2:22".parse().unwrap());
    let connection = Connection { transport: Transport::Tcp, local, remote };
    let text = host(&routing).socket(&connection, true, false, Some(&route(254, 2)));
    assert_says(&[text], &["direct, because 192.0.2.0/24 is bypassed", "via 10.22.0.1 dev eth0"]);
    let text = host(&routing).socket(&connection, false, false, Some(&route(254, 2)));
    assert!(!text.contains("bypassed"), "{text}");
}

#[test]
fn a_connection_that_goes_direct_without_a_session_is_described_so() {
    let routing = Routing::default();
    let open = HostState { open: true, ..host(&routing) };
    assert!(!open.is_marked(true));
    let text = open.new_connection(MOBILE, Some(&route(254, 2)));
    assert_says(&text, &["on_failure is \"open\"", "lookup main", "result: goes directly, as every"]);
    assert_says(&open.new_connection(MOBILE, None), &["result: fails"]);
}

#[test]
fn a_local_destination_is_attributed_to_the_local_table_wherever_the_kernel_keeps_it() {
    let routing = Routing::default();
    for table in [254, 255] {
        let text =
            host(&routing).new_connection(MOBILE, Some(&RouteLookup { local: true, ..route(table, 1) }));
        assert_says(&text, &["`0: from all lookup local`", "route of table 255", "stays on this host"]);
    }
}

#[test]
fn a_connection_without_a_route_waits_if_it_is_mobile() {
    let routing = Routing::default();
    let text = host(&routing).new_connection(MOBILE, None);
    assert_says(&text, &["lookup 7700", "unreachable", "result: waits"]);
    assert_says(&host(&routing).new_connection(ORDINARY, None), &["result: fails"]);
    let host = HostState { programs: Some(false), ..host(&routing) };
    assert_says(&host.new_connection(MOBILE, None), &["no eBPF programs are in force"]);
}

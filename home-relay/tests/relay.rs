//! Tests the program in a network namespace of its own. Needs root, as the relay does.

mod common;

use common::{Bench, text};

const KEY_A: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_B: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

#[test]
fn the_key_is_rotated_with_and_without_a_running_relay() {
    let bench = Bench::new();
    let first = bench.init("10.9.8.0/24", "fd12:9:8::/64").trim().to_owned();
    let first_line = |output| text(&output).lines().next().unwrap_or_default().to_owned();
    assert_eq!(text(&bench.ok(&["key"])), format!("{first}\n"));
    assert!(bench.fails(&["key", "rotate", "--finish"]).contains("begin one with `home-relay key rotate`"));
    assert!(bench.fails(&["key", "rotate", "--cancel"]).contains("no rotation is under way"));
    bench.ok(&["authorize", "laptop", KEY_A]);
    let begun = text(&bench.ok(&["key", "rotate"]));
    let second = begun.lines().nth(1).unwrap().strip_prefix("next: ").unwrap().to_owned();
    assert!(begun.starts_with(&first) && begun.contains("laptop  no"), "{begun}");
    assert_eq!(text(&bench.ok(&["key", "rotate"])), begun, "it is under way already");

    let mut relay = bench.serve();
    assert_eq!(text(&bench.ok(&["key"])), begun);
    let refused = bench.fails(&["key", "rotate", "--finish"]);
    assert!(refused.contains("do not know the next key") && refused.contains("laptop"), "{refused}");
    let invitation = first_line(bench.ok(&["invite", "phone", "--endpoint", "relay.example.org:443"]));
    assert!(invitation.starts_with("mobile-invite-2-"), "{invitation}");
    assert_eq!(text(&bench.ok(&["key", "rotate", "--finish", "--force"])), format!("{second}\n"));
    let state: serde_json::Value = serde_json::from_slice(&bench.ok(&["key", "--json"]).stdout).unwrap();
    assert_eq!((&state["public_key"], &state["next_public_key"]), (&second.clone().into(), &().into()));
    assert!(bench.path("relay.key.old").exists());

    // An endpoint that invitations name from now on.
    assert!(text(&bench.ok(&["move"])).starts_with("no endpoint is announced"));
    let moved = text(&bench.ok(&["move", "[2001:db8::1]:8443"]));
    assert!(moved.starts_with("[2001:db8::1]:8443\n") && moved.contains("laptop  no"), "{moved}");
    assert!(first_line(bench.ok(&["invite", "tablet"])).starts_with("mobile-invite-1-"));
    relay.terminate();
    assert_eq!(text(&bench.ok(&["move"])), moved);
    bench.ok(&["key", "rotate"]);
    bench.ok(&["key", "rotate", "--cancel"]);
    assert_eq!(text(&bench.ok(&["key"])), format!("{second}\n"));
    bench.ok(&["move", "--cancel"]);
    assert!(text(&bench.ok(&["move"])).starts_with("no endpoint is announced"));
    bench.run_inside(&["cleanup"]);
    bench.assert_nothing_left();
}

#[test]
fn a_relay_survives_a_kill_and_cleanup_removes_everything() {
    let bench = Bench::new();
    bench.init("10.9.8.0/24", "fd12:9:8::/64");
    bench.append("[metrics]\nlisten = \"127.0.0.1:9478\"\n");

    // Without a running relay, commands work on the store.
    assert_eq!(text(&bench.ok(&["authorize", "laptop", KEY_A])), "10.9.8.2\nfd12:9:8::2\n");
    assert!(bench.fails(&["sessions"]).contains("no relay is running"));

    let mut relay = bench.serve();
    let addresses = bench.inside(&["ip", "-o", "address", "show", "home0"]);
    assert!(addresses.contains("10.9.8.1/24") && addresses.contains("fd12:9:8::1/64"), "{addresses}");
    assert!(!addresses.contains("fe80::"), "{addresses}");
    assert!(bench.inside(&["ip", "-o", "link", "show", "home0"]).contains("mtu 1500"));
    let rules = bench.inside(&["nft", "list", "table", "inet", "home_relay"]);
    assert!(rules.contains("ip saddr 10.9.8.0/24 oifname != \"home0\" masquerade"), "{rules}");
    assert!(rules.contains("ip6 saddr fd12:9:8::/64 oifname != \"home0\" masquerade"), "{rules}");
    for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        assert_eq!(bench.inside(&["sysctl", "-n", setting]).trim(), "1", "{setting}");
    }
    assert_eq!(bench.inside(&["sysctl", "-n", "net.ipv4.conf.home0.rp_filter"]).trim(), "2");

    // With a running relay, commands ask the relay.
    assert_eq!(text(&bench.ok(&["authorize", "phone", KEY_B])), "10.9.8.3\nfd12:9:8::3\n");
    assert!(bench.fails(&["authorize", "other", KEY_B]).contains("already authorised as client \"phone\""));
    assert!(bench.fails(&["revoke", "nobody"]).contains("no client named \"nobody\""));
    let clients: serde_json::Value =
        serde_json::from_slice(&bench.ok(&["clients", "--json"]).stdout).unwrap();
    assert_eq!(clients[0]["name"], "laptop");
    assert_eq!(clients[0]["public_key"], KEY_A);
    assert_eq!(clients[1]["ipv4"], "10.9.8.3");
    assert_eq!(clients[1]["ipv6"], "fd12:9:8::3");
    let sessions: serde_json::Value =
        serde_json::from_slice(&bench.ok(&["sessions", "--json"]).stdout).unwrap();
    assert_eq!(sessions, serde_json::json!([]));
    let metrics = bench.inside(&["curl", "-s", "http://127.0.0.1:9478/metrics"]);
    assert!(metrics.contains("homerelay_clients 2"), "{metrics}");
    assert!(bench.fails(&["cleanup"]).contains("the relay is running"));
    assert!(bench.serve_fails(&[]).contains("already running"));

    // After SIGKILL the device and the rules stay for the next start, which adopts them.
    relay.kill();
    assert!(bench.inside(&["ip", "-o", "address", "show", "home0"]).contains("10.9.8.1/24"));
    assert_eq!(text(&bench.ok(&["clients"])).lines().count(), 3);
    bench.ok(&["revoke", "laptop"]);
    let mut relay = bench.serve();
    let listed = text(&bench.ok(&["clients"]));
    assert!(
        listed.contains("phone") && listed.contains("10.9.8.3") && !listed.contains("laptop"),
        "{listed}"
    );
    assert_eq!(bench.inside(&["ip", "-o", "-4", "address", "show", "home0"]).lines().count(), 1);

    // After SIGTERM the exit status is 0, and everything stays until cleanup.
    assert_eq!(relay.terminate(), Some(0));
    assert!(!bench.socket().exists());
    assert!(bench.inside(&["ip", "link"]).contains("home0"));
    bench.run_inside(&["cleanup"]);
    bench.assert_nothing_left();
    bench.run_inside(&["cleanup"]);
}

#[test]
fn a_failed_start_reports_the_cause_and_leaves_nothing_behind() {
    let bench = Bench::new();
    bench.init("10.9.8.0/24", "fd12:9:8::/64");

    let holder = bench.occupy_port();
    let error = bench.serve_fails(&[]);
    assert!(error.contains("8443") && error.contains("in use"), "{error}");
    bench.assert_nothing_left();
    drop(holder);

    let error =
        bench.serve_fails(&["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "-"]);
    assert!(error.contains("/dev/net/tun"), "{error}");
    bench.assert_nothing_left();

    // The device and its addresses are made before nft runs, so this start has something to undo.
    let error = bench.serve_fails(&["env", "PATH=/nonexistent"]);
    assert!(error.contains("nft is not installed") && error.contains("masquerade"), "{error}");
    bench.assert_nothing_left();
    assert_eq!(bench.inside(&["sysctl", "-n", "net.ipv4.ip_forward"]).trim(), "0");

    std::fs::write(bench.path("relay.state/relay.redb"), "damaged").unwrap();
    let error = bench.serve_fails(&[]);
    assert!(error.contains("relay.redb"), "{error}");
    bench.assert_nothing_left();
    std::fs::remove_file(bench.path("relay.state/relay.redb")).unwrap();

    bench.give_to_nobody();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let error = bench.serve_fails(&nobody);
    assert!(error.contains("root") && error.contains("CAP_NET_ADMIN"), "{error}");
    bench.assert_nothing_left();

    std::fs::remove_file(bench.path("relay.key")).unwrap();
    let error = bench.serve_fails(&[]);
    assert!(error.contains("relay.key") && error.contains("init"), "{error}");
    bench.assert_nothing_left();

    bench.append("[nat]\nmasqerade = true\n");
    let error = bench.serve_fails(&[]);
    assert!(error.contains("relay.toml:") && error.contains("masqerade"), "{error}");
    assert!(error.contains("masquerade"), "{error}");
    bench.assert_nothing_left();
}

#[test]
fn a_host_without_ipv6_serves_ipv4() {
    let bench = Bench::new();
    bench.init("10.9.8.0/24", "fd12:9:8::/64");
    for scope in ["all", "default"] {
        bench.inside(&["sysctl", "-qw", &format!("net.ipv6.conf.{scope}.disable_ipv6=1")]);
    }
    let mut relay = bench.serve();
    let addresses = bench.inside(&["ip", "-o", "address", "show", "home0"]);
    assert!(addresses.contains("10.9.8.1/24") && !addresses.contains("inet6"), "{addresses}");
    // The lease has both families, for the day when the host has IPv6.
    assert_eq!(text(&bench.ok(&["authorize", "laptop", KEY_A])), "10.9.8.2\nfd12:9:8::2\n");
    assert_eq!(relay.terminate(), Some(0));
}

#[test]
fn init_prints_only_the_key_and_overwrites_nothing() {
    let bench = Bench::new();
    let key = bench.init("10.9.8.0/24", "fd12:9:8::/64");
    assert_eq!((key.len(), key.trim().len()), (45, 44), "{key:?}");
    let before = std::fs::read(bench.path("relay.key")).unwrap();
    assert!(bench.fails(&["init"]).contains("not overwritten"));
    assert_eq!(std::fs::read(bench.path("relay.key")).unwrap(), before);
    assert_eq!(bench.status(&["authorize", "x"]), Some(2), "a usage error");
    assert_eq!(bench.status(&["authorize", "x", "no-key"]), Some(2), "a usage error");
}

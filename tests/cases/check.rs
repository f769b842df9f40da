//! `mobile check` and `mobile explain` report the state of the agent and the host, and how to
//! repair faults.

use std::path::PathBuf;

use mobile_tests::{
    CaptivePortal, CommandOutput, PATIENCE, RELAY_PORT, TcpService, Testbed, addr, finish_within,
    in_mount_namespace, port,
};

use crate::{Outcome, copy, installed_without_delay, server};

/// Runs `mobile check` with an `/etc/resolv.conf` that names a local stub resolver (127.0.0.53).
fn check(bed: &Testbed) -> anyhow::Result<CommandOutput> {
    let resolv = local_resolver(bed)?;
    let command = bed.agent.command(&["check"]);
    let under = in_mount_namespace(&format!("mount --bind {} /etc/resolv.conf", resolv.display()));
    let mut shell = bed.lab.host.command_line(&under);
    shell.arg(command.get_program()).args(command.get_args());
    finish_within(&mut shell, None, PATIENCE)
}

fn local_resolver(bed: &Testbed) -> anyhow::Result<PathBuf> {
    let path = bed.lab.dir().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.53\n")?;
    Ok(path)
}

/// Returns the output lines of `mobile check` that report a fault (do not begin with `ok`).
fn faults(done: &CommandOutput) -> Vec<&str> {
    done.stdout.lines().filter(|line| !line.starts_with("ok ")).collect()
}

/// Checks that one of the output lines begins with `start` and contains `part`.
#[track_caller]
fn assert_line(done: &CommandOutput, start: &str, part: &str) {
    let found = done.stdout.lines().any(|line| line.starts_with(start) && line.contains(part));
    assert!(found, "no line {start:?} with {part:?} in\n{}{}", done.stdout, done.stderr);
}

#[test]
fn a_healthy_machine_gets_ok_on_every_line() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.start()?;
    let done = check(&bed)?;
    assert_eq!((done.code(), faults(&done)), (0, vec![]), "{done:?}");
    for topic in ["kernel", "config", "key", "cgroup2", "bpffs", "eBPF", "TUN", "rules", "table", "rp_filter"]
    {
        assert_line(&done, &format!("ok    {topic}: "), "");
    }
    for uplink in ["eth0", "wlan0"] {
        assert_line(&done, &format!("ok    relay over {uplink}: "), &addr::RELAY4.to_string());
    }
    assert_line(&done, "ok    agent: ", "not running");
    // The check only reads: it leaves nothing, and the relay has seen no session.
    assert!(bed.relay.sessions()?.is_empty());
    for made in [&bed.agent.pin_dir, &bed.agent.cgroup] {
        let (dir, name) = (made.parent().expect("a directory"), made.file_name().expect("a name"));
        let left = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name());
        let left: Vec<_> =
            left.filter(|it| it.to_string_lossy().starts_with(&*name.to_string_lossy())).collect();
        assert!(left.is_empty(), "{left:?} are left in {}", dir.display());
    }

    bed.agent.start()?;
    bed.agent.wait_connected()?;
    let done = check(&bed)?;
    assert_eq!((done.code(), faults(&done)), (0, vec![]), "{done:?}");
    assert_line(&done, "ok    agent: ", "connected over eth0");
    assert_line(&done, "ok    addresses: ", &bed.agent.address4.to_string());
    let json = bed.agent.cli(&["check", "--json"])?.ok()?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(json["ok"], true);
    assert!(json["findings"].as_array().is_some_and(|findings| findings.len() > 10), "{json}");
    bed.finish()
}

#[test]
fn without_the_relay_every_uplink_fails() -> Outcome {
    let bed = installed_without_delay()?;
    let done = check(&bed)?;
    assert_eq!(done.code(), 1, "{done:?}");
    for uplink in ["eth0", "wlan0"] {
        assert_line(&done, &format!("FAIL  relay over {uplink}: "), "check that home-relay runs there");
    }
    bed.finish()
}

#[test]
fn a_key_that_one_side_does_not_accept_fails_with_the_cure() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.start()?;
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    let done = check(&bed)?;
    assert_eq!(done.code(), 1, "{done:?}");
    assert_line(&done, "FAIL  relay over eth0: ", &format!("authorize NAME {}", bed.agent.public_key));

    let other = bed.lab.dir().join("other.key").display().to_string();
    let other = bed.agent.cli(&["keygen", "--out", &other])?.ok()?;
    bed.agent.configure("relay", "public_key", other.trim())?;
    let done = check(&bed)?;
    assert_eq!(done.code(), 1, "{done:?}");
    assert_line(&done, "FAIL  relay over wlan0: ", "[relay] public_key");
    bed.expect_warning("authori");
    bed.finish()
}

#[test]
fn a_portal_on_one_uplink_is_a_warning_while_the_other_works() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.start()?;
    let portal = CaptivePortal::install(&bed.lab.visited[1])?;
    let done = check(&bed)?;
    assert_eq!(done.code(), 0, "{done:?}");
    assert_line(&done, "warn  relay over eth0: ", "captive portal");
    assert_line(&done, "ok    relay over wlan0: ", "");
    assert_eq!(faults(&done).len(), 1, "{done:?}");
    assert!(portal.intercepted() > 0);
    drop(portal);
    bed.finish()
}

#[test]
fn strict_reverse_path_filters_on_several_uplinks_are_a_warning() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.start()?;
    bed.lab.host.run(&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"])?;
    for device in ["eth0", "wlan0"] {
        bed.lab.host.run(&["sysctl", "-qw", &format!("net.ipv4.conf.{device}.rp_filter=0")])?;
    }
    let done = check(&bed)?;
    assert_eq!(done.code(), 0, "{done:?}");
    assert_line(&done, "warn  rp_filter: strict on eth0, wlan0", "net.ipv4.conf.all.rp_filter=2");
    bed.finish()
}

#[test]
fn a_full_tunnels_rule_with_no_room_before_it_fails() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.start()?;
    let rule = ["priority", "2", "not", "fwmark", "0xca6c", "table", "51820"];
    bed.lab.host.run(&[&["ip", "-4", "rule", "add"], &rule[..]].concat())?;
    bed.lab.host.run(&["ip", "-4", "route", "add", "default", "via", "10.22.0.1", "table", "51820"])?;
    bed.agent.wait_status("the rule to be seen", |status| status["rival_rules"] == 1)?;
    let done = check(&bed)?;
    assert_eq!(done.code(), 1, "{done:?}");
    assert_line(&done, "FAIL  rules: ", "rule_priority below 2");
    let said = bed.agent.cli(&["explain", &addr::SERVER4.to_string()])?.ok()?;
    assert!(said.contains("although the process is mobile"), "{said}");
    bed.lab.host.run(&[&["ip", "-4", "rule", "del"], &rule[..]].concat())?;
    bed.agent.wait_status("it to be gone", |status| status["rival_rules"] == 0)?;
    assert_eq!(check(&bed)?.code(), 0);
    bed.expect_warning("there is no room before it");
    bed.finish()
}

#[test]
fn an_ordinary_user_is_told_which_checks_were_skipped() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.start()?;
    let open = bed.lab.dir().join("open");
    std::fs::create_dir(&open)?;
    for path in [bed.lab.dir().to_path_buf(), bed.lab.dir().join("laptop"), bed.agent.config().to_path_buf()]
    {
        bed.lab.host.run(&["chmod", "a+rX", &path.display().to_string()])?;
    }
    let program = open.join("program");
    let command = bed.agent.command(&["check"]);
    copy(&bed, command.get_program(), &program)?;
    let done =
        finish_within(bed.lab.host.command_as(65_534, &program).args(command.get_args()), None, PATIENCE)?;
    assert_eq!(done.code(), 0, "{done:?}");
    for topic in ["key", "eBPF", "TUN", "ingress", "relay"] {
        assert_line(&done, &format!("skip  {topic}: "), "needs root; what to do: run `mobile check` as root");
    }
    assert!(!done.stdout.contains("FAIL"), "{done:?}");
    bed.finish()
}

#[test]
fn the_relays_own_check_passes_before_and_while_it_serves() -> Outcome {
    let mut bed = installed_without_delay()?;
    for serving in ["is free", "is served by the running relay"] {
        let done = bed.relay.cli(&["check"])?;
        assert_eq!((done.code(), faults(&done)), (0, vec![]), "{done:?}");
        assert_line(&done, "ok    port: ", serving);
        for topic in ["config", "key", "TUN", "nftables", "forwarding", "pool"] {
            assert_line(&done, &format!("ok    {topic}: "), "");
        }
        if !bed.relay.is_running() {
            bed.relay.start()?;
        }
    }
    bed.finish()
}

#[test]
fn the_relays_check_finds_the_port_taken_the_pool_in_use_and_another_firewall() -> Outcome {
    let bed = installed_without_delay()?;
    let relay = &bed.lab.relay;
    let squatter = TcpService::start(relay, RELAY_PORT, |_, _| {})?;
    bed.relay.configure("pool", "ipv4", "198.51.100.0/24")?;
    relay.feed(
        &["nft", "-f", "-"],
        "table ip other {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n }\n}\n",
    )?;
    let done = bed.relay.cli(&["check"])?;
    assert_eq!(done.code(), 1, "{done:?}");
    assert_line(&done, "FAIL  port: ", "another program");
    assert_line(&done, "FAIL  pool: 198.51.100.0/24", "overlaps with");
    assert_line(&done, "warn  firewall: ", "ip other forward");
    relay.run(&["nft", "delete", "table", "ip", "other"])?;
    drop(squatter);
    assert_eq!(bed.relay.cli(&["check", "--json"])?.code(), 1);
    bed.finish()
}

#[test]
fn explain_describes_a_mobile_an_ordinary_and_a_bypassed_connection() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.agent.configure("routing", "bypass", vec![format!("{}/128", addr::SERVER6)])?;
    bed.start()?;
    let explain = |target: &str| bed.agent.cli(&["explain", target])?.ok();
    let [four, six] = server(port::ECHO);
    let persistent = bed.agent.address4.to_string();

    let said = explain(&four)?;
    let (mobile, ordinary) = said.split_once("an ordinary process:").expect("both");
    for part in ["connect4", "lookup 7700", "dev mobile0", &persistent, "through the tunnel"] {
        assert!(mobile.contains(part), "no {part:?} in {said}");
    }
    for part in ["no mark", "lookup main", "via 10.22.0.1 dev eth0", "goes directly"] {
        assert!(ordinary.contains(part), "no {part:?} in {said}");
    }
    let said = explain(&addr::SERVER6.to_string())?;
    let mobile = said.split("an ordinary process:").next().expect("a part");
    assert!(mobile.contains("is bypassed") && mobile.contains("dev eth0"), "{said}");

    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    let said = explain(&talk.pid().to_string())?;
    assert!(said.contains("is mobile: it is in the mobile cgroup"), "{said}");
    assert!(said.contains(&format!("-> {four}: through the tunnel")), "{said}");
    assert!(said.contains("its next IPv4 connection") && said.contains("through the tunnel"), "{said}");
    let mut bypassed = bed.mobile_labtool(&["tcp", &six])?;
    bypassed.next_line()?;
    let said = explain(&bypassed.pid().to_string())?;
    let reason = format!("-> {six}: direct, because {}/128 is bypassed", addr::SERVER6);
    assert!(said.contains(&reason), "no {reason:?} in {said}");
    let mut plain = bed.ordinary_labtool(&["tcp", &four])?;
    plain.next_line()?;
    let said = explain(&plain.pid().to_string())?;
    assert!(said.contains("is not mobile") && said.contains(": direct, route of table"), "{said}");
    assert!(!said.contains("through the tunnel"), "{said}");
    assert_eq!(bed.agent.cli(&["explain", "4000000"])?.code(), 1);
    drop((talk, bypassed, plain));
    bed.finish()
}

//! The relay restores its kernel state when other programs change it, and does not touch another
//! relay's.

use std::os::unix::fs::symlink;

use anyhow::Context as _;
use mobile_tests::{METRICS, PATIENCE, Process, Testbed, addr, finish_within, program, until};
use nix::sys::signal::Signal;

use crate::{Outcome, assert_echo, echo_sessions, ip_of, urls};

const RESTORED: &str = "homerelay_network_restored_total";

fn healthz(bed: &Testbed) -> anyhow::Result<String> {
    let text =
        bed.lab.relay.run(&["curl", "-sS", "-w", "%{http_code}", &format!("http://{METRICS}/healthz")])?;
    Ok(text.replace('\n', " "))
}

/// Checks that a new connection of a mobile process reaches the server under the relay's address.
fn mobile_connects(bed: &Testbed) -> Outcome {
    for (url, relay) in urls("/ip").iter().zip([addr::RELAY4.to_string(), addr::RELAY6.to_string()]) {
        let seen =
            finish_within(&mut bed.agent.run(&["curl", "-s", "-m", "10", url]), None, PATIENCE)?.ok()?;
        assert_eq!(ip_of(&seen).to_string(), relay);
    }
    Ok(())
}

#[test]
fn a_relay_restores_its_rules_after_the_ruleset_was_flushed_or_changed() -> Outcome {
    let mut bed = Testbed::new()?;
    let relay = bed.lab.relay.clone();
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    let rules = || relay.run(&["nft", "list", "ruleset"]);
    let before = rules()?;
    assert!(before.contains("masquerade") && before.contains("dnat"), "{before}");
    let mut talks = echo_sessions(&bed)?;
    // `flush ruleset` as Debian's /etc/nftables.conf begins; then smaller changes to the relay's
    // table.
    for (number, change) in [
        "flush ruleset",
        "flush chain inet home_relay postrouting",
        "add table inet home_relay { flags dormant; }",
        "insert rule inet home_relay forward drop",
        "delete table inet home_relay",
    ]
    .into_iter()
    .enumerate()
    {
        relay.run(&["nft", change])?;
        until("the rules to be back", || rules().is_ok_and(|now| now == before))
            .with_context(|| format!("after `nft {change}`, now:\n{}", rules().unwrap_or_default()))?;
        until("it to be counted, once", || {
            bed.relay.counter(RESTORED).is_ok_and(|count| count == number as u64 + 1)
        })?;
        assert_echo(&mut talks, change)?;
        mobile_connects(&bed)?;
    }
    assert_eq!(bed.relay.log().matches("another program changed: nftables table inet home_relay").count(), 5);
    // Tables of other programs do not matter.
    relay.run(&["nft", "add table inet theirs"])?;
    relay.run(&["nft", "delete table inet theirs"])?;
    assert_eq!(bed.relay.counter(RESTORED)?, 5);
    drop(talks);
    bed.expect_warning("kernel state");
    bed.finish()
}

#[test]
fn settings_addresses_and_routes_of_the_relays_device_are_restored() -> Outcome {
    let mut bed = Testbed::new()?;
    let relay = bed.lab.relay.clone();
    let state = || -> anyhow::Result<String> {
        let mut all = String::new();
        for what in [
            "ip -o link show home0",
            "ip -o -4 address show home0",
            "ip -o -6 address show home0",
            "ip -4 route show dev home0",
            "sysctl net.ipv4.ip_forward net.ipv4.conf.home0.forwarding net.ipv4.conf.home0.rp_filter",
            "sysctl net.ipv6.conf.all.forwarding net.ipv6.conf.home0.forwarding",
        ] {
            all += &relay.run(&what.split(' ').collect::<Vec<_>>())?;
        }
        Ok(all)
    };
    let before = state()?;
    let mut talks = echo_sessions(&bed)?;
    for change in [
        "sysctl -w net.ipv4.ip_forward=0",
        "sysctl -w net.ipv6.conf.all.forwarding=0",
        "sysctl -w net.ipv4.conf.home0.rp_filter=1",
        "ip address flush dev home0",
        "ip -4 route flush dev home0",
        "ip -6 route flush dev home0 table main",
        "ip link set home0 down",
        "ip link set home0 mtu 1300",
    ] {
        let counted = bed.relay.counter(RESTORED)?;
        relay.run(&change.split(' ').collect::<Vec<_>>())?;
        until("all to be as before", || state().is_ok_and(|now| now == before)).with_context(|| {
            format!("after `{change}`, before:\n{before}now:\n{}", state().unwrap_or_default())
        })?;
        until("it to be counted", || bed.relay.counter(RESTORED).is_ok_and(|count| count > counted))
            .with_context(|| format!("after `{change}`"))?;
        assert_echo(&mut talks, change)?;
        mobile_connects(&bed)?;
    }
    drop(talks);
    bed.expect_warning("kernel state");
    bed.finish()
}

#[test]
fn a_relay_whose_rules_cannot_be_restored_says_so_and_a_reload_applies_them() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let tools = bed.lab.dir().join("tools");
    std::fs::create_dir(&tools)?;
    let nft = bed.lab.relay.run(&["sh", "-c", "command -v nft"])?;
    let link = || symlink(nft.trim(), tools.join("nft"));
    link()?;
    bed.relay.set_variable("PATH", tools.display().to_string());
    bed.start()?;
    let relay = bed.lab.relay.clone();
    let rules = || relay.run(&["nft", "list", "ruleset"]);
    let before = rules()?;
    let well = bed.relay.cli(&["check"])?;
    assert!(well.code() == 0 && well.stdout.contains("ok    network: "), "{well:?}");
    assert_eq!(healthz(&bed)?, "ok 200");

    // Without nft nothing can be restored.
    std::fs::remove_file(tools.join("nft"))?;
    relay.run(&["nft", "flush", "ruleset"])?;
    until("the relay to be unwell", || healthz(&bed).is_ok_and(|page| page.ends_with("503")))?;
    assert!(healthz(&bed)?.contains("nft"), "{}", healthz(&bed)?);
    let unwell = bed.relay.cli(&["check"])?;
    assert!(unwell.code() == 1 && unwell.stdout.contains("FAIL  network: "), "{unwell:?}");
    let refused = bed.relay.cli(&["reload"])?;
    assert!(refused.code() == 1 && refused.stderr.contains("nft"), "{refused:?}");
    assert_eq!(rules()?, "");

    link()?;
    bed.relay.cli(&["reload"])?.ok()?;
    assert_eq!(rules()?, before);
    until("the relay to be well", || healthz(&bed).is_ok_and(|page| page == "ok 200"))?;
    assert_eq!(bed.relay.log().matches("cannot restore kernel state, retrying").count(), 1, "said once");

    // Also by signal: whichever of the two restores first, the rules are in force again.
    relay.run(&["nft", "flush", "ruleset"])?;
    bed.relay.signal(Signal::SIGHUP)?;
    until("the rules to be back", || rules().is_ok_and(|now| now == before))?;
    mobile_connects(&bed)?;
    bed.expect_warning("kernel state");
    bed.expect_warning("the old one stays in force");
    bed.finish()
}

#[test]
fn without_its_device_the_relay_ends_with_the_reason_and_the_next_relay_adopts_all() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    bed.lab.relay.run(&["ip", "link", "del", "home0"])?;
    until("the relay to end", || {
        bed.relay.log().contains("device home0 is gone: another program removed it")
    })?;
    // systemd would start it again because of `Restart=always`.
    let _it_has_ended = bed.relay.kill();
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    assert_echo(&mut talks, "still here")?;
    mobile_connects(&bed)?;
    drop(talks);
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn cleanup_of_one_relay_leaves_anothers_rules_alone() -> Outcome {
    let bed = Testbed::new()?;
    let relay = bed.lab.relay.clone();
    let dir = bed.lab.dir();
    // A second relay on the same host, with another device.
    let mut config: toml::Table = std::fs::read_to_string(bed.relay.config())?.parse()?;
    let path = |name: &str| dir.join(name).display().to_string();
    for (section, key, value) in [
        ("listen", "address", "[::]:4443".to_owned()),
        ("tunnel", "device", "home+1".to_owned()),
        ("pool", "ipv4", "10.99.0.0/24".to_owned()),
        ("pool", "ipv6", "fd99::/64".to_owned()),
        ("admin", "socket", path("second.sock")),
        ("state", "dir", path("second-state")),
        ("metrics", "listen", "127.0.0.1:9479".to_owned()),
    ] {
        let table = config.entry(section).or_insert_with(|| toml::Table::new().into());
        table.as_table_mut().context("no section")?.insert(key.to_owned(), value.into());
    }
    let file = dir.join("second.toml");
    std::fs::write(&file, toml::to_string(&config)?)?;
    let second = |verb: &str| -> anyhow::Result<std::process::Command> {
        let mut command = relay.command(program("home-relay")?);
        command.arg(verb).arg("--config").arg(&file);
        Ok(command)
    };
    let mut other = Process::start("second relay", &mut second("serve")?, &dir.join("second.log"))?;
    other.wait_output("serving", PATIENCE)?;
    let tables = || relay.run(&["nft", "list", "tables"]);
    assert_eq!(tables()?.lines().count(), 2, "{}", tables()?);
    mobile_connects(&bed)?;
    other.signal(Signal::SIGTERM)?;
    assert!(other.wait(PATIENCE)?.success(), "{}", other.output());
    finish_within(&mut second("cleanup")?, None, PATIENCE)?.ok()?;
    assert_eq!(tables()?.trim(), "table inet home_relay");
    assert_eq!(bed.relay.counter(RESTORED)?, 0);
    mobile_connects(&bed)?;
    assert!(!other.output().contains("WARN"), "{}", other.output());
    bed.finish()
}

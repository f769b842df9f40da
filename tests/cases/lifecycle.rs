//! The agent over boot, shutdown, stop and removal: mobile processes never leave the tunnel by
//! accident, and nothing is left behind at the end.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use mobile_tests::{
    Agent, BootedMachine, Lab, LabOptions, LineProcess, Ns, PATIENCE, Process, Testbed, UplinkName, addr,
    finish_within, port, until,
};

use crate::leaks::{assert_no_leak_in, captures_in};
use crate::managers::Laptop;
use crate::packages::{VERSION, install, packages, purged};
use crate::{Outcome, ip_of, server, urls};

/// A script that starts a service whose stop takes 4 s, so that units ordered after it, and users'
/// processes, stay alive that long during a shutdown.
const SLOW: &str = "cd /etc/systemd/system; printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n\
                    ExecStop=/bin/sleep 4\n' >slow.service; systemctl daemon-reload; systemctl start slow";

/// A script that replaces `rescue.service` by one without the shell that asks for a password on a
/// console.
const RESCUE: &str = "cd /etc/systemd/system; printf '[Unit]\nDefaultDependencies=no\nConflicts=shutdown.target\n\
                      [Service]\nExecStart=/bin/sleep infinity\n' >rescue.service; systemctl daemon-reload";

/// Starts a mobile process that opens new connections all the time and ignores SIGTERM and SIGHUP.
fn restless(laptop: &Laptop) -> anyhow::Result<Process> {
    let [four, six] = urls("/ip");
    let mut command = laptop.machine.command(&format!(
        "exec mobile run -- sh -c 'trap \"\" TERM HUP; while :; do curl -s -m 1 {four}; curl -s -m 1 {six}; done'"
    ));
    let mut process =
        Process::start("a mobile process", &mut command, &laptop.lab.dir().join("restless.txt"))?;
    for seen in [addr::RELAY4.to_string(), addr::RELAY6.to_string()] {
        process.wait_output(&seen, PATIENCE)?;
    }
    Ok(process)
}

#[test]
fn no_shutdown_opens_the_route_for_processes_that_outlive_the_agent() -> Outcome {
    for verb in ["poweroff", "reboot"] {
        let mut laptop = Laptop::new()?;
        laptop.machine.run(SLOW)?;
        let captures = captures_in(&laptop.lab)?;
        let process = restless(&laptop)?;
        // The shell that runs the command may be killed before it reports success.
        let _ = laptop.machine.try_run(&format!("systemctl {verb}"));
        laptop.machine.wait_shut_down().with_context(|| verb.to_owned())?;
        let said = process.output();
        let by_tunnel =
            |seen: &str| [IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)].contains(&ip_of(seen));
        ensure!(said.lines().count() > 1 && said.lines().all(by_tunnel), "{verb}: {said}");
        assert_no_leak_in(&laptop.lab, captures).with_context(|| verb.to_owned())?;
        drop(process);
        laptop.finish_off()?;
    }
    Ok(())
}

#[test]
fn rescue_mode_leaves_the_route_and_the_agent_adopts_it_afterwards() -> Outcome {
    let laptop = Laptop::new()?;
    let machine = &laptop.machine;
    machine.run(&format!("{RESCUE}\n{SLOW}"))?;
    let rules = || machine.run("ip rule; ip -6 rule");
    let captures = captures_in(&laptop.lab)?;
    let process = restless(&laptop)?;
    machine.run("systemctl isolate rescue.target")?;
    ensure!(machine.try_run("systemctl is-active --quiet mobile")?.code() != 0, "the agent runs on");
    ensure!(rules()?.contains("7700"), "cleaned up for rescue mode: {}", rules()?);
    assert_no_leak_in(&laptop.lab, captures)?;
    machine.run("systemctl isolate multi-user.target")?;
    laptop.connected(UplinkName::Eth)?;
    drop(process);
    // Stopping the agent for good still cleans up.
    machine.run("systemctl stop mobile")?;
    until("the clean-up", || rules().is_ok_and(|rules| !rules.contains("7700")))?;
    laptop.finish()
}

/// Creates two services in the systemd slice `mobile.slice`: `fetch`, which connects as soon as it
/// starts, and `stays`, which keeps connecting.
fn services(machine: &BootedMachine) -> Outcome {
    let [four, _] = urls("/ip");
    machine.run(&format!(
        "cd /etc/systemd/system; printf '[Service]\nType=oneshot\nSlice=mobile.slice\n\
         StandardOutput=truncate:/run/seen\nExecStart=/usr/bin/curl -s -m 10 {four}\n' >fetch.service\n\
         printf '[Service]\nSlice=mobile.slice\n\
         ExecStart=/bin/sh -c \"while :; do curl -s -m 1 {four}; done\"\n' >stays.service; systemctl daemon-reload"
    ))?;
    Ok(())
}

#[test]
fn a_service_in_mobile_slice_is_mobile_from_its_first_packet_or_does_not_start() -> Outcome {
    let laptop = Laptop::new()?;
    let machine = &laptop.machine;
    services(machine)?;
    let captures = captures_in(&laptop.lab)?;
    let fetch = |when: &str| -> Outcome {
        let seen = machine.run("rm -f /run/seen; systemctl start fetch && cat /run/seen")?;
        ensure!(ip_of(&seen) == addr::RELAY4, "{when}: seen as {seen}");
        Ok(())
    };
    fetch("the first service in the slice")?;
    fetch("the second")?;
    for _ in 0..2 {
        machine.run("systemctl stop mobile.slice")?;
        fetch("with the slice made anew")?;
        // The first service starts the agent and waits for it.
        machine.run("systemctl stop mobile")?;
        fetch("without an agent")?;
        machine.run("systemctl kill --signal=KILL mobile")?;
        fetch("with an agent that was killed")?;
        machine.run("systemctl restart --no-block mobile mobile.slice")?;
        fetch("with an agent and a slice that start again")?;
    }
    // A running service survives a restart of the agent but not its end, since it would go
    // directly.
    machine.run("systemctl start stays && systemctl restart mobile && systemctl is-active stays")?;
    laptop.connected(UplinkName::Eth)?;
    machine.run("systemctl stop mobile")?;
    until("the service to end with the agent", || {
        machine.try_run("systemctl is-active stays").is_ok_and(|done| done.code() != 0)
    })?;

    // Without a configuration there is no agent.
    machine.run("mv /etc/mobile/agent.toml /root")?;
    // More often than systemd starts a unit by default, which is 5 times in 10 s.
    for service in ["fetch", "stays"].repeat(3) {
        let refused = machine.try_run(&format!("rm -f /run/seen; systemctl start {service}"))?;
        ensure!(refused.code() != 0, "{service} was started without an agent: {refused:?}");
        ensure!(machine.try_run("test -s /run/seen")?.code() == 1, "{service} ran");
    }
    let reason = machine.run("journalctl --sync; journalctl --no-pager --output=cat --unit=mobile-slice")?;
    ensure!(reason.contains("no agent") && reason.contains("mobile enroll"), "{reason}");
    machine.run("mv /root/agent.toml /etc/mobile; systemctl start stays")?;
    laptop.connected(UplinkName::Eth)?;
    fetch("with the configuration back")?;
    machine.run("systemctl stop stays")?;
    assert_no_leak_in(&laptop.lab, captures)?;
    laptop.finish()
}

/// Adds an unknown section with an invalid value to a configuration file.
fn break_configuration(config: &Path) -> Outcome {
    let text = std::fs::read_to_string(config)?;
    Ok(std::fs::write(config, format!("{text}\n[rooting]\ntabel = oops\n"))?)
}

#[test]
fn cleanup_takes_everything_whatever_has_become_of_the_configuration() -> Outcome {
    let mut bed = Testbed::new()?;
    let text = std::fs::read_to_string(bed.agent.config())?;
    // A device other than the default, which only the agent's last start has recorded.
    bed.agent.stop()?;
    bed.agent.cli(&["cleanup"])?.ok()?;
    bed.agent.configure("tunnel", "device", "mobile7")?;
    bed.agent.configure("routing", "table", 7707)?;
    for running in [true, false] {
        bed.agent.start()?;
        bed.agent.wait_connected()?;
        break_configuration(bed.agent.config())?;
        if !running {
            bed.agent.kill()?;
        }
        let done = bed.agent.cli(&["cleanup"])?;
        ensure!(done.stderr.contains("agent.toml") && done.stderr.contains("WARN"), "{done:?}");
        done.ok()?;
        let left = bed.lab.host.run(&["sh", "-c", "ip link; ip rule; ip -6 rule"])?;
        ensure!(!left.contains("mobile7") && !left.contains("7707"), "left: {left}");
        ensure!(!bed.agent.pin_dir.exists(), "pins are left");
        until("the mobile cgroup to go", || !bed.agent.cgroup.exists())?;
        // Repeating the cleanup is harmless, and so is a missing file.
        bed.agent.cli(&["cleanup"])?.ok().err().context("nothing is known, and nothing is said")?;
        if running {
            bed.agent.wait_ended()?;
        }
        std::fs::write(bed.agent.config(), text.replace("[tunnel]\n", ""))?;
        bed.agent.configure("tunnel", "device", "mobile7")?;
        bed.agent.configure("routing", "table", 7707)?;
    }

    // The names were changed between two starts: both sets are removed.
    bed.agent.start()?;
    bed.agent.kill()?;
    std::fs::write(bed.agent.config(), &text)?;
    bed.agent.cli(&["cleanup"])?.ok()?;
    let left = bed.lab.host.run(&["sh", "-c", "ip link; ip rule; ip -6 rule"])?;
    ensure!(!left.contains("mobile7") && !left.contains("7707"), "left: {left}");

    // The same for the relay.
    bed.relay.kill()?;
    let text = std::fs::read_to_string(bed.relay.config())?;
    break_configuration(bed.relay.config())?;
    let done = bed.relay.cli(&["cleanup"])?;
    ensure!(done.stderr.contains("relay.toml"), "{done:?}");
    done.ok()?;
    let left = bed.lab.relay.run(&["sh", "-c", "ip link; nft list ruleset"])?;
    ensure!(!left.contains("home0") && !left.contains("home_relay"), "left: {left}");
    std::fs::write(bed.relay.config(), text)?;
    bed.finish()
}

#[test]
fn packages_are_upgraded_stopped_and_purged_with_a_broken_configuration() -> Outcome {
    let laptop = Laptop::new()?;
    let relay = BootedMachine::boot(&laptop.lab, &laptop.lab.server)?;
    let [relay_package, _] = packages(VERSION)?;
    install(&relay, &relay_package)?;
    relay.run("home-relay init && systemctl start home-relay")?;
    // An upgrade keeps the operator's choice.
    laptop.machine.run("systemctl disable --quiet mobile")?;
    let [next_relay, next_agent] = packages(&format!("{VERSION}+next"))?;
    for (machine, package, name, config, unit) in [
        (&relay, &next_relay, "home-relay", "/etc/home-relay/relay.toml", "home-relay"),
        (&laptop.machine, &next_agent, "mobile-agent", "/etc/mobile/agent.toml", "mobile"),
    ] {
        machine.run(&format!("printf '[rooting]\ntabel = oops\n' >>{config}"))?;
        install(machine, package).with_context(|| format!("{name} with a broken configuration"))?;
        let state = machine.run(&format!("dpkg-query -W -f '${{Status}}' {name}"))?;
        ensure!(state == "install ok installed", "{name}: {state}");
        let enabled = machine.try_run(&format!("systemctl is-enabled {unit}"))?.stdout;
        ensure!(enabled.trim() == if unit == "mobile" { "disabled" } else { "enabled" }, "{unit}: {enabled}");
        machine.run(&format!("systemctl stop {unit}"))?;
        until("the clean-up", || {
            machine
                .run("ip -o link")
                .is_ok_and(|links| !links.contains("mobile0") && !links.contains("home0"))
        })?;
        let failed = machine.run("systemctl list-units --failed --plain --no-legend")?;
        ensure!(!failed.contains("cleanup"), "{failed}");
        // After removal the package can be installed again, and purged with whatever then runs.
        machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --remove {name}"))?;
        install(machine, package)?;
        purged(machine, name, unit)?;
    }
    drop(relay);
    laptop.finish_off()
}

/// The paths of the mobile cgroup and of the directory of pinned eBPF programs that an agent with
/// default settings creates in one network namespace.
struct Defaults([PathBuf; 2]);

impl Defaults {
    fn of(lab: &Lab, ns: &Ns) -> anyhow::Result<Self> {
        let id = ns.run(&["stat", "--dereference", "--format=%i", "/proc/self/ns/net"])?;
        let name = format!("mobile-{}", id.trim());
        let root = lab.cgroup().path().parent().context("a lab's cgroup is below the root")?;
        Ok(Self([root.join(&name), Path::new("/sys/fs/bpf").join(&name)]))
    }

    fn there(&self) -> [bool; 2] {
        [self.0[0].exists(), self.0[1].exists()]
    }
}

impl Drop for Defaults {
    /// Removes the cgroup and the pins, which are outside the lab's cgroup and would outlive a
    /// failed case.
    fn drop(&mut self) {
        let [cgroup, pins] = &self.0;
        let _ = Command::new("rm").arg("-rf").arg(pins).output();
        let _ = Command::new("find").arg(cgroup).args(["-depth", "-type", "d", "-delete"]).output();
    }
}

#[test]
fn agents_in_two_network_namespaces_with_default_names_do_not_notice_each_other() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let elsewhere = bed.lab.visited[1].clone();
    let mut other = Agent::install_in(&bed.lab, &elsewhere, "desktop", &bed.relay)?;
    for agent in [&bed.agent, &other] {
        for (section, key) in [
            ("cgroup", "path"),
            ("cgroup", "slice"),
            ("bpf", "pin_dir"),
            ("routing", "mark"),
            ("routing", "mark_mask"),
        ] {
            agent.use_default(section, key)?;
        }
    }
    let names = [Defaults::of(&bed.lab, &bed.lab.host)?, Defaults::of(&bed.lab, &elsewhere)?];
    bed.start()?;
    other.start()?;
    other.wait_connected()?;
    ensure!(names.iter().all(|names| names.there() == [true; 2]), "other names than the documented ones");

    let [echo, _] = server(port::ECHO);
    let tool = mobile_tests::program("labtool")?.display().to_string();
    let mut here = bed.mobile_labtool(&["tcp", &echo])?;
    let mut there = LineProcess::start(&mut other.run(&[&tool, "tcp", &echo]))?;
    for talk in [&mut here, &mut there] {
        talk.next_line()?;
        assert_eq!(talk.request("before")?, "before");
    }
    let pids = |agent: &Agent| agent.status()?["mobile_processes"].as_u64().context("no number");
    assert_eq!((pids(&bed.agent)?, pids(&other)?), (1, 1));

    // The other agent ends and removes everything of its own.
    other.stop()?;
    other.cli(&["cleanup"])?.ok()?;
    assert_eq!(names.each_ref().map(Defaults::there), [[true; 2], [false; 2]]);
    assert_eq!(here.request("after")?, "after");
    assert_eq!(pids(&bed.agent)?, 1);
    works(&bed)?;
    // The other agent starts again and is killed; its next start leaves the first agent alone too.
    other.start()?;
    other.kill()?;
    works(&bed)?;
    bed.agent.kill()?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    assert_eq!(here.request("adopted")?, "adopted");
    other.cli(&["cleanup"])?.ok()?;
    works(&bed)?;

    // A cgroup that another agent uses is refused, and the error says whose it is.
    other.configure("cgroup", "path", names[0].0[0].display().to_string())?;
    let error = other.start().err().context("started in the other's cgroup")?.to_string();
    ensure!(error.contains("network namespace"), "{error}");
    other.cli(&["cleanup"])?.ok()?;
    works(&bed)?;
    drop(here);
    drop(there);
    bed.finish()?;
    assert_eq!(names.each_ref().map(Defaults::there), [[false; 2]; 2]);
    Ok(())
}

/// Checks that a new connection of a mobile process is carried by the tunnel.
fn works(bed: &Testbed) -> Outcome {
    let [four, _] = urls("/ip");
    let seen = finish_within(&mut bed.agent.run(&["curl", "-s", "-m", "10", &four]), None, PATIENCE)?.ok()?;
    ensure!(ip_of(&seen) == addr::RELAY4, "seen as {seen}");
    Ok(())
}

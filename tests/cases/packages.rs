//! The Debian packages, on machines with systemd: installed, upgraded under a live session, purged without a trace.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use mobile_tests::{Lab, Machine, Services, Talk, UplinkName, addr, until};

use crate::Outcome;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The packages that `cargo xtask test` has built: the relay's and the agent's.
fn packages(version: &str) -> anyhow::Result<[PathBuf; 2]> {
    let dir = PathBuf::from(std::env::var_os("MOBILE_PACKAGES").context("run this as `cargo xtask test`")?);
    Ok(["home-relay", "mobile-agent"].map(|name| dir.join(format!("{name}_{version}_amd64.deb"))))
}

fn install(machine: &Machine, package: &std::path::Path) -> Outcome {
    machine.give(package)?;
    let name = package.file_name().context("a package is a file")?.display();
    machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install /lab/{name}"))?;
    Ok(())
}

/// What a unit is doing, in systemd's words.
fn state(machine: &Machine, unit: &str) -> anyhow::Result<String> {
    Ok(machine.try_run(&format!("systemctl is-active {unit}"))?.stdout.trim().to_owned())
}

#[test]
fn packages_are_installed_upgraded_under_a_live_session_and_purged() -> Outcome {
    let lab = Lab::new()?;
    let relay = Machine::boot(&lab, &lab.relay)?;
    let laptop = Machine::boot(&lab, &lab.host)?;
    let sshd = Services::sshd(&lab.server, lab.dir(), &[&addr::SERVER4.to_string()])?;
    for key in ["id", "known_hosts"] {
        laptop.give(&lab.dir().join(key))?;
    }
    let [relay_package, agent_package] = packages(VERSION)?;
    install(&relay, &relay_package)?;
    install(&laptop, &agent_package)?;
    // Nothing to run before there is a configuration, and no failure either.
    ensure!(state(&relay, "home-relay")? == "inactive" && state(&laptop, "mobile")? == "inactive");
    ensure!(state(&relay, "multi-user.target")? == "active");

    let relay_key = relay.run("home-relay init && systemctl start home-relay")?;
    let config = format!(
        "[relay]\nendpoint = \"{}:443\"\npublic_key = \"{}\"\n[identity]\nprivate_key_file = \"agent.key\"\n",
        addr::RELAY4,
        relay_key.trim()
    );
    laptop.run(&format!("mkdir -p /etc/mobile && cat >/etc/mobile/agent.toml <<'END'\n{config}END"))?;
    let key = laptop.run("mobile keygen")?;
    relay.run(&format!("home-relay authorize laptop {}", key.trim()))?;
    laptop.run("systemctl start mobile")?;
    let connected = |uplink: UplinkName| {
        until(&format!("the tunnel on {}", uplink.device()), || {
            laptop.run("mobile status").is_ok_and(|status| status.contains(uplink.device()))
        })
    };
    connected(UplinkName::Eth)?;

    let mut session = Talk::start(&mut laptop.command(&format!(
        "exec mobile run -- ssh -T -i /lab/id -o UserKnownHostsFile=/lab/known_hosts root@{} 'echo $PPID; exec cat'",
        addr::SERVER4
    )))?;
    let first = session.hear()?;
    ensure!(session.ask("before")? == "before");
    lab.eth().cut()?;
    connected(UplinkName::Wlan)?;
    ensure!(session.ask("after a handover")? == "after a handover");

    let daemon = |machine: &Machine, unit: &str| machine.run(&format!("systemctl show -P MainPID {unit}"));
    let before = [daemon(&relay, "home-relay")?, daemon(&laptop, "mobile")?];
    let [relay_package, agent_package] = packages(&format!("{VERSION}+next"))?;
    install(&relay, &relay_package)?;
    ensure!(session.ask("after an upgrade of the relay")? == "after an upgrade of the relay");
    install(&laptop, &agent_package)?;
    ensure!(session.ask("after an upgrade of the agent")? == "after an upgrade of the agent");
    let after = [daemon(&relay, "home-relay")?, daemon(&laptop, "mobile")?];
    ensure!(before[0] != after[0] && before[1] != after[1], "not restarted: {before:?} {after:?}");
    ensure!(
        !first.is_empty() && sshd.output().matches("Accepted publickey").count() == 1,
        "{}",
        sshd.output()
    );
    drop(session);

    for (machine, unit) in [(&relay, "home-relay"), (&laptop, "mobile")] {
        let journal = machine.journal(unit)?;
        ensure!(!journal.contains("WARN") && !journal.contains("ERROR"), "{unit} warned:\n{journal}");
    }
    purged(&relay, "home-relay", "home-relay", &lab)?;
    purged(&laptop, "mobile-agent", "mobile", &lab)?;
    lab.passed();
    Ok(())
}

/// Purges `package`, and looks for what it could have left: files, a user, units, objects in the kernel.
fn purged(machine: &Machine, package: &str, program: &str, _lab: &Lab) -> Outcome {
    let files =
        machine.run(&format!("dpkg -L {package} | while read f; do [ -d \"$f\" ] || echo \"$f\"; done"))?;
    ensure!(files.contains(&format!("/usr/bin/{program}")), "{files}");
    machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --purge {package}"))?;
    for file in files.lines().map(str::to_owned).chain([
        format!("/etc/{program}"),
        format!("/var/lib/{program}"),
        format!("/run/{program}"),
        format!("/sys/fs/bpf/{program}"),
        format!("/sys/fs/cgroup/{program}"),
    ]) {
        ensure!(machine.try_run(&format!("test -e {file}"))?.code() == 1, "{file} is left");
    }
    ensure!(machine.try_run(&format!("getent passwd {program}"))?.code() == 2, "the user {program} is left");
    let units = machine.run(&format!("systemctl list-units --all --plain --no-legend '{program}*'"))?;
    ensure!(units.trim().is_empty(), "units are left: {units}");
    let links = machine.run("ip -o link")?;
    ensure!(!links.contains("home0") && !links.contains("mobile0"), "{links}");
    for (command, ours) in [
        ("nft list ruleset", "home_relay"),
        ("ip rule; ip -6 rule", "7700"),
        ("ip route show table all", "7700"),
    ] {
        let said = machine.run(command)?;
        ensure!(!said.contains(ours), "{command}: {said}");
    }
    Ok(())
}

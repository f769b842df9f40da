//! The Debian packages on machines with systemd: installed, upgraded during a session, purged
//! without leftovers.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use mobile_tests::guide::{self, GuideStep};
use mobile_tests::{BootedMachine, Lab, LineProcess, Services, UplinkName, addr, until};

use crate::Outcome;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the paths of the Debian packages that `cargo xtask test` has built for `version`: the
/// relay's and the agent's.
pub(crate) fn packages(version: &str) -> anyhow::Result<[PathBuf; 2]> {
    let dir = PathBuf::from(std::env::var_os("MOBILE_PACKAGES").context("run this as `cargo xtask test`")?);
    Ok(["home-relay", "mobile-agent"].map(|name| dir.join(format!("{name}_{version}_amd64.deb"))))
}

pub(crate) fn install(machine: &BootedMachine, package: &std::path::Path) -> Outcome {
    machine.copy_in(package)?;
    let name = package.file_name().context("a package is a file")?.display();
    machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install /lab/{name}"))?;
    Ok(())
}

#[test]
fn the_five_minute_guide_works_to_the_letter_and_packages_are_upgraded_and_purged() -> Outcome {
    let lab = Lab::new()?;
    let relay = BootedMachine::boot(&lab, &lab.relay)?;
    let laptop = BootedMachine::boot(&lab, &lab.host)?;
    let sshd = Services::sshd(&lab.server, lab.dir(), &["server.example.org"])?;
    prepare_for_guide(&lab, &laptop)?;
    let [relay_package, agent_package] = packages(VERSION)?;
    relay.copy_in(&relay_package)?;
    laptop.copy_in(&agent_package)?;
    let mut session = follow_guide(&relay, &laptop)?;

    let connected = |uplink: UplinkName| {
        until(&format!("the tunnel on {}", uplink.device()), || {
            laptop.run("mobile status").is_ok_and(|status| status.contains(uplink.device()))
        })
    };
    connected(UplinkName::Eth)?;
    let client = session.request("echo $SSH_CLIENT")?;
    ensure!(client.starts_with(&addr::RELAY4.to_string()), "the server sees {client}");
    lab.eth().cut()?;
    connected(UplinkName::Wlan)?;
    ensure!(session.request("echo after a handover")? == "after a handover");

    // `enroll` wrote a file that only its owner may read, and still the agent serves every user.
    for verb in ["run -- true", "status", "ps", "explain server.example.org"] {
        laptop.run(&format!("setpriv --reuid=65534 --regid=65534 --clear-groups mobile {verb}"))?;
    }

    // After a kill nothing is cleaned up, nothing goes directly, and systemd starts another daemon.
    for (machine, unit) in [(&relay, "home-relay"), (&laptop, "mobile")] {
        let cleaned = format!("systemctl show -P InvocationID {unit}-cleanup");
        let before = machine.run(&cleaned)?;
        machine.run(&format!("systemctl kill --signal=KILL {unit}"))?;
        ensure!(session.request("echo after a kill")? == "after a kill");
        ensure!(machine.run(&cleaned)? == before, "{unit} was cleaned up after");
    }

    upgrade(&relay, &laptop, &mut session)?;
    ensure!(sshd.output().matches("Accepted publickey").count() == 1, "{}", sshd.output());
    drop(session);

    for (machine, unit) in [(&relay, "home-relay"), (&laptop, "mobile")] {
        // The relay was away for a moment, twice.
        warned_only_of(machine, unit, &["path lost", "relay not reachable over this uplink"])?;
    }
    purged(&relay, "home-relay", "home-relay")?;
    purged(&laptop, "mobile-agent", "mobile")?;
    lab.passed();
    Ok(())
}

/// Gives the laptop what the guide requires: host names, and a server that accepts the login.
pub(crate) fn prepare_for_guide(lab: &Lab, laptop: &BootedMachine) -> Outcome {
    for key in ["id", "known_hosts"] {
        laptop.copy_in(&lab.dir().join(key))?;
    }
    let (at_relay, at_server) = (addr::RELAY4, addr::SERVER4);
    laptop.run(&format!(
        "printf '{at_relay} relay.example.org\n{at_server} server.example.org\n' >>/etc/hosts\n\
         mkdir -p ~/.ssh && printf 'IdentityFile /lab/id\nUserKnownHostsFile /lab/known_hosts\n' >~/.ssh/config"
    ))?;
    configure_for_lab(lab, laptop)
}

/// Gives the agent of a booted machine settings with which it runs beside the agents of other labs
/// and of this machine: all share one kernel, so the cgroups and the mark are not the defaults.
pub(crate) fn configure_for_lab(lab: &Lab, machine: &BootedMachine) -> Outcome {
    let cgroup = format!("/sys/fs/cgroup/{}/mobile", machine.cgroup.display());
    let mark = lab.mark("laptop");
    machine.run(&format!(
        "for unit in mobile mobile-cleanup; do mkdir -p /etc/systemd/system/$unit.service.d; printf '[Service]\n\
         Environment=MOBILE_CGROUP_PATH={cgroup} MOBILE_CGROUP_SLICE={cgroup}.slice MOBILE_ROUTING_MARK={mark} \
         MOBILE_ROUTING_MARK_MASK=4294901760\n' >/etc/systemd/system/$unit.service.d/lab.conf; done"
    ))?;
    Ok(())
}

/// Runs every command of the guide on its machine, and returns the session that the last command
/// starts.
pub(crate) fn follow_guide(relay: &BootedMachine, laptop: &BootedMachine) -> anyhow::Result<LineProcess> {
    let mut invitation = String::new();
    let mut session = None;
    for GuideStep { machine, commands } in guide::steps("use/getting-started.md")? {
        let commands = format!("cd /lab\n{}", commands.replace("INVITATION", &format!("'{invitation}'")));
        match machine.as_str() {
            "relay" => {
                let printed = relay.run(&commands)?;
                if commands.contains("home-relay invite") {
                    invitation = printed.trim().to_owned();
                }
            }
            // The guide's last block: a session does not end by itself.
            "laptop" if commands.contains("mobile run") => {
                session = Some(LineProcess::start(
                    &mut laptop.command(&format!("exec {}", commands.replace("cd /lab\n", ""))),
                )?);
            }
            "laptop" => drop(laptop.run(&commands)?),
            other => bail!("the guide knows a machine {other:?} that this case does not"),
        }
    }
    session.context("the guide starts no session")
}

/// Installs the next version of both packages during a session, which must go on with new daemons.
fn upgrade(relay: &BootedMachine, laptop: &BootedMachine, session: &mut LineProcess) -> Outcome {
    let daemon =
        |machine: &BootedMachine, unit: &str| machine.run(&format!("systemctl show -P MainPID {unit}"));
    let before = [daemon(relay, "home-relay")?, daemon(laptop, "mobile")?];
    let [relay_package, agent_package] = packages(&format!("{VERSION}+next"))?;
    install(relay, &relay_package)?;
    ensure!(session.request("echo after an upgrade of the relay")? == "after an upgrade of the relay");
    install(laptop, &agent_package)?;
    ensure!(session.request("echo after an upgrade of the agent")? == "after an upgrade of the agent");
    let after = [daemon(relay, "home-relay")?, daemon(laptop, "mobile")?];
    ensure!(before[0] != after[0] && before[1] != after[1], "not restarted: {before:?} {after:?}");
    Ok(())
}

/// Checks that a unit has logged no warning but those that contain one of the texts `expected`.
pub(crate) fn warned_only_of(machine: &BootedMachine, unit: &str, expected: &[&str]) -> Outcome {
    let loud = format!("journalctl --no-pager --output=cat --priority=warning _SYSTEMD_UNIT={unit}.service");
    let loud = machine.run(&loud)?;
    let lines = loud.lines().filter(|line| !line.trim().is_empty());
    let odd: Vec<&str> = lines.filter(|line| !expected.iter().any(|it| line.contains(it))).collect();
    ensure!(odd.is_empty(), "{unit} warned:\n{}", odd.join("\n"));
    Ok(())
}

/// Purges `package` and checks that nothing of it is left: files, a user, units, kernel objects.
pub(crate) fn purged(machine: &BootedMachine, package: &str, program: &str) -> Outcome {
    let files =
        machine.run(&format!("dpkg -L {package} | while read f; do [ -d \"$f\" ] || echo \"$f\"; done"))?;
    ensure!(files.contains(&format!("/usr/bin/{program}")), "{files}");
    machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --purge {package}"))?;
    for file in files.lines().map(str::to_owned).chain([
        format!("/etc/{program}"),
        format!("/var/lib/{program}"),
        format!("/run/{program}"),
        format!("/sys/fs/cgroup/{}/{program}", machine.cgroup.display()),
    ]) {
        ensure!(machine.try_run(&format!("test -e {file}"))?.code() == 1, "{file} is left");
    }
    // The directory of pins has the network namespace in its name.
    let pins = machine.run("ls /sys/fs/bpf")?;
    ensure!(!pins.contains(program), "pins are left: {pins}");
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

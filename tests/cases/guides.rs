//! The pages for users: their commands work as they stand, from the installation to the removal.

use std::path::Path;

use anyhow::{Context, ensure};
use mobile_tests::guide::{self, GuideStep};
use mobile_tests::{
    BootedMachine, Lab, PATIENCE, Postgres, Process, UplinkName, addr, finish_within, program, until,
};

use crate::packages::{
    VERSION, configure_for_lab, follow_guide, packages, prepare_for_guide, warned_only_of,
};
use crate::{Outcome, ip_of, urls};

/// Prepares the server, which accepts root's key of the laptop.
const SERVER: &str = "mkdir -p /run/sshd ~/.ssh && cp /lab/id.pub ~/.ssh/authorized_keys && ssh-keygen -A >/dev/null\n\
    /usr/sbin/sshd -o PermitRootLogin=yes -o UsePAM=no -o StrictModes=no -o PrintLastLog=no -o PrintMotd=no";

/// Everything of the agent that a file system, the kernel and systemd may have.
const LEFT: &str = "ls -d /etc/mobile /var/lib/mobile /run/mobile /usr/bin/mobile /usr/local/bin/mobile \
        /sys/fs/bpf/mobile* 2>/dev/null || true\n\
    find /etc /usr/lib/systemd /run/systemd /var/lib/systemd -name 'mobile*' -not -path '*/mobile*.service.d*'\n\
    ip -o link show dev mobile0 2>/dev/null || true\n\
    { ip rule; ip -6 rule; ip route show table all; nft list ruleset; } | grep -E '7700|7701|mobile' || true\n\
    systemctl list-units --all --plain --no-legend 'mobile*'; getent passwd mobile || true";

/// Creates a program in a machine from a shell script.
fn stub(machine: &BootedMachine, path: &str, script: &str) -> Outcome {
    machine.run(&format!("printf '#!/bin/sh\n%s\n' '{script}' >{path} && chmod +x {path}"))?;
    Ok(())
}

/// Returns the steps of a page, each of which must name its machine.
fn steps(page: &str) -> anyhow::Result<Vec<GuideStep>> {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&text)?;
    ensure!(!text.lines().any(|line| line == "```sh"), "{page} has commands that no case runs");
    guide::steps(page)
}

/// A laptop that followed the five-minute guide, its relay, and a server with ssh and PostgreSQL.
struct Machines {
    relay: BootedMachine,
    laptop: BootedMachine,
    server: BootedMachine,
    _postgres: Postgres,
    lab: Lab,
}

impl Machines {
    fn new() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let postgres = Postgres::start(&lab.server, lab.dir())?;
        let [relay, laptop, server] =
            [&lab.relay, &lab.host, &lab.server].map(|ns| BootedMachine::boot(&lab, ns));
        let (relay, laptop, server) = (relay?, laptop?, server?);
        let key = lab.dir().join("id");
        let mut keygen = lab.host.command("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
        finish_within(&mut keygen, None, PATIENCE)?.ok()?;
        std::fs::write(lab.dir().join("known_hosts"), "")?;
        server.copy_in(&key.with_extension("pub"))?;
        server.run(SERVER)?;
        prepare_for_guide(&lab, &laptop)?;
        let at = addr::SERVER4;
        laptop.run(&format!(
            "echo '{at} example.org db.example.org backup.example.org' >>/etc/hosts\n\
             echo 'StrictHostKeyChecking accept-new' >>~/.ssh/config"
        ))?;
        Ok(Self { relay, laptop, server, _postgres: postgres, lab })
    }

    /// Runs every command of a page, and returns what the commands of each block print.
    fn follow(&self, page: &str) -> anyhow::Result<Vec<String>> {
        steps(page)?
            .iter()
            .map(|step| {
                ensure!(step.machine == "laptop", "{page} knows a machine {:?}", step.machine);
                // The reader's own account at the database.
                let commands = format!("cd; export PGUSER=postgres\n{}", step.commands);
                self.laptop.run(&commands).with_context(|| page.to_owned())
            })
            .collect()
    }
}

#[test]
fn every_command_of_the_agents_page_and_the_guides_works_from_first_use_to_uninstall() -> Outcome {
    let mut machines = Machines::new()?;
    let [relay_package, agent_package] = packages(VERSION)?;
    machines.relay.copy_in(&relay_package)?;
    machines.laptop.copy_in(&agent_package)?;
    drop(follow_guide(&machines.relay, &machines.laptop)?);
    let (laptop, server) = (&machines.laptop, &machines.server);

    // Programs with windows: each stands for one that shows which address a site sees.
    let [four, _] = urls("/ip");
    stub(laptop, "/usr/local/bin/chromium", &format!("exec curl -s -m 10 {four}"))?;
    for seen in machines.follow("use/guides/browsers.md")? {
        ensure!(ip_of(&seen) == addr::RELAY4, "a browser is seen as {seen}");
    }
    laptop.run("mkdir -p ~/work && echo draft >~/work/text && mkdir -p /srv && echo backup >/srv/data")?;
    machines.follow("use/guides/ssh.md")?;
    ensure!(server.run("cat ~/work/text")? == "draft\n", "rsync copied nothing");
    machines.follow("use/guides/vscode.md")?;
    let client = laptop.run("~/.local/bin/mobile-ssh example.org 'echo $SSH_CLIENT'")?;
    ensure!(client.starts_with(&addr::RELAY4.to_string()), "the editor's ssh is seen as {client}");
    machines.follow("use/guides/databases.md")?;
    machines.follow("use/guides/services.md")?;
    until("the service in the slice to copy", || {
        server.run("cat ~/srv/data").is_ok_and(|data| data == "backup\n")
    })?;

    let page = steps("use/agent.md")?;
    let [bypass, reboot, purge, _from_source] = &page[..] else {
        anyhow::bail!("agent.md has other steps: {page:?}")
    };
    ensure!(laptop.run(&bypass.commands)?.contains("192.168.1.0/24"));
    warned_only_of(laptop, "mobile", &[])?;

    // A service of the user's, which is mobile before and after the reboot.
    laptop.run(&format!(
        "cd /etc/systemd/system; printf '[Service]\nType=oneshot\nSlice=mobile.slice\nStandardOutput=truncate:/root/seen\n\
         ExecStart=/usr/bin/curl -s -m 20 {four}\n[Install]\nWantedBy=multi-user.target\n' >fetch.service\n\
         systemctl enable --quiet fetch"
    ))?;
    let address = r"ip -o address show dev mobile0 | grep -oE '[0-9a-f.:]+/(32|128)'";
    let before = laptop.run(address)?;
    machines.laptop.reboot()?;
    let laptop = &machines.laptop;
    until("the tunnel after the reboot", || {
        laptop.run("mobile status").is_ok_and(|status| status.contains(UplinkName::Eth.device()))
    })?;
    laptop.run(&reboot.commands)?;
    ensure!(laptop.run(address)? == before, "another persistent address after the reboot");
    ensure!(laptop.run("mobile bypass list")?.trim().is_empty(), "the bypass outlived the reboot");
    let seen = laptop.run("cat /root/seen")?;
    ensure!(ip_of(&seen) == addr::RELAY4, "after the reboot a service in the slice is seen as {seen}");
    warned_only_of(laptop, "mobile", &["relay not reachable over this uplink"])?;

    laptop.run("rm /etc/systemd/system/fetch.service /etc/systemd/system/*/fetch.service")?;
    laptop.run(&format!("export DEBIAN_FRONTEND=noninteractive\n{}", purge.commands))?;
    let left = laptop.run(LEFT)?;
    ensure!(left.is_empty(), "the uninstallation leaves:\n{left}");
    machines.lab.passed();
    Ok(())
}

#[test]
fn the_commands_of_the_readme_install_both_programs_from_source_and_agent_md_removes_them() -> Outcome {
    let machines = Machines::new()?;
    let (relay, laptop) = (&machines.relay, &machines.laptop);
    configure_for_lab(&machines.lab, laptop)?;
    for (machine, name) in [(relay, "home-relay"), (laptop, "mobile")] {
        machine.copy_in(&program(name)?)?;
        // The build has been done: `cargo` only puts the program into its place.
        let build = format!(
            "mkdir -p ~/.cargo/bin target/release && cp /lab/{name} ~/.cargo/bin && cp /lab/{name} target/release"
        );
        stub(machine, "/usr/local/bin/cargo", &build)?;
        stub(machine, "/usr/local/bin/sudo", "exec \"$@\"")?;
    }
    // The settings for this lab, which `prepare_for_guide` gives to units that are not used here.
    let settings = "export $(sed -n s/Environment=//p /etc/systemd/system/mobile.service.d/lab.conf); cd";
    let [serve, invite, agent, run] = &steps("../README.md")?[..] else { anyhow::bail!("other steps") };
    let log = |name: &str| machines.lab.dir().join(name);
    let _relay = Process::start("relay", &mut relay.command(&serve.commands), &log("relay.txt"))?;
    until("the invitation", || {
        relay.try_run("/usr/local/bin/home-relay sessions").is_ok_and(|it| it.code() == 0)
    })?;
    let invitation = relay.run(&invite.commands)?;
    let commands = format!("{settings}\n{}", agent.commands.replace("enroll -", "enroll - </lab/invitation"));
    let file = log("invitation");
    std::fs::write(&file, invitation)?;
    laptop.copy_in(&file)?;
    let mut daemon = Process::start("agent", &mut laptop.command(&commands), &log("agent.txt"))?;
    until("the tunnel", || {
        laptop.run("mobile status").is_ok_and(|status| status.contains(UplinkName::Eth.device()))
    })
    .with_context(|| daemon.output())?;
    let said = laptop.run(&format!("{settings}\n{}", run.commands))?;
    ensure!(said.contains("connected"), "{said}");

    // Ctrl-C in the agent's terminal.
    laptop.run("kill -INT $(pidof -s mobile)")?;
    daemon.wait(PATIENCE)?;
    let page = steps("use/agent.md")?;
    let from_source = page.last().context("agent.md has no steps")?;
    laptop.run(&format!("{settings}\n{}", from_source.commands))?;
    let left = laptop.run(LEFT)?;
    ensure!(left.is_empty(), "the removal leaves:\n{left}");
    machines.lab.passed();
    Ok(())
}

//! The lab on a machine on which the product is installed, or in use.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use mobile_tests::{BootedMachine, Lab, LineProcess, PATIENCE, finish_within, port, program};

use crate::managers::Laptop;
use crate::packages::{VERSION, install, packages, purged};
use crate::{Outcome, server};

/// Creates the files of a machine on which the product is installed: in the directory `$1` from the
/// packages `$2` and `$3`, with configurations, state, a user, overrides of units, and a second
/// copy from source.
const INSTALLED: &str = r#"
cd "$1"
mkdir -p etc/mobile etc/home-relay etc/systemd/system/mobile.service.d var/lib/dpkg/info var/lib/mobile \
    var/lib/home-relay var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants usr/local/bin \
    usr/local/lib
cp /etc/passwd /etc/group etc
cp /var/lib/dpkg/status var/lib/dpkg
for package in "$2" "$3"; do
    dpkg-deb --extract "$package" .
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --fsys-tarfile "$package" | tar --list | sed "s/^\.//; s/\/$//" >"var/lib/dpkg/info/$name.list"
    dpkg-deb --field "$package" | sed "/^Package:/aStatus: install ok installed" >>var/lib/dpkg/status
    echo >>var/lib/dpkg/status
done
echo "home-relay:x:990:990:Relay:/var/lib/home-relay:/usr/sbin/nologin" >>etc/passwd
echo "home-relay:x:990:" >>etc/group
for file in etc/mobile/agent.toml etc/mobile/agent.key etc/home-relay/relay.toml var/lib/mobile/assignment.json \
    var/lib/home-relay/clients.toml etc/systemd/system/mobile.service.d/mine.conf etc/systemd/system/home-relay.service \
    var/lib/systemd/deb-systemd-helper-enabled/mobile.service.dsh-also usr/local/bin/mobile usr/local/lib/libmobile.so \
    var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants/mobile.service; do
    echo "of the host" >"$file"
done
"#;

/// Prints everything of the product that a machine has.
const FOUND: &str = r#"
dpkg-query --show --showformat '${Package} ${Status}\n' mobile-agent home-relay 2>/dev/null || true
getent passwd home-relay || true
getent group home-relay || true
systemctl list-unit-files --no-legend 'mobile*' 'home-relay*' || true
for program in mobile home-relay; do command -v "$program" || true; done
find /etc /opt /run /usr/bin /usr/sbin /usr/lib/systemd /usr/lib/sysusers.d /usr/lib/tmpfiles.d /usr/local /usr/share/man \
    /usr/share/bash-completion /var/lib /sys/fs/bpf \( -name 'mobile*' -o -name 'home-relay*' -o -name 'libmobile*' \)
"#;

#[test]
fn a_booted_machine_has_nothing_of_the_product_that_its_host_has_installed() -> Outcome {
    let lab = Lab::new()?;
    let installed = lab.dir().join("installed");
    std::fs::create_dir(&installed)?;
    let [relay_package, agent_package] = packages(VERSION)?;
    let mut make = Command::new("sh");
    make.args(["-ec", INSTALLED, "sh"]).args([&installed, &relay_package, &agent_package]);
    finish_within(&mut make, None, PATIENCE)?.ok()?;

    let machine = BootedMachine::boot_with(&lab, &lab.host, &installed)?;
    let found = machine.run(FOUND)?;
    ensure!(found.is_empty(), "the machine has:\n{found}");
    // dpkg installs for the first time, and a purge does not restore what the host has.
    for (package, name, program) in
        [(&relay_package, "home-relay", "home-relay"), (&agent_package, "mobile-agent", "mobile")]
    {
        install(&machine, package)?;
        ensure!(machine.run(&format!("command -v {program}"))?.trim() == format!("/usr/bin/{program}"));
        purged(&machine, name, program)?;
    }
    let found = machine.run(FOUND)?;
    ensure!(found.is_empty(), "a purge leaves:\n{found}");
    lab.passed();
    Ok(())
}

/// The cases that run beside the product in use, each for objects that the product has too: control
/// sockets and verbs, pinned programs, the nftables table, records in /run, and the clean-up.
const SAMPLE: [&str; 5] = [
    "check::",
    "lab::the_next_lab_removes_what_a_killed_one_left",
    "lifecycle::agents_in_two_network_namespaces_with_default_names_do_not_notice_each_other",
    "lifecycle::cleanup_takes_everything_whatever_has_become_of_the_configuration",
    "restart::",
];

/// The timeout of the sample on a busy machine.
const SAMPLE_PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn the_lab_and_the_product_in_use_do_not_notice_each_other() -> Outcome {
    let laptop = Laptop::new()?;
    let machine = &laptop.machine;
    let [relay_package, _] = packages(VERSION)?;
    install(machine, &relay_package)?;
    machine.run("home-relay init && systemctl start home-relay")?;
    let tests: PathBuf = std::env::current_exe()?;
    machine.copy_in(&tests)?;
    for name in ["mobile", "home-relay", "labtool"] {
        machine.copy_in(&program(name)?)?;
    }
    let name = tests.file_name().and_then(|name| name.to_str()).context("a test program has a name")?;
    let [echo, _] = server(port::ECHO);
    let mut session =
        LineProcess::start(&mut machine.command(&format!("exec mobile run -- /lab/labtool tcp {echo}")))?;
    session.next_line()?;
    let objects = "nft list ruleset; ip rule; ip -6 rule; ip -o link; find /sys/fs/bpf /run/mobile /run/home-relay | sort";
    let before = machine.run(objects)?;

    let filters = SAMPLE.join(" ");
    let script = format!("export MOBILE_BIN_DIR=/lab RUST_TEST_THREADS=2; exec /lab/{name} {filters}");
    let cases = finish_within(&mut machine.command_with_files(&script), None, SAMPLE_PATIENCE)?.ok()?;
    ensure!(cases.contains("test result: ok"), "{cases}");

    ensure!(session.request("still here")? == "still here");
    let after = machine.run(objects)?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    machine.run("systemctl stop home-relay")?;
    drop(session);
    laptop.finish()
}

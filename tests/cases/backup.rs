//! `home-relay backup` and `restore`, and the commands of docs/use/operating.md.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{bail, ensure};
use mobile_tests::guide::{self, GuideStep};
use mobile_tests::{Agent, BootedMachine, Lab, LabOptions, Testbed};

use crate::packages::{VERSION, install, packages};
use crate::{Outcome, assert_echo, echo_sessions};

/// Returns the relay's files, apart from its database.
fn files(bed: &Testbed) -> anyhow::Result<[String; 2]> {
    let config = bed.relay.config();
    Ok([fs::read_to_string(config)?, fs::read_to_string(config.with_extension("key"))?])
}

#[test]
fn connections_go_on_when_a_lost_relay_was_restored_from_its_backup() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    bed.relay.cli(&["forward", "add", "tcp", "2222", "laptop:22"])?.ok()?;
    let invitation = bed.relay.invite("tablet", &[])?;
    let backup = bed.lab.dir().join("relay.backup");
    let name = backup.display().to_string();
    bed.relay.cli(&["backup", &name])?.ok()?;
    assert_eq!(fs::metadata(&backup)?.permissions().mode() & 0o7777, 0o600);
    let again = bed.relay.cli(&["backup", &name])?;
    assert!(again.code() == 1 && again.stderr.contains("not overwritten"), "{again:?}");
    let before = [bed.relay.client("laptop")?, bed.relay.client("tablet")?];
    let known = files(&bed)?;

    // The machine is lost; another one takes over its address.
    bed.relay.kill()?;
    bed.relay.cli(&["cleanup"])?.ok()?;
    let lost = bed.lab.dir().join("lost");
    fs::create_dir(&lost)?;
    for file in ["relay.toml", "relay.key", "relay-state"] {
        fs::rename(bed.lab.dir().join(file), lost.join(file))?;
    }
    for talk in &mut talks {
        talk.send_line("meanwhile")?;
    }
    let restored = bed.relay.cli(&["restore", &name])?;
    let (key, said) = (restored.stdout.trim(), &restored.stderr);
    assert!(restored.code() == 0 && key == bed.relay.public_key, "{restored:?}");
    assert!(said.contains("1 client, 1 pending invitation, 1 forward"), "{said}");
    assert_eq!(files(&bed)?, known);
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    for talk in &mut talks {
        assert_eq!(talk.next_line()?, "meanwhile");
    }
    assert_echo(&mut talks, "after")?;

    assert_eq!([bed.relay.client("laptop")?, bed.relay.client("tablet")?], before);
    let forwards = bed.relay.cli(&["forward", "list"])?.ok()?;
    assert!(forwards.contains("2222"), "{forwards}");
    let elsewhere = bed.lab.visited[1].clone();
    let tablet = Agent::enroll_in(&bed.lab, &elsewhere, "tablet", &bed.relay, &invitation)?;
    assert_eq!(before[1]["ipv4"], tablet.address4.to_string(), "as was set aside");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_restore_changes_nothing_unless_the_backup_is_whole_and_its_place_is_free() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let name = bed.lab.dir().join("relay.backup").display().to_string();
    let restore = |bed: &Testbed, more: &[&str]| bed.relay.cli(&[&["restore", &name][..], more].concat());
    // Without a running relay the backup is the same, apart from its time.
    let content = |document: &str| -> anyhow::Result<serde_json::Value> {
        let mut document: serde_json::Value = serde_json::from_str(document)?;
        document["content"]["created"].take();
        Ok(document["content"].take())
    };
    let stopped = bed.relay.cli(&["backup", "-"])?.ok()?;
    bed.relay.start()?;
    let document = bed.relay.cli(&["backup", "-"])?.ok()?;
    assert_eq!(content(&stopped)?, content(&document)?);
    fs::write(&name, &document)?;

    let refused = |bed: &Testbed, reason: &str, more: &[&str]| -> Outcome {
        let before = files(bed)?;
        let done = restore(bed, more)?;
        let stderr = &done.stderr;
        assert!(
            done.code() == 1 && stderr.contains("nothing restored") && stderr.contains(reason),
            "{done:?}"
        );
        assert_eq!(files(bed)?, before);
        Ok(())
    };
    refused(&bed, "a relay is running", &["--force"])?;
    bed.relay.stop()?;
    let same = restore(&bed, &[])?;
    assert!(same.code() == 0 && same.stderr.contains("already as in the backup"), "{same:?}");

    bed.relay.configure("limits", "half_open", 77)?;
    refused(&bed, &bed.relay.config().display().to_string(), &[])?;
    for (damaged, reason) in [
        (document[..document.len() / 2].to_owned(), "cut off"),
        (document.replacen("\"laptop\"", "\"intruder\"", 1), "damaged"),
        (document.replacen("\"version\": 1", "\"version\": 9", 1), "version 9"),
        ("hello".to_owned(), "not a backup"),
    ] {
        fs::write(&name, damaged)?;
        refused(&bed, reason, &["--force"])?;
    }
    fs::write(&name, &document)?;
    let edited = files(&bed)?;
    restore(&bed, &["--force"])?.ok()?;
    assert_ne!(files(&bed)?, edited);
    let kept = fs::read_to_string(format!("{}.before-restore", bed.relay.config().display()))?;
    assert_eq!(kept, edited[0]);
    bed.start()?;
    bed.finish()
}

#[test]
fn status_shows_the_relay_whether_or_not_it_runs_and_its_configuration_is_valid() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let stopped = bed.relay.cli(&["status"])?;
    assert!(stopped.code() == 1 && stopped.stderr.contains("no relay is running"), "{stopped:?}");
    for shown in ["not running", &bed.relay.public_key, "home0", "1, 0 invited"] {
        assert!(stopped.stdout.contains(shown), "{shown}: {}", stopped.stdout);
    }
    bed.start()?;
    let status = |bed: &Testbed| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&bed.relay.cli(&["status", "--json"])?.ok()?)?)
    };
    let running = status(&bed)?;
    assert_eq!(running["pid"].as_i64(), bed.relay.pid().map(i64::from));
    assert!(running["running"] == true && running["reloaded"].is_null(), "{running}");
    assert!(running["clients"] == 1 && running["sessions"] == 1 && running["connected"] == 1, "{running}");
    assert!(running["pools"][0]["used"] == 1 && running["pools"][0]["free"] == 4092, "{running}");
    bed.relay.cli(&["invite", "friend", "--endpoint", "relay.example.org:443"])?.ok()?;
    bed.relay.cli(&["reload"])?.ok()?;
    let reloaded = status(&bed)?;
    assert!(reloaded["reloaded"].is_number() && reloaded["invitations"] == 1, "{reloaded}");
    assert!(reloaded["pools"][0]["used"] == 2, "{reloaded}");

    // A mistake in the file does not hide the running relay.
    let good = fs::read_to_string(bed.relay.config())?;
    fs::write(bed.relay.config(), format!("{good}\n[mistake]\n"))?;
    let mistaken = bed.relay.cli(&["status"])?;
    assert!(mistaken.code() == 0 && mistaken.stdout.contains("running as process"), "{mistaken:?}");
    assert!(mistaken.stdout.contains("FAIL  config"), "{mistaken:?}");
    fs::write(bed.relay.config(), good)?;
    bed.finish()
}

#[test]
fn the_commands_of_operating_work_to_the_letter() -> Outcome {
    let lab = Lab::new()?;
    let relay = BootedMachine::boot(&lab, &lab.relay)?;
    let new = BootedMachine::boot(&lab, &lab.host)?;
    let [package, _] = packages(VERSION)?;
    for machine in [&relay, &new] {
        install(machine, &package)?;
    }
    relay.run("home-relay init --ipv4 100.64.0.0/20 && systemctl start home-relay")?;
    relay
        .run("sed -i 's/^# Example: endpoint/endpoint/' /etc/home-relay/relay.toml && systemctl restart home-relay")?;
    let key = |letter: &str| format!("{}=", letter.repeat(43));
    for GuideStep { machine, commands } in guide::steps("use/operating.md")? {
        let script = format!("cd /lab\n{}", commands.replace("KEY", &key("A")));
        match machine.as_str() {
            "relay" => {
                // What a reader of the page has by then.
                relay.run(&format!("cd /lab; printf 'phone {}\\n' >clients.txt", key("E")))?;
                if script.contains("forward add") {
                    relay.run(&format!("home-relay authorize laptop {}", key("A")))?;
                }
                relay.run(&script)?;
                if script.contains("home-relay backup") {
                    new.copy_in(&lab.dir().join("relay-shared/relay.backup"))?;
                }
            }
            "new" => {
                relay.run("systemctl stop home-relay")?;
                new.run(&script)?;
                let clients = new.run("home-relay clients")?;
                ensure!(clients.contains("laptop") && clients.contains("phone"), "{clients}");
            }
            other => bail!("the page knows a machine {other:?} that this case does not"),
        }
    }
    ensure!(relay.try_run("test -e /etc/home-relay")?.code() == 1, "the page ends with a purge");
    lab.passed();
    Ok(())
}

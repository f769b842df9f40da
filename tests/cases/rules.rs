//! Commands of `home-relay` report the firewall rules that are really in the kernel, also when
//! `nft` or the kernel refuses a change.

use std::path::PathBuf;

use mobile_tests::{LabOptions, PATIENCE, Testbed, finish_within, until};

use crate::Outcome;

/// A replacement for `nft` that fails to install rules while a file `install` exists in `dir`, and
/// to list a table while a file `list` exists.
struct FailingNft {
    dir: PathBuf,
}

impl FailingNft {
    /// Puts the replacement for `nft` in front of the real one, in the relay's `PATH` from its next
    /// start on.
    fn install(bed: &mut Testbed) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;

        let dir = bed.lab.dir().join("tools");
        std::fs::create_dir(&dir)?;
        let real = bed.lab.relay.run(&["sh", "-c", "command -v nft"])?;
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n-f*) file=install;;\n*'list table '*) file=list;;\n*) file=none;;\nesac\n\
             if [ -e '{dir}'/$file ]; then echo 'refused by the test' >&2; exit 1; fi\nexec {real} \"$@\"\n",
            dir = dir.display(),
            real = real.trim()
        );
        let program = dir.join("nft");
        std::fs::write(&program, script)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        bed.relay.set_variable("PATH", dir.display().to_string());
        Ok(Self { dir })
    }

    fn refuse(&self, what: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.dir.join(what), "")?)
    }

    fn allow(&self, what: &str) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.dir.join(what))?)
    }
}

fn rules(bed: &Testbed) -> anyhow::Result<String> {
    bed.lab.relay.run(&["nft", "list", "table", "inet", "home_relay"])
}

fn forwards(bed: &Testbed) -> anyhow::Result<String> {
    bed.relay.cli(&["forward", "list", "--json"])?.ok()
}

#[test]
fn a_forward_that_nft_does_not_let_go_of_is_not_said_to_be_deleted() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let nft = FailingNft::install(&mut bed)?;
    // Without masquerading and the forward, nothing in the configuration needs the rules.
    bed.relay.configure("nat", "masquerade", false)?;
    bed.relay.start()?;
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    let before = (rules(&bed)?, forwards(&bed)?);
    assert!(before.0.contains("dport 2001") && before.1.contains("2001"), "{before:?}");

    for what in ["install", "list"] {
        nft.refuse(what)?;
        let refused = bed.relay.cli(&["forward", "del", "tcp", "2001"])?;
        assert_eq!(refused.code(), 1, "{what}: {refused:?}");
        assert!(refused.stderr.contains("refused by the test"), "{what}: {refused:?}");
        assert!(refused.stderr.contains("former"), "{what}: {refused:?}");
        assert_eq!((rules(&bed)?, forwards(&bed)?), before, "{what}");
        nft.allow(what)?;
    }

    // A revocation always succeeds, and the rules follow as soon as possible.
    nft.refuse("install")?;
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    assert_eq!(forwards(&bed)?.trim(), "[]");
    assert!(rules(&bed)?.contains("dport 2001"));
    until("the relay to be unwell", || bed.relay.log().contains("cannot restore kernel state, retrying"))?;
    nft.allow("install")?;
    until("the rules to follow", || rules(&bed).is_ok_and(|now| !now.contains("dport 2001")))?;
    bed.expect_warning("former addresses of clients, retrying");
    bed.expect_warning("cannot restore kernel state, retrying");
    bed.finish()
}

#[test]
fn a_start_without_nft_does_not_leave_the_rules_of_the_former_one_in_force_unnoticed() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.start()?;
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    bed.relay.kill()?;
    bed.relay.configure("nat", "masquerade", false)?;
    bed.relay.cli(&["forward", "del", "tcp", "2001"])?.ok()?;
    assert!(rules(&bed)?.contains("dport 2001"), "a relay that was killed leaves its rules");
    let mut command = bed.relay.command(&["serve"]);
    let refused = finish_within(command.env("PATH", "/nonexistent"), None, PATIENCE)?;
    assert_eq!(refused.code(), 1, "{refused:?}");
    for part in ["nft is not installed", "stay in force", "nft delete table inet home_relay"] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    bed.relay.start()?;
    assert!(!rules(&bed)?.contains("dport 2001"));
    bed.finish()
}

#[test]
fn a_reload_that_fails_half_way_leaves_the_former_rules_in_force() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let nft = FailingNft::install(&mut bed)?;
    // A mount namespace keeps one sysctl out of the relay's reach.
    bed.relay.start_under(&["/usr/bin/unshare", "--mount", "--propagation", "private"]);
    bed.relay.start()?;
    let before = rules(&bed)?;
    bed.relay.configure("nat", "interface", "wan0")?;
    bed.relay.configure("limits", "half_open", 77)?;

    nft.refuse("list")?;
    let refused = bed.relay.cli(&["reload"])?;
    assert!(refused.code() == 1 && refused.stderr.contains("refused by the test"), "{refused:?}");
    assert_eq!(rules(&bed)?, before);
    nft.allow("list")?;

    let setting = "/proc/sys/net/ipv4/ip_forward";
    let file = bed.lab.dir().join("ip_forward");
    std::fs::write(&file, "0\n")?;
    let pid = bed.relay.pid().expect("it runs").to_string();
    let inside =
        |script: &str| bed.lab.relay.run(&["nsenter", "--target", &pid, "--mount", "sh", "-c", script]);
    inside(&format!(
        "mount --bind {file} {setting} && mount -o remount,bind,ro {setting}",
        file = file.display()
    ))?;
    let refused = bed.relay.cli(&["reload"])?;
    assert!(refused.code() == 1 && refused.stderr.contains("ip_forward"), "{refused:?}");
    assert_eq!(rules(&bed)?, before);
    inside(&format!("umount {setting}"))?;

    let done = bed.relay.cli(&["reload"])?.ok()?;
    assert_eq!(done, "[limits] half_open\n[nat] interface\n", "nothing of it was in force");
    assert!(rules(&bed)?.contains("oifname \"wan0\" masquerade"));
    bed.expect_warning("the old one stays in force");
    bed.expect_warning("cannot restore kernel state, retrying");
    bed.finish()
}

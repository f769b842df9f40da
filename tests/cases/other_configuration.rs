//! `--config` means all of it: a command talks to the daemon of that configuration and to no other,
//! and its files are beside it unless it sets other places.

use std::path::{Path, PathBuf};
use std::process::Command;

use mobile_tests::{PATIENCE, Testbed, finish_within, program, until};

use crate::{Outcome, installed_without_delay};

/// Copies a configuration, with its socket, to a file in a folder of its own.
fn copied(bed: &Testbed, config: &Path) -> anyhow::Result<PathBuf> {
    let dir = bed.lab.dir().join("elsewhere");
    std::fs::create_dir_all(&dir)?;
    let copy = dir.join(config.file_name().unwrap_or_default());
    std::fs::copy(config, &copy)?;
    Ok(copy)
}

/// Runs a command, which must fail and name both files.
#[track_caller]
fn assert_not_its_own(command: &mut Command, files: [&Path; 2]) {
    let done = finish_within(command, None, PATIENCE).expect("it ends");
    assert!([1, 125].contains(&done.code()), "{command:?}: {done:?}");
    let said = done.stdout + &done.stderr;
    for file in files {
        assert!(said.contains(&file.display().to_string()), "{command:?}: no {} in {said}", file.display());
    }
}

#[test]
fn no_command_talks_to_the_daemon_of_another_configuration() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.start()?;
    let (mobile, relay) = (program("mobile")?, program("home-relay")?);
    let other = copied(&bed, bed.agent.config())?;
    for args in [
        &["status"][..],
        &["use", "auto"],
        &["bypass", "add", "10.9.9.0/24"],
        &["ps"],
        &["explain", "192.0.2.2"],
        &["check"],
        &["run", "true"],
    ] {
        let mut command = bed.lab.host.command(&mobile);
        command.arg("--config").arg(&other).args(args);
        assert_not_its_own(&mut command, [&other, bed.agent.config()]);
    }
    let mut cleanup = bed.lab.host.command(&mobile);
    let done = finish_within(cleanup.arg("--config").arg(&other).arg("cleanup"), None, PATIENCE)?;
    assert_eq!((done.code(), done.stdout.as_str()), (0, "nothing to remove\n"), "{done:?}");
    assert!(done.stderr.contains(&format!("({})", bed.agent.config().display())), "{done:?}");
    // The variable names the agent, whatever its configuration.
    let mut named = bed.lab.host.command(&mobile);
    named.args(["status", "--config"]).arg(&other);
    named.env("MOBILE_CONTROL_SOCKET", bed.agent.config().with_file_name("agent.sock"));
    finish_within(&mut named, None, PATIENCE)?.ok()?;

    let other = copied(&bed, bed.relay.config())?;
    for args in [
        &["clients"][..],
        &["sessions"],
        &["revoke", "laptop"],
        &["reload"],
        &["forward", "list"],
        &["check"],
        &["cleanup"],
    ] {
        let mut command = bed.lab.relay.command(&relay);
        command.arg("--config").arg(&other).args(args);
        assert_not_its_own(&mut command, [&other, bed.relay.config()]);
    }
    // Nothing happened to either.
    assert_eq!(bed.agent.status()?["session"], "connected");
    assert_eq!(bed.relay.client("laptop")?["name"], "laptop");
    bed.finish()
}

#[test]
fn a_configuration_without_paths_has_its_key_socket_and_state_beside_it() -> Outcome {
    let mut bed = installed_without_delay()?;
    for (section, key) in [("control", "socket"), ("state", "dir"), ("identity", "private_key_file")] {
        bed.agent.use_default(section, key)?;
    }
    bed.start()?;
    let config = bed.agent.config().to_path_buf();
    assert!(config.with_extension("sock").exists());
    let state = || std::fs::read_dir(config.with_extension("state")).into_iter().flatten().flatten();
    until("the assignment to be cached", || {
        state().any(|file| file.file_name().to_string_lossy().starts_with("assigned"))
    })?;

    // Another configuration in the same folder has files of its own, also before it exists.
    let other = config.with_file_name("other.toml");
    let mut keygen = bed.lab.host.command(program("mobile")?);
    keygen.args(["keygen", "--config"]).arg(&other);
    let public = finish_within(&mut keygen, None, PATIENCE)?.ok()?;
    assert_ne!(public.trim(), bed.agent.public_key);
    assert!(other.with_extension("key").exists());
    let mut status = bed.lab.host.command(program("mobile")?);
    std::fs::write(&other, "")?;
    let done = finish_within(status.args(["status", "--config"]).arg(&other), None, PATIENCE)?;
    assert!(done.code() == 1 && done.stderr.contains("no agent is running"), "{done:?}");
    assert!(done.stderr.contains("other.sock"), "{done:?}");
    bed.finish()
}

//! Users who may not read the agent's configuration use the agent all the same.

use std::fs::{self, Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};

use mobile_tests::{CommandOutput, LabOptions, PATIENCE, RELAY_PORT, Testbed, addr, finish_within};

use crate::{Outcome, copy};

/// The user id and group id of `nobody` and `nogroup`, which own no processes or files.
const NOBODY: u32 = 65_534;

/// Lets other users pass the lab's directories, and nobody but root read the agent's files.
fn hide_configuration(bed: &Testbed) -> Outcome {
    let dir = bed.agent.config().parent().expect("a directory");
    for (path, mode) in [(bed.lab.dir(), 0o755), (dir, 0o755), (bed.agent.config(), 0o600)] {
        set_permissions(path, Permissions::from_mode(mode))?;
    }
    copy(bed, bed.agent.binary().as_os_str(), &bed.lab.dir().join("mobile"))
}

/// Runs a verb as the user `nobody`, with the environment variables `variables`.
fn as_user(bed: &Testbed, args: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<CommandOutput> {
    let mut command = bed.lab.host.command_as(NOBODY, bed.lab.dir().join("mobile"));
    command.arg("--config").arg(bed.agent.config()).args(args).envs(variables.iter().copied());
    finish_within(&mut command, None, PATIENCE)
}

#[test]
fn an_ordinary_user_needs_no_readable_configuration() -> Outcome {
    let bed = Testbed::new()?;
    hide_configuration(&bed)?;
    let server = addr::SERVER4.to_string();
    for args in [
        &["status"][..],
        &["ps"],
        &["uplinks"],
        &["bypass", "list"],
        &["explain", &server],
        &["run", "--", "true"],
    ] {
        let done = as_user(&bed, args, &[])?;
        assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{args:?}: {done:?}");
    }
    for args in [&["use", "auto"][..], &["bypass", "add", "10.0.0.0/8"], &["reload"], &["cleanup"]] {
        let refused = as_user(&bed, args, &[])?;
        assert_eq!(refused.code(), 1, "{args:?}: {refused:?}");
        assert!(refused.stderr.contains("only root may"), "{args:?}: {refused:?}");
    }

    let done = as_user(&bed, &["check"], &[])?;
    assert_eq!(done.code(), 0, "{done:?}");
    for topic in ["config", "key", "eBPF", "TUN", "relay"] {
        let line = done.stdout.lines().find(|line| line.starts_with(&format!("skip  {topic}: ")));
        assert!(line.is_some_and(|line| line.contains("needs root")), "{topic}: {done:?}");
    }
    let expected = [
        format!("ok    relay name: {}:{RELAY_PORT}", addr::RELAY4),
        "ok    agent: running, connected over eth0".to_owned(),
    ];
    for start in expected {
        assert!(done.stdout.lines().any(|line| line.starts_with(&start)), "{start}: {done:?}");
    }
    bed.finish()
}

#[test]
fn a_hidden_configuration_without_an_agent_is_an_error_that_names_the_variable() -> Outcome {
    let bed = Testbed::installed(&LabOptions::default())?;
    hide_configuration(&bed)?;
    let refused = as_user(&bed, &["status"], &[])?;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("MOBILE_CONTROL_SOCKET"), "{refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    let named = [("MOBILE_CONTROL_SOCKET", "/nonexistent/agent.sock")];
    let refused = as_user(&bed, &["status"], &named)?;
    assert!(refused.stderr.contains("no agent is running"), "{refused:?}");
    assert!(refused.stderr.contains("/nonexistent/agent.sock"), "{refused:?}");
    bed.finish()
}

#[test]
fn a_refusal_names_the_group_to_join() -> Outcome {
    let bed = Testbed::installed(&LabOptions::default())?;
    let private = bed.lab.dir().join("private");
    fs::create_dir(&private)?;
    bed.agent.configure("control", "socket", private.join("agent.sock").display().to_string())?;
    bed.agent.configure("control", "group", "daemon")?;
    let mut bed = bed;
    bed.start()?;
    hide_configuration(&bed)?;
    let refused = as_user(&bed, &["use", "auto"], &[])?;
    assert!(refused.stderr.contains("the group `daemon` ([control] group)"), "{refused:?}");

    // The directory of the socket is closed to all but the members of a group.
    let daemon = nix::unistd::Group::from_name("daemon")?.expect("the group exists").gid;
    chown(&private, None, Some(daemon.as_raw()))?;
    set_permissions(&private, Permissions::from_mode(0o750))?;
    let refused = as_user(&bed, &["status"], &[])?;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("join the group `daemon`"), "{refused:?}");
    let done = as_user(&bed, &["check"], &[])?;
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(done.stdout.contains("skip  agent: not allowed to use"), "{done:?}");
    bed.finish()
}

//! The verbs say what they did, what is missing and which verb was meant.

use std::os::unix::fs::PermissionsExt;

use mobile_tests::{LabOptions, PATIENCE, Terminal, Testbed, UplinkName, addr, finish_within, port};

use crate::{Outcome, installed_without_delay, server};

#[test]
fn a_command_that_starts_without_a_session_says_so_at_once_and_again_when_there_is_one() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.agent.start()?;
    let end = bed.lab.dir().join("end");
    let script = format!("echo started; until [ -e {} ]; do sleep 0.05; done; exit 7", end.display());
    let mut terminal = Terminal::start(&mut bed.agent.run(&["sh", "-c", &script]))?;
    terminal.expect("mobile: no session: ")?;
    terminal.expect("connections wait for one, Ctrl-C to stop")?;
    terminal.expect("started")?;
    // The watcher of a command that ends before it keeps neither its pipes nor its status.
    let done = finish_within(&mut bed.agent.run(&["sh", "-c", "exit 3"]), None, PATIENCE)?;
    assert_eq!(done.code(), 3);
    assert!(done.stderr.starts_with("mobile: no session: "), "{done:?}");

    let ran = bed.lab.dir().join("ran").display().to_string();
    let require = || {
        let mut command = bed.lab.host.command(bed.agent.binary());
        command.arg("--config").arg(bed.agent.config());
        finish_within(command.args(["run", "--require-session", "--", "touch", &ran]), None, PATIENCE)
    };
    let done = require()?;
    assert_eq!(done.code(), 125, "{done:?}");
    assert!(done.stderr.contains("no session: "), "{done:?}");
    assert!(!std::fs::exists(&ran)?);

    bed.relay.start()?;
    bed.agent.wait_connected()?;
    terminal.expect("mobile: the session is there")?;
    // The shell and its `sleep` alone are mobile, not the process that watched.
    let processes: serde_json::Value = serde_json::from_str(&bed.agent.cli(&["ps", "--json"])?.ok()?)?;
    assert!(!processes.to_string().contains("mobile run"), "{processes}");
    std::fs::write(&end, "")?;
    assert_eq!(terminal.wait()?.code(), Some(7));
    let done = require()?;
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""));
    assert!(std::fs::exists(&ran)?);
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_mistyped_verb_is_named_and_a_command_that_resembles_one_runs() -> Outcome {
    let bed = Testbed::new()?;
    let bare = |argv: &[&str]| {
        let mut command = bed.lab.host.command(bed.agent.binary());
        command.arg("--config").arg(bed.agent.config()).args(argv);
        command
    };
    let done = finish_within(&mut bare(&["statsu"]), None, PATIENCE)?;
    assert_eq!(done.code(), 127);
    let said =
        "mobile: statsu is neither a verb of mobile nor a command on PATH: did you mean `mobile status`?\n";
    assert_eq!(done.stderr, said);
    let done = finish_within(&mut bare(&["no-such-command-anywhere"]), None, PATIENCE)?;
    assert_eq!(done.code(), 127);
    assert!(done.stderr.contains("`mobile --help` lists the verbs"), "{done:?}");

    let dir = bed.lab.dir().join("path");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("user"), "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(dir.join("user"), PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:{}", dir.display(), std::env::var("PATH")?);
    let done = finish_within(bare(&["user"]).env("PATH", &path), None, PATIENCE)?;
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("ran\n", ""));
    let mut terminal = Terminal::start(bare(&["user"]).env("PATH", &path))?;
    terminal.expect("mobile: running the command user; the verb is `mobile use`")?;
    terminal.expect("ran")?;
    assert_eq!(terminal.wait()?.code(), Some(0));

    let done = bed.relay.cli(&["clints"])?;
    assert_eq!(done.code(), 2);
    assert!(done.stderr.contains("'clients'"), "{done:?}");
    bed.finish()
}

#[test]
fn verbs_that_change_something_say_what_and_name_the_connections_that_break() -> Outcome {
    let mut bed = Testbed::new()?;
    let said = bed.agent.cli(&["use", "eth0"])?.ok()?;
    assert_eq!(said, "the tunnel uses eth0 whenever that uplink is usable\n");
    let said = bed.agent.cli(&["use", "auto"])?.ok()?;
    assert_eq!(said, "the policy of the configuration chooses the uplink\n");

    let [four, six] = server(port::ECHO);
    let mut talks = [bed.mobile_labtool(&["tcp", &four])?, bed.mobile_labtool(&["tcp", &six])?];
    for talk in &mut talks {
        talk.next_line()?;
    }
    let net = format!("{}/32", addr::SERVER4);
    let said = bed.agent.cli(&["bypass", "add", &net])?.ok()?;
    assert!(said.starts_with(&format!("mobile processes reach {net} directly")), "{said}");
    let broken: Vec<&str> = said.lines().filter(|line| line.starts_with("  breaks ")).collect();
    assert_eq!(broken.len(), 1, "{said}");
    for part in [&format!("{}:", bed.agent.address4), &format!("-> {four} of process"), "labtool"] {
        assert!(broken[0].contains(part), "no {part:?} in {said}");
    }
    // The connection over IPv6 works on, and the named one does not.
    assert_eq!(talks[1].request("works")?, "works");
    talks[0].send_line("lost")?;
    assert!(talks[0].next_line_within(std::time::Duration::from_secs(1)).is_err());
    let said = bed.agent.cli(&["bypass", "add", &net])?;
    assert_eq!((said.code(), said.stderr), (0, format!("mobile: {net} is already bypassed\n")));
    let said = bed.agent.cli(&["bypass", "del", &net])?.ok()?;
    assert!(said.contains(&format!("to {net} use the tunnel")), "{said}");
    drop(talks);

    let said = bed.agent.cli(&["cleanup"])?.ok()?;
    assert!(said.starts_with("the agent has ended; removed: device "), "{said}");
    bed.agent.wait_ended()?;
    assert_eq!(bed.agent.cli(&["cleanup"])?.ok()?, "nothing to remove\n");
    bed.relay.stop()?;
    assert!(bed.relay.cli(&["cleanup"])?.stderr.contains("removed device "));
    let again = bed.relay.cli(&["cleanup"])?;
    assert_eq!((again.code(), again.stderr.as_str()), (0, "nothing to remove\n"));
    bed.finish()
}

#[test]
fn every_process_of_a_command_is_attached_by_its_name() -> Outcome {
    let bed = Testbed::new()?;
    let name = "napper-of-the-lab";
    let program = bed.lab.dir().join(name);
    std::os::unix::fs::symlink("/bin/sleep", &program)?;
    let none = bed.agent.cli(&["attach", "--name", name])?;
    assert_eq!(none.code(), 1);
    assert!(none.stderr.contains(name), "{none:?}");
    let mut nappers = Vec::new();
    for _ in 0..2 {
        nappers.push(bed.lab.host.command(&program).arg("60").spawn()?);
    }
    let said = bed.agent.cli(&["attach", "--name", name])?;
    let listed = bed.agent.cli(&["ps", "--json"])?;
    for napper in &mut nappers {
        napper.kill()?;
        napper.wait()?;
    }
    let (said, listed) = (said.ok()?, listed.ok()?);
    for napper in &nappers {
        let pid = napper.id();
        assert!(
            said.lines().any(|line| line.starts_with(&format!("{pid} (")) && line.ends_with("is mobile"))
        );
        assert!(listed.contains(&format!("\"pid\": {pid},")), "{listed}");
    }
    bed.finish()
}

#[test]
fn status_counts_a_session_from_its_start_and_shows_the_resolvers() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.configure("dns", "servers", vec![addr::SERVER4.to_string()])?;
    bed.start()?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    bed.lab.eth().remove_route()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    let status = bed.agent.status()?;
    let seconds = |field: &str| status[field].as_f64().expect("a number");
    assert!(seconds("session_seconds") >= seconds("since_seconds") + 2.0, "{status}");
    let text = bed.agent.cli(&["status"])?.ok()?;
    assert!(text.contains(&format!("dns        {}\n", addr::SERVER4)), "{text}");
    bed.finish()
}

#[test]
fn commands_to_running_programs_work_while_somebody_edits_their_configuration() -> Outcome {
    let bed = Testbed::new()?;
    for config in [bed.agent.config(), bed.relay.config()] {
        let text = std::fs::read_to_string(config)?;
        std::fs::write(config, text + "garbage\n")?;
    }
    bed.agent.cli(&["status"])?.ok()?;
    bed.agent.cli(&["ps"])?.ok()?;
    finish_within(&mut bed.agent.run(&["true"]), None, PATIENCE)?.ok()?;
    let clients = bed.relay.cli(&["clients"])?;
    assert!(clients.stderr.contains("using the configuration of the running relay"), "{clients:?}");
    assert!(clients.ok()?.contains("laptop"));
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    let mut bed = bed;
    bed.expect_warning("relay");
    bed.expect_warning("path");
    bed.expect_warning("session");
    bed.finish()
}

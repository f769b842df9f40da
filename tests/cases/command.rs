//! `mobile run CMD` behaves as CMD: exit status, signals, terminal, directory and identity are the
//! command's own.

use mobile_tests::{CommandOutput, LabOptions, PATIENCE, Terminal, Testbed, finish_within};

use crate::Outcome;

fn run(bed: &Testbed, argv: &[&str]) -> anyhow::Result<CommandOutput> {
    finish_within(&mut bed.agent.run(argv), None, PATIENCE)
}

#[test]
fn exit_status_and_signals_are_the_commands_own() -> Outcome {
    let bed = Testbed::new()?;
    assert_eq!(run(&bed, &["true"])?.code(), 0);
    assert_eq!(run(&bed, &["sh", "-c", "exit 42"])?.code(), 42);
    assert_eq!(run(&bed, &["sh", "-c", "kill -TERM $$"])?.code(), 128 + 15);
    assert_eq!(run(&bed, &["sh", "-c", "kill -KILL $$"])?.code(), 128 + 9);
    assert_eq!(run(&bed, &["no-such-command-anywhere"])?.code(), 127);
    assert_eq!(run(&bed, &["/etc/passwd"])?.code(), 126);
    bed.finish()
}

#[test]
fn without_an_agent_the_command_does_not_run() -> Outcome {
    let bed = Testbed::installed(&LabOptions::default())?;
    let mark = bed.lab.dir().join("ran");
    let done = run(&bed, &["touch", &mark.display().to_string()])?;
    assert_eq!(done.code(), 125);
    assert!(done.stderr.contains("mobile agent"), "no next step in {:?}", done.stderr);
    assert!(!mark.exists());
    bed.lab.passed();
    Ok(())
}

#[test]
fn arguments_directory_environment_and_streams_pass_through() -> Outcome {
    let bed = Testbed::new()?;
    let mut command = bed.agent.run(&[
        "sh",
        "-c",
        "pwd; echo \"$COLOUR\"; cat; echo err >&2; echo \"$@\"",
        "sh",
        "--config",
        "x y",
    ]);
    command.current_dir(bed.lab.dir()).env("COLOUR", "green");
    let done = finish_within(&mut command, Some(b"from stdin\n"), PATIENCE)?;
    let expected = format!("{}\ngreen\nfrom stdin\n--config x y\n", bed.lab.dir().display());
    assert_eq!((done.stdout, done.stderr), (expected, "err\n".to_owned()));

    let mut bare = bed.lab.host.command(bed.agent.binary());
    bare.arg("--config").arg(bed.agent.config()).args(["echo", "as", "in", "the", "paper"]);
    assert_eq!(finish_within(&mut bare, None, PATIENCE)?.ok()?, "as in the paper\n");
    bed.finish()
}

#[test]
fn the_terminal_is_the_commands_own() -> Outcome {
    let bed = Testbed::new()?;
    let script = "trap 'echo caught; exit 7' INT; echo $$ on $(tty); stty size; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(&mut bed.agent.run(&["sh", "-c", script]))?;
    // No process stands in between: the command has the process id that was started.
    terminal.expect(&format!("{} on /dev/pts/", terminal.pid()))?;
    terminal.expect("24 80")?;
    terminal.send("\x03")?;
    terminal.expect("caught")?;
    assert_eq!(terminal.wait()?.code(), Some(7));
    bed.finish()
}

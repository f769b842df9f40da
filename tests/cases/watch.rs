//! `mobile status --watch` redraws in place on a terminal, and prints plain blocks to a pipe or
//! file.

use std::time::Duration;

use mobile_tests::{Process, Terminal, Testbed, UplinkName, until};

use crate::Outcome;

#[test]
fn a_terminal_is_redrawn_in_place_and_restored_at_the_end() -> Outcome {
    let bed = Testbed::new()?;
    for colours in [true, false] {
        bed.agent.cli(&["use", "eth0"])?.ok()?;
        bed.agent.wait_active(UplinkName::Eth)?;
        let mut command = bed.agent.command(&["status", "--watch"]);
        command.env("TERM", "xterm").env("NO_COLOR", if colours { "" } else { "1" });
        let mut terminal = Terminal::start(&mut command)?;
        let active = |uplink: &str| {
            let (on, off) = if colours { ("\x1b[32m", "\x1b[0m") } else { ("", "") };
            format!("{uplink:<16}{on}{:<12}{off}", "active")
        };
        terminal.expect(&active("eth0"))?;
        bed.agent.cli(&["use", "wlan0"])?.ok()?;
        terminal.expect(&active("wlan0"))?;
        terminal.expect("eth0 -> wlan0, forced, blackout")?;
        terminal.send("\x03")?;
        assert!(terminal.wait()?.success());
        terminal.expect("\x1b[?1049l")?;
        let shown = terminal.transcript();
        let frames: Vec<&str> = shown.split("\x1b[H").collect();
        // The output switches to the alternate screen and back once, and redraws without clearing.
        assert!(frames[0].starts_with("\x1b[?1049h\x1b[?25l") && frames.len() > 2, "{shown:?}");
        assert!(shown.ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"), "{shown:?}");
        assert!(!shown.contains("\x1b[2J") && shown.matches("\x1b[?1049").count() == 2, "{shown:?}");
        for frame in &frames[1..] {
            assert!(frame.matches('\n').count() < 24, "it scrolls: {frame:?}");
            let place = frame.lines().position(|line| line.contains("UPLINK"));
            assert_eq!(place, Some(10), "{frame:?}");
        }
        assert_eq!(shown.contains("\x1b[32m") || shown.contains("\x1b[1m"), colours, "{shown:?}");
    }
    bed.finish()
}

#[test]
fn without_a_terminal_it_prints_a_plain_block_each_second_while_it_has_a_reader() -> Outcome {
    let bed = Testbed::new()?;
    let file = bed.lab.dir().join("watch.txt");
    let process = Process::start("watch", &mut bed.agent.command(&["status", "--watch"]), &file)?;
    until("three blocks", || process.output().matches("HANDOVERS").count() >= 3)?;
    let text = process.output();
    drop(process);
    assert!(!text.contains(['\x1b', '\r']), "{text:?}");
    assert!(text.contains("/s ") && text.contains("\n\nsession    connected for "), "{text}");

    // The command ends with its reader, as any other verb.
    let script = format!(
        "timeout {} \"$@\" | head -n1; echo \"${{PIPESTATUS[0]}}\"",
        Duration::from_secs(10).as_secs()
    );
    let watch = bed.agent.command(&["status", "--watch"]);
    let mut shell = bed.lab.host.command("bash");
    shell.args(["-c", &script, "watch"]).arg(watch.get_program()).args(watch.get_args());
    let said = mobile_tests::finish_within(&mut shell, None, mobile_tests::PATIENCE)?.ok()?;
    assert!(said.starts_with("session    connected") && said.ends_with("\n0\n"), "{said}");
    bed.finish()
}

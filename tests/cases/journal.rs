//! The priorities of log lines in the journal of a real systemd that runs the programs as services.

use anyhow::{Context, ensure};
use mobile_tests::{BootedMachine, Lab, program, until};
use serde_json::Value;

use crate::Outcome;

#[test]
fn each_line_in_the_journal_has_its_priority() -> Outcome {
    let lab = Lab::new()?;
    let machine = BootedMachine::boot(&lab, &lab.relay)?;
    machine.copy_in(&program("home-relay")?)?;
    let config = "/etc/home-relay/relay.toml";
    machine.run(
        "/lab/home-relay init 2>/dev/null\n\
         systemd-run --quiet --unit=relay --property=RuntimeDirectory=home-relay --property=StateDirectory=home-relay \
         /lab/home-relay serve",
    )?;
    let relay = "/lab/home-relay";
    until("the relay to answer", || {
        machine.try_run(&format!("{relay} sessions")).is_ok_and(|done| done.code() == 0)
    })?;
    // A configuration that cannot be used causes a warning.
    machine.run(&format!(
        "cp {config} /root/good && echo nonsense >>{config}; systemctl kill --signal=HUP relay"
    ))?;
    let entries = |priorities: &str| -> anyhow::Result<Vec<(String, String)>> {
        // The service's own lines; systemd's lines about the service have another identifier.
        let text = machine.run(&format!(
            "journalctl --sync; journalctl _SYSTEMD_UNIT=relay.service --output=json --priority={priorities}"
        ))?;
        text.lines()
            .map(|line| {
                let entry: Value = serde_json::from_str(line)?;
                let field = |name: &str| entry[name].as_str().map(str::to_owned);
                Ok((
                    field("PRIORITY").context("no priority")?,
                    field("MESSAGE").with_context(|| format!("no text: {line}"))?,
                ))
            })
            .collect()
    };
    until("the warning", || entries("warning").is_ok_and(|found| !found.is_empty()))?;
    let loud = entries("warning")?;
    // A message of several lines becomes several entries.
    ensure!(loud[0].1.contains("cannot reload the configuration"), "{loud:?}");
    ensure!(loud.iter().all(|(priority, _)| priority == "4"), "{loud:?}");
    let quiet = entries("info..info")?;
    ensure!(!quiet.is_empty() && quiet.iter().all(|(priority, _)| priority == "6"), "{quiet:?}");
    for (_, text) in loud.iter().chain(&quiet) {
        // No colours, no time stamp, and no priority prefix.
        let twice = text.contains('\u{1b}') || text.starts_with(['<', ' ']);
        ensure!(!twice && !["INFO", "WARN", "ERROR"].iter().any(|level| text.contains(level)), "{text:?}");
        ensure!(!text.starts_with(|char: char| char.is_ascii_digit()), "{text:?}");
    }
    // A service that cannot start logs an error.
    machine.run("systemctl stop relay")?;
    machine.try_run(&format!(
        "systemd-run --quiet --wait --unit=relay-again /lab/home-relay serve --config {config}"
    ))?;
    let failed = machine.run(
        "journalctl --sync; journalctl _SYSTEMD_UNIT=relay-again.service --output=cat --priority=err..err",
    )?;
    ensure!(failed.starts_with("home-relay: "), "{failed:?}");
    machine.run(&format!("cp /root/good {config} && {relay} cleanup"))?;
    drop(machine);
    lab.passed();
    Ok(())
}

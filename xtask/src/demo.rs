//! `cargo xtask demo`: a telnet session survives the loss of the interface it was started on.
//!
//! Two sessions run to one telnet server, one started with `mobile run --` and one plain. The
//! uplink of both is cut while keys are typed into both.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};

use crate::shell;
use crate::{build, setup};

mod footprint;
mod scene;
mod screen;
mod session;
mod timeline;

use footprint::Footprint;
use scene::DemoResult;

/// Sets up, builds, runs the demonstration, prints its result, and checks that no kernel object or
/// file of the lab is left.
pub(crate) fn run() -> Result<()> {
    shell::require_root()?;
    setup::run()?;
    build::run(false)?;
    let footprint = Footprint::take()?;
    let played = scene::play();
    if let Ok(result) = &played {
        show(result);
    }
    let clean = footprint.check();
    let result = match (played, &clean) {
        (Err(failure), Err(left)) => {
            return Err(failure.context(format!("{left:#}; before that the demonstration failed")));
        }
        (played, _) => played?,
    };
    clean.context("the demonstration worked, but did not clean up after itself")?;
    println!("Nothing is left behind: no namespace, device, rule, pin, cgroup or process.");
    verdict(&result)
}

fn show(result: &DemoResult) {
    println!("\n{}", screen::beside(&result.screens));
    println!("{}", result.timeline.draw(std::io::stdout().is_terminal()));
    for line in &result.notes {
        println!("{line}");
    }
}

/// Checks the demonstration's result: both telnet sessions answered before the cut of the uplink,
/// and only the mobile session after it.
fn verdict(result: &DemoResult) -> Result<()> {
    let expected = [(true, true), (true, false)];
    for ((screen, answers), expected) in result.screens.iter().zip(&result.answers).zip(expected) {
        if *answers != expected {
            bail!(
                "{}: answered before the cut: {}, after the cut: {}; expected {} and {}",
                screen.title,
                answers.0,
                answers.1,
                expected.0,
                expected.1
            );
        }
    }
    let (pressed, echoed) = result.keys;
    if pressed != echoed {
        bail!("{pressed} keys were pressed in the mobile session, but {echoed} were echoed");
    }
    let [mobile, plain] = &result.timeline.rows;
    let blackout =
        result.timeline.longest_silence(mobile).length().context("the mobile session did not recover")?;
    if let Some(silence) = result.timeline.longest_silence(plain).length() {
        bail!("the plain session recovered after {} ms: its uplink was not cut", silence.as_millis());
    }
    println!(
        "\nBlackout: {} ms, the longest gap in the mobile session (a key every {} ms, {} ms of round trip).\n\
         All {pressed} keys were echoed exactly once. The plain session is dead.",
        blackout.as_millis(),
        scene::KEY_EVERY.as_millis(),
        scene::ROUND_TRIP.as_millis()
    );
    Ok(())
}

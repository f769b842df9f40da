//! `cargo xtask demo`: a telnet session outlives the loss of the interface it was started on.
//!
//! Two sessions to one real telnet server, one started with `mobile run --` and one plain; the uplink both use is cut
//! while somebody types into both.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::shell;
use crate::{build, setup};

mod footprint;
mod scene;
mod screen;
mod session;
mod timeline;

use footprint::Footprint;
use scene::Story;

/// Sets up, builds, plays the scene, shows it, and looks whether anything is left behind.
pub(crate) fn run() -> Result<()> {
    shell::require_root()?;
    setup::run()?;
    build::run(false)?;
    let footprint = Footprint::take()?;
    let played = scene::play();
    if let Ok(story) = &played {
        show(story);
    }
    let clean = footprint.check();
    let story = played?;
    clean.context("the demonstration worked, but did not clean up after itself")?;
    println!("Nothing is left behind: no namespace, device, rule, pin, cgroup or process.");
    verdict(&story)
}

fn show(story: &Story) {
    println!("\n{}", screen::beside(&story.screens));
    println!("{}", story.timeline.draw(std::io::stdout().is_terminal()));
    for line in &story.notes {
        println!("{line}");
    }
    let timeline = &story.timeline;
    for lane in &timeline.lanes {
        match timeline.longest_silence(lane).length() {
            Some(silence) => println!(
                "{}: the longest silence around the cut was {} ms (a key every {} ms, a round trip of {} ms).",
                lane.name,
                silence.as_millis(),
                scene::KEY_EVERY.as_millis(),
                scene::ROUND_TRIP.as_millis()
            ),
            None => println!("{}: never heard again.", lane.name),
        }
    }
    if let Some(blackout) = story.blackout {
        println!("Blackout: {} ms without an active path, as the agent measured it.", millis(blackout));
    }
}

/// The transcript is complete: every word typed before the cut was answered in both, and after it in the mobile
/// session only.
fn verdict(story: &Story) -> Result<()> {
    let expected = [(true, true), (true, false)];
    for ((screen, answers), expected) in story.screens.iter().zip(&story.answers).zip(expected) {
        if *answers != expected {
            bail!(
                "{} answered before the cut: {}, after it: {}; expected {} and {}",
                screen.title,
                answers.0,
                answers.1,
                expected.0,
                expected.1
            );
        }
    }
    let (pressed, echoed) = story.keys;
    if pressed != echoed {
        bail!("{pressed} keys were pressed in the mobile session, and {echoed} came back");
    }
    let blackout = story.blackout.context("the agent reports no handover")?;
    println!(
        "\nThe mobile session went on after a blackout of {} ms, and each of its {pressed} keys came back once. \
         The plain one is dead.",
        millis(blackout)
    );
    Ok(())
}

fn millis(duration: Duration) -> u128 {
    // A blackout of 0.6 ms is not 0 ms.
    duration.as_micros().div_ceil(1000)
}

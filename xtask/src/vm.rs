//! `cargo xtask test vm`: runs end-to-end cases on other kernels than this machine's, booted under
//! qemu.
//!
//! The virtual machine runs the same test program as the end-to-end tests, linked statically like
//! the product, in a root file system made of this machine's programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::musl::{self, Arch};
use crate::setup::{self, Tool};
use crate::shell::{self, step};

mod image;
mod kernel;
mod machine;

use kernel::Kernel;

/// The programs that virtual machines need beyond those of the other tests.
const TOOLS: &[Tool] = &[
    Tool { program: "busybox", package: "busybox-static" },
    Tool { program: "cpio", package: "cpio" },
    Tool { program: "depmod", package: "kmod" },
    Tool { program: "modprobe", package: "kmod" },
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" },
];

/// The tested kernel series, each with the Debian release that has it.
const KERNELS: [Kernel; 2] =
    [Kernel { series: "6.1", release: "bookworm" }, Kernel { series: "6.12", release: "trixie" }];

/// The end-to-end cases to run, one of each kind: an emulated processor is too slow for all of
/// them.
const CASES: &[&str] = &[
    "leaks::nothing_leaks_over_a_handover",
    "matrix::",
    "restart::connections_go_on_after_the_agent_was_killed_and_started_again",
    "selection::",
    "sessions::telnet_answers_after_the_loss_of_its_uplink_and_a_plain_one_does_not",
];

/// Boots each kernel, or only the one whose series is named in `words`, and runs the end-to-end
/// cases. Other words are filters that replace the default cases.
pub(crate) fn run(words: &[String]) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels and the tests that run on them are for x86_64: run this on an x86_64 machine");
    }
    setup::install(TOOLS)?;
    let (kernels, filters): (Vec<&str>, Vec<&str>) = words
        .iter()
        .map(String::as_str)
        .partition(|word| KERNELS.iter().any(|kernel| kernel.series == *word));
    let folder = shell::target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;

    let programs = programs()?;
    let cases = if filters.is_empty() { CASES } else { &filters };
    let (_, e2e) = programs.last().context("the programs do not include the test program")?;
    cases.iter().try_for_each(|case| assert_there(e2e, case))?;
    // One case at a time: emulated processors are slow enough without a second one.
    let commands = format!("/mobile/e2e --test-threads=1 {}\n", cases.join(" "));
    let base = image::base(&folder, &programs, &commands)?;
    for kernel in KERNELS {
        if kernels.is_empty() || kernels.contains(&kernel.series) {
            step(&format!("booting Linux {} under qemu", kernel.series));
            let unpacked = kernel.fetch(&folder)?;
            let image = image::with_modules(&folder, &base, &unpacked)?;
            machine::run(kernel.series, &unpacked.vmlinuz, &image, &folder)?;
        }
    }
    Ok(())
}

/// Builds the programs that run in the virtual machine, and returns their names and paths. All are
/// static, so that they do not depend on this machine's C library.
fn programs() -> Result<Vec<(&'static str, PathBuf)>> {
    let (mut build, target_dir) = musl::command(Arch::X86_64)?;
    step("building static mobile, home-relay and the cases, for the kernels under qemu");
    build.args(["--profile", "vm", "--message-format=json-render-diagnostics"]);
    build.args(["--package", "mobile-agent", "--package", "home-relay", "--package", "mobile-tests"]);
    build.args(["--bins", "--test=e2e"]).stderr(Stdio::inherit());
    let messages = shell::output(&mut build)?;
    let cases = executable(&messages).context("cargo named no test program of mobile-tests")?;
    let built = ["mobile", "home-relay", "labtool", "sockets", "vm-init"];
    let built = built.map(|name| (name, target_dir.join("vm").join(name)));
    let programs: Vec<_> = built.into_iter().chain([("e2e", cases)]).collect();
    programs.iter().try_for_each(|(_, path)| musl::assert_static(path))?;
    Ok(programs)
}

/// Fails if no end-to-end case matches `case`, because a renamed case would otherwise silently
/// never run.
fn assert_there(e2e: &Path, case: &str) -> Result<()> {
    let listed = shell::output(Command::new(e2e).args(["--list", "--format=terse", case]))?;
    if listed.is_empty() {
        bail!("there is no case {case}: `cargo xtask test e2e -- --list` names them");
    }
    Ok(())
}

/// Returns the path of the built test program, from cargo's JSON messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Runs `command` without showing its output.
fn quiet(command: &mut Command) -> Result<()> {
    shell::output(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_found_among_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"profile\":{\"test\":false},\"executable\":\"/t/labtool\"}\n",
            "not json\n",
            "{\"reason\":\"compiler-artifact\",\"profile\":{\"test\":true},\"executable\":\"/t/e2e-1\"}\n",
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/e2e-1")));
        assert_eq!(executable("{\"reason\":\"build-finished\"}"), None);
    }
}

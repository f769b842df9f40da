//! One fuzz target: runs it, and reports the result.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// libFuzzer's limit of an input's length in bytes. Longer inputs would only be slower, because the
/// length limits of the parsed formats are smaller. Only packets may be longer, and the fuzz
/// targets generate the longest ones themselves.
const MAX_LEN: &str = "-max_len=4096";

/// libFuzzer's limit of a single allocation in MiB. A larger allocation would mean that a peer's
/// length field is trusted: the longest packet has 64 KiB, and a session's limits in the targets
/// are 60 KiB.
const MALLOC_LIMIT: &str = "-malloc_limit_mb=16";

/// The number of lines shown from the end of a failed run's log, which has the panic, its stack and
/// the input.
const LAST_LINES: usize = 60;

/// A fuzz target that has been built.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) binary: PathBuf,
}

/// The result of fuzzing one target without a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    name: String,
    executions: u64,
    /// The number of code edges reached.
    coverage: u64,
    /// The number of inputs in the corpus, each of which adds coverage.
    corpus: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, executions, coverage, corpus } = self;
        write!(f, "{name}: {executions} executions, {coverage} edges, {corpus} inputs, no failure")
    }
}

/// Returns the names of all fuzz targets.
pub(super) fn names() -> Result<Vec<String>> {
    let folder = shell::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl Target {
    /// Returns the folder of this target's committed corpus.
    pub(super) fn committed(&self) -> PathBuf {
        shell::root().join("fuzz/corpus").join(&self.name)
    }

    /// Returns the folder `what` for this target's files below cargo's target directory, created if
    /// necessary.
    pub(super) fn work_dir(&self, what: &str) -> Result<PathBuf> {
        let dir = shell::target_dir()?.join("fuzz").join(what).join(&self.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Returns the folder of [`Target::work_dir`], emptied.
    pub(super) fn fresh_dir(&self, what: &str) -> Result<PathBuf> {
        let dir = self.work_dir(what)?;
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        self.work_dir(what)
    }

    /// Returns the command that runs this target with the limits on input length, memory and time.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args([MAX_LEN, MALLOC_LIMIT, "-rss_limit_mb=2048", "-timeout=25"]);
        command
    }

    /// Fuzzes this target for some seconds, beginning with the committed corpus. Inputs that add
    /// coverage are written to the folder `found`.
    pub(super) fn fuzz(&self, found: &Path, seconds: u64) -> Result<Outcome> {
        let crashes = self.work_dir("crashes")?;
        let log = self.work_dir("log")?.join("log");
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut prefix = std::ffi::OsString::from("-artifact_prefix=");
        prefix.push(crashes.join(""));
        let status = self
            .command()
            .args([format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()])
            .arg(prefix)
            .args([found, &self.committed()])
            .stderr(file)
            .status()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        if !status.success() {
            bail!("{}", self.failure(&text, status));
        }
        self.outcome(&text)
            .with_context(|| format!("{} ended without statistics: see {}", self.name, log.display()))
    }

    /// Runs this target with one input and shows all its output.
    pub(super) fn reproduce(&self, input: &Path) -> Result<()> {
        shell::run(self.command().arg(input))
    }

    /// Returns the description of a failed run: the end of its log and the command that reproduces
    /// the failure.
    fn failure(&self, log: &str, status: std::process::ExitStatus) -> String {
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        let name = &self.name;
        let next = match input_of(log) {
            Some(input) => format!(
                "reproduce it with\n  cargo xtask fuzz {name} --input {input}\n\
                 and keep it, once it is mended, as a test of its own and as a file of {}",
                self.committed().display()
            ),
            None => "it left no input".to_owned(),
        };
        format!("{last}\nfuzz target {name} failed ({status}); {next}")
    }

    fn outcome(&self, log: &str) -> Option<Outcome> {
        let executions =
            log.lines().rev().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
        let done = log.lines().rev().find(|line| line.contains("corp: "))?;
        let figure = |name: &str| {
            let rest = done.split_once(name)?.1.trim_start();
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        Some(Outcome {
            name: self.name.clone(),
            executions: executions.trim().parse().ok()?,
            coverage: figure("cov: ")?,
            corpus: figure("corp: ")?,
        })
    }
}

/// Returns the path of the failing input's file, which libFuzzer names in its log.
fn input_of(log: &str) -> Option<&str> {
    log.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { name: "frame".into(), binary: "/nowhere/frame".into() }
    }

    #[test]
    fn statistics_are_read_from_the_log() {
        let log = "#2\tINITED cov: 40 ft: 41 corp: 1/1b exec/s: 0 rss: 40Mb\n\
                   #900\tDONE   cov: 456 ft: 789 corp: 55/1203b lim: 21 exec/s: 90 rss: 60Mb\n\
                   Done 900 runs in 10 second(s)\nstat::number_of_executed_units: 900\nstat::peak_rss_mb: 60\n";
        let expected = Outcome { name: "frame".into(), executions: 900, coverage: 456, corpus: 55 };
        assert_eq!(target().outcome(log), Some(expected));
        assert_eq!(target().outcome("stat::number_of_executed_units: 900\n"), None);
    }

    #[test]
    fn a_failure_says_how_to_reproduce_it() {
        use std::os::unix::process::ExitStatusExt as _;

        let log = "thread panicked\nartifact_prefix='/t/'; Test unit written to /t/crash-12\nBase64: AA==\n";
        let text = target().failure(log, std::process::ExitStatus::from_raw(77 << 8));
        assert!(text.contains("thread panicked") && text.contains("Base64: AA=="), "{text}");
        assert!(text.contains("cargo xtask fuzz frame --input /t/crash-12"), "{text}");
    }

    #[test]
    fn every_target_has_a_corpus() {
        for name in names().unwrap() {
            let corpus = Target { binary: PathBuf::new(), name: name.clone() }.committed();
            assert!(fs::read_dir(&corpus).is_ok_and(|mut files| files.next().is_some()), "{name}");
        }
    }
}

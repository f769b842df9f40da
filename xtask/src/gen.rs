//! `cargo xtask gen`: generates man pages and shell completions from the command lines'
//! definitions, and docs/use/metrics.md from the metrics' declarations.

pub(crate) mod metrics;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::shell::{self, step};

#[path = "../../mobile-agent/src/cli/args.rs"]
#[allow(dead_code, reason = "only the command line definition is used here, not its parsed values")]
mod mobile;

#[path = "../../home-relay/src/cli/args.rs"]
#[allow(dead_code, reason = "only the command line definition is used here, not its parsed values")]
mod home_relay;

/// The shells for which completions are generated, each with the prefix and the suffix of the file
/// name that it expects.
const SHELLS: [(Shell, &str, &str); 3] =
    [(Shell::Bash, "", ""), (Shell::Zsh, "_", ""), (Shell::Fish, "", ".fish")];

/// Generates man pages and completions of both programs, docs/use/metrics.md and docs/messages.txt.
pub(crate) fn run() -> Result<()> {
    let out = shell::target_dir()?.join("gen");
    for command in commands() {
        let name = command.get_name().to_owned();
        let files = generate(&command, &out)?;
        step(&format!("{name}: {} man pages and completions in {}", files.len(), out.display()));
    }
    crate::lint::messages::write()?;
    metrics::write()
}

/// Generates one program's man pages and completions below `out`, and returns the files' paths.
pub(crate) fn program(name: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let command = commands().into_iter().find(|command| command.get_name() == name);
    generate(&command.with_context(|| format!("no program is named {name}"))?, out)
}

fn commands() -> [Command; 2] {
    [mobile::Cli::command(), home_relay::Cli::command()]
}

/// Generates `man/`, with a page for the program and one for each verb, and `completions/SHELL/`.
fn generate(command: &Command, out: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let man = out.join("man");
    fs::create_dir_all(&man).with_context(|| format!("cannot make {}", man.display()))?;
    let name = command.get_name().to_owned();
    // Building gives verbs the global options and their full names.
    let mut built = command.clone().disable_help_subcommand(true);
    built.build();
    files.push(page(built.clone(), &name, &man)?);
    for verb in built.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let page_name = format!("{name}-{}", verb.get_name());
        files.push(page(verb.clone(), &page_name, &man)?);
    }
    for (shell, before, after) in SHELLS {
        let dir = out.join("completions").join(shell.to_string());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(format!("{before}{name}{after}"));
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), name.clone(), &mut text);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        files.push(path);
    }
    Ok(files)
}

fn page(command: Command, name: &str, man: &Path) -> Result<PathBuf> {
    // Section 8 is for system administration. The command's name is the long one, such as
    // `mobile-run`.
    let page = clap_mangen::Man::new(command).section("8");
    let mut text = Vec::new();
    page.render(&mut text).context("cannot render a man page")?;
    let path = man.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_and_is_completed_in_every_shell() {
        let out = tempfile::tempdir().unwrap();
        for command in commands() {
            let name = command.get_name().to_owned();
            generate(&command, out.path()).unwrap();
            let read = |path: &Path| fs::read_to_string(out.path().join(path)).unwrap();
            let main = read(&Path::new("man").join(format!("{name}.8")));
            assert!(main.contains("\\-\\-config"), "{main}");
            // Hidden verbs are started by the agent itself, not by people.
            let typed = command.get_subcommands().filter(|verb| !verb.is_hide_set());
            let verbs: Vec<String> = typed.map(|verb| verb.get_name().to_owned()).collect();
            assert!(verbs.iter().any(|verb| verb == "check") && verbs.len() > 7, "{verbs:?}");
            for verb in &verbs {
                let page = read(&Path::new("man").join(format!("{name}-{verb}.8")));
                assert!(page.contains(".SH NAME") && page.contains("\\-\\-config"), "{name} {verb}: {page}");
                let listed = format!("{name}-{verb}(8)").replace('-', "\\-");
                assert!(main.contains(&listed), "no {listed} in {main}");
            }
            for (shell, before, after) in SHELLS {
                let path = format!("completions/{shell}/{before}{name}{after}");
                let completion = read(Path::new(&path));
                for verb in &verbs {
                    assert!(completion.contains(verb.as_str()), "{path} does not know {verb}");
                }
            }
        }
    }
}

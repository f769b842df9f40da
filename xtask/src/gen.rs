//! `cargo xtask gen`: man pages, and completions for bash, zsh and fish, made from the command lines themselves, so that
//! they cannot say anything else; and docs/metrics.md, from the metrics themselves.

pub(crate) mod metrics;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::shell::{self, step};

#[path = "../../mobile-agent/src/cli/args.rs"]
#[allow(
    dead_code,
    reason = "what was typed is read by the program; here only what may be typed is of interest"
)]
mod mobile;

#[path = "../../home-relay/src/cli/args.rs"]
#[allow(
    dead_code,
    reason = "what was typed is read by the program; here only what may be typed is of interest"
)]
mod home_relay;

/// The shells that are served, with the names under which each looks for a completion.
const SHELLS: [(Shell, &str, &str); 3] =
    [(Shell::Bash, "", ""), (Shell::Zsh, "_", ""), (Shell::Fish, "", ".fish")];

/// Both programs'.
pub(crate) fn run() -> Result<()> {
    let out = shell::target_dir()?.join("gen");
    for command in commands() {
        let name = command.get_name().to_owned();
        let files = generate(&command, &out)?;
        step(&format!("{name}: {} man pages and completions in {}", files.len(), out.display()));
    }
    metrics::write()
}

/// One program's pages and completions, below `out`.
pub(crate) fn program(name: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let command = commands().into_iter().find(|command| command.get_name() == name);
    generate(&command.with_context(|| format!("no program is named {name}"))?, out)
}

fn commands() -> [Command; 2] {
    [mobile::Cli::command(), home_relay::Cli::command()]
}

/// `man/` has a page for the program and one for each verb; `completions/SHELL/` what each shell reads.
fn generate(command: &Command, out: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let man = out.join("man");
    fs::create_dir_all(&man).with_context(|| format!("cannot make {}", man.display()))?;
    let name = command.get_name().to_owned();
    // Verbs get the options that hold for all, and their names from the program's.
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
    // Section 8: what is for the administrator, as both mostly are.
    // Building gave it its long name, `mobile-run`.
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
            // What the agent starts by itself is hidden from people.
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

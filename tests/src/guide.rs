//! A guide of the documentation, as something to follow to the letter.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A block of commands of the guide.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The machine it is for.
    pub machine: String,
    /// What to type there, line by line.
    pub commands: String,
}

/// The blocks of docs/`name` that begin with three backticks, `sh` and the name of a machine.
pub fn steps(name: &str) -> Result<Vec<Step>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let steps = parse(&text);
    ensure!(!steps.is_empty(), "{} has no steps", path.display());
    Ok(steps)
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(machine) = line.strip_prefix("```sh ") {
            let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            steps.push(Step { machine: machine.to_owned(), commands: commands.join("\n") });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_for_a_machine_are_steps() {
        let text = "Do:\n```sh relay\na\nb\n```\nIt prints\n```\nc\n```\nand in general\n```sh\nd\n```\n";
        assert_eq!(parse(text), [Step { machine: "relay".into(), commands: "a\nb".into() }]);
    }
}

//! Reads the commands of a guide in docs/, so that a case can follow the guide literally.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A block of commands in a guide.
#[derive(Debug, PartialEq, Eq)]
pub struct GuideStep {
    /// The name of the machine on which the reader types the commands.
    pub machine: String,
    /// The commands of the block, one on each line.
    pub commands: String,
}

/// Returns the command blocks of docs/`name`: the fenced blocks that are marked `sh MACHINE`.
pub fn steps(name: &str) -> Result<Vec<GuideStep>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let steps = parse(&text);
    ensure!(!steps.is_empty(), "{} has no steps", path.display());
    Ok(steps)
}

fn parse(text: &str) -> Vec<GuideStep> {
    let mut steps = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(machine) = line.strip_prefix("```sh ") {
            let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            steps.push(GuideStep { machine: machine.to_owned(), commands: commands.join("\n") });
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
        assert_eq!(parse(text), [GuideStep { machine: "relay".into(), commands: "a\nb".into() }]);
    }
}

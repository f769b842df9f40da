//! Finds the verb that the user may have meant by a command's name.

use std::ffi::OsStr;

use clap::CommandFactory as _;

use super::args::Cli;

/// The number of letters in which a name that is no command may differ from a verb.
const MISTYPED: usize = 2;

/// The length of the shortest command that is compared with verbs, so that `mobile ls` is not taken
/// for `mobile ps`.
const SHORTEST: usize = 3;

/// Returns the verb nearest to a name that is neither a verb nor a command.
pub(super) fn of_unknown(name: &OsStr) -> Option<String> {
    near(name, MISTYPED)
}

/// Returns the verb that differs in one letter from the name of a command that exists.
pub(super) fn of_command(name: &OsStr) -> Option<String> {
    near(name, 1)
}

fn near(name: &OsStr, most: usize) -> Option<String> {
    let name = name.to_str().filter(|name| name.chars().count() >= SHORTEST)?;
    let cli = Cli::command();
    let verbs = cli.get_subcommands().filter(|verb| !verb.is_hide_set()).map(clap::Command::get_name);
    let distances = verbs.map(|verb| (strsim::osa_distance(name, verb), verb));
    let (_, verb) =
        distances.filter(|(distance, verb)| *distance <= most && *distance < verb.len() - 1).min()?;
    Some(verb.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_near_if_few_letters_differ() {
        for (name, verb) in [
            ("statsu", Some("status")),
            ("stat", Some("status")),
            ("atach", Some("attach")),
            ("uplink", Some("uplinks")),
            ("pstree", None),
            ("ls", None),
            ("ssh", None),
            ("process-helper", None),
        ] {
            assert_eq!(of_unknown(OsStr::new(name)).as_deref(), verb, "{name}");
        }
        assert_eq!(of_command(OsStr::new("user")).as_deref(), Some("use"));
        assert_eq!(of_command(OsStr::new("stat")), None);
    }
}

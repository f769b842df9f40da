//! The committed corpus of a fuzz target: inputs that each add coverage, taken from the target's
//! seeds (messages that this project's encoders write) and from fuzzing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::target::Target;
use crate::shell::{self, step};

/// The environment variable that makes a fuzz target write its seeds; see `fuzz/src/lib.rs`.
const SEEDS: &str = "MOBILE_FUZZ_SEEDS";

/// Rewrites the committed corpus of a fuzz target with the inputs that add coverage.
///
/// Files that are not named by their hash, as libFuzzer names them, were added by hand and stay.
pub(super) fn minimise(target: &Target) -> Result<()> {
    step(&format!("minimising the corpus of {}", target.name));
    let seeds = target.fresh_dir("seeds")?;
    shell::output(target.command().env(SEEDS, &seeds)).context("cannot create the seeds")?;
    let (fresh, found, committed) =
        (target.fresh_dir("fresh")?, target.work_dir("found")?, target.committed());
    fs::create_dir_all(&committed).with_context(|| format!("cannot create {}", committed.display()))?;
    let mut merge = target.command();
    // Coverage counts by edges alone. Counting how often each edge is reached would keep several
    // times as many inputs.
    merge.args(["-set_cover_merge=1", "-use_counters=0"]);
    shell::output(merge.args([&fresh, &seeds, &committed, &found]))?;
    replace(&committed, &fresh).with_context(|| format!("cannot replace {}", committed.display()))?;
    let files = fs::read_dir(&committed).with_context(|| format!("cannot read {}", committed.display()))?;
    let sizes: Vec<u64> = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).collect();
    println!("{}: {} inputs, {} bytes", target.name, sizes.len(), sizes.iter().sum::<u64>());
    Ok(())
}

fn replace(committed: &Path, fresh: &Path) -> std::io::Result<()> {
    for file in fs::read_dir(committed)? {
        let file = file?;
        if is_hash(&file.file_name().to_string_lossy()) {
            fs::remove_file(file.path())?;
        }
    }
    for file in fs::read_dir(fresh)? {
        let file = file?;
        fs::copy(file.path(), committed.join(file.file_name()))?;
    }
    Ok(())
}

fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_added_by_hand_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (committed, fresh) = (dir.path().join("committed"), dir.path().join("fresh"));
        let (old, new) = ("a".repeat(40), "b".repeat(40));
        for (folder, name) in [(&committed, old.as_str()), (&committed, "a-crash-of-old"), (&fresh, &new)] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(name), name).unwrap();
        }
        replace(&committed, &fresh).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&committed).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a-crash-of-old", &new]);
    }
}

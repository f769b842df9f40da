use std::os::unix::fs::MetadataExt as _;

use super::super::tests::{CONFIG, example};
use super::*;

/// A machine on which a backup is restored.
struct Machine {
    dir: tempfile::TempDir,
    destination: Destination,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination {
            config: dir.path().join("etc/relay.toml"),
            key: dir.path().join("etc/relay.key"),
            state: dir.path().join("var/lib/state"),
        };
        Self { dir, destination }
    }

    fn restore(&self, replace: bool) -> Result<Restored, RestoreError> {
        self.destination.restore(&example(), replace)
    }

    /// Returns all files with their content; of a database, which is never the same twice, the
    /// name only.
    fn files(&self) -> Vec<(String, String)> {
        fn visit(dir: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    visit(&path, found);
                } else {
                    let content = String::from_utf8(fs::read(&path).unwrap()).unwrap_or_default();
                    found.push((path.file_name().unwrap().to_str().unwrap().to_owned(), content));
                }
            }
        }
        let mut found = Vec::new();
        visit(self.dir.path(), &mut found);
        found.sort();
        found
    }

    fn names(&self) -> Vec<String> {
        self.files().into_iter().map(|(name, _)| name).collect()
    }

    /// Returns the paths in the order in which a restore writes them.
    fn paths(&self) -> [PathBuf; 4] {
        let Destination { config, key, state } = &self.destination;
        [Store::file_in(state), with_suffix(key, ".next"), key.clone(), config.clone()]
    }

    fn assert_restored(&self) {
        assert_eq!(fs::read_to_string(&self.destination.config).unwrap(), CONFIG);
        let store = Store::open(&self.destination.state).unwrap();
        assert_eq!(store.snapshot().unwrap(), example().store);
    }
}

const ALL: [&str; 4] = ["relay.key", "relay.key.next", "relay.redb", "relay.toml"];

#[test]
fn a_restore_to_an_empty_machine_writes_every_file_with_its_mode_and_owner() {
    let machine = Machine::new();
    std::os::unix::fs::chown(machine.dir.path(), Some(4321), Some(1234)).unwrap();
    let etc = machine.destination.config.parent().unwrap();
    fs::create_dir(etc).unwrap();
    std::os::unix::fs::chown(etc, Some(4321), Some(1234)).unwrap();
    assert_eq!(machine.restore(false).unwrap().written.len(), ALL.len());
    machine.assert_restored();
    assert_eq!(machine.names(), ALL);
    let [store, next, key, config] = machine.paths();
    for (path, mode) in [(&store, 0o600), (&next, 0o600), (&key, 0o600), (&config, 0o640)] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, mode, "{}", path.display());
    }
    let state = fs::metadata(&machine.destination.state).unwrap();
    assert_eq!(state.mode() & 0o7777, 0o700);
    for path in [next, key, config] {
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (4321, 1234), "{}", path.display());
    }
}

#[test]
fn a_restore_that_lost_power_is_repeated() {
    for complete in 0..ALL.len() {
        let machine = Machine::new();
        machine.restore(false).unwrap();
        let paths = machine.paths();
        for (number, path) in paths.iter().enumerate().skip(complete) {
            fs::remove_file(path).unwrap();
            // The next file may be there under its temporary name, with part of its content.
            if number == complete {
                fs::write(with_suffix(path, UNFINISHED), "x").unwrap();
            }
        }
        assert!(!machine.destination.config.exists(), "no relay starts without its configuration");
        assert_eq!(machine.restore(false).unwrap().written, paths[complete..], "{complete}");
        machine.assert_restored();
        assert_eq!(machine.names(), ALL);
    }
    let machine = Machine::new();
    machine.restore(false).unwrap();
    assert!(machine.restore(false).unwrap().written.is_empty());
}

#[test]
fn files_of_another_relay_are_named_and_kept_unless_they_are_to_be_replaced() {
    for number in 0..ALL.len() {
        let machine = Machine::new();
        let path = &machine.paths()[number];
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
        let before = machine.files();
        let error = machine.restore(false).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("--force"), "{error}");
        assert_eq!(machine.files(), before);

        machine.restore(true).unwrap();
        machine.assert_restored();
        let replaced = with_suffix(path, REPLACED);
        assert_eq!(fs::read_to_string(&replaced).unwrap(), "mine");
        // A second replacement would lose it.
        fs::write(path, "mine again").unwrap();
        let before = machine.files();
        let error = machine.restore(true).unwrap_err().to_string();
        assert!(error.contains(replaced.to_str().unwrap()), "{error}");
        assert_eq!(machine.files(), before);
    }
}

#[test]
fn the_configuration_leaves_while_another_file_is_replaced() {
    let machine = Machine::new();
    machine.restore(false).unwrap();
    fs::write(&machine.destination.key, "mine").unwrap();
    let Destination { config, key, .. } = &machine.destination;
    let restored = machine.restore(true).unwrap();
    assert_eq!(restored.written, [key.clone(), config.clone()]);
    assert!(with_suffix(config, REPLACED).exists() && with_suffix(key, REPLACED).exists());
    machine.assert_restored();
}

#[test]
fn a_key_of_another_relay_does_not_stay_beside_the_restored_one() {
    let machine = Machine::new();
    let old = with_suffix(&machine.destination.key, ".old");
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, "mine").unwrap();
    assert!(matches!(machine.restore(false), Err(RestoreError::Exist(paths)) if paths == [old.clone()]));
    machine.restore(true).unwrap();
    assert!(!old.exists() && with_suffix(&old, REPLACED).exists());
}

#[test]
fn a_restore_that_fails_leaves_everything_as_it_was() {
    // The directory of the state directory is a file.
    let machine = Machine::new();
    fs::write(machine.dir.path().join("var"), "").unwrap();
    let before = machine.files();
    let error = machine.restore(false).unwrap_err().to_string();
    assert!(error.contains("nothing restored"), "{error}");
    assert_eq!(machine.files(), before);

    // The key cannot be renamed, after all files were prepared.
    let mut machine = Machine::new();
    fs::create_dir(machine.dir.path().join("etc")).unwrap();
    fs::write(&machine.destination.key, "mine").unwrap();
    machine.destination.config = machine.dir.path().join("etc/relay.key.before-restore/relay.toml");
    let before = machine.files();
    let error = machine.restore(true).unwrap_err().to_string();
    assert!(error.contains("nothing restored"), "{error}");
    assert_eq!(machine.files(), before);
    assert!(!machine.dir.path().join("var").exists(), "directories are removed again");
}

#[test]
fn a_store_in_use_and_files_at_one_path_are_refused() {
    let machine = Machine::new();
    let open = Store::open(&machine.destination.state).unwrap();
    assert!(matches!(machine.restore(true), Err(RestoreError::InUse(_))));
    drop(open);
    let mut machine = Machine::new();
    machine.destination.key = machine.destination.config.clone();
    assert!(matches!(machine.restore(false), Err(RestoreError::SamePath(_))));
    assert!(machine.names().is_empty());
}

//! Tests of the lint on an invented crate, `sample`, whose library is `sample_lib`.

use super::crates::{Crate, Libraries};
use super::cycles;
use super::layers::upward;
use crate::lint::sources::File;

fn file(name: &str, text: &str) -> File {
    File { name: name.to_owned(), text: text.to_owned() }
}

fn cycles_of(files: Vec<File>) -> Vec<(String, Vec<String>)> {
    let sample = Crate { folder: "sample".to_owned(), library: Some("sample_lib".to_owned()), files };
    let found = cycles::find(&[sample]).expect("sources");
    found.into_iter().map(|cycle| (cycle.folder, cycle.modules)).collect()
}

#[test]
fn a_cycle_is_found_in_use_lines_paths_and_macros() {
    for seed in [
        "use crate::hall::Door;",
        "fn a() { crate::hall::open() }",
        "fn a() { info!(\"{}\", crate::hall::open()) }",
        "use super::{x, hall::{Door, Key}};",
        "use sample_lib::hall::Door;",
    ] {
        let files = vec![
            file("sample/src/main.rs", "mod hall; mod kitchen; use hall::Door;"),
            file("sample/src/hall.rs", "use crate::kitchen::stove::Pan; mod key;"),
            file("sample/src/hall/key.rs", "use super::Lock;"),
            file("sample/src/kitchen.rs", "mod stove;"),
            file("sample/src/kitchen/stove.rs", seed.replace("super::{", "super::super::{").as_str()),
        ];
        let modules = vec!["hall".to_owned(), "kitchen".to_owned()];
        assert_eq!(cycles_of(files), [("sample/src/".to_owned(), modules)], "{seed}");
    }
}

#[test]
fn tests_parents_and_children_make_no_cycle() {
    let files = vec![
        file("sample/src/lib.rs", "pub mod hall; pub mod kitchen;"),
        file("sample/src/hall.rs", "mod key; use crate::kitchen::Pan; use key::Key;"),
        file("sample/src/hall/key.rs", "use super::Lock; use crate::Address;"),
        file("sample/src/kitchen.rs", "pub struct Pan; #[cfg(test)] mod tests { use crate::hall::Door; }"),
        file("sample/src/kitchen/tests.rs", "use crate::hall::Door;"),
    ];
    assert_eq!(cycles_of(files), []);
}

#[test]
fn an_import_from_a_crate_that_is_not_below_is_found() {
    let folders = [
        ("mobile_host", "crates/mobile-host"),
        ("mobile_transport", "crates/mobile-transport"),
        ("mobile_tests", "tests"),
    ];
    let libraries: Libraries = folders.map(|(name, folder)| (name.to_owned(), folder.to_owned())).into();
    let found = |file| upward(&[file], &libraries).expect("sources");
    let text = "use mobile_host::log; fn a() { warn!(error = mobile_transport::tun::name()) }";
    let up = ["    crates/mobile-host -> mobile_transport in crates/mobile-host/src/log.rs"];
    assert_eq!(found(file("crates/mobile-host/src/log.rs", text)), up);
    assert_eq!(found(file("home-relay/src/main.rs", text)), [""; 0]);
    assert_eq!(found(file("tests/cases/main.rs", "use mobile_tests::Lab;")), [""; 0]);
    let lone = found(file("crates/shed/src/lib.rs", ""));
    assert_eq!(lone, ["    crates/shed/src/lib.rs: its crate is in no layer"]);
}

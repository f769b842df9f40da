//! The output of every verb with `--json` has exactly the fields, of the types, that
//! docs/use/json.md documents.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use mobile_tests::{LabOptions, Testbed, UplinkName, port};
use serde_json::Value;

use crate::{Outcome, server};

const DOCUMENT: &str = include_str!("../../docs/use/json.md");

/// A firewall that drops what the relay forwards, as `nft` takes it.
const OTHER_FIREWALL: &str =
    "add table ip other; add chain ip other forward { type filter hook forward priority 0; policy drop; }";

/// The documented fields of one verb's JSON output, each with its type or types.
type Fields = BTreeMap<&'static str, &'static str>;

fn documented() -> Result<BTreeMap<&'static str, Fields>> {
    let mut verbs = BTreeMap::new();
    for section in DOCUMENT.split("\n## `").skip(1) {
        let (verb, rest) = section.split_once(" --json`").context("a heading names a verb with --json")?;
        let mut fields = Fields::new();
        for line in rest.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let twice = fields.insert(cells[1].trim_matches('`'), cells[2]);
            ensure!(twice.is_none(), "{verb}: {} is documented twice", cells[1]);
        }
        verbs.insert(verb, fields);
    }
    Ok(verbs)
}

/// The fields in one verb's JSON output, each with the types of value that occurred.
#[derive(Default)]
struct Printed(BTreeMap<String, BTreeSet<&'static str>>);

impl Printed {
    fn add(&mut self, place: &str, value: &Value) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "list",
            Value::Object(_) => "object",
        };
        if !place.is_empty() {
            self.0.entry(place.to_owned()).or_default().insert(kind);
        }
        match value {
            Value::Array(elements) => {
                elements.iter().for_each(|element| self.add(&format!("{place}[]"), element));
            }
            // The only object whose member names are data.
            Value::Object(members) if place == "drops" => {
                members.values().for_each(|member| self.add("drops.*", member));
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                    self.add(&place, member);
                }
            }
            _ => {}
        }
    }

    /// Checks that every printed field is documented with its types, and that every documented
    /// field was printed, null or not.
    fn compare(&self, verb: &str, fields: &Fields) -> Outcome {
        for (place, kinds) in &self.0 {
            let types =
                fields.get(place.as_str()).with_context(|| format!("{verb}: {place} is not documented"))?;
            let known: Vec<&str> = types.split(" or ").collect();
            for kind in kinds {
                ensure!(
                    known.contains(kind),
                    "{verb}: {place} is {types} in the documentation, and was {kind}"
                );
            }
        }
        for field in fields.keys() {
            ensure!(self.0.contains_key(*field), "{verb}: {field} is documented, and was never printed");
        }
        Ok(())
    }
}

// Larger than the bound: one linear story, and the list of all verbs that print JSON.
#[test]
fn what_json_prints_is_what_is_documented() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let mut printed: BTreeMap<&str, Printed> = BTreeMap::new();
    let mut note = |bed: &Testbed, verb: &'static str| -> Outcome {
        let (program, args) = verb.split_once(' ').context("a verb has a program")?;
        let target = (verb == "mobile explain").then_some("1");
        let args: Vec<&str> = args.split(' ').chain(target).chain(["--json"]).collect();
        let done = if program == "mobile" { bed.agent.cli(&args)? } else { bed.relay.cli(&args)? };
        let value = serde_json::from_str(&done.stdout).with_context(|| format!("{verb}: {done:?}"))?;
        printed.entry(verb).or_default().add("", &value);
        Ok(())
    };

    // Without a relay there is a problem to print; later there is none.
    bed.expect_warning("relay");
    bed.agent.start()?;
    bed.agent.wait_status("a problem", |status| status["problem"].is_object())?;
    note(&bed, "mobile status")?;
    note(&bed, "mobile uplinks")?;
    // The second address is the visited network's router, and is therefore refused.
    bed.relay.configure("dns", "servers", vec!["192.0.2.2".to_owned(), "10.22.0.1".to_owned()])?;
    bed.relay.start()?;
    bed.agent.wait_active(UplinkName::Eth)?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    assert_eq!(talk.request("here")?, "here");
    bed.agent.cli(&["use", "wlan0"])?.ok()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    bed.agent.cli(&["bypass", "add", "198.51.100.192/26"])?.ok()?;
    bed.relay.cli(&["invite", "friend", "--endpoint", "relay.example.org:443"])?.ok()?;
    bed.relay.cli(&["forward", "add", "tcp", "2222", "laptop:22"])?.ok()?;
    bed.relay.configure("limits", "half_open", 77)?;
    bed.relay.configure("tunnel", "mtu", 1400)?;
    bed.agent.configure("uplink", "exclude", vec!["ww*".to_owned()])?;
    bed.agent.configure("tunnel", "queue", "fifo")?;
    // Another firewall, which `check` and `status` warn of.
    bed.lab.relay.run(&["nft", OTHER_FIREWALL])?;
    for verb in [
        "mobile status",
        "mobile uplinks",
        "mobile ps",
        "mobile bypass list",
        "mobile explain",
        "mobile reload",
        "mobile check",
        "home-relay clients",
        "home-relay sessions",
        "home-relay forward list",
        "home-relay key",
        "home-relay reload",
        "home-relay check",
        "home-relay status",
    ] {
        note(&bed, verb)?;
    }
    bed.lab.relay.run(&["nft", "delete table ip other"])?;
    drop(talk);

    let documented = documented()?;
    assert_eq!(documented.keys().collect::<Vec<_>>(), printed.keys().collect::<Vec<_>>());
    for (verb, printed) in &printed {
        printed.compare(verb, &documented[verb])?;
    }
    bed.expect_warning("need a restart");
    bed.expect_warning("drops forwarded packets");
    bed.finish()
}

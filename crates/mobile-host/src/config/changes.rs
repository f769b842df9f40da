//! Compares two configurations key by key, for a reload.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// Returns the section and the name of every key whose value differs between two configurations.
///
/// # Errors
/// When a value cannot be represented as JSON, such as a path that is not UTF-8.
pub fn changed_keys<T: Serialize>(old: &T, new: &T) -> serde_json::Result<BTreeSet<(String, String)>> {
    let (old, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    let changed =
        keys(&old).chain(keys(&new)).filter(|(section, key)| old[section][key] != new[section][key]);
    Ok(changed.map(|(section, key)| (section.to_owned(), key.to_owned())).collect())
}

fn keys(config: &Value) -> impl Iterator<Item = (&str, &str)> {
    config.as_object().into_iter().flatten().flat_map(|(section, values)| {
        values.as_object().into_iter().flatten().map(move |(key, _)| (section.as_str(), key.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_changed_appeared_or_vanished_are_named_and_no_others() {
        let old = json!({"relay": {"endpoint": "a:1", "key": 1}, "control": {"group": "staff"}, "state": {}});
        let new = json!({"relay": {"endpoint": "b:1", "key": 1}, "control": {}, "state": {"dir": "/s"}});
        let changed: Vec<_> = changed_keys(&old, &new).unwrap().into_iter().collect();
        let named = |section: &str, key: &str| (section.to_owned(), key.to_owned());
        assert_eq!(changed, [named("control", "group"), named("relay", "endpoint"), named("state", "dir")]);
        assert!(changed_keys(&old, &old).unwrap().is_empty());
    }
}

//! Decides what a reload changes, without performing I/O.

use anyhow::Context as _;
use mobile_host::config::changed_keys;

use crate::config::Config;
use crate::protocol::Reloaded;

/// The keys whose changes take effect at a reload. Every other key needs a restart: sockets,
/// devices and loaded eBPF programs depend on it.
const LIVE: [(&str, &str); 11] = [
    ("control", "group"),
    ("identity", "private_key_file"),
    ("relay", "endpoint"),
    ("relay", "public_key"),
    ("routing", "bypass"),
    ("routing", "on_failure"),
    ("tunnel", "addresses"),
    ("tunnel", "mtu"),
    ("uplink", "exclude"),
    ("uplink", "prefer"),
    ("uplink", "standby"),
];

/// The result of comparing the configuration in force with the one on disk.
#[derive(Debug)]
pub(super) struct Plan {
    /// The configuration that is in force after the reload.
    pub(super) config: Config,
    /// The keys that differ.
    pub(super) reloaded: Reloaded,
}

/// Returns the configuration that results from reloading `wanted` over `current`, and the keys that
/// differ; `is_new_key` says that the private key has changed, perhaps in a file of the same name.
pub(super) fn plan(current: &Config, wanted: &Config, is_new_key: bool) -> anyhow::Result<Plan> {
    let mut changes = changed_keys(current, wanted).context("cannot compare configurations")?;
    if is_new_key {
        changes.insert(("identity".to_owned(), "private_key_file".to_owned()));
    }
    let mut next = serde_json::to_value(current).context("cannot copy the configuration")?;
    let mut wanted = serde_json::to_value(wanted).context("cannot copy the configuration")?;
    let mut reloaded = Reloaded::default();
    for (section, key) in changes {
        let name = format!("[{section}] {key}");
        if LIVE.contains(&(section.as_str(), key.as_str())) {
            next[&section][&key] = wanted[&section][&key].take();
            reloaded.changed.push(name);
        } else {
            reloaded.kept.push(name);
        }
    }
    let config: Config = serde_json::from_value(next).context("cannot merge the configurations")?;
    Ok(Plan { config: Config { file: current.file.clone(), ..config }, reloaded })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The keys that need a restart. A new key of the configuration has to be added here or to
    /// [`LIVE`].
    const NEED_RESTART: [(&str, &str); 16] = [
        ("bpf", "pin_dir"),
        ("cgroup", "path"),
        ("cgroup", "slice"),
        ("control", "socket"),
        ("metrics", "hosts"),
        ("metrics", "listen"),
        ("routing", "mark"),
        ("routing", "mark_mask"),
        ("routing", "relay_table"),
        ("routing", "rule_priority"),
        ("routing", "table"),
        ("state", "dir"),
        ("tunnel", "compression"),
        ("tunnel", "device"),
        ("tunnel", "offload"),
        ("tunnel", "queue"),
    ];

    fn config(text: &str) -> Config {
        Config::of_text(Path::new("/nowhere/agent.toml"), text).unwrap()
    }

    #[test]
    fn every_key_takes_effect_at_once_or_needs_a_restart() {
        let tree = serde_json::to_value(Config::default()).unwrap();
        let sections = tree.as_object().unwrap().iter();
        let keys: Vec<(&str, &str)> = sections
            .flat_map(|(section, keys)| {
                keys.as_object().unwrap().keys().map(move |key| (section.as_str(), key.as_str()))
            })
            .collect();
        let classes: Vec<_> = LIVE.into_iter().chain(NEED_RESTART).collect();
        let distinct: BTreeSet<_> = classes.iter().copied().collect();
        assert_eq!(distinct.len(), classes.len(), "a key is in both classes");
        assert_eq!(distinct, keys.into_iter().collect());
    }

    #[test]
    fn live_settings_change_and_the_others_are_reported_and_stay() {
        let key = "[identity]\nprivate_key_file = \"/k\"\n";
        let current = config(key);
        let same = plan(&current, &config(key), false).unwrap();
        assert_eq!((same.config, same.reloaded), (current.clone(), Reloaded::default()));
        let wanted = config(&format!(
            "{key}[relay]\nendpoint = \"r:1\"\n[tunnel]\nmtu = 1400\nqueue = \"fifo\"\n\
             addresses = [\"203.0.113.0/24\"]\n[uplink]\nprefer = [\"wl*\"]\n\
             [routing]\nbypass = [\"10.0.0.0/8\"]\non_failure = \"open\"\nmark = 0x4e000000\n\
             [control]\ngroup = \"wheel\"\nsocket = \"/s\"\n[metrics]\nlisten = \"127.0.0.1:1\"\n"
        ));
        let Plan { config: next, reloaded } = plan(&current, &wanted, true).unwrap();
        assert_eq!(
            reloaded.changed,
            [
                "[control] group",
                "[identity] private_key_file",
                "[relay] endpoint",
                "[routing] bypass",
                "[routing] on_failure",
                "[tunnel] addresses",
                "[tunnel] mtu",
                "[uplink] prefer"
            ]
        );
        assert_eq!(
            reloaded.kept,
            ["[control] socket", "[metrics] listen", "[routing] mark", "[tunnel] queue"]
        );
        assert_eq!(next.routing.bypass, wanted.routing.bypass);
        assert_eq!((next.tunnel.mtu, next.tunnel.queue), (Some(1400), current.tunnel.queue));
        assert_eq!((next.uplink, next.control.socket), (wanted.uplink, current.control.socket));
        assert_eq!(next.routing.mark, current.routing.mark);
    }

    #[test]
    fn a_configuration_survives_the_way_from_the_process_helper() {
        let wanted = config(
            "[relay]\nendpoint = \"r:1\"\npublic_key = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n\
             [tunnel]\nmtu = 1400\ncompression = \"zstd\"\noffload = \"off\"\naddresses = [\"2001:db8::/48\"]\n\
             [cgroup]\npath = \"/c\"\nslice = \"/s\"\n[control]\ngroup = \"g\"\n\
             [metrics]\nlisten = \"[::1]:9\"\nhosts = [\"h\"]\n[routing]\non_failure = \"open\"\n",
        );
        let text = serde_json::to_string(&wanted).unwrap();
        let received = serde_json::from_str::<Config>(&text).unwrap();
        // A plan keeps the path of the agent's file.
        assert_eq!(Config { file: wanted.file.clone(), ..received }, wanted);
    }
}

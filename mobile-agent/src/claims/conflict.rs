//! Finds what two agents would both use. All functions are pure.

use std::fmt;
use std::path::Path;

use super::{Claims, RouteClaims};

/// A setting that names a kernel object or path of which each agent needs its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// The configuration key `[identity] private_key_file`.
    Key,
    /// The configuration key `[tunnel] device`, from which the nftables tables have their names.
    Device,
    /// The configuration key `[routing] table`.
    Table,
    /// The configuration key `[routing] relay_table`.
    RelayTable,
    /// The configuration key `[routing] mark`.
    Mark,
    /// The configuration key `[routing] rule_priority`.
    RulePriority,
    /// The configuration key `[cgroup] path`.
    Cgroup,
    /// The configuration key `[cgroup] slice`.
    Slice,
    /// The configuration key `[bpf] pin_dir`.
    PinDir,
    /// The configuration key `[control] socket`.
    Socket,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "[identity] private_key_file",
            Self::Device => "[tunnel] device",
            Self::Table => "[routing] table",
            Self::RelayTable => "[routing] relay_table",
            Self::Mark => "[routing] mark",
            Self::RulePriority => "[routing] rule_priority",
            Self::Cgroup => "[cgroup] path",
            Self::Slice => "[cgroup] slice",
            Self::PinDir => "[bpf] pin_dir",
            Self::Socket => "[control] socket",
        })
    }
}

/// A setting of this configuration whose value another agent uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The setting.
    pub(crate) setting: Setting,
    /// The value of the setting, as text.
    pub(crate) value: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.setting, self.value)
    }
}

/// Returns the settings of `own` whose values `other` uses.
pub(super) fn between(own: &Claims, other: &Claims) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    let mut note = |setting, value: String, is_shared: bool| {
        if is_shared {
            conflicts.push(Conflict { setting, value });
        }
    };
    // Every network namespace sees the same file systems.
    if let Some(key) = &own.key {
        // The relay has one session for each key, so two agents would take it from each other.
        note(Setting::Key, format!("with the public key {key}"), other.key.as_ref() == Some(key));
    }
    let shared = |own: &Path, other: &Path| own.starts_with(other) || other.starts_with(own);
    let in_cgroups = |own: Option<&Path>, other: Option<&Path>| {
        own.zip(other).is_some_and(|(own, other)| shared(own, other))
    };
    let text = |path: &Path| path.display().to_string();
    note(Setting::PinDir, text(&own.pin_dir), shared(&own.pin_dir, &other.pin_dir));
    let (cgroup, slice) = (own.cgroup.as_deref(), own.slice.as_deref());
    note(Setting::Cgroup, cgroup.map(text).unwrap_or_default(), in_cgroups(cgroup, other.cgroup.as_deref()));
    note(Setting::Socket, text(&own.socket), own.socket == other.socket);
    if own.netns != other.netns {
        return conflicts;
    }
    note(Setting::Slice, slice.map(text).unwrap_or_default(), in_cgroups(slice, other.slice.as_deref()));
    note(Setting::Device, own.device.clone(), own.device == other.device);
    let (routes, others) = (&own.routes, &other.routes);
    let tables = [others.table, others.relay_table];
    note(Setting::Table, routes.table.to_string(), tables.contains(&routes.table));
    note(Setting::RelayTable, routes.relay_table.to_string(), tables.contains(&routes.relay_table));
    note(Setting::Mark, format!("{:#x}", routes.mark), same_packets(routes, others));
    // Each agent has rules at two adjacent priorities.
    let near = routes.rule_priority.abs_diff(others.rule_priority) <= 1;
    note(Setting::RulePriority, routes.rule_priority.to_string(), near);
    conflicts
}

/// Returns whether a mark exists that both agents would take for theirs.
fn same_packets(own: &RouteClaims, other: &RouteClaims) -> bool {
    (own.mark ^ other.mark) & own.mark_mask & other.mark_mask == 0
}

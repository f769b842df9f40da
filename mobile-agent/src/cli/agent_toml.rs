//! The commented configuration that `mobile enroll` writes.
//!
//! A line `# key = value` shows a default, and can be uncommented without an effect. Settings
//! without a default are shown as `# Example: key = value`.

use mobile_host::config::DefaultPaths;
use mobile_transport::keys::PublicKey;

use crate::config::Config;

/// Returns the configuration for the relay with this endpoint and key, in a file with the default
/// paths `paths`.
// Larger than the bound: the body is one TOML text.
pub(super) fn text(endpoint: &str, relay: &PublicKey, paths: &DefaultPaths) -> String {
    let Config { tunnel, routing, bpf, .. } = Config::default();
    let key = paths.key.file_name().unwrap_or_default().display();
    format!(
        r##"# The configuration of mobile, written by `mobile enroll`. Lines that are commented out show the
# default values. Unknown keys are errors. An environment variable overrides a key:
# MOBILE_RELAY_ENDPOINT stands for `[relay] endpoint`, and so on.

[relay]
# The relay's name, IPv4 address or [IPv6 address], and port.
endpoint = "{endpoint}"
# The key by which the relay is recognised.
public_key = "{relay}"

[identity]
# The private key of this host; the path is relative to this file.
private_key_file = "{key}"

[tunnel]
# The name of the host virtual device.
# device = "{device}"
# The MTU of the device, in bytes, from 1280. By default the value that the relay pushes.
# Example: mtu = 1500
# Networks, besides the private ones, from which the relay may assign persistent addresses, such as
# ["2001:db8:7::/64"].
# addresses = []
# "zstd" compresses packets that get smaller by it, if the relay does so too; the size of the traffic
# then reveals something about its content.
# compression = "off"
# "off" passes packets of at most the MTU instead of up to 64 KiB: slower, but tcpdump on the device
# then shows the packets as they are sent.
# offload = "auto"
# "fair" lets flows take turns; "fifo" keeps the order of arrival, so that a keystroke waits behind an
# upload.
# queue = "fair"

[uplink]
# Patterns for names of interfaces, the most preferred first, such as ["en*", "wl*", "ww*"].
# prefer = []
# Patterns for interfaces that never carry the tunnel, such as ["docker*", "ppp*"].
# exclude = []
# Patterns for interfaces that hold a standby path, for a handover in one round trip. ["en*", "wl*"]
# spares a cellular link.
# standby = ["*"]

[routing]
# The routing table of mobile processes.
# table = {table}
# The firewall mark of mobile sockets, and the bits of the mark that are used.
# mark = {mark:#x}
# mark_mask = {mark_mask:#x}
# The priority of the routing rules, this one and the next; lower if another rule would come first.
# rule_priority = {rule_priority}
# The routing table of routes to the relay below a VPN.
# relay_table = {relay_table}
# Networks that mobile processes reach directly, such as ["192.168.1.0/24"].
# bypass = []
# Without a session, "closed" lets new connections wait; "open" lets them go direct after 10 s.
# on_failure = "closed"

[cgroup]
# The cgroup of mobile processes. By default `mobile` at the root of the cgroup2 mount, or `mobile-ID`
# in a network namespace other than the machine's own.
# Example: path = "/sys/fs/cgroup/mobile"
# The slice whose services are mobile. By default `mobile.slice` at the root of the cgroup2 mount.
# Example: slice = "/sys/fs/cgroup/mobile.slice"

[bpf]
# The directory of the pinned eBPF programs, named as the mobile cgroup.
# pin_dir = "{pin_dir}"

[control]
# The socket over which the other verbs talk to the agent.
# socket = "{socket}"
# A group whose members may do what root may do.
# Example: group = "netdev"

[metrics]
# Serve Prometheus metrics at http://ADDRESS/metrics, and /healthz. Off unless set.
# Example: listen = "127.0.0.1:9477"
# Host names under which metrics may be requested, such as ["laptop"]; IP addresses and localhost are
# always allowed.
# hosts = []

[state]
# The directory of the cached persistent addresses.
# dir = "{dir}"
"##,
        device = tunnel.device,
        table = routing.table,
        mark = routing.mark,
        mark_mask = routing.mark_mask,
        rule_priority = routing.rule_priority,
        relay_table = routing.relay_table,
        pin_dir = bpf.pin_dir.display(),
        socket = paths.socket.display(),
        dir = paths.state.display(),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mobile_host::config::Loaded;

    use super::*;
    use crate::config::DEFAULT_PATH;
    use crate::config::load::default_paths;

    fn load(text: &str) -> Config {
        let environment = std::iter::empty();
        let loaded: Loaded<Config> =
            mobile_host::config::parse(Path::new("agent.toml"), text, "MOBILE", environment, &[]).unwrap();
        loaded.complete(Ok::<_, String>).unwrap()
    }

    /// Returns the setting on a line that is commented out, for lines that show one.
    fn commented<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
        let setting = line.strip_prefix(marker)?;
        let (key, _) = setting.split_once(" = ")?;
        key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then_some(setting)
    }

    #[test]
    fn every_commented_default_is_the_default_and_can_be_uncommented() {
        let relay = PublicKey::from_bytes([7; 32]);
        let endpoint = "[2001:db8::1]:443";
        let text = text(endpoint, &relay, &default_paths(Path::new(DEFAULT_PATH)));
        let written = load(&text);
        let mut expected = Config::default();
        expected.relay.endpoint = Some(endpoint.to_owned());
        expected.relay.public_key = Some(relay);
        expected.identity.private_key_file = "agent.key".into();
        assert_eq!(written, expected);

        let lines: Vec<&str> = text.lines().collect();
        let uncomment = |which: &dyn Fn(usize) -> bool, marker: &str| -> String {
            let line = |(at, line)| if which(at) { commented(line, marker).unwrap_or(line) } else { line };
            lines.iter().copied().enumerate().map(line).collect::<Vec<&str>>().join("\n")
        };
        let defaults: Vec<usize> =
            (0..lines.len()).filter(|at| commented(lines[*at], "# ").is_some()).collect();
        assert!(defaults.len() >= 19, "{text}");
        for at in defaults {
            assert_eq!(load(&uncomment(&|one| one == at, "# ")), written, "{}", lines[at]);
        }
        assert_eq!(load(&uncomment(&|_| true, "# ")), written);
        // The examples are valid settings, and change something.
        for at in (0..lines.len()).filter(|at| lines[*at].starts_with("# Example: ")) {
            assert_ne!(load(&uncomment(&|one| one == at, "# Example: ")), written, "{}", lines[at]);
        }
    }
}

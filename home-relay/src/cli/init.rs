//! The `init` command: writes a commented configuration, and a key beside it.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_host::config::DefaultPaths;
use mobile_host::ownership;
use mobile_transport::keys::PrivateKey;

use super::Init;
use super::args::DEFAULT_PATH;
use crate::config::default_paths;
use crate::pool::Pools;

/// Writes the configuration file and the private key, and prints the public key; on any failure
/// neither file is left.
pub(crate) fn run(config: &Path, options: &Init) -> anyhow::Result<()> {
    let (ipv4, ipv6) = match (options.ipv4, options.ipv6) {
        // Naming one family only means that the other one is not wanted.
        (None, None) => (Some(random_ipv4()), Some(random_ipv6())),
        chosen => chosen,
    };
    let pools = Pools::new(ipv4, ipv6)?;
    let key_file = config.with_extension("key");
    let key_name = key_file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if config.file_name().is_none() || key_name.is_empty() || key_file == config {
        bail!("--config {}: name a file, for example relay.toml", config.display());
    }
    if config.symlink_metadata().is_ok() {
        bail!(
            "{} is already there and is not overwritten: move it away, or name another file with --config",
            config.display()
        );
    }
    if let Some(dir) = config.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let key = PrivateKey::generate()?;
    key.save_new(&key_file)?;
    if let Err(error) = write_new(config, &text(options, &pools, &default_paths(config))) {
        let _ = std::fs::remove_file(&key_file);
        return Err(error).with_context(|| format!("cannot write {}", config.display()));
    }
    // Scripts take the bare key from stdout.
    eprintln!("public key (invitations contain it):");
    println!("{}", key.public());
    eprintln!("{}", next_step(config));
    Ok(())
}

fn next_step(config: &Path) -> String {
    let (start, option) = if config == Path::new(DEFAULT_PATH) {
        ("systemctl enable --now home-relay".to_owned(), String::new())
    } else {
        let option = format!(" --config {}", config.display());
        (format!("home-relay serve{option}"), option)
    };
    format!("next: start the relay (`{start}`), then run `home-relay check{option}`")
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| ownership::inherit_from_directory(&file, path))
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Returns a random /20 of 100.64.0.0/10: there are 1024 of them, and each holds 4093 clients.
fn random_ipv4() -> Ipv4Net {
    loop {
        let block = rand::random_range(0..1024_u32);
        let network = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() | (block << 12));
        // Avoid 100.100.0.0/16, where two cloud providers have resolver and metadata services.
        if network.octets()[1] != 100 {
            return Ipv4Net::new_assert(network, 20);
        }
    }
}

/// Returns a random unique local /64 (RFC 4193, 3.2): fd, 40 random bits, subnet 0.
fn random_ipv6() -> Ipv6Net {
    let global_id: u64 = rand::random_range(0..1 << 40);
    Ipv6Net::new_assert(Ipv6Addr::from_bits((0xfd << 120) | (u128::from(global_id) << 80)), 64)
}

// Larger than the bound: the body is one TOML text.
fn text(options: &Init, pools: &Pools, paths: &DefaultPaths) -> String {
    let listen = options.listen;
    let key_name = paths.key.file_name().unwrap_or_default().display();
    let (socket, state) = (paths.socket.display(), paths.state.display());
    let pool = |key: &str, example: &str, net: Option<String>| match net {
        Some(net) => format!("{key} = \"{net}\""),
        None => format!("# Example: {key} = \"{example}\""),
    };
    let ipv4 = pool("ipv4", "100.64.0.0/20", pools.ipv4().map(|net| net.to_string()));
    let ipv6 = pool("ipv6", "fd00:77::/64", pools.ipv6().map(|net| net.to_string()));
    format!(
        r#"# The configuration of home-relay. Lines that are commented out show the default values.
# Unknown keys are errors. An environment variable overrides a key: HOME_RELAY_LISTEN_ADDRESS stands
# for `[listen] address`, and so on.

[listen]
# The address that clients connect to. Port 443 passes networks that allow only HTTPS; [::] accepts
# IPv4 and IPv6.
address = "{listen}"
# The name and port that `home-relay invite` tells clients. Required there if `address` is a
# wildcard.
# Example: endpoint = "relay.example.org:443"
# Whether the kernel tracks connections to this address. "auto" tracks them only if another firewall
# on this host filters incoming or outgoing packets, because its rules may match on connection
# state; "on" and "off" force it.
# track = "auto"

[identity]
# The private key written by `home-relay init`; the path is relative to this file. Clients identify
# the relay by the public key.
private_key_file = "{key_name}"

[pool]
# The persistent addresses of clients; the first address of each pool is the relay's own, on the
# tunnel device. `init` picks random pools: a part of the shared address space 100.64.0.0/10 (RFC
# 6598), which home, office and hotel networks do not assign to laptops as they do 192.168/16,
# 172.16/12 and 10/8, and a unique local prefix (RFC 4193). They hardly ever collide with a visited
# network or with another relay. A client keeps its addresses for as long as it is authorised; after
# a change of a pool, clients outside of it get new addresses.
{ipv4}
{ipv6}

[tunnel]
# The name of the home virtual device.
# device = "home0"
# The MTU of the tunnel, in bytes, from 1280 to 9000. 1500 fits Ethernet behind the relay without
# fragmentation.
# mtu = 1500
# Compression that clients may ask for. "zstd" compresses packets that get smaller by it; the size
# of the traffic then reveals something about its content.
# compression = "off"
# Segmentation offload between the kernel and the relay. "off" passes packets of at most the MTU
# instead of up to 64 KiB: slower, but tcpdump on the device then shows the packets as they were
# sent.
# offload = "auto"
# The order of a client's packets. "fair" lets flows take turns; "fifo" keeps the order of arrival,
# so that interactive traffic waits behind the client's own downloads.
# queue = "fair"

[nat]
# Masquerade clients behind this host's addresses. Set it to false if the pools are routed to this
# host.
# masquerade = true
# Masquerade on this interface only; on all but the tunnel device if absent.
# Example: interface = "eth0"
# Set "routed" to exempt IPv6 where [pool] ipv6 is a prefix that is routed to this host.
# ipv6 = "masquerade"
# Packets between other devices of this host: "auto" drops them if this relay turned forwarding on;
# "accept" and "drop" force it.
# transit = "auto"

[clients]
# Keep clients from reaching each other; false makes them one network.
# isolate = true
# The destinations that clients may reach. "internet": public addresses, without this host's own
# addresses and cloud metadata services. "all", the default without this line: everything that this
# host reaches. "none", or a list: ["internet", "192.168.1.0/24"]. `home-relay authorize --reach`
# sets it for one client.
reach = "internet"
# Who may connect to clients. "forwards": only through ports of `home-relay forward`. "routed", the
# default without this line: also everybody, at the addresses of pools that are not masqueraded.
inbound = "forwards"

[dns]
# The resolvers for mobile processes, which use the first of each family instead of the visited
# network's. Any resolver that this host reaches will do, such as ["9.9.9.9", "2620:fe::fe"].
# servers = []

[limits]
# Maximum number of half-open connections (in their handshake): in total, and per source (an IPv4
# address or an IPv6 /64), which is never more than an eighth of the total.
# half_open = 1024
# half_open_per_source = 64
# Maximum number of handshakes per second: in total, and per source, with a burst of ten seconds'
# worth per source. Sources from which a client was authenticated within a day are exempt from the
# total, and have ten times the limits per source.
# handshake_rate = 500
# handshake_rate_per_source = 10
# The time limit of a handshake.
# handshake_timeout = "10s"
# How long a session without a path is kept.
# session_idle = "24h"
# The capacity of a client's packet queue, in bytes (1 MiB).
# queue_bytes = 1048576
# Maximum number of tracked connections per client, and of new ones per second, with a burst of
# ten seconds' worth. All clients and this host share the kernel's connection table, usually of
# 262,144 entries. 0: no limit.
# connections_per_client = 4096
# connection_rate_per_client = 200

[admin]
# The socket on which the running relay takes commands from root, and from this group if one is
# named.
# socket = "{socket}"
# Example: group = "home-relay"

[metrics]
# Serve Prometheus metrics at http://ADDRESS/metrics, and /healthz. Off unless set.
# Example: listen = "127.0.0.1:9478"
# Host names under which metrics may be requested, such as ["relay.example.org"]; IP addresses and
# localhost are always allowed. Other names are refused, so that a web page cannot read the metrics
# through DNS rebinding.
# hosts = []

[state]
# The directory of the clients and their addresses, managed by the commands. `home-relay backup`
# backs it up together with this file and the key.
# dir = "{state}"
"#
    )
}

/// Returns the configuration that `init` writes for fixed pools.
#[cfg(fuzzing)]
pub(crate) fn example() -> String {
    let (ipv4, ipv6) = (
        Ipv4Net::new_assert([100, 64, 0, 0].into(), 20),
        Ipv6Net::new_assert([0xfd00, 7, 0, 0, 0, 0, 0, 0].into(), 64),
    );
    let options = Init { listen: ([0, 0, 0, 0], 443).into(), ipv4: Some(ipv4), ipv6: Some(ipv6) };
    let pools = Pools::new(options.ipv4, options.ipv6).expect("they are fit");
    text(&options, &pools, &default_paths(Path::new(DEFAULT_PATH)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn options(ipv4: Option<&str>, ipv6: Option<&str>) -> Init {
        Init {
            listen: "127.0.0.1:8443".parse().unwrap(),
            ipv4: ipv4.map(|net| net.parse().unwrap()),
            ipv6: ipv6.map(|net| net.parse().unwrap()),
        }
    }

    #[test]
    fn serve_loads_the_configuration_that_init_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/relay.toml");
        run(&path, &options(None, None)).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.listen.address, "127.0.0.1:8443".parse().unwrap());
        config.identity.load_key().unwrap();
        let pools = config.pools().unwrap();
        assert!("100.64.0.0/10".parse::<Ipv4Net>().unwrap().contains(&pools.ipv4().unwrap()));
        assert!("fd00::/8".parse::<Ipv6Net>().unwrap().contains(&pools.ipv6().unwrap()));
    }

    #[test]
    fn the_next_step_names_the_service_or_the_file() {
        let packaged = next_step(Path::new(DEFAULT_PATH));
        assert!(packaged.contains("`systemctl enable --now home-relay`), then run `home-relay check`"));
        let own = next_step(Path::new("/srv/relay.toml"));
        assert!(own.contains("`home-relay serve --config /srv/relay.toml`"), "{own}");
        assert!(own.contains("`home-relay check --config /srv/relay.toml`"), "{own}");
    }

    /// Returns the setting on a line that is commented out, for lines that show one.
    fn commented<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
        let setting = line.strip_prefix(marker)?;
        let (key, _) = setting.split_once(" = ")?;
        let is_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        key.bytes().all(is_key).then_some(setting)
    }

    #[test]
    fn every_commented_default_is_the_default_and_can_be_uncommented() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        run(&path, &options(Some("100.64.0.0/20"), None)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            serde_json::to_value(Config::load(&path).unwrap()).unwrap()
        };
        let written = load(&text);
        let lines: Vec<&str> = text.lines().collect();
        let uncomment = |which: &dyn Fn(usize) -> bool, marker: &str| -> String {
            let line = |(at, line)| if which(at) { commented(line, marker).unwrap_or(line) } else { line };
            lines.iter().copied().enumerate().map(line).collect::<Vec<&str>>().join("\n")
        };
        let defaults: Vec<usize> =
            (0..lines.len()).filter(|at| commented(lines[*at], "# ").is_some()).collect();
        assert!(defaults.len() >= 23, "{text}");
        for at in defaults {
            assert_eq!(load(&uncomment(&|one| one == at, "# ")), written, "{}", lines[at]);
        }
        assert_eq!(load(&uncomment(&|_| true, "# ")), written);
        // The examples are valid settings, and change something.
        for at in (0..lines.len()).filter(|at| lines[*at].starts_with("# Example: ")) {
            assert_ne!(load(&uncomment(&|one| one == at, "# Example: ")), written, "{}", lines[at]);
        }
    }

    #[test]
    fn choosing_one_family_writes_only_that_family() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        run(&path, &options(Some("10.1.2.0/24"), None)).unwrap();
        let pools = Config::load(&path).unwrap().pools().unwrap();
        assert_eq!((pools.ipv4(), pools.ipv6()), (Some("10.1.2.0/24".parse().unwrap()), None));
    }

    #[test]
    fn init_overwrites_nothing_and_leaves_nothing_behind_on_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        std::fs::write(&path, "mine").unwrap();
        assert!(run(&path, &options(None, None)).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert!(!dir.path().join("relay.key").exists());

        std::fs::remove_file(&path).unwrap();
        std::fs::write(dir.path().join("relay.key"), "mine too").unwrap();
        assert!(run(&path, &options(None, None)).is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join("relay.key")).unwrap(), "mine too");
        assert!(!path.exists());
    }

    #[test]
    fn random_pools_are_in_the_intended_ranges() {
        for _ in 0..2000 {
            let net = random_ipv4();
            assert!("100.64.0.0/10".parse::<Ipv4Net>().unwrap().contains(&net), "{net}");
            assert!(net.network().octets()[1] != 100 && net == net.trunc(), "{net}");
            let net = random_ipv6();
            assert!(net.network().octets()[0] == 0xfd && net == net.trunc(), "{net}");
        }
    }
}

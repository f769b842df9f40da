//! `init`: a configuration that says why each value is what it is, and a key beside it.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_io::keys::PrivateKey;
use mobile_io::owner;

use super::Init;
use crate::pool::Pools;

/// Writes both files and prints the public key; on any failure neither is left.
pub(crate) fn run(config: &Path, options: &Init) -> anyhow::Result<()> {
    let (ipv4, ipv6) = match (options.ipv4, options.ipv6) {
        // Whoever names one family alone wants that one alone.
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
    if let Err(error) = write_new(config, &text(options, &pools, key_name)) {
        let _ = std::fs::remove_file(&key_file);
        return Err(error).with_context(|| format!("cannot write {}", config.display()));
    }
    println!("{}", key.public());
    Ok(())
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

/// A /20 holds 4093 clients, and there are 1024 of them in 100.64.0.0/10.
fn random_ipv4() -> Ipv4Net {
    loop {
        let block = rand::random_range(0..1024_u32);
        let network = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() | (block << 12));
        // 100.100.0.0/16 has well-known services of two providers (resolver and metadata addresses).
        if network.octets()[1] != 100 {
            return Ipv4Net::new_assert(network, 20);
        }
    }
}

/// RFC 4193, 3.2: fd, 40 random bits; then subnet 0.
fn random_ipv6() -> Ipv6Net {
    let global_id: u64 = rand::random_range(0..1 << 40);
    Ipv6Net::new_assert(Ipv6Addr::from_bits((0xfd << 120) | (u128::from(global_id) << 80)), 64)
}

fn text(options: &Init, pools: &Pools, key_name: &str) -> String {
    let listen = options.listen;
    let pool = |key: &str, net: Option<String>| match net {
        Some(net) => format!("{key} = \"{net}\""),
        None => format!("# {key} = \"…\""),
    };
    let ipv4 = pool("ipv4", pools.ipv4().map(|net| net.to_string()));
    let ipv6 = pool("ipv6", pools.ipv6().map(|net| net.to_string()));
    format!(
        r#"# home-relay's configuration. What is commented out shows the default.
# Unknown keys are refused. `[listen] address` can also be set as HOME_RELAY_LISTEN_ADDRESS, and so on.

[listen]
# Where clients connect. 443 passes where only HTTPS does; [::] serves IPv4 and IPv6.
address = "{listen}"
# By which name and port clients find it, for `home-relay invite`; needed there unless the address is one of this host's.
# endpoint = "relay.example.org:443"
# Whether the kernel tracks connections to this address: "auto" does only where another firewall of this host filters
# what comes in or goes out, since its rules may ask for the state of a connection. "on", "off".
# track = "auto"

[identity]
# Made by `home-relay init`, relative to this file. Clients know the relay by its public key.
private_key_file = "{key_name}"

[pool]
# The persistent addresses of clients; the first of each pool is this relay's own, on the tunnel device.
# By default `init` picks them at random: part of the shared address space 100.64.0.0/10 (RFC 6598), which home,
# office and hotel networks do not hand out to laptops as they do 192.168/16, 172.16/12 and 10/8, and a unique
# local prefix (RFC 4193). So they hardly ever collide with the network a client visits, nor with another relay.
# A client keeps its address for as long as it is authorised; changing a pool moves those outside of it.
{ipv4}
{ipv6}

[tunnel]
# The home virtual device.
# device = "home0"
# What the clients' packets may measure; 1500 fits Ethernet behind the relay without fragments.
# mtu = 1500
# What clients may ask for: "zstd" compresses what gets smaller by it, which tells listeners something of what it is.
# compression = "off"
# "off": the kernel hands packets over as on a wire, not up to 64 KiB at once: slower, and what tcpdump shows is what was sent.
# offload = "auto"
# "fifo": a client's packets go in the order they came, so that whatever it does waits behind its own downloads.
# queue = "fair"

[nat]
# Hide clients behind this host's addresses. Turn it off where the pools are routed to this host.
# masquerade = true
# Only out of this interface, where not every way out should be masqueraded.
# interface = "eth0"
# "routed": not for IPv6, where [pool] ipv6 is a prefix that is routed to this host.
# ipv6 = "masquerade"
# What is forwarded between other devices of this host: "auto" drops it if this relay turned forwarding on. "accept", "drop".
# transit = "auto"

[clients]
# Clients do not reach each other. `false` makes them one network.
# isolate = true
# What clients reach: "internet" is public addresses, none of this host's own and no cloud's metadata service. "all" is
# whatever this host reaches, and so it is without this line. Or a list: ["internet", "192.168.1.0/24"].
# `home-relay authorize --reach` says something else for one client.
reach = "internet"
# Who reaches clients unasked: "forwards" is nobody but through a port of `home-relay forward`. "routed", and so it is
# without this line: everybody too at pools that are not masqueraded.
inbound = "forwards"

[dns]
# Resolvers for mobile processes, which ask the first of each family in place of the visited network's. Any that this host reaches.
# servers = ["9.9.9.9", "2620:fe::fe"]

[limits]
# Connections still in their handshake, all together, and of one source (an IPv4 address, an IPv6 /64): an eighth of
# all at most.
# half_open = 1024
# half_open_per_source = 64
# Handshakes a second: of all sources together, and of one (ten seconds' worth at once). Sources from which a client
# was authenticated within a day are exempt from the former, and have ten times as much of what is per source.
# handshake_rate = 500
# handshake_rate_per_source = 10
# Seconds from connection to the end of the handshake.
# handshake_timeout = 10
# Seconds a session is kept while its client is out of reach (24 h).
# session_idle = 86400
# Bytes of packets waiting for one client before its session takes them (1 MiB).
# queue_bytes = 1048576
# Connections of one client that the kernel tracks, and new ones a second (ten seconds' worth at once): all clients share
# the kernel's table of usually 262,144 with this host. 0: no limit.
# connections_per_client = 4096
# connection_rate_per_client = 200

[admin]
# Where a running relay takes `authorize`, `revoke`, `clients` and `sessions`: root, and this group if one is named.
# socket = "/run/home-relay/admin.sock"
# group = "home-relay"

[metrics]
# Prometheus at http://ADDRESS/metrics, and /healthz. Off unless set.
# listen = "127.0.0.1:9478"
# Names under which it may be asked for; IP addresses and localhost are always answered. A web page cannot read it by
# letting a name of its own point here.
# hosts = ["relay.example.org"]

[state]
# Clients and their addresses, managed by the commands. Back it up with this file and the key.
# dir = "/var/lib/home-relay"
"#
    )
}

/// What `init` writes for fixed pools.
#[cfg(fuzzing)]
pub(crate) fn example() -> String {
    let (ipv4, ipv6) = (
        Ipv4Net::new_assert([100, 64, 0, 0].into(), 20),
        Ipv6Net::new_assert([0xfd00, 7, 0, 0, 0, 0, 0, 0].into(), 64),
    );
    let options = Init { listen: ([0, 0, 0, 0], 443).into(), ipv4: Some(ipv4), ipv6: Some(ipv6) };
    text(&options, &Pools::new(options.ipv4, options.ipv6).expect("they are fit"), "relay.key")
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
    fn what_init_writes_serve_can_load() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/relay.toml");
        run(&path, &options(None, None)).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.listen.address, "127.0.0.1:8443".parse().unwrap());
        PrivateKey::load(&config.identity.private_key_file).unwrap();
        let pools = config.pools().unwrap();
        assert!("100.64.0.0/10".parse::<Ipv4Net>().unwrap().contains(&pools.ipv4().unwrap()));
        assert!("fd00::/8".parse::<Ipv6Net>().unwrap().contains(&pools.ipv6().unwrap()));
    }

    #[test]
    fn commented_defaults_are_the_real_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        run(&path, &options(None, None)).unwrap();
        let plain = format!("{:?}", Config::load(&path).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let optional = ["interface", "servers", "group", "listen", "endpoint", "hosts"];
        let shown: Vec<String> = text
            .lines()
            .map(|line| {
                match line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ").map(|kv| (rest, kv.0))) {
                    Some((rest, key)) if !key.contains(' ') && !optional.contains(&key) => rest.to_owned(),
                    _ => line.to_owned(),
                }
            })
            .collect();
        assert_ne!(text.trim(), shown.join("\n").trim());
        std::fs::write(&path, shown.join("\n")).unwrap();
        assert_eq!(plain, format!("{:?}", Config::load(&path).unwrap()));
    }

    #[test]
    fn one_family_chosen_is_one_family_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        run(&path, &options(Some("10.1.2.0/24"), None)).unwrap();
        let pools = Config::load(&path).unwrap().pools().unwrap();
        assert_eq!((pools.ipv4(), pools.ipv6()), (Some("10.1.2.0/24".parse().unwrap()), None));
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_of_a_failure() {
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
    fn random_pools_are_where_they_should_be() {
        for _ in 0..2000 {
            let net = random_ipv4();
            assert!("100.64.0.0/10".parse::<Ipv4Net>().unwrap().contains(&net), "{net}");
            assert!(net.network().octets()[1] != 100 && net == net.trunc(), "{net}");
            let net = random_ipv6();
            assert!(net.network().octets()[0] == 0xfd && net == net.trunc(), "{net}");
        }
    }
}

use std::path::Path;

use super::*;

fn load(text: &str) -> anyhow::Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.toml");
    std::fs::write(&path, text).unwrap();
    let mut config = Config::load(&path)?;
    let key = config.identity.private_key_file.strip_prefix(dir.path()).unwrap().to_owned();
    config.identity.private_key_file = key;
    Ok(config)
}

const SMALLEST: &str = "[listen]\naddress = \"[::]:443\"\n[identity]\nprivate_key_file = \"relay.key\"\n\
                        [pool]\nipv4 = \"10.1.0.0/24\"\n";

#[test]
fn address_key_and_pool_are_the_only_required_settings() {
    let config = load(SMALLEST).unwrap();
    assert_eq!(config.tunnel.device, "home0");
    assert_eq!(config.tunnel.mtu, 1500);
    assert!(config.nat.masquerade && config.metrics.listen.is_none());
    assert!(config.admin.socket.is_absolute() && config.admin.socket.ends_with("relay.sock"), "{config:?}");
    assert!(config.state.dir.is_absolute() && config.state.dir.ends_with("relay.state"), "{config:?}");
    assert_eq!(Admin::default().socket, Path::new("/run/home-relay/admin.sock"));
    assert_eq!(State::default().dir, Path::new("/var/lib/home-relay"));
    assert_eq!(config.limits.session_idle, Duration::from_secs(86_400));
    assert_eq!(config.identity.private_key_file, Path::new("relay.key"));
}

#[test]
fn invalid_values_are_named() {
    for (section, key) in [
        ("[tunnel]\nmtu = 576\n", "[tunnel] mtu"),
        ("[tunnel]\ndevice = \"a\\\"b\"\n", "[tunnel] device"),
        ("[nat]\ninterface = \"home0\"\n", "[nat] interface"),
        ("[limits]\nhalf_open = 0\n", "[limits] half_open"),
        ("[dns]\nservers = [\"9.9.9.9\", \"127.0.0.53\"]\n", "[dns] servers has 127.0.0.53"),
        ("[dns]\nservers = [\"::ffff:127.0.0.1\"]\n", "[dns] servers"),
        ("[dns]\nservers = [\"fe80::1\"]\n", "[dns] servers has fe80::1"),
        ("[metrics]\nlisten = \"127.0.0.1:443\"\n", "[metrics] listen"),
        ("[metrics]\nhosts = [\"relay:9478\"]\n", "[metrics] hosts"),
    ] {
        let error = format!("{:#}", load(&format!("{SMALLEST}{section}")).unwrap_err());
        assert!(error.contains(key) && error.contains("relay.toml"), "{error}");
    }
    let error = format!("{:#}", load(&SMALLEST.replace("10.1.0.0/24", "10.1.0.0/31")).unwrap_err());
    assert!(error.contains("relay.toml:6: [pool] ipv4: ") && error.contains("too small"), "{error}");
}

#[test]
fn an_unknown_configuration_key_is_refused_by_name() {
    let error = format!("{:#}", load(&format!("{SMALLEST}[nat]\nmasqerade = true\n")).unwrap_err());
    assert!(error.contains("masqerade") && error.contains("masquerade"), "{error}");
}

//! Tests of loading and checking the configuration.

use super::*;

fn load(text: &str) -> anyhow::Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path))
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = Config::of_text(Path::new(DEFAULT_PATH), "").unwrap();
    assert_eq!(config, Config { file: config.file.clone(), ..Config::default() });
    assert_eq!(config.tunnel.device, "mobile0");
    assert_eq!(config.routing.table, 7700);
    assert_eq!(config.routing.mark, 0x4d00_0000);
    assert_eq!(config.uplink.standby, ["*"]);
    assert_eq!(
        config.control.socket,
        Path::new("/run/mobile").join(mobile_host::netns::name("agent") + ".sock")
    );
}

#[test]
fn files_of_another_configuration_are_beside_it_and_relative_paths_too() {
    let of = |text| Config::of_text(Path::new("/srv/m/work.toml"), text).unwrap();
    let paths = |config: Config| [config.identity.private_key_file, config.control.socket, config.state.dir];
    let beside = ["/srv/m/work.key", "/srv/m/work.sock", "/srv/m/work.state"].map(PathBuf::from);
    assert_eq!(paths(of("")), beside);
    assert_eq!(paths(Config::without_file(Path::new("/srv/m/work.toml"))), beside);
    let set = "[identity]\nprivate_key_file = \"k\"\n[control]\nsocket = \"../s\"\n[state]\ndir = \"/d\"\n";
    assert_eq!(paths(of(set)), ["/srv/m/k", "/srv/m/../s", "/d"].map(PathBuf::from));
    let long = format!("/srv/{}/agent.toml", "x".repeat(100));
    let error = format!("{:#}", Config::of_text(Path::new(&long), "").unwrap_err());
    assert!(error.contains("[control] socket") && error.contains("at most 107"), "{error}");
}

#[test]
fn every_section_can_be_set() {
    let config = load(
        r#"
        [relay]
        endpoint = "[2001:db8::1]:443"
        [tunnel]
        device = "m1"
        mtu = 1400
        addresses = ["203.0.113.0/24", "2001:db8::/48"]
        compression = "zstd"
        offload = "off"
        queue = "fifo"
        [uplink]
        prefer = ["eth*", "wl*"]
        exclude = ["docker*"]
        standby = ["wl*"]
        [routing]
        table = 7
        mark = 0x10
        mark_mask = 0xff
        rule_priority = 100
        bypass = ["192.168.0.0/16", "fd00::/8"]
        on_failure = "open"
        [cgroup]
        path = "/sys/fs/cgroup/m"
        slice = "/sys/fs/cgroup/m.slice"
        [bpf]
        pin_dir = "/sys/fs/bpf/m"
        [control]
        socket = "/tmp/a.sock"
        group = "staff"
        [metrics]
        listen = "127.0.0.1:9000"
        [state]
        dir = "/tmp/s"
        "#,
    )
    .unwrap();
    assert_eq!(config.relay.endpoint.as_deref(), Some("[2001:db8::1]:443"));
    assert_eq!((config.tunnel.offload, config.tunnel.queue), (Offloading::Off, Queueing::Fifo));
    assert_eq!(config.tunnel.addresses.len(), 2);
    assert_eq!(config.uplink.standby, ["wl*"]);
    assert_eq!(config.routing.bypass.len(), 2);
    assert_eq!(config.routing.on_failure, OnFailure::Open);
    assert_eq!(config.control.group.as_deref(), Some("staff"));
}

#[test]
fn invalid_settings_are_named_in_the_error() {
    for (text, part) in [
        ("[relay]\nendpoint = \"relay\"", "HOST:PORT"),
        ("[relay]\nendpoint = \"2001:db8::1:443\"", "HOST:PORT"),
        ("[relay]\nendpoint = \"relay:0\"", "HOST:PORT"),
        ("[tunnel]\ndevice = \"a-name-that-is-too-long\"", "[tunnel] device"),
        ("[tunnel]\nmtu = 500", "1280"),
        ("[tunnel]\naddresses = [\"relay\"]", "addresses"),
        ("[routing]\ntable = 254", "table 254"),
        ("[tunnel]\nqueue = \"fiar\"", "write \"fair\" or \"fifo\""),
        ("[routing]\nmark = 0x100\nmark_mask = 0xff", "mark_mask"),
        ("[routing]\nrule_priority = 40000", "rule_priority"),
        ("[uplink]\nprefer = [\"[\"]", "prefer"),
        ("[uplink]\nstandby = [\"[\"]", "standby"),
        ("[uplink]\nstandby = true", "standby"),
        ("[routing]\ntabel = 3", "tabel"),
        ("[routing]\non_failure = \"opne\"", "write \"closed\" or \"open\""),
    ] {
        let error = format!("{:#}", load(text).unwrap_err());
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn the_agent_needs_a_relay() {
    let error = Config::default().relay_identity().unwrap_err().to_string();
    assert!(error.contains("[relay] endpoint"), "{error}");
}

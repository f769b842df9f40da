use mobile_host::config::Loaded;

use super::*;

const FIRST: &str = "";

const SECOND: &str = "[tunnel]\ndevice = \"mobile1\"\n[routing]\ntable = 7710\nrelay_table = 7711\nmark = 0x4e000000\n\
                      rule_priority = 4910\n[cgroup]\npath = \"/sys/fs/cgroup/second\"\nslice = \"/sys/fs/cgroup/second.slice\"\n\
                      [bpf]\npin_dir = \"/sys/fs/bpf/second\"\n[control]\nsocket = \"/run/second.sock\"\n";

fn claims(text: &str, path: &str, netns: u64, key: u8) -> Claims {
    let environment = std::iter::empty();
    let loaded: Loaded<Config> =
        mobile_host::config::parse(Path::new(path), text, "MOBILE", environment, &[]).unwrap();
    let config = loaded.complete(Ok::<_, String>).unwrap();
    let cgroup = Some(config.cgroup.path.clone().unwrap_or_else(|| "/sys/fs/cgroup/mobile".into()));
    let slice = Some(config.cgroup.slice.clone().unwrap_or_else(|| "/sys/fs/cgroup/mobile.slice".into()));
    Claims {
        netns,
        cgroup,
        slice,
        ..Claims::of(&config, Some(Path::new(path)), Some(PublicKey::from_bytes([key; 32])))
    }
}

fn settings(own: &Claims, other: &Claims) -> Vec<Setting> {
    conflict::between(own, other).into_iter().map(|conflict| conflict.setting).collect()
}

#[test]
fn agents_with_settings_of_their_own_do_not_conflict() {
    assert_eq!(settings(&claims(SECOND, "/b", 1, 2), &claims(FIRST, "/a", 1, 1)), []);
}

#[test]
fn each_shared_setting_is_named() {
    let first = claims(FIRST, "/a", 1, 1);
    for (line, setting) in [
        ("device = \"mobile1\"\n", Setting::Device),
        ("table = 7710\n", Setting::Table),
        ("relay_table = 7711\n", Setting::RelayTable),
        ("mark = 0x4e000000\n", Setting::Mark),
        ("rule_priority = 4910\n", Setting::RulePriority),
        ("path = \"/sys/fs/cgroup/second\"\n", Setting::Cgroup),
        ("slice = \"/sys/fs/cgroup/second.slice\"\n", Setting::Slice),
        ("pin_dir = \"/sys/fs/bpf/second\"\n", Setting::PinDir),
        ("socket = \"/run/second.sock\"\n", Setting::Socket),
    ] {
        // `table` is the end of `relay_table` too.
        let text = SECOND.replacen(&format!("\n{line}"), "\n", 1);
        assert_ne!(text, SECOND);
        assert_eq!(settings(&claims(&text, "/b", 1, 2), &first), [setting]);
    }
    assert_eq!(settings(&claims(SECOND, "/b", 1, 1), &first), [Setting::Key]);
}

#[test]
fn numbers_that_overlap_conflict() {
    let first = claims(FIRST, "/a", 1, 1);
    for (from, to, setting) in [
        ("table = 7710\n", "table = 7701\n", Setting::Table),
        ("relay_table = 7711\n", "relay_table = 7700\n", Setting::RelayTable),
        ("rule_priority = 4910\n", "rule_priority = 4901\n", Setting::RulePriority),
        // A mark with fewer bits matches packets of the first agent too.
        ("mark = 0x4e000000\n", "mark = 0x40000000\nmark_mask = 0xf0000000\n", Setting::Mark),
        ("path = \"/sys/fs/cgroup/second\"\n", "path = \"/sys/fs/cgroup/mobile/below\"\n", Setting::Cgroup),
    ] {
        let text = SECOND.replacen(&format!("\n{from}"), &format!("\n{to}"), 1);
        assert_eq!(settings(&claims(&text, "/b", 1, 2), &first), [setting]);
    }
}

#[test]
fn in_another_network_namespace_only_files_and_keys_conflict() {
    let (first, second) = (claims(FIRST, "/a", 1, 1), claims(FIRST, "/b", 2, 1));
    let all = [Setting::Key, Setting::PinDir, Setting::Cgroup, Setting::Socket];
    assert_eq!(settings(&second, &first), all);
}

#[test]
fn the_error_names_the_owner_and_the_settings_to_change() {
    let running = |uses| [Running { pid: 7, uses }];
    let first = claims(FIRST, "/a", 1, 1);
    let text = SECOND.replace("pin_dir = \"/sys/fs/bpf/second\"\n", "pin_dir = \"/sys/fs/bpf/first\"\n");
    let first = Claims { pin_dir: "/sys/fs/bpf/first".into(), ..first };
    let second = claims(&text, "/b", 1, 2);
    let error = second.conflicting(&running(first.clone()))[0].to_string();
    assert_eq!(
        error,
        "[bpf] pin_dir /sys/fs/bpf/first is in use by agent 7 (/a): set another value for [bpf] pin_dir in this \
         configuration, or stop that agent"
    );
    let error = first.conflicting(&running(Claims { netns: 2, ..first.clone() }))[0].to_string();
    assert!(error.contains("agent 7 (/a) in network namespace 2"), "{error}");
    let error = first.conflicting(&running(first.clone()))[0].to_string();
    assert!(error.starts_with("already running: agent 7 (/a)"), "{error}");
}

#[test]
fn one_file_has_one_path() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
    assert_eq!(resolved(&real.join("link/missing")), real.join("missing"));
    assert_eq!(resolved(&real.join("link")), real);
}

use std::time::Duration;

use mobile_proto::enroll::{TOKEN_LEN, Token};
use mobile_transport::invitation::TokenHash;

use super::*;
use crate::pool::{Lease, Pools};
use crate::store::{Forward, NewClient, Protocol, Store, WantedReach};

pub(super) const CONFIG: &str = "# mine\n[listen]\naddress = \"[::]:443\"\n[identity]\nprivate_key_file = \
                                 \"relay.key\"\n[pool]\nipv4 = \"10.9.0.0/24\"\n";

/// Returns a backup of a relay with two clients, an invitation and a forward.
pub(super) fn example() -> Backup {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let pools = Pools::new(Some("10.9.0.0/24".parse().unwrap()), None).unwrap();
    let client = |name: &str, seed| NewClient {
        name: name.into(),
        public_key: PublicKey::from_bytes([seed; 32]),
        wanted: Lease::default(),
        reach: WantedReach::Unchanged,
    };
    let clients = [client("laptop", 1), client("phone", 2), client("former", 3)];
    store.authorize_all(&clients, &pools, 1000).unwrap();
    store.revoke("former", 1000).unwrap();
    let token = TokenHash::of(&Token::from_bytes([0xab; TOKEN_LEN]));
    store.invite("friend", token, Duration::from_secs(3600), Lease::default(), &pools, 1000).unwrap();
    store.forward(&Forward { protocol: Protocol::Tcp, port: 2222, client: "laptop".into(), to: 22 }).unwrap();
    let key = PrivateKey::from_seed([7; 32]);
    Backup {
        program: "0.1.0".into(),
        created: 1000,
        public_key: key.public(),
        configuration: Configuration { path: "/etc/relay.toml".into(), mode: 0o640, text: CONFIG.into() },
        private_keys: PrivateKeys {
            current: key.to_base64().to_string(),
            next: Some(PrivateKey::from_seed([8; 32]).to_base64().to_string()),
            old: None,
        },
        store: store.snapshot().unwrap(),
    }
}

/// Returns the document of the example after a change of its content, with the right checksum.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut document: Value = serde_json::from_str(&example().encode().unwrap()).unwrap();
    change(&mut document["content"]);
    document["checksum"] = checksum(&document["content"]).into();
    document.to_string().into_bytes()
}

#[test]
fn a_backup_is_read_as_it_was_written() {
    let backup = example();
    let document = backup.encode().unwrap();
    assert!(document.starts_with("{\n") && document.contains("holds the relay's private key"), "{document}");
    assert_eq!(Backup::decode(document.as_bytes()).unwrap(), backup);
    let seed = backup.private_keys.current.clone();
    assert!(document.contains(&seed) && !format!("{backup:?}").contains(&seed), "no key in a log");
}

#[test]
fn a_backup_that_ends_too_early_is_cut_off_wherever_it_ends() {
    let document = example().encode().unwrap();
    let document = document.trim_end().as_bytes();
    for length in 0..document.len() {
        let error = Backup::decode(&document[..length]).unwrap_err();
        assert!(matches!(error, BackupError::Truncated), "{length}: {error}");
    }
}

#[test]
fn a_backup_with_another_byte_is_refused() {
    let document = example().encode().unwrap().into_bytes();
    let original = example();
    let warning = "\"warning\"";
    for at in 0..document.len() {
        let mut document = document.clone();
        document[at] ^= 1;
        // Space and line ends between tokens, and the warning, do not matter.
        if let Ok(read) = Backup::decode(&document) {
            let text = String::from_utf8(document).unwrap();
            let line_start = text[..at].rfind('\n').map_or(0, |start| start + 1);
            let in_warning = text[line_start..].trim_start().starts_with(warning) || !text.contains(warning);
            assert!(read == original && (in_warning || text.as_bytes()[at].is_ascii_whitespace()), "{at}");
        }
    }
}

#[test]
fn other_files_and_later_versions_are_named_as_such() {
    let foreign = ["hello", "{}", "[1]", "null", "{\"format\": \"tar\", \"version\": 1}", "\u{0}\u{1}"];
    for text in foreign {
        let error = Backup::decode(text.as_bytes()).unwrap_err();
        assert!(matches!(error, BackupError::Foreign(_)), "{text}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert!(Backup::decode(deep.as_bytes()).is_err());
    let newer = example().encode().unwrap().replace("\"version\": 1", "\"version\": 2");
    let error = Backup::decode(newer.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("install"), "{error}");
}

#[test]
fn hostile_content_with_a_right_checksum_is_refused() {
    let valid = changed(|_| {});
    assert!(Backup::decode(&valid).is_ok());
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 15] = [
        ("does not belong", |content| content["private_keys"]["current"] = json!("A".repeat(43) + "=")),
        ("`current` is none", |content| content["private_keys"]["current"] = json!("../../etc/passwd")),
        ("`next` is none", |content| content["private_keys"]["next"] = json!("")),
        ("unknown field", |content| content["private_keys"]["/etc/passwd"] = json!("")),
        ("unknown field", |content| content["configuration"]["owner"] = json!("root")),
        ("missing field", |content| drop(content.as_object_mut().unwrap().remove("store"))),
        ("store cannot be used", |content| content["store"]["format"] = json!(99)),
        ("store cannot be used", |content| content["store"]["tables"]["meta"] = json!({"format": 1})),
        ("store cannot be used", |content| content["store"]["tables"]["other"] = json!({})),
        ("store cannot be used", |content| content["store"]["tables"]["clients"]["x"] = json!({"name": "x"})),
        ("store cannot be used", |content| {
            let clients = &mut content["store"]["tables"]["clients"];
            clients["phone"]["public_key"] = clients["laptop"]["public_key"].clone();
        }),
        ("store cannot be used", |content| {
            let clients = &mut content["store"]["tables"]["clients"];
            clients["phone"]["ipv4"] = clients["laptop"]["ipv4"].clone();
        }),
        ("store cannot be used", |content| {
            let clients = &mut content["store"]["tables"]["clients"];
            let mut client = clients["phone"].take();
            client["name"] = json!("a\nb");
            *clients = json!({ "a\nb": client });
        }),
        ("store cannot be used", |content| {
            drop(content["store"]["tables"]["clients"].as_object_mut().unwrap().remove("laptop"));
        }),
        ("store cannot be used", |content| {
            content["store"]["tables"]["forwards"]["tcp/2222"]["port"] = json!(2223);
        }),
    ];
    for (number, (expected, change)) in changes.into_iter().enumerate() {
        let error = Backup::decode(&changed(change)).unwrap_err().to_string();
        assert!(error.contains(expected), "{number}: {error}");
    }
}

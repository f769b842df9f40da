//! Entry points of the fuzz targets: the parsers as the program uses them, with the properties that
//! must hold for any input. Built with `--cfg fuzzing` only.

use std::path::Path;

use ipnet::Ipv4Net;
use mobile_host::control;
use mobile_proto::enroll::{TOKEN_LEN, Token};
use mobile_transport::invitation::TokenHash;
use mobile_transport::keys::{KEY_LEN, PublicKey};

use crate::admin::{AdminReply, Request};
use crate::announced::{IdentityState, InformedClient};
use crate::cli::init;
use crate::config::{Config, ENV_PREFIX};
use crate::pool::{Lease, Pools, TakenAddresses};
use crate::store::{Forward, ListedClient, NewClient, Protocol, WantedReach};

/// Parses `relay.toml` and the environment. An accepted configuration must be usable, and a refusal
/// must name the file or the variable.
///
/// # Panics
/// Panics when a property does not hold.
pub fn config(text: &str, variables: impl Iterator<Item = (String, String)>) {
    let path = Path::new("/etc/home-relay/relay.toml");
    let read = mobile_host::config::parse::<Config>(path, text, ENV_PREFIX, variables, &[]);
    match read.map_err(anyhow::Error::from).and_then(|loaded| Config::complete(loaded, path)) {
        Ok(config) => {
            assert!(config.identity.private_key_file.is_absolute());
            assert!(!config.limits.handshake_timeout.is_zero() && !config.limits.session_idle.is_zero());
            let pools = config.pools().expect("it was checked");
            let own = pools.own_addresses();
            assert!(
                !own.is_empty()
                    && own.iter().all(|net| pools.is_own(net.addr()) && pools.contains(net.addr()))
            );
            let mut taken = TakenAddresses::default();
            let first = pools.lease(Lease::default(), &mut taken).expect("a pool has an address to give");
            pools.check(first).expect("and one that is fit");
            // The smallest pool has one client address only.
            if let Ok(second) = pools.lease(Lease::default(), &mut taken) {
                assert_ne!(second, first);
            }
        }
        Err(error) => {
            let error = format!("{error:#}");
            assert!(error.contains("relay.toml") || error.contains("environment variable"), "{error}");
        }
    }
}

/// Parses a line of the admin socket, as a request and as a reply. A parsed message must survive
/// being written and parsed again.
///
/// # Panics
/// Panics when the second parse differs.
pub fn admin_message(bytes: &[u8]) {
    if let Ok(request) = control::parse::<Request>(bytes) {
        let reparsed = control::parse::<Request>(&json(&request)).expect("a request of ours");
        assert_eq!(json(&request), json(&reparsed));
        check_leases(&match request {
            Request::Authorize { clients } => clients.iter().map(|client| client.wanted).collect(),
            Request::Invite { wanted, .. } => vec![wanted],
            _ => Vec::new(),
        });
    }
    if let Ok(reply) = control::parse::<AdminReply>(bytes) {
        let reparsed = control::parse::<AdminReply>(&json(&reply)).expect("an answer of ours");
        assert_eq!(json(&reply), json(&reparsed));
    }
}

/// Assigns an address for each request, and checks that every assigned address fits the pool and is
/// unique.
fn check_leases(wanted: &[Lease]) {
    let net = Ipv4Net::new_assert([100, 64, 0, 0].into(), 28);
    let pools = Pools::new(Some(net), None).expect("a pool of ours");
    let (mut taken, mut assigned) = (TakenAddresses::default(), Vec::new());
    for &wanted in wanted {
        // An unsuitable address or an exhausted pool is an error, not a panic.
        if let Ok(lease) = pools.check(wanted).and_then(|()| pools.lease(wanted, &mut taken)) {
            pools.check(lease).expect("it is fit");
            assert!(!assigned.contains(&lease.ipv4), "{lease} is given twice");
            assigned.push(lease.ipv4);
        }
    }
}

/// Returns seeds for fuzzing `config`: the configuration that `home-relay init` writes, as it is
/// and with all defaults uncommented, each without and with environment variables.
#[must_use]
pub fn config_seeds() -> Vec<Vec<u8>> {
    let text = init::example();
    let all: String = text.lines().map(uncommented).map(|line| format!("{line}\n")).collect();
    let variables = "\0HOME_RELAY_LISTEN_ADDRESS=[::]:8443\nHOME_RELAY_DNS_SERVERS=9.9.9.9, 2620:fe::fe\n\
                     HOME_RELAY_LIMITS_HALF_OPEN=7\nHOME_RELAY_NAT_MASQUERADE=false\n";
    [text.clone(), all.clone(), text + variables, all + variables].map(String::into_bytes).to_vec()
}

/// Turns `# key = value` into `key = value` and leaves other comments alone.
fn uncommented(line: &str) -> &str {
    let is_key = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
    match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => rest,
        _ => line,
    }
}

/// Returns seeds for fuzzing `admin_message`: every request, and the replies that hold more than
/// text.
#[must_use]
pub fn admin_message_seeds() -> Vec<Vec<u8>> {
    let name = || "laptop".to_owned();
    let public_key = PublicKey::from_bytes([7; KEY_LEN]);
    let wanted = Lease { ipv4: Some([100, 64, 0, 9].into()), ipv6: None };
    let token = TokenHash::of(&Token::from_bytes([0xab; TOKEN_LEN]));
    let forward = Forward { protocol: Protocol::Tcp, port: 2222, client: name(), to: 22 };
    let entry = ListedClient {
        name: name(),
        public_key: Some(public_key),
        lease: wanted,
        created: 1,
        expires: None,
        reach: None,
    };
    let reach = WantedReach::Own("internet,192.168.1.0/24".parse().expect("a reach of ours"));
    let new_client = NewClient { name: name(), public_key, wanted, reach };
    let requests = [
        Request::Authorize {
            clients: vec![new_client.clone(), NewClient { wanted: Lease::default(), ..new_client }],
        },
        Request::Invite { name: name(), token, lifetime: 86_400, wanted: Lease::default() },
        Request::Revoke { name: name() },
        Request::Clients,
        Request::Sessions,
        Request::Reload,
        Request::Forward(forward.clone()),
        Request::Unforward { protocol: Protocol::Udp, port: 53 },
        Request::Forwards,
        Request::Status,
        Request::AppliedConfig,
        Request::Snapshot,
        Request::Identity,
        Request::RereadKeys,
        Request::Move { endpoint: Some("relay.example.org:443".into()) },
        Request::Move { endpoint: None },
    ];
    let replies = [
        AdminReply::Invited { relay: public_key, entry: entry.clone() },
        AdminReply::Clients(vec![entry]),
        AdminReply::Forwards(vec![forward]),
        AdminReply::Identity(IdentityState {
            public_key,
            next_public_key: Some(public_key),
            endpoint: Some("relay.example.org:443".into()),
            clients: vec![InformedClient { name: name(), knows_key: true, knows_endpoint: false }],
        }),
        AdminReply::Error("no".into()),
    ];
    requests.iter().map(json).chain(replies.iter().map(json)).collect()
}

fn json(message: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("ours are JSON")
}

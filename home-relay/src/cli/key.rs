//! The `key` and `move` commands: replace the relay's key and announce another endpoint, and show
//! which clients know of it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use mobile_host::control::Client as ControlClient;
use mobile_transport::key_rotation::{adopt_next, create_next, discard_next, load_next, next_path, old_path};
use mobile_transport::keys::RelayKeys;

use super::args::{KeyVerb, Move, Rotate};
use super::clients::{UNEXPECTED_REPLY, call, connect};
use super::table::print_table;
use crate::admin::{AdminReply, Request};
use crate::announced::{IdentityState, InformedClient};
use crate::config::Config;
use crate::store::Store;

/// Prints the relay's public key, and during a rotation the next one and who knows it; or changes
/// the key.
pub(crate) fn run(config: &Config, verb: Option<&KeyVerb>, json: bool) -> anyhow::Result<()> {
    match verb {
        None => print_key(&identity(config)?, json),
        Some(KeyVerb::Rotate(Rotate { finish: true, force, .. })) => finish(config, *force),
        Some(KeyVerb::Rotate(Rotate { cancel: true, .. })) => cancel(config),
        Some(KeyVerb::Rotate(_)) => begin(config),
    }
}

/// Announces an endpoint, withdraws it, or prints it and who knows it.
pub(crate) fn run_move(config: &Config, options: Move) -> anyhow::Result<()> {
    let Move { endpoint, cancel } = options;
    if endpoint.is_none() && !cancel {
        print_endpoint(&identity(config)?);
        return Ok(());
    }
    let state = match connect(config)? {
        Some(mut relay) => ask(&mut relay, &Request::Move { endpoint: endpoint.clone() })?,
        None => {
            let store = Store::open(&config.state.dir)?;
            let announce = endpoint.clone().unwrap_or_default();
            store.change_announced(|announced| announced.endpoint = Some(announce))?;
            note_offline();
            IdentityState::read(&store, key_files(config)?)?
        }
    };
    if endpoint.is_none() {
        eprintln!("clients return to the endpoint of their configuration");
        return Ok(());
    }
    eprintln!(
        "announced; keep the old endpoint until `home-relay move` shows that every client knows the new one"
    );
    print_endpoint(&state);
    Ok(())
}

fn begin(config: &Config) -> anyhow::Result<()> {
    let file = &config.identity.private_key_file;
    // The relay's own key must be readable before another one is made.
    config.identity.load_key()?;
    let is_new = load_next(file)?.is_none();
    create_next(file)?;
    let state = reread(config)?;
    eprintln!(
        "{} next: when `home-relay key` shows that every client knows the next key, run `home-relay key rotate \
         --finish`",
        if is_new { "the next key is announced;" } else { "a rotation is under way already;" }
    );
    print_key(&state, false)
}

fn cancel(config: &Config) -> anyhow::Result<()> {
    if !discard_next(&config.identity.private_key_file)? {
        bail!(NO_ROTATION);
    }
    let state = reread(config)?;
    eprintln!("withdrew the next key; clients forget it when they connect");
    print_key(&state, false)
}

fn finish(config: &Config, force: bool) -> anyhow::Result<()> {
    let file = &config.identity.private_key_file;
    // A relay that does not know of the next key yet has told nobody.
    let before = reread(config)?;
    if before.next_public_key.is_none() {
        bail!(NO_ROTATION);
    }
    let unaware: Vec<&str> =
        before.clients.iter().filter(|it| !it.knows_key).map(|it| it.name.as_str()).collect();
    if !unaware.is_empty() && !force {
        bail!(
            "these clients do not know the next key and would be locked out: {}; wait until they have connected, \
             `home-relay revoke` them, or use --force and give each of them the new key",
            unaware.join(", ")
        );
    }
    let invited = invited_before_rotation(config, file)?;
    adopt_next(file, true)?;
    let after = reread(config)?;
    eprintln!("the old key is kept in {}: delete it if nothing is amiss", old_path(file).display());
    if !unaware.is_empty() {
        eprintln!(
            "locked out until [relay] public_key of their agent.toml is the new key: {}",
            unaware.join(", ")
        );
    }
    if !invited.is_empty() {
        eprintln!("these invitations name the old key, so invite again: {}", invited.join(", "));
    }
    print_key(&after, false)
}

const NO_ROTATION: &str = "no rotation is under way: begin one with `home-relay key rotate`";

/// Returns the names of the invitations that can be redeemed and were made before the next key.
fn invited_before_rotation(config: &Config, file: &Path) -> anyhow::Result<Vec<String>> {
    let made = std::fs::metadata(next_path(file)).and_then(|file| file.modified());
    let made = made.unwrap_or_else(|_| SystemTime::now()).duration_since(UNIX_EPOCH).unwrap_or_default();
    let entries = match connect(config)? {
        Some(mut relay) => match call(&mut relay, &Request::Clients)? {
            AdminReply::Clients(entries) => entries,
            _ => bail!(UNEXPECTED_REPLY),
        },
        None => Store::open(&config.state.dir)?.entries(crate::store::now())?,
    };
    let earlier = entries.into_iter().filter(|it| it.expires.is_some() && it.created < made.as_secs());
    Ok(earlier.map(|it| it.name).collect())
}

/// Returns the relay's keys and announced endpoint, and which clients know them.
pub(super) fn identity(config: &Config) -> anyhow::Result<IdentityState> {
    match connect(config)? {
        Some(mut relay) => ask(&mut relay, &Request::Identity),
        None => Ok(IdentityState::read(&Store::open(&config.state.dir)?, key_files(config)?)?),
    }
}

/// Makes the running relay read the key files again. Without one, the next relay does at its start.
fn reread(config: &Config) -> anyhow::Result<IdentityState> {
    match connect(config)? {
        Some(mut relay) => ask(&mut relay, &Request::RereadKeys),
        None => {
            note_offline();
            let (store, keys) = (Store::open(&config.state.dir)?, key_files(config)?);
            // Clients are to forget the key if it is withdrawn before a relay has run.
            store.change_announced(|announced| announced.key |= keys.next.is_some())?;
            Ok(IdentityState::read(&store, keys)?)
        }
    }
}

fn ask(relay: &mut ControlClient, request: &Request) -> anyhow::Result<IdentityState> {
    let AdminReply::Identity(state) = call(relay, request)? else { bail!(UNEXPECTED_REPLY) };
    Ok(state)
}

fn key_files(config: &Config) -> anyhow::Result<RelayKeys> {
    let file = &config.identity.private_key_file;
    let next = load_next(file)?.map(|key| key.public());
    Ok(RelayKeys { current: config.identity.load_key()?.public(), next })
}

fn note_offline() {
    eprintln!("no relay is running: this takes effect when it starts");
}

fn print_key(state: &IdentityState, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(state);
    }
    println!("{}", state.public_key);
    if let Some(next) = state.next_public_key {
        println!("next: {next}");
        print_clients(state, "KNOWS THE NEXT KEY", |client| client.knows_key);
    }
    Ok(())
}

fn print_endpoint(state: &IdentityState) {
    match &state.endpoint {
        None => println!("no endpoint is announced: clients use that of their configuration"),
        Some(endpoint) => {
            println!("{endpoint}");
            print_clients(state, "KNOWS THE ENDPOINT", |client| client.knows_endpoint);
        }
    }
}

fn print_clients(state: &IdentityState, heading: &str, knows: impl Fn(&InformedClient) -> bool) {
    let rows = state.clients.iter().map(|client| {
        let answer = if knows(client) { "yes" } else { "no" };
        vec![client.name.clone(), answer.to_owned()]
    });
    print_table(&["NAME", heading], rows);
}

fn print_json(state: &IdentityState) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(state).context("cannot encode the answer")?);
    Ok(())
}

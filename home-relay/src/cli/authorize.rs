//! The `authorize` command: authorises one client, or all clients in a file.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};

use super::args::{Addresses, Authorize};
use super::clients::{UNEXPECTED_REPLY, call, connect};
use crate::admin::{AdminReply, Request};
use crate::config::Config;
use crate::network::connections::delete_connections;
use crate::pool::Lease;
use crate::store::{self, Client, NewClient, Store, WantedReach};

/// The largest number of clients in one request to a running relay, which accepts requests of 64
/// KiB; a client with the longest name takes 150 bytes.
const BATCH: usize = 400;

impl From<Addresses> for Lease {
    fn from(Addresses { ipv4, ipv6 }: Addresses) -> Self {
        Self { ipv4, ipv6 }
    }
}

/// Authorises the clients and prints their addresses: of one client, one address per line; of many
/// clients, one client per line.
pub(crate) fn run(config: &Config, who: Authorize) -> anyhow::Result<()> {
    let Authorize { name, public_key, addresses, reach, from } = who;
    let reach = match reach.as_deref() {
        None => WantedReach::Unchanged,
        Some("default") => WantedReach::Default,
        Some(text) => WantedReach::Own(text.parse().map_err(|error| anyhow!("--reach: {error}"))?),
    };
    match (name, public_key, from) {
        (_, _, Some(file)) => authorize(config, &read(&file)?, |client| {
            println!("{} {}", client.name, client.lease);
        }),
        (Some(name), Some(public_key), None) => {
            let one = NewClient { name, public_key, wanted: addresses.into(), reach };
            authorize(config, &[one], |client| {
                client.lease.addresses().for_each(|address| println!("{address}"));
            })
        }
        _ => bail!("name the client and its key, or a file with --from"),
    }
}

/// Authorises clients and calls `print` for each. Without a running relay, the store authorises all
/// of them or none; a running relay is sent batches, of which each is authorised as a whole or not
/// at all.
fn authorize(config: &Config, new_clients: &[NewClient], print: impl Fn(&Client)) -> anyhow::Result<()> {
    let pools = config.pools()?;
    let Some(mut relay) = connect(config)? else {
        let store = Store::open(&config.state.dir)?;
        let before = store.clients()?;
        let clients = store.authorize_all(new_clients, &pools, store::now())?;
        clients.iter().for_each(print);
        let previous_lease =
            |client: &Client| before.iter().find(|known| known.name == client.name).map(|it| it.lease);
        let freed: Vec<IpAddr> =
            clients.iter().filter_map(|it| Some(previous_lease(it)?.without(it.lease))).flatten().collect();
        delete_connections(&freed);
        return Ok(());
    };
    for (before, batch) in new_clients.chunks(BATCH).enumerate() {
        let request = Request::Authorize { clients: batch.to_vec() };
        let reply = call(&mut relay, &request);
        let reply = match before {
            0 => reply?,
            _ => reply.with_context(|| {
                format!(
                    "authorised the first {} clients but not the others: run the same command again to continue",
                    before * BATCH
                )
            })?,
        };
        let AdminReply::Authorized(clients) = reply else { bail!(UNEXPECTED_REPLY) };
        clients.iter().for_each(&print);
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Vec<NewClient>> {
    let shown = file.display();
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    parse(&text.with_context(|| format!("cannot read {shown}"))?)
        .with_context(|| format!("no client in {shown} was authorised"))
}

/// Parses a list of clients, one name and public key per line; empty lines and lines that begin
/// with # are skipped.
fn parse(text: &str) -> anyhow::Result<Vec<NewClient>> {
    let mut new_clients = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, key] = words[..] else { bail!("line {number}: expected NAME PUBLIC_KEY, not {line:?}") };
        let public_key = key.parse().with_context(|| format!("line {number}: the key of {name}"))?;
        new_clients.push(NewClient {
            name: name.to_owned(),
            public_key,
            wanted: Lease::default(),
            reach: WantedReach::default(),
        });
    }
    ensure!(!new_clients.is_empty(), "the file names no client: write one NAME PUBLIC_KEY per line");
    Ok(new_clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_client_or_a_comment_or_an_error_with_its_number() {
        let key = mobile_transport::keys::PublicKey::from_bytes([7; 32]);
        let text = format!("# the office\n\nfirst {key}\n  second\t{key}  \n");
        let names: Vec<String> =
            parse(&text).unwrap().into_iter().map(|new_client| new_client.name).collect();
        assert_eq!(names, ["first", "second"]);
        for (bad, said) in [
            ("one", "line 1"),
            ("\na b c", "line 2"),
            ("a nokey", "line 1: the key of a"),
            ("# none", "names no client"),
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }
}

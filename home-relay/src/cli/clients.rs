//! The verbs about clients and sessions: asked of the running relay if there is one, else done on its
//! store. A store has one opener, so whether the admin socket answers decides.

use anyhow::bail;
use mobile_io::control::{Client as ControlClient, ControlError};
use mobile_io::keys::PublicKey;

use super::table::print_table;
use crate::admin::{Answer, Request};
use crate::config::Config;
use crate::store::{Client, Store};

/// Lets a client in and prints the addresses it holds, one a line.
pub(crate) fn authorize(config: &Config, name: String, public_key: PublicKey) -> anyhow::Result<()> {
    let pools = config.pools()?;
    let answer = match connect(config)? {
        Some(mut relay) => ask(&mut relay, &Request::Authorize { name, public_key })?,
        None => Answer::Client(Store::open(&config.state.dir)?.authorize(&name, &public_key, &pools)?),
    };
    let Answer::Client(client) = answer else { bail!(UNEXPECTED) };
    for address in client.lease.addresses() {
        println!("{address}");
    }
    Ok(())
}

/// Shuts a client out.
pub(crate) fn revoke(config: &Config, name: String) -> anyhow::Result<()> {
    let answer = match connect(config)? {
        Some(mut relay) => ask(&mut relay, &Request::Revoke { name })?,
        None => Answer::Client(Store::open(&config.state.dir)?.revoke(&name)?),
    };
    let Answer::Client(client) = answer else { bail!(UNEXPECTED) };
    eprintln!("revoked {} ({})", client.name, client.public_key);
    Ok(())
}

/// Lists the clients.
pub(crate) fn clients(config: &Config, json: bool) -> anyhow::Result<()> {
    let answer = match connect(config)? {
        Some(mut relay) => ask(&mut relay, &Request::Clients)?,
        None => Answer::Clients(Store::open(&config.state.dir)?.clients()?),
    };
    let Answer::Clients(clients) = answer else { bail!(UNEXPECTED) };
    if json {
        println!("{}", serde_json::to_string_pretty(&clients)?);
        return Ok(());
    }
    let rows = clients.iter().map(|client: &Client| {
        let addresses: Vec<String> = client.lease.addresses().map(|address| address.to_string()).collect();
        vec![client.name.clone(), addresses.join(" "), client.public_key.to_string()]
    });
    print_table(&["NAME", "ADDRESSES", "PUBLIC KEY"], rows);
    Ok(())
}

/// Lists the live sessions; without a running relay there are none to list.
pub(crate) fn sessions(config: &Config, json: bool) -> anyhow::Result<()> {
    let Some(mut relay) = connect(config)? else { bail!(not_running(config)) };
    let Answer::Sessions(sessions) = ask(&mut relay, &Request::Sessions)? else { bail!(UNEXPECTED) };
    if json {
        println!("{}", serde_json::to_string_pretty(&sessions)?);
        return Ok(());
    }
    let rows = sessions.iter().map(|session| {
        let addresses = session.ipv4.iter().map(ToString::to_string);
        let addresses: Vec<String> = addresses.chain(session.ipv6.iter().map(ToString::to_string)).collect();
        let paths = session.paths.iter().map(|path| {
            let active = if path.active { "*" } else { "" };
            format!("{active}{}", path.peer.map_or_else(|| "?".to_owned(), |peer| peer.to_string()))
        });
        let paths: Vec<String> = paths.collect();
        vec![
            session.client.clone(),
            addresses.join(" "),
            if paths.is_empty() { "(out of reach)".to_owned() } else { paths.join(" ") },
            format!("{} s", session.age_seconds),
        ]
    });
    print_table(&["CLIENT", "ADDRESSES", "PATHS (* ACTIVE)", "AGE"], rows);
    Ok(())
}

/// A newer or older relay is running than this command.
pub(super) const UNEXPECTED: &str =
    "the running relay gave another answer than this command knows: restart it after an upgrade";

/// What to say where only a running relay can answer.
pub(super) fn not_running(config: &Config) -> String {
    let socket = config.admin.socket.display();
    format!("no relay is running: nobody answers on {socket}; start it with `home-relay serve`")
}

/// The running relay, if any. Not being allowed to talk to it is an error, not an absence.
pub(super) fn connect(config: &Config) -> anyhow::Result<Option<ControlClient>> {
    match ControlClient::connect(&config.admin.socket) {
        Ok(client) => Ok(Some(client)),
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn ask(relay: &mut ControlClient, request: &Request) -> anyhow::Result<Answer> {
    match relay.call(request)? {
        Answer::Error(error) => bail!(error),
        answer => Ok(answer),
    }
}

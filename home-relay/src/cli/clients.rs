//! The commands about clients and sessions. If a relay answers on the admin socket, they send it a
//! request; otherwise they open the store themselves, which only one process can have open.

use anyhow::bail;
use mobile_host::control::Client as ControlClient;

use super::table::print_table;
use crate::admin::{self, AdminReply, Request};
use crate::config::Config;
use crate::network::connections::delete_connections;
use crate::store::{self, ListedClient, Store};

/// Revokes a client, or withdraws an invitation.
pub(crate) fn revoke(config: &Config, name: String) -> anyhow::Result<()> {
    let reply = match connect(config)? {
        Some(mut relay) => call(&mut relay, &Request::Revoke { name })?,
        None => {
            let entry = Store::open(&config.state.dir)?.revoke(&name, store::now())?;
            delete_connections(&entry.lease.addresses().collect::<Vec<_>>());
            AdminReply::Revoked(entry)
        }
    };
    let AdminReply::Revoked(ListedClient { name, public_key, .. }) = reply else { bail!(UNEXPECTED_REPLY) };
    match public_key {
        Some(key) => eprintln!("revoked {name} ({key})"),
        None => eprintln!("withdrew the invitation for {name}"),
    }
    Ok(())
}

/// Lists all clients and all redeemable invitations.
pub(crate) fn clients(config: &Config, json: bool) -> anyhow::Result<()> {
    let reply = match connect(config)? {
        Some(mut relay) => call(&mut relay, &Request::Clients)?,
        None => AdminReply::Clients(Store::open(&config.state.dir)?.entries(store::now())?),
    };
    let AdminReply::Clients(clients) = reply else { bail!(UNEXPECTED_REPLY) };
    if json {
        println!("{}", serde_json::to_string_pretty(&clients)?);
        return Ok(());
    }
    let now = store::now();
    let rows = clients.iter().map(|entry: &ListedClient| {
        let key = match (&entry.public_key, entry.expires) {
            (Some(key), _) => key.to_string(),
            (None, expires) => format!(
                "(invited, expires in {})",
                format_duration(expires.unwrap_or(now).saturating_sub(now))
            ),
        };
        let reach = entry.reach.as_ref().map_or_else(|| "default".to_owned(), ToString::to_string);
        vec![entry.name.clone(), entry.lease.to_string(), reach, key]
    });
    print_table(&["NAME", "ADDRESSES", "REACH", "PUBLIC KEY"], rows);
    Ok(())
}

/// Lists the running sessions; fails if no relay is running.
pub(crate) fn sessions(config: &Config, json: bool) -> anyhow::Result<()> {
    let Some(mut relay) = connect(config)? else { bail!(not_running(config)) };
    let AdminReply::Sessions(sessions) = call(&mut relay, &Request::Sessions)? else {
        bail!(UNEXPECTED_REPLY)
    };
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
            if paths.is_empty() { "(no path)".to_owned() } else { paths.join(" ") },
            format!("{} s", session.age_seconds),
        ]
    });
    print_table(&["CLIENT", "ADDRESSES", "PATHS (* ACTIVE)", "AGE"], rows);
    Ok(())
}

/// Formats a duration in a suitable unit, from seconds to days.
pub(super) fn format_duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The error for a reply that this command does not expect, because the relay is of another
/// version.
pub(super) const UNEXPECTED_REPLY: &str =
    "unexpected reply of the running relay, which may be another version: restart it after an upgrade";

/// Returns the error of a command that needs a running relay when there is none.
pub(super) fn not_running(config: &Config) -> String {
    let socket = config.admin.socket.display();
    format!(
        "no relay is running (no answer on {socket}): start it with `systemctl start home-relay`, or `home-relay \
         serve` in the foreground"
    )
}

/// Connects to the running relay; returns `None` if no relay is running, and an error if this user
/// may not use the admin socket, or if it is the socket of a relay with another configuration.
pub(super) fn connect(config: &Config) -> anyhow::Result<Option<ControlClient>> {
    Ok(admin::connect(&config.admin.socket, &config.file)?)
}

pub(super) fn call(relay: &mut ControlClient, request: &Request) -> anyhow::Result<AdminReply> {
    match relay.call(request)? {
        AdminReply::Error(error) => bail!(error),
        reply => Ok(reply),
    }
}

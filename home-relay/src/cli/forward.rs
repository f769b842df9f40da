//! The `forward` command: manages port forwards, on the running relay if there is one, otherwise in
//! its store.

use anyhow::bail;

use super::args::{ForwardVerb, Protocol as ProtocolArgument};
use super::clients::{UNEXPECTED_REPLY, call, connect};
use super::table::print_table;
use crate::admin::{AdminReply, Request};
use crate::config::Config;
use crate::network::ports;
use crate::store::{Forward, Protocol, Store};

/// Adds, deletes or lists port forwards.
pub(crate) fn run(config: &Config, verb: ForwardVerb) -> anyhow::Result<()> {
    match verb {
        ForwardVerb::Add { protocol, port, to } => add(
            config,
            Forward { protocol: protocol.into(), port: port.get(), client: to.client, to: to.port.get() },
        ),
        ForwardVerb::Del { protocol, port } => del(config, protocol.into(), port.get()),
        ForwardVerb::List(format) => list(config, format.json),
    }
}

fn add(config: &Config, forward: Forward) -> anyhow::Result<()> {
    let reply = match connect(config)? {
        Some(mut relay) => call(&mut relay, &Request::Forward(forward))?,
        None => {
            let store = Store::open(&config.state.dir)?;
            ports::check_free(config, forward.protocol, forward.port)?;
            store.forward(&forward)?;
            AdminReply::Forward(forward)
        }
    };
    let AdminReply::Forward(forward) = reply else { bail!(UNEXPECTED_REPLY) };
    eprintln!("{forward}");
    Ok(())
}

fn del(config: &Config, protocol: Protocol, port: u16) -> anyhow::Result<()> {
    let reply = match connect(config)? {
        Some(mut relay) => call(&mut relay, &Request::Unforward { protocol, port })?,
        None => AdminReply::Forward(Store::open(&config.state.dir)?.unforward(protocol, port)?),
    };
    let AdminReply::Forward(forward) = reply else { bail!(UNEXPECTED_REPLY) };
    eprintln!("deleted: {forward}");
    Ok(())
}

fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let reply = match connect(config)? {
        Some(mut relay) => call(&mut relay, &Request::Forwards)?,
        None => AdminReply::Forwards(Store::open(&config.state.dir)?.forwards()?),
    };
    let AdminReply::Forwards(forwards) = reply else { bail!(UNEXPECTED_REPLY) };
    if json {
        println!("{}", serde_json::to_string_pretty(&forwards)?);
        return Ok(());
    }
    let rows = forwards.iter().map(|forward| {
        let Forward { protocol, port, client, to } = forward;
        vec![protocol.to_string(), port.to_string(), format!("{client}:{to}")]
    });
    print_table(&["PROTOCOL", "PORT", "LEADS TO"], rows);
    Ok(())
}

impl From<ProtocolArgument> for Protocol {
    fn from(argument: ProtocolArgument) -> Self {
        match argument {
            ProtocolArgument::Tcp => Self::Tcp,
            ProtocolArgument::Udp => Self::Udp,
        }
    }
}

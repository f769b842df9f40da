//! The `invite` command: creates an invitation, one line of text with which a laptop enrols.

use anyhow::{Context as _, bail};
use fast_qr::{ECL, QRBuilder};
use mobile_transport::invitation::{Invitation, TokenHash, new_token};
use mobile_transport::keys::RelayKeys;

use super::args::Invite;
use super::clients::{UNEXPECTED_REPLY, call, connect};
use super::key;
use crate::admin::{AdminReply, Request};
use crate::config::Config;
use crate::store::{self, Store};

/// Creates an invitation for a client and prints it on stdout, and nothing else there. The token is
/// generated here, and only its hash is sent to the relay and stored.
pub(crate) fn run(config: &Config, options: Invite) -> anyhow::Result<()> {
    let Invite { name, qr, expires, endpoint, addresses } = options;
    let identity = key::identity(config)?;
    let Some(endpoint) = endpoint.or(identity.endpoint).or_else(|| config.listen.endpoint()) else {
        bail!(
            "the address for clients is unknown, because the relay listens on {}: give --endpoint HOST:PORT, \
             or set [listen] endpoint",
            config.listen.address
        );
    };
    let token = new_token()?;
    let (hash, wanted) = (TokenHash::of(&token), addresses.into());
    let reply = match connect(config)? {
        Some(mut relay) => {
            let lifetime = expires.as_secs();
            call(&mut relay, &Request::Invite { name, token: hash, lifetime, wanted })?
        }
        None => {
            let (store, pools) = (Store::open(&config.state.dir)?, config.pools()?);
            let invited = store.invite(&name, hash, expires, wanted, &pools, store::now())?;
            AdminReply::Invited { relay: identity.public_key, entry: invited.into() }
        }
    };
    let AdminReply::Invited { relay, entry } = reply else { bail!(UNEXPECTED_REPLY) };
    let relay = RelayKeys { current: relay, next: identity.next_public_key };
    let invitation = Invitation { endpoint, relay, token }.to_string();
    if qr {
        let code = QRBuilder::new(invitation.as_str()).ecl(ECL::L).build();
        eprintln!("{}", code.context("the invitation does not fit a QR code")?.to_str());
    }
    println!("{invitation}");
    eprintln!(
        "{} will get the addresses {}; run on the laptop: mobile enroll INVITATION",
        entry.name, entry.lease
    );
    Ok(())
}

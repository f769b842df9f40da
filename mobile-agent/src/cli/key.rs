//! The verbs `mobile key` and `mobile key rotate`.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use mobile_host::text::printable;
use mobile_proto::enroll::{EnrolmentRefusal, EnrolmentReply, EnrolmentRequest};
use mobile_transport::key_rotation::{adopt_next, create_next, discard_next, prove};
use mobile_transport::keys::{KeyError, PrivateKey};
use mobile_transport::tls;

use super::connect::connect_to_own;
use super::enrolment;
use crate::config::{Config, load_key};
use crate::footprint;
use crate::protocol::{Reply, Request};
use crate::tunnel::known_relay::KnownRelay;

/// The number of attempts to reach the relay. If the relay accepted the new key and its reply was
/// lost, the next attempt gets the same reply.
const ATTEMPTS: u32 = 3;

/// Prints this host's public key. A user who may not read the key asks the running agent.
pub(super) fn key(path: Option<&Path>) -> anyhow::Result<()> {
    let config = footprint::for_client(path)?;
    let public_key = match load_key(&config.identity.private_key_file) {
        Ok(key) => key.public().to_string(),
        Err(KeyError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            match super::ask(&mut super::agent_of(path, &config)?, &Request::Status)? {
                Reply::Status(status) => status.public_key,
                other => return Err(super::unexpected(&other)),
            }
        }
        Err(error) => return Err(error.into()),
    };
    super::print(&format!("{public_key}\n"))
}

/// Replaces this host's key at the relay and in its file, and prints the new public key.
pub(super) fn rotate(path: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let file = &config.identity.private_key_file;
    let relay = KnownRelay::load(&config.state.dir, &config.relay_identity()?);
    let old = load_key(file)?;
    // Left by an attempt whose reply was lost: the relay may know it already.
    let new = create_next(file)?;
    let name = match super::runtime()?.block_on(request(&relay, &old, &new))? {
        EnrolmentReply::Enrolled(name) => name,
        EnrolmentReply::Refused(why) => {
            discard_next(file)?;
            bail!("{why}; {}", next_step(why));
        }
    };
    adopt_next(file, false)
        .context("the relay knows the new key, but it could not be put in place: try again")?;
    eprintln!(
        "{} has a new key; the relay accepts the old one until the new one has opened a session",
        printable(&name)
    );
    eprintln!("{}", tell_agent(path, &config));
    super::print(&format!("{}\n", new.public()))
}

/// Asks the relay to accept the new key, and returns its reply.
async fn request(relay: &KnownRelay, old: &PrivateKey, new: &PrivateKey) -> anyhow::Result<EnrolmentReply> {
    let dial = tls::enrolment_config(old, relay.keys());
    let mut failure = anyhow::anyhow!("no attempt was made");
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for endpoint in relay.endpoints() {
            let asked = async {
                let mut stream = enrolment::connect(endpoint, &dial, "the relay of this host").await?;
                let change = prove(&stream, &old.public(), new)?;
                enrolment::ask(&mut stream, &EnrolmentRequest::ChangeKey(change)).await
            };
            match asked.await {
                Ok(reply) => return Ok(reply),
                Err(error) => failure = error,
            }
        }
    }
    Err(failure
        .context("the relay did not confirm the new key, and the old one stays in use: run this again"))
}

fn next_step(why: EnrolmentRefusal) -> &'static str {
    match why {
        EnrolmentRefusal::NotAClient => {
            "ask the relay's owner for an invitation (`home-relay invite NAME`), and enrol this host again"
        }
        EnrolmentRefusal::KeyTaken => "run this again, which makes another key",
        _ => {
            "the old key stays in use; ask the relay's owner for the relay's log, as its version may be older"
        }
    }
}

/// Makes the running agent use the key file again, and returns what happens.
fn tell_agent(path: Option<&Path>, config: &Config) -> &'static str {
    match connect_to_own(path, config).map(|agent| agent.map(|mut agent| agent.call(&Request::Reload))) {
        Ok(Some(Ok(Reply::Reloaded(_)))) => {
            "the agent uses the new key for its next connection to the relay; to replace the old one at once, \
             restart the agent (connections wait meanwhile)"
        }
        Ok(Some(_)) | Err(_) => "restart the agent, which still uses the old key: systemctl restart mobile",
        Ok(None) => "no agent is running: it uses the new key when it starts",
    }
}

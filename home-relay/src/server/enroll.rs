//! Issues invitations on a running relay and serves the connections that redeem them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mobile_io::invitation::TokenHash;
use mobile_io::keys::PublicKey;
use mobile_io::tls::TlsStream;
use mobile_proto::enroll::{self, EnrolmentRefusal, EnrolmentReply, Token};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::Relay;
use super::throttle::Throttle;
use crate::metrics::{Enrolment, Metrics};
use crate::pool::Lease;
use crate::store::{self, Client, Entry, StoreError};

/// The number of concurrent enrolments, of all sources: each is one person's, and they must not
/// take resources from returning clients.
const MAX_AT_ONCE: usize = 16;
/// The pause before a refusal: with [`MAX_CONCURRENT`] it allows 32 guesses per second, at one of
/// 2^128 tokens.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);
/// The time for the client to read the reply and to close the connection.
const GOODBYE: Duration = Duration::from_secs(1);

impl Relay {
    /// Returns the public key by which clients know this relay.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Creates an invitation that is redeemed with the token of this hash.
    pub(crate) async fn invite(
        &self,
        name: String,
        token: TokenHash,
        lifetime: Duration,
        wanted: Lease,
    ) -> Result<Entry, StoreError> {
        let _in_force = self.in_force.lock().await;
        let pools = self.pools;
        let invited = self
            .in_store(move |store| store.invite(&name, token, lifetime, wanted, &pools, store::now()))
            .await?;
        Ok(invited.into())
    }

    /// Makes the key a client by a token, and returns whether it is a new one. Must not be
    /// cancelled half-way: store and registry must agree.
    async fn redeem(&self, token: TokenHash, key: PublicKey) -> Result<(Client, bool), StoreError> {
        // Look the token up without the lock first: guessed tokens and admin commands then do not
        // wait for each other.
        let known = self.in_store(move |store| store.redeemed(token, &key, store::now())).await?;
        if let Some(client) = known {
            return Ok((client, false));
        }
        let _in_force = self.in_force.lock().await;
        let pools = self.pools;
        let client = self.in_store(move |store| store.redeem(token, &key, &pools, store::now())).await?;
        let is_new = self.registry.add(&client);
        Ok((client, is_new))
    }
}

/// Serves the connections of keys that ask to become clients.
pub(super) struct Enroller {
    relay: Arc<Relay>,
    metrics: Arc<Metrics>,
    slots: Semaphore,
    /// The log rate limit of each enrolment result, so that a flood cannot fill the log.
    lines: Mutex<[Throttle; Enrolment::ALL.len()]>,
}

impl Enroller {
    pub(super) fn new(relay: &Arc<Relay>, metrics: &Arc<Metrics>) -> Self {
        Self {
            relay: Arc::clone(relay),
            metrics: Arc::clone(metrics),
            slots: Semaphore::new(MAX_AT_ONCE),
            lines: Mutex::default(),
        }
    }

    /// Serves one request and its reply; the caller limits the time.
    pub(super) async fn serve(&self, mut stream: TlsStream, key: PublicKey, peer: SocketAddr) {
        let Ok(_slot) = self.slots.try_acquire() else {
            self.metrics.enrolment(Enrolment::Busy);
            return;
        };
        let (answer, result) = match read_token(&mut stream).await {
            Some(token) => self.redeem(&token, key, peer).await,
            None => (EnrolmentReply::Refused(EnrolmentRefusal::Malformed), Enrolment::Malformed),
        };
        self.metrics.enrolment(result);
        if result != Enrolment::Enrolled {
            tokio::time::sleep(REFUSAL_PAUSE).await;
        }
        // A client that misses this reply asks again and gets the same one.
        let say = async {
            stream.write_all(&enroll::encode_reply(&answer)).await?;
            stream.shutdown().await?;
            // Drain the socket before closing it: with unread data the kernel would send a reset,
            // which may overtake the reply.
            while stream.read(&mut [0; 256]).await? > 0 {}
            std::io::Result::Ok(())
        };
        let _ = tokio::time::timeout(GOODBYE, say).await;
    }

    async fn redeem(&self, token: &Token, key: PublicKey, peer: SocketAddr) -> (EnrolmentReply, Enrolment) {
        let (relay, token) = (Arc::clone(&self.relay), TokenHash::of(token));
        let redeemed = tokio::spawn(async move { relay.redeem(token, key).await }).await;
        let error = match redeemed.unwrap_or_else(|error| Err(StoreError::Database(error.to_string()))) {
            Ok((client, is_new)) => {
                let (name, addresses) = (client.name.as_str(), client.lease);
                if is_new {
                    info!(client = name, %key, %peer, %addresses, "enrolled");
                } else {
                    debug!(client = name, %key, %peer, %addresses, "repeated enrolment request from an enrolled client: answered again");
                }
                return (EnrolmentReply::Enrolled(client.name), Enrolment::Enrolled);
            }
            Err(error) => error,
        };
        let (refusal, result) = match &error {
            StoreError::TokenUnknown => (EnrolmentRefusal::Unknown, Enrolment::Unknown),
            StoreError::TokenExpired(_) => (EnrolmentRefusal::Expired, Enrolment::Expired),
            StoreError::TokenUsed(_) => (EnrolmentRefusal::Used, Enrolment::Used),
            StoreError::KeyTaken { .. } => (EnrolmentRefusal::KeyTaken, Enrolment::KeyTaken),
            StoreError::Pool(_) => (EnrolmentRefusal::NoAddress, Enrolment::NoAddress),
            _ => (EnrolmentRefusal::Failed, Enrolment::Failed),
        };
        let before =
            self.lines.lock().unwrap_or_else(PoisonError::into_inner)[result as usize].pass(Instant::now());
        match before {
            Some(before) if result == Enrolment::Failed => {
                warn!(%peer, %key, before, "enrolment failed: {error}");
            }
            Some(before) => info!(%peer, %key, before, "enrolment refused: {error}"),
            None => {}
        }
        (EnrolmentReply::Refused(refusal), result)
    }
}

async fn read_token(stream: &mut TlsStream) -> Option<Token> {
    let mut bytes = Vec::new();
    // A request that is too long is refused by its header, before the rest arrives.
    let mut buffer = [0; 512];
    loop {
        match enroll::read_request(&bytes) {
            Ok(Some(token)) => return Some(token),
            Ok(None) => {}
            Err(_) => return None,
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

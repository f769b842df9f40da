//! Serves the connections that redeem invitations or replace a client's key.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mobile_proto::enroll::{self, EnrolmentRefusal, EnrolmentReply, EnrolmentRequest, KeyChange, Token};
use mobile_transport::invitation::TokenHash;
use mobile_transport::key_rotation;
use mobile_transport::keys::PublicKey;
use mobile_transport::tls::TlsStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::relay::Relay;
use crate::metrics::{EnrolmentResult, Metrics};
use crate::store::StoreError;
use mobile_host::log_rate_limiter::LogRateLimiter;

/// The largest number of concurrent enrolments of all sources together. Few people enrol at once,
/// and enrolments must not take resources from returning clients.
const MAX_CONCURRENT: usize = 16;
/// The pause before an enrolment is refused: with [`MAX_CONCURRENT`] it allows 32 guesses per
/// second at one of 2^128 tokens.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);
/// The time for an enrolling client to read the reply and to close the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reply to a request that cannot be parsed, or whose proof is wrong.
const MALFORMED: (EnrolmentReply, EnrolmentResult) =
    (EnrolmentReply::Refused(EnrolmentRefusal::Malformed), EnrolmentResult::Malformed);

/// Serves enrolment connections, on which the holders of unknown keys ask to become clients.
pub(super) struct Enroller {
    relay: Arc<Relay>,
    metrics: Arc<Metrics>,
    permits: Semaphore,
    /// The log rate limit of each enrolment result, so that a flood cannot fill the log.
    log_limiters: Mutex<[LogRateLimiter; EnrolmentResult::ALL.len()]>,
}

impl Enroller {
    pub(super) fn new(relay: &Arc<Relay>, metrics: &Arc<Metrics>) -> Self {
        Self {
            relay: Arc::clone(relay),
            metrics: Arc::clone(metrics),
            permits: Semaphore::new(MAX_CONCURRENT),
            log_limiters: Mutex::default(),
        }
    }

    /// Serves one enrolment connection: receives the request and sends the reply. The caller limits
    /// the time.
    pub(super) async fn serve(&self, mut stream: TlsStream, key: PublicKey, peer: SocketAddr) {
        let Ok(_permit) = self.permits.try_acquire() else {
            self.metrics.enrolment(EnrolmentResult::Busy);
            return;
        };
        let (reply, result) = match read_request(&mut stream).await {
            Some(EnrolmentRequest::Enroll(token)) => self.redeem(&token, key, peer).await,
            Some(EnrolmentRequest::ChangeKey(change)) => self.change_key(&stream, &change, key, peer).await,
            None => MALFORMED,
        };
        self.metrics.enrolment(result);
        if !matches!(result, EnrolmentResult::Enrolled | EnrolmentResult::KeyChanged) {
            tokio::time::sleep(REFUSAL_PAUSE).await;
        }
        // A client that misses this reply asks again and gets the same one.
        let send_reply = async {
            stream.write_all(&enroll::encode_reply(&reply)).await?;
            stream.shutdown().await?;
            // Drain the socket before closing it: with unread data the kernel would send a reset,
            // which may overtake the reply.
            while stream.read(&mut [0; 256]).await? > 0 {}
            std::io::Result::Ok(())
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, send_reply).await;
    }

    async fn redeem(
        &self,
        token: &Token,
        key: PublicKey,
        peer: SocketAddr,
    ) -> (EnrolmentReply, EnrolmentResult) {
        let (relay, token) = (Arc::clone(&self.relay), TokenHash::of(token));
        let redeemed = tokio::spawn(async move { relay.redeem(token, key).await }).await;
        let error = match redeemed.unwrap_or_else(|error| Err(StoreError::Database(error.to_string()))) {
            Ok((client, is_new)) => {
                let (name, addresses) = (client.name.as_str(), client.lease);
                if is_new {
                    info!(client = name, %key, %peer, %addresses, "client enrolled");
                } else {
                    debug!(
                        client = name, %key, %peer, %addresses,
                        "repeated enrolment request from an enrolled client: answered again"
                    );
                }
                return (EnrolmentReply::Enrolled(client.name), EnrolmentResult::Enrolled);
            }
            Err(error) => error,
        };
        self.refuse("enrolment", &error, key, peer)
    }

    async fn change_key(
        &self,
        stream: &TlsStream,
        change: &KeyChange,
        key: PublicKey,
        peer: SocketAddr,
    ) -> (EnrolmentReply, EnrolmentResult) {
        let Some(new) = key_rotation::verify(stream, &key, change).filter(|new| *new != key) else {
            return MALFORMED;
        };
        let relay = Arc::clone(&self.relay);
        let changed = tokio::spawn(async move { relay.change_key(key, new).await }).await;
        match changed.unwrap_or_else(|error| Err(StoreError::Database(error.to_string()))) {
            Ok(client) => {
                info!(client = client.name, %key, %new, %peer, "client replaces its key: both are accepted for now");
                (EnrolmentReply::Enrolled(client.name), EnrolmentResult::KeyChanged)
            }
            Err(error) => self.refuse("change of a client's key", &error, key, peer),
        }
    }

    /// Logs a refusal, rate-limited, and returns it as a reply.
    fn refuse(
        &self,
        request: &str,
        error: &StoreError,
        key: PublicKey,
        peer: SocketAddr,
    ) -> (EnrolmentReply, EnrolmentResult) {
        let (refusal, result) = match error {
            StoreError::TokenUnknown => (EnrolmentRefusal::Unknown, EnrolmentResult::Unknown),
            StoreError::TokenExpired(_) | StoreError::TokenFromFuture(_) => {
                (EnrolmentRefusal::Expired, EnrolmentResult::Expired)
            }
            StoreError::TokenUsed(_) => (EnrolmentRefusal::Used, EnrolmentResult::Used),
            StoreError::KeyTaken { .. } => (EnrolmentRefusal::KeyTaken, EnrolmentResult::KeyTaken),
            StoreError::NotAClient => (EnrolmentRefusal::NotAClient, EnrolmentResult::NotAClient),
            StoreError::Pool(_) => (EnrolmentRefusal::NoAddress, EnrolmentResult::NoAddress),
            _ => (EnrolmentRefusal::Failed, EnrolmentResult::Failed),
        };
        let suppressed = self.log_limiters.lock().unwrap_or_else(PoisonError::into_inner)[result as usize]
            .allow(Instant::now());
        match suppressed {
            Some(suppressed) if result == EnrolmentResult::Failed => {
                warn!(%peer, %key, suppressed, "{request} failed: {error}");
            }
            Some(suppressed) => info!(%peer, %key, suppressed, "{request} refused: {error}"),
            None => {}
        }
        (EnrolmentReply::Refused(refusal), result)
    }
}

async fn read_request(stream: &mut TlsStream) -> Option<EnrolmentRequest> {
    let mut bytes = Vec::new();
    // A request that is too long is refused by its header, before the rest arrives.
    let mut buffer = [0; 512];
    loop {
        match enroll::read_request(&bytes) {
            Ok(Some(request)) => return Some(request),
            Ok(None) => {}
            Err(_) => return None,
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

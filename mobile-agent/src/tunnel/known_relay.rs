//! The relay as this host knows it: its configured endpoint and key, and those that it announced
//! since, which survive a restart.
//!
//! The relay announces its next key and another endpoint inside the tunnel. This host then accepts
//! both keys until the relay proves the new one, and tries the new endpoint first. What was learnt
//! belongs to the configured endpoint and key: a changed configuration discards it.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mobile_proto::{Announcement, PushConfig};
use mobile_transport::driver::Handle;
use mobile_transport::keys::{PublicKey, RelayKeys};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::RelayIdentity;

/// The name of the file in `[state] dir`.
pub(crate) const FILE: &str = "relay.json";
/// The pause after a failed attempt to store what was learnt.
const STORE_RETRY: Duration = Duration::from_secs(60);

/// The relay's configured identity, and the one it has announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownRelay {
    /// The setting `[relay] endpoint`.
    configured_endpoint: String,
    /// The setting `[relay] public_key`.
    configured_key: PublicKey,
    /// The key that the relay proves: the configured one, until another one has taken its place.
    public_key: PublicKey,
    /// The key that the relay announced, until it proves it.
    next_public_key: Option<PublicKey>,
    /// The endpoint that the relay announced.
    announced_endpoint: Option<String>,
    /// Whether the relay has proved one of these keys since the agent started or was reloaded.
    /// Until then, an announcement is another relay's, which the configuration named before.
    #[serde(skip)]
    is_proved: bool,
}

impl KnownRelay {
    /// Returns the relay of the configuration, of which nothing was learnt.
    pub(crate) fn configured(relay: &RelayIdentity) -> Self {
        Self {
            configured_endpoint: relay.endpoint.clone(),
            configured_key: relay.public_key,
            public_key: relay.public_key,
            next_public_key: None,
            announced_endpoint: None,
            is_proved: false,
        }
    }

    /// Returns the relay of the configuration with what was stored in the directory `dir`. A
    /// damaged file counts as missing.
    pub(crate) fn load(dir: &Path, relay: &RelayIdentity) -> Self {
        let path = dir.join(FILE);
        let fresh = Self::configured(relay);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return fresh,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read what the relay announced");
                return fresh;
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(stored) if stored.is_of(&fresh) => stored,
            Ok(_) => fresh,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignoring the damaged file of what the relay announced");
                fresh
            }
        }
    }

    /// Writes the file in the directory `dir`. A crash leaves the old or the new content.
    pub(crate) fn store(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE);
        let describe = || format!("cannot store what the relay announced in {}", path.display());
        let text = serde_json::to_vec_pretty(self).with_context(describe)?;
        std::fs::create_dir_all(dir).with_context(describe)?;
        let new = path.with_extension("json.new");
        let mut file = std::fs::File::create(&new).with_context(describe)?;
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(describe)?;
        std::fs::rename(&new, &path).with_context(describe)
    }

    fn is_of(&self, fresh: &Self) -> bool {
        self.configured_key == fresh.configured_key
            && self.configured_endpoint == fresh.configured_endpoint
            && self.announced_endpoint.as_deref().is_none_or(mobile_transport::invitation::is_endpoint)
    }

    /// Returns the keys that the relay may prove.
    pub(crate) fn keys(&self) -> RelayKeys {
        RelayKeys { current: self.public_key, next: self.next_public_key }
    }

    /// Returns whether another key has taken the place of the configured one.
    pub(crate) fn has_new_key(&self) -> bool {
        self.public_key != self.configured_key
    }

    /// Returns the endpoint that the relay announced.
    pub(crate) fn announced_endpoint(&self) -> Option<&str> {
        self.announced_endpoint.as_deref()
    }

    /// Returns the configured endpoint.
    pub(crate) fn configured_endpoint(&self) -> &str {
        &self.configured_endpoint
    }

    /// Returns the endpoints to connect to, the announced one first.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.announced_endpoint().into_iter().chain([self.configured_endpoint()])
    }

    /// Takes an announcement of the relay, and returns whether it is new.
    pub(crate) fn learn(&mut self, announced: &Announcement) -> bool {
        let former = self.clone();
        if let Some(key) = announced.key.map(PublicKey::from_bytes) {
            // The present key withdraws the next one.
            self.next_public_key = Some(key).filter(|key| *key != self.public_key);
        }
        if let Some(endpoint) = &announced.endpoint {
            let is_other = !endpoint.is_empty() && *endpoint != self.configured_endpoint;
            self.announced_endpoint = is_other.then(|| endpoint.clone());
        }
        *self != former
    }

    /// Accepts another key too, which an invitation names.
    pub(crate) fn expect_key(&mut self, next: Option<PublicKey>) {
        self.next_public_key = next.filter(|next| *next != self.public_key);
    }

    /// Takes the key that the relay has proved. The next key takes the place of the present one,
    /// which is not accepted any longer. Returns whether this is so.
    pub(crate) fn prove(&mut self, proved: &PublicKey) -> bool {
        let is_next = self.next_public_key == Some(*proved);
        self.is_proved |= is_next || self.public_key == *proved;
        if is_next {
            (self.public_key, self.next_public_key) = (*proved, None);
        }
        is_next
    }
}

/// Learns what the relay announces, stores it in the directory `dir`, and then confirms it to the
/// relay. Does not end.
pub(super) async fn follow(
    known: Arc<watch::Sender<KnownRelay>>,
    mut pushed: watch::Receiver<Option<Arc<PushConfig>>>,
    driver: Handle,
    dir: std::path::PathBuf,
) -> anyhow::Error {
    let mut changes = known.subscribe();
    let mut stored = changes.borrow_and_update().clone();
    let mut announced: Option<Arc<Announcement>> = None;
    let mut failed = false;
    loop {
        tokio::select! {
            Ok(()) = pushed.changed() => {
                announced = pushed.borrow_and_update().as_ref().and_then(|config| config.relay.clone());
                if let Some(announced) = &announced {
                    known.send_if_modified(|known| learn(known, announced));
                }
            }
            Ok(()) = changes.changed() => {}
            () = tokio::time::sleep(STORE_RETRY), if failed => {}
            else => return std::future::pending().await,
        }
        let now = changes.borrow_and_update().clone();
        if now != stored {
            let result = now.store(&dir);
            failed = result.is_err();
            if let Err(error) = result {
                tracing::warn!("{error:#}: the relay is not told that this host knows it, retrying");
                continue;
            }
            stored = now;
        }
        if let Some(announced) = &announced {
            driver.confirm(Arc::clone(announced));
        }
    }
}

fn learn(known: &mut KnownRelay, announced: &Announcement) -> bool {
    let former = known.clone();
    if !known.is_proved || !known.learn(announced) {
        return false;
    }
    if let Some(next) = known.next_public_key.filter(|_| known.next_public_key != former.next_public_key) {
        tracing::info!(%next, "the relay announced its next key: accepting it too");
    }
    if known.announced_endpoint != former.announced_endpoint {
        let first = known.endpoints().next().unwrap_or_default();
        tracing::info!(endpoint = first, "the relay announced another endpoint: trying it first");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn relay() -> RelayIdentity {
        RelayIdentity { endpoint: "old:443".into(), public_key: key(1) }
    }

    fn announce(byte: Option<u8>, endpoint: Option<&str>) -> Announcement {
        Announcement { key: byte.map(|byte| [byte; 32]), endpoint: endpoint.map(str::to_owned) }
    }

    #[test]
    fn an_announced_key_is_accepted_beside_the_present_one_until_it_is_proved() {
        let mut known = KnownRelay::configured(&relay());
        assert!(known.learn(&announce(Some(2), None)) && !known.learn(&announce(Some(2), None)));
        assert_eq!(known.keys(), RelayKeys { current: key(1), next: Some(key(2)) });
        assert!(!known.prove(&key(1)) && known.prove(&key(2)) && known.has_new_key());
        assert_eq!(known.keys(), key(2).into());
        assert!(!known.learn(&announce(Some(2), None)), "the relay goes on announcing its key");
        assert!(known.learn(&announce(Some(3), None)));
        assert!(known.learn(&announce(Some(2), None)), "the rotation is cancelled");
        assert_eq!(known.keys(), key(2).into());
        known.learn(&announce(Some(3), None));
        assert!(!known.learn(&announce(None, None)), "a relay of an earlier version says nothing");
    }

    #[test]
    fn an_announced_endpoint_is_tried_before_the_configured_one_until_it_is_withdrawn() {
        let mut known = KnownRelay::configured(&relay());
        assert!(known.learn(&announce(None, Some("new:443"))));
        assert_eq!(known.endpoints().collect::<Vec<_>>(), ["new:443", "old:443"]);
        assert!(!known.learn(&announce(None, None)));
        assert!(known.learn(&announce(None, Some(""))));
        assert_eq!(known.endpoints().collect::<Vec<_>>(), ["old:443"]);
        assert!(!known.learn(&announce(None, Some("old:443"))), "it is configured");
    }

    #[test]
    fn what_was_learnt_is_loaded_with_the_same_configuration_only() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep");
        let mut known = KnownRelay::load(&deep, &relay());
        assert_eq!(known, KnownRelay::configured(&relay()));
        known.learn(&announce(Some(2), Some("new:443")));
        known.store(&deep).unwrap();
        assert_eq!(KnownRelay::load(&deep, &relay()), known);
        for other in [
            RelayIdentity { public_key: key(2), ..relay() },
            RelayIdentity { endpoint: "other:443".into(), ..relay() },
        ] {
            assert_eq!(KnownRelay::load(&deep, &other), KnownRelay::configured(&other));
        }
        std::fs::write(deep.join(FILE), "{\"configured").unwrap();
        assert_eq!(KnownRelay::load(&deep, &relay()), KnownRelay::configured(&relay()));
    }
}

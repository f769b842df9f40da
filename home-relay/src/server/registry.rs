//! The registry of authorised clients and their sessions; each client has at most one session.

mod announcement;
mod client_entry;
mod keys;
mod sessions;
mod settings;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use ipnet::IpNet;
use mobile_proto::{CloseCode, Hello, Limits, Unacknowledged};
use mobile_transport::driver::TlsStream;
use mobile_transport::keys::PublicKey;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::info;

use client_entry::ClientEntry;
use keys::Entries;
pub(crate) use settings::Settings;

use super::demux::Demux;
use super::device::PacketDevice;
use super::source_filter::{Policy, SharedPolicy};
use crate::admin::{PathInfo, SessionInfo};
use crate::metrics::{HandshakeResult, Metrics};
use crate::pool::{Lease, Pools};
use crate::store::Client;

/// All authorised clients and their sessions.
pub(crate) struct Registry {
    /// The pools that this host serves: without IPv6 on a host that has none.
    pools: Pools,
    settings: RwLock<Settings>,
    /// The limits of new sessions, which share them: a copy in each would cost 170 bytes.
    limits: Arc<Limits>,
    /// The policy that the source filter checks every packet from a client against.
    shared_policy: Arc<SharedPolicy>,
    entries: RwLock<Entries>,
    /// Notified when a client has confirmed the announcement.
    confirmations: Notify,
    demux: Arc<Demux>,
    device: Arc<dyn PacketDevice>,
    metrics: Arc<Metrics>,
}

/// The error for a client that is not, or no longer, authorised.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unauthorized;

impl Registry {
    /// Creates a registry without clients.
    pub(crate) fn new(
        pools: Pools,
        settings: Settings,
        demux: Arc<Demux>,
        device: Arc<dyn PacketDevice>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let shared_policy = Arc::new(SharedPolicy::new(Policy {
            isolate: settings.isolate,
            reach: settings.reach.clone(),
            resolvers: settings.push.dns.clone(),
            inbound_datagrams: false,
            local: Vec::new(),
        }));
        let limits = Arc::new(settings.limits());
        let settings = RwLock::new(settings);
        Self {
            pools,
            settings,
            limits,
            shared_policy,
            entries: RwLock::default(),
            confirmations: Notify::new(),
            demux,
            device,
            metrics,
        }
    }

    /// Applies new settings, to running sessions too. The announcement stays.
    pub(crate) async fn set_settings(&self, mut settings: Settings) {
        self.shared_policy.change(|policy| {
            policy.isolate = settings.isolate;
            policy.reach = settings.reach.clone();
            policy.resolvers.clone_from(&settings.push.dns);
        });
        {
            let mut former = self.settings.write().unwrap_or_else(PoisonError::into_inner);
            settings.push.relay = former.push.relay.take();
            *former = settings.clone();
        }
        self.push_to_all(&settings).await;
    }

    async fn push_to_all(&self, settings: &Settings) {
        for entry in self.all_entries() {
            entry.queue.set_capacity(settings.queue_bytes);
            // A session that begins concurrently reads the new settings itself.
            if let Some(active) = &entry.slot.lock().await.active {
                active.push(settings.push_to(&entry.lease));
            }
        }
    }

    /// Sets whether Internet hosts may send datagrams to clients first; if so, the source filter
    /// lets clients answer them.
    pub(crate) fn set_inbound_datagrams(&self, inbound_datagrams: bool) {
        self.shared_policy.change(|policy| policy.inbound_datagrams = inbound_datagrams);
    }

    /// Sets the addresses and networks of this host, which the reach "internet" excludes.
    pub(crate) fn set_local(&self, local: Vec<IpNet>) {
        if !self.shared_policy.has_local(&local) {
            self.shared_policy.change(|policy| policy.local = local);
        }
    }

    fn settings(&self) -> RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client and returns true; returns false if the client is already registered.
    pub(crate) fn add(&self, client: &Client) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = entries.get(&client.public_key).is_none();
        if is_new {
            self.metrics.clients.inc();
            entries.insert(&self.new_entry(client));
        }
        is_new
    }

    /// Adds a client, or updates its addresses and reach.
    ///
    /// A change of addresses ends the client's session, and the client may begin another one at
    /// once; a change of reach does not. Returns the addresses that the client no longer holds.
    pub(crate) async fn add_or_move(&self, client: &Client) -> Vec<IpAddr> {
        match self.entry(&client.public_key) {
            None => {
                self.add(client);
            }
            Some(previous) if previous.lease == self.served(client.lease) => {
                previous.reach.write().unwrap_or_else(PoisonError::into_inner).clone_from(&client.reach);
                self.shared_policy.change(|_| {});
            }
            Some(previous) => {
                self.end_session(&previous, CloseCode::SessionGone).await;
                let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
                entries.remove(&client.public_key);
                entries.insert(&self.new_entry(client));
                return previous.lease.without(client.lease);
            }
        }
        Vec::new()
    }

    fn new_entry(&self, client: &Client) -> Arc<ClientEntry> {
        Arc::new(ClientEntry::new(client, self.served(client.lease), self.settings().queue_bytes))
    }

    /// Returns the part of the lease that this host can serve, because a host without IPv6 still
    /// leases IPv6 addresses for the day when it has IPv6.
    fn served(&self, lease: Lease) -> Lease {
        let pools = &self.pools;
        Lease {
            ipv4: lease.ipv4.filter(|_| pools.ipv4().is_some()),
            ipv6: lease.ipv6.filter(|_| pools.ipv6().is_some()),
        }
    }

    /// Removes a client: its session ends at once, and further handshakes fail.
    pub(crate) async fn remove(&self, key: &PublicKey) {
        let entry = self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        let Some(entry) = entry else { return };
        self.metrics.clients.dec();
        self.end_session(&entry, CloseCode::Revoked).await;
    }

    /// Ends the session of a client whose registry entry is removed or replaced.
    async fn end_session(&self, entry: &ClientEntry, code: CloseCode) {
        let mut slot = entry.slot.lock().await;
        slot.revoked = true;
        if let Some(active) = slot.active.take() {
            self.unroute(entry);
            active.shut_down(code).await;
            info!(client = entry.name, session = %active.id(), "session closed: {code}");
        }
    }

    /// Returns whether the key belongs to an authorised client.
    pub(crate) fn is_authorized(&self, key: &PublicKey) -> bool {
        self.entry(key).is_some()
    }

    /// Hands a client's new path to its session, and begins a session if there is none.
    ///
    /// A HELLO that names another session comes from a restarted agent: the new session takes over
    /// the unacknowledged packets of the old one.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        key: &PublicKey,
        hello: Hello,
        leftover: Vec<u8>,
        stream: TlsStream,
        peer: SocketAddr,
    ) -> Result<HandshakeResult, Unauthorized> {
        let entry = self.entry(key).ok_or(Unauthorized)?;
        let mut slot = entry.slot.lock().await;
        if slot.revoked {
            return Err(Unauthorized);
        }
        let (client, session, path) = (entry.name.as_str(), hello.session, hello.path);
        if let Some(active) = slot.active.as_ref().filter(|active| active.id() == session) {
            // `None`: the driver has stopped, so begin a new session, as after a restart of the
            // relay.
            if active.refresh().await.is_some() {
                if entry.may_log() {
                    info!(client, %session, %path, %peer, "path opened");
                }
                active.accept(hello, leftover, stream, peer).await;
                return Ok(HandshakeResult::Resumed);
            }
        }
        let waiting = match slot.active.take() {
            Some(previous) => {
                if entry.may_log() {
                    info!(
                        client, previous = %previous.id(), new = %session,
                        "the agent restarted: a new session takes over"
                    );
                }
                previous.take_over().await
            }
            None => Unacknowledged::default(),
        };
        if entry.may_log() {
            info!(client, %session, %path, %peer, waiting = waiting.len(), "session opened");
        }
        // Store the session before any await: it can then be revoked even if this task is
        // cancelled.
        let active = Arc::clone(slot.active.insert(self.begin_session(&entry, &hello, waiting)));
        active.accept(hello, leftover, stream, peer).await;
        Ok(HandshakeResult::Opened)
    }

    /// Returns all running sessions, sorted by client name.
    pub(crate) async fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions = Vec::new();
        for entry in self.all_entries() {
            let Some(active) = entry.slot.lock().await.active.clone() else { continue };
            let Some(snapshot) = active.refresh().await else { continue };
            let peers = active.peers().await;
            let paths = snapshot.paths.iter().map(|(path, _)| PathInfo {
                path: path.0,
                peer: peers.get(path).copied(),
                active: snapshot.active == Some(*path),
            });
            sessions.push(SessionInfo {
                client: entry.name.clone(),
                session: active.id().to_string(),
                ipv4: entry.lease.ipv4,
                ipv6: entry.lease.ipv6,
                age_seconds: active.age().as_secs(),
                paths: paths.collect(),
                queued_bytes: snapshot.queued_bytes as u64,
                unacknowledged_bytes: snapshot.unacked_bytes as u64,
                rx_packets: snapshot.stats.rx_packets,
                rx_bytes: snapshot.stats.rx_bytes,
                tx_packets: snapshot.stats.tx_packets,
                tx_bytes: snapshot.stats.tx_bytes,
            });
        }
        sessions.sort_by(|a, b| a.client.cmp(&b.client));
        sessions
    }

    /// Periodically updates the metrics and ends sessions that had no path for too long.
    pub(crate) async fn run_janitor(&self) {
        loop {
            let session_idle = self.settings().session_idle;
            // Frequent enough for limits of a few seconds, rare enough for thousands of sessions.
            tokio::time::sleep((session_idle / 4).min(Duration::from_secs(15))).await;
            for entry in self.all_entries() {
                let mut slot = entry.slot.lock().await;
                let Some(active) = slot.active.clone() else { continue };
                if active.refresh().await.is_none() || active.pathless_for().await < session_idle {
                    continue;
                }
                info!(
                    client = entry.name, session = %active.id(),
                    "session closed: it had no path for longer than [limits] session_idle"
                );
                slot.active = None;
                self.unroute(&entry);
                active.shut_down(CloseCode::Timeout).await;
            }
        }
    }

    /// Ends every session concurrently when the relay stops.
    pub(crate) async fn shut_down(&self) {
        let mut closing = JoinSet::new();
        for entry in self.all_entries() {
            closing.spawn(async move {
                if let Some(active) = entry.slot.lock().await.active.take() {
                    active.shut_down(CloseCode::Shutdown).await;
                }
            });
        }
        closing.join_all().await;
    }

    fn entry(&self, key: &PublicKey) -> Option<Arc<ClientEntry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn all_entries(&self) -> Vec<Arc<ClientEntry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).all().cloned().collect()
    }
}

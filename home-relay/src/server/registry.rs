//! Who may connect, and the one session each of them has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{self, Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mobile_io::coalescing::CoalescingWriter;
use mobile_io::driver::{DriverEvent, TlsStream};
use mobile_io::keys::PublicKey;
use mobile_proto::{CloseCode, Event, Hello, Limits, PushConfig, Session, Unacknowledged};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::demux::Routes;
use super::guard::{Guard, OwnReach, Policies, Policy};
use super::queue::PacketQueue;
use super::session::{ClientIo, Live, Sink};
use super::throttle::Throttle;
use crate::admin::{PathInfo, SessionInfo};
use crate::config::Config;
use crate::metrics::{Handshake, Metrics};
use crate::pool::{Lease, Pools};
use crate::reach::Reach;
use crate::store::Client;

/// What every session is made with, and follows when it changes.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Pushed to clients, with their addresses.
    pub(crate) push: PushConfig,
    /// Packets waiting for one client.
    pub(crate) queue_bytes: usize,
    /// Whether packets are compressed for clients that ask for it.
    pub(crate) compression: bool,
    /// Whether a client's flows take turns.
    pub(crate) fair: bool,
    /// How long a session without a path is kept.
    pub(crate) session_idle: Duration,
    /// Clients do not reach each other.
    pub(crate) isolate: bool,
    /// Reach of clients without a setting of their own.
    pub(crate) reach: Reach,
}

impl Settings {
    /// As configured.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            push: PushConfig {
                ipv4: None,
                ipv6: None,
                mtu: config.tunnel.mtu,
                dns: config.dns.servers.clone(),
            },
            queue_bytes: config.limits.queue_bytes,
            compression: config.tunnel.compression.is_on(),
            fair: config.tunnel.queue.is_fair(),
            session_idle: config.limits.session_idle(),
            isolate: config.clients.isolate,
            reach: config.clients.reach(),
        }
    }

    fn push_to(&self, lease: &Lease) -> PushConfig {
        PushConfig { ipv4: lease.ipv4, ipv6: lease.ipv6, ..self.push.clone() }
    }
}

/// All clients and their sessions.
pub(crate) struct Registry {
    /// The pools this host serves.
    pools: Pools,
    settings: RwLock<Settings>,
    /// The settings that every packet is checked against.
    policies: Arc<Policies>,
    members: RwLock<HashMap<PublicKey, Arc<Member>>>,
    routes: Arc<Routes>,
    sink: Arc<dyn Sink>,
    metrics: Arc<Metrics>,
}

/// An authorised client.
struct Member {
    name: String,
    lease: Lease,
    /// Reach of this client, if it differs from the common one.
    reach: OwnReach,
    queue: Arc<PacketQueue>,
    /// Locked while a session begins or ends, so that a client never has two.
    slot: Mutex<Slot>,
    /// What it does again and again must not fill the log.
    lines: sync::Mutex<Throttle>,
}

impl Member {
    /// Whether a line of what it does may be written now.
    fn may_say(&self) -> bool {
        let passed = self.lines.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now());
        if let Some(before @ 1..) = passed {
            info!(
                client = self.name,
                before, "lines of its sessions and paths were left out: too many at once"
            );
        }
        passed.is_some()
    }
}

#[derive(Default)]
struct Slot {
    revoked: bool,
    live: Option<Arc<Live>>,
}

/// Lines about one client in ten seconds: a laptop that moves makes three or four.
const MAX_LINES: u32 = 40;

/// The number of session events that are taken at once; while as many wait, the driver reads no
/// path.
const MAX_BATCH: usize = 64;

/// The client is not, or no longer, authorised.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unauthorized;

impl Registry {
    /// Without clients.
    pub(crate) fn new(
        pools: Pools,
        settings: Settings,
        routes: Arc<Routes>,
        sink: Arc<dyn Sink>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let policies = Arc::new(Policies::new(Policy {
            isolate: settings.isolate,
            reach: settings.reach.clone(),
            resolvers: settings.push.dns.clone(),
            answers: false,
            local: Vec::new(),
        }));
        let settings = RwLock::new(settings);
        Self { pools, settings, policies, members: RwLock::default(), routes, sink, metrics }
    }

    /// Other settings from now on, for the sessions that are there too.
    pub(crate) async fn set_settings(&self, settings: Settings) {
        self.policies.change(|policy| {
            policy.isolate = settings.isolate;
            policy.reach = settings.reach.clone();
            policy.resolvers.clone_from(&settings.push.dns);
        });
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings.clone();
        for member in self.all() {
            member.queue.set_capacity(settings.queue_bytes);
            // A session that begins meanwhile has the new ones already.
            if let Some(live) = &member.slot.lock().await.live {
                live.push(settings.push_to(&member.lease));
            }
        }
    }

    /// Returns whether anybody may send clients datagrams unasked, which the clients then answer.
    pub(crate) fn set_answers(&self, answers: bool) {
        self.policies.change(|policy| policy.answers = answers);
    }

    /// Sets the addresses and networks of this host that "internet" excludes.
    pub(crate) fn set_local(&self, local: Vec<IpNet>) {
        if !self.policies.has_local(&local) {
            self.policies.change(|policy| policy.local = local);
        }
    }

    fn settings(&self) -> RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client in: true. One that is there already stays as it is: false.
    pub(crate) fn add(&self, client: &Client) -> bool {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        let Entry::Vacant(place) = members.entry(client.public_key) else { return false };
        self.metrics.clients.inc();
        place.insert(self.new_member(client));
        true
    }

    /// Lets a client in, or gives it the addresses it has now. A change of addresses ends the
    /// client's session, and the client may begin another one at once; a change of reach does not.
    /// Returns the addresses that the client had before and has no longer.
    pub(crate) async fn add_or_move(&self, client: &Client) -> Vec<IpAddr> {
        match self.member(&client.public_key) {
            None => {
                self.add(client);
            }
            Some(old) if old.lease == self.served(client.lease) => {
                old.reach.write().unwrap_or_else(PoisonError::into_inner).clone_from(&client.reach);
                self.policies.change(|_| {});
            }
            Some(old) => {
                self.end(&old, CloseCode::SessionGone).await;
                let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
                members.insert(client.public_key, self.new_member(client));
                return old.lease.without(client.lease);
            }
        }
        Vec::new()
    }

    fn new_member(&self, client: &Client) -> Arc<Member> {
        Arc::new(Member {
            name: client.name.clone(),
            lease: self.served(client.lease),
            reach: Arc::new(RwLock::new(client.reach.clone())),
            queue: Arc::new(PacketQueue::new(self.settings().queue_bytes)),
            slot: Mutex::default(),
            lines: sync::Mutex::new(Throttle::of(MAX_LINES)),
        })
    }

    /// A family this host cannot serve is leased all the same, for the day it can.
    fn served(&self, lease: Lease) -> Lease {
        let pools = &self.pools;
        Lease {
            ipv4: lease.ipv4.filter(|_| pools.ipv4().is_some()),
            ipv6: lease.ipv6.filter(|_| pools.ipv6().is_some()),
        }
    }

    /// Shuts a client out: no handshake succeeds from now on, and its session ends at once.
    pub(crate) async fn remove(&self, key: &PublicKey) {
        let member = self.members.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        let Some(member) = member else { return };
        self.metrics.clients.dec();
        self.end(&member, CloseCode::Revoked).await;
    }

    /// Ends the session of a member that is no longer, or is replaced.
    async fn end(&self, member: &Member, code: CloseCode) {
        let mut slot = member.slot.lock().await;
        slot.revoked = true;
        if let Some(live) = slot.live.take() {
            self.unroute(member);
            live.shut_down(code).await;
            info!(client = member.name, session = %live.id(), "session closed: {code}");
        }
    }

    /// May this key connect?
    pub(crate) fn is_authorized(&self, key: &PublicKey) -> bool {
        self.member(key).is_some()
    }

    /// Gives a client's new path to its session, beginning one if it has none. A HELLO that names
    /// another session comes from an agent that was restarted: the new session takes over.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        key: &PublicKey,
        hello: Hello,
        leftover: Vec<u8>,
        stream: TlsStream,
        peer: SocketAddr,
    ) -> Result<Handshake, Unauthorized> {
        let member = self.member(key).ok_or(Unauthorized)?;
        let mut slot = member.slot.lock().await;
        if slot.revoked {
            return Err(Unauthorized);
        }
        let (client, session, path) = (member.name.as_str(), hello.session, hello.path);
        if let Some(live) = slot.live.as_ref().filter(|live| live.id() == session) {
            // None: its driver has stopped, and a new one is needed as after a restart of the relay.
            if live.refresh().await.is_some() {
                if member.may_say() {
                    info!(client, %session, %path, %peer, "path opened");
                }
                live.accept(hello, leftover, stream, peer).await;
                return Ok(Handshake::Resumed);
            }
        }
        let waiting = match slot.live.take() {
            Some(old) => {
                if member.may_say() {
                    info!(client, old = %old.id(), new = %session, "the agent was restarted: a new session takes over");
                }
                old.take_over().await
            }
            None => Unacknowledged::default(),
        };
        if member.may_say() {
            info!(client, %session, %path, %peer, waiting = waiting.len(), "session opened");
        }
        // Owned before anything is awaited: whatever becomes of this task, the session can be revoked.
        let live = Arc::clone(slot.live.insert(self.begin(&member, &hello, waiting)));
        live.accept(hello, leftover, stream, peer).await;
        Ok(Handshake::Opened)
    }

    /// All live sessions, by client.
    pub(crate) async fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions = Vec::new();
        for member in self.all() {
            let Some(live) = member.slot.lock().await.live.clone() else { continue };
            let Some(snapshot) = live.refresh().await else { continue };
            let peers = live.peers().await;
            let paths = snapshot.paths.iter().map(|(path, _)| PathInfo {
                path: path.0,
                peer: peers.get(path).copied(),
                active: snapshot.active == Some(*path),
            });
            sessions.push(SessionInfo {
                client: member.name.clone(),
                session: live.id().to_string(),
                ipv4: member.lease.ipv4,
                ipv6: member.lease.ipv6,
                age_seconds: live.age().as_secs(),
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

    /// Now and then: brings metrics up to date and ends sessions whose client stayed away too long.
    pub(crate) async fn run_janitor(&self) {
        loop {
            let session_idle = self.settings().session_idle;
            // Often enough that a limit of a few seconds is kept; seldom enough that thousands of sessions cost nothing.
            tokio::time::sleep((session_idle / 4).min(Duration::from_secs(15))).await;
            for member in self.all() {
                let mut slot = member.slot.lock().await;
                let Some(live) = slot.live.clone() else { continue };
                if live.refresh().await.is_none() || live.pathless_for().await < session_idle {
                    continue;
                }
                info!(client = member.name, session = %live.id(), "session closed: its client stayed away too long");
                slot.live = None;
                self.unroute(&member);
                live.shut_down(CloseCode::Timeout).await;
            }
        }
    }

    /// Ends every session, all at once, as the relay stops.
    pub(crate) async fn shut_down(&self) {
        let mut closing = JoinSet::new();
        for member in self.all() {
            closing.spawn(async move {
                if let Some(live) = member.slot.lock().await.live.take() {
                    live.shut_down(CloseCode::Shutdown).await;
                }
            });
        }
        closing.join_all().await;
    }

    fn member(&self, key: &PublicKey) -> Option<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn all(&self) -> Vec<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn begin(self: &Arc<Self>, member: &Arc<Member>, hello: &Hello, waiting: Unacknowledged) -> Arc<Live> {
        // 0 means "none known" in a HELLO.
        let epoch = rand::random_range(1..=u64::MAX);
        let settings = self.settings();
        let push = settings.push_to(&member.lease);
        let limits = Limits { compression: settings.compression, fair: settings.fair, ..Limits::default() };
        let mut session = Session::server(hello.session, epoch, limits, push);
        session.requeue(waiting);
        let io = ClientIo {
            queue: Arc::clone(&member.queue),
            routes: Arc::clone(&self.routes),
            guard: Guard::new(
                member.lease,
                self.pools,
                Arc::clone(&self.policies),
                Arc::clone(&member.reach),
            ),
            joining: CoalescingWriter::new(self.sink.coalesces_datagrams()),
            sink: Arc::clone(&self.sink),
            metrics: Arc::clone(&self.metrics),
        };
        let (live, events) = Live::start(session, io, &self.metrics);
        self.routes.add(&member.lease, &member.queue);
        tokio::spawn(Arc::clone(self).watch(Arc::clone(member), Arc::clone(&live), events));
        live
    }

    fn unroute(&self, member: &Member) {
        self.routes.remove(&member.lease, &member.queue);
        member.queue.clear();
    }

    /// Follows what a session says until it stops.
    async fn watch(
        self: Arc<Self>,
        member: Arc<Member>,
        live: Arc<Live>,
        mut events: mpsc::Receiver<DriverEvent>,
    ) {
        let (client, session) = (member.name.as_str(), live.id());
        let mut batch = Vec::new();
        // Take all events that have come, and look at the session once for all of them. A client
        // that switches paths without end cannot pile up work: its paths are read no faster than
        // this.
        while events.recv_many(&mut batch, MAX_BATCH).await > 0 {
            for event in batch.drain(..) {
                match event {
                    DriverEvent::Session(Event::PathActivated { path, previous, replayed, dropped }) => {
                        if member.may_say() {
                            info!(client, %session, %path, previous = previous.map(|path| path.0), replayed, dropped, "path active");
                        }
                    }
                    DriverEvent::Session(Event::PathClosed { path, code }) => {
                        if member.may_say() {
                            info!(client, %session, %path, "path closed: {code}");
                        }
                        live.forget_path(path).await;
                    }
                    DriverEvent::PathError { path, cause } => {
                        if member.may_say() {
                            info!(client, %session, %path, "path lost: {cause}");
                        }
                        live.forget_path(path).await;
                    }
                    DriverEvent::Session(event) => debug!(client, %session, ?event, "session"),
                    // Nothing follows, so the channel ends too.
                    DriverEvent::Stopped => {}
                }
            }
            live.refresh().await;
        }
        let mut slot = member.slot.lock().await;
        if slot.live.as_ref().is_some_and(|current| Arc::ptr_eq(current, &live)) {
            slot.live = None;
            self.unroute(&member);
        }
        live.settle().await;
    }
}

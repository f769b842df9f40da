//! The client's part of a session: it opens paths, chooses the active one, and handles the relay's
//! answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::input::FrameOutcome;
use super::side::Side;
use super::{Event, Session};
use crate::message::{self, Activate, VersionedConfig, Welcome};
use crate::path::{ClientPath, Path, PathState};
use crate::{Announcement, CloseCode, Hello, PathId, ProtocolError};

/// Minimum time between two DOUBT frames (the relay gets no answers) on which a client acts. Each
/// makes the client send at most [ten PINGs](crate::health::MAX_PINGS).
const MIN_DOUBT_INTERVAL: Duration = Duration::from_millis(250);

impl Session {
    /// Client: queues HELLO on a new path. An open path with the same id is dropped.
    pub fn open_path(&mut self, now: Instant, path: PathId) {
        self.paths.remove(path);
        let (session, epoch, switch) = (self.id, self.epoch, self.switch);
        let compression = self.limits.compression;
        let mut new = Path::connect(now, path, epoch, compression);
        Hello { session, epoch, path, switch, compression }.put(&mut new.control);
        // An ACTIVATE that still waits will have a higher switch counter than this HELLO, so it has
        // to name the path.
        let clients = self.paths.iter_mut().filter_map(|path| path.side.client_mut());
        for keep in clients.filter_map(|client| client.pending_activation.as_mut()) {
            if keep.len() < Activate::MAX_KEEP && !keep.contains(&path) {
                keep.push(path);
            }
        }
        self.paths.add(new);
    }

    /// Client: makes a path active. The relay keeps `path` and the paths in `keep`, and frees all
    /// other paths except for those opened later than this call.
    ///
    /// Transmission moves to `path` and starts with the oldest unacknowledged record. If `path` is
    /// already active, only the list of paths to keep is sent.
    ///
    /// The path need not be ready ([`Event::PathReady`]). If the relay's epoch is known, everything
    /// is sent directly after HELLO, one round trip earlier. If the epoch is unknown, the
    /// activation follows when WELCOME arrives.
    pub fn activate(&mut self, now: Instant, path: PathId, keep: &[PathId]) {
        let open = self.paths.find(path).filter(|&index| !self.paths[index].is_closing());
        let Some(index) = open.filter(|_| self.side.is_client()) else { return };
        // This activation replaces one that still waits.
        let clients = self.paths.iter_mut().filter_map(|path| path.side.client_mut());
        clients.for_each(|client| client.pending_activation = None);
        let is_ready = self.paths[index].is_ready();
        if !is_ready && let Some(client) = self.paths[index].side.client_mut() {
            client.pending_activation = Some(keep.iter().copied().take(Activate::MAX_KEEP).collect());
        }
        if is_ready || self.epoch != 0 {
            self.send_activate(now, index, keep);
        }
    }

    /// Client: sends a PING on every path and judges the path by the answer. To be called after an
    /// event that no path can detect, such as a suspension of the host.
    pub fn probe(&mut self, now: Instant) {
        if self.side.is_client() {
            self.ping_each(now, Path::is_ready);
        }
    }

    /// Client: confirms to the relay that its announcement is stored, on every path and again on
    /// every new one: the confirmation may be lost with its path. An announcement other than the
    /// relay's latest is not confirmed.
    pub fn confirm(&mut self, stored: Arc<Announcement>) {
        let Side::Client(client) = &mut self.side else { return };
        client.stored = Some(stored);
        for index in 0..self.paths.len() {
            if self.paths[index].is_ready() {
                self.put_confirm(index);
            }
        }
    }

    /// Queues CONFIRM on a path if the relay's latest announcement is stored.
    fn put_confirm(&mut self, index: usize) {
        let Side::Client(client) = &self.side else { return };
        let announced = client.config.as_ref().and_then(|known| known.config.relay.as_ref());
        if let Some(stored) = client.stored.as_ref().filter(|stored| announced == Some(stored)) {
            message::put_confirm(&mut self.paths[index].control, stored);
        }
    }

    /// Queues ACTIVATE on a path and moves transmission to it.
    fn send_activate(&mut self, now: Instant, index: usize, keep: &[PathId]) {
        self.switch += 1;
        let (epoch, switch, rx_next) = (self.epoch, self.switch, self.receiver.next());
        let activate = Activate { epoch, switch, rx_next, keep: keep.to_vec() };
        activate.put(&mut self.paths[index].control);
        self.request_ping(now, index);
        let path = &mut self.paths[index];
        if let Some(client) = path.side.client_mut() {
            client.confirming_nonce = Some(path.pings.next_nonce());
            client.activated_early = path.state == PathState::Connecting && client.hello_sent_at.is_none();
        }
        let id = path.id;
        self.receiver.ack.reset();
        self.switch_to(id);
    }

    /// Handles WELCOME, the relay's answer to HELLO.
    pub(super) fn handle_welcome(
        &mut self,
        now: Instant,
        mut index: usize,
        payload: &[u8],
    ) -> Result<FrameOutcome, ProtocolError> {
        let welcome = Welcome::decode(payload)?;
        let resumed = welcome.epoch == self.epoch;
        if resumed {
            self.sender.acknowledge(welcome.rx_next, &mut self.stats)?;
        } else if self.paths[index].side.client().is_none_or(|client| client.epoch != self.epoch) {
            // The relay answered a HELLO that named an older epoch than another path has learnt
            // since. Which of the two answers is newer is unknown; the next HELLO will show.
            return Ok(FrameOutcome::Closed(CloseCode::SessionGone));
        } else {
            index = self.adopt_epoch(now, index, welcome.epoch, welcome.rx_next);
        }
        let path = &mut self.paths[index];
        path.on_welcome(now, self.epoch, welcome.compression && self.limits.compression);
        let id = path.id;
        self.apply_config(welcome.config, !resumed);
        self.put_confirm(index);
        self.events.push(Event::PathReady { path: id, resumed });
        self.on_progress(now, index);
        // An ACTIVATE that was written later may have crossed this WELCOME; a PONG will answer it.
        self.confirm_if(index, |client| {
            resumed && client.activated_early && client.confirming_nonce.is_some()
        });
        let client = self.paths[index].side.client_mut();
        if let Some(keep) = client.and_then(|client| client.pending_activation.take())
            && (!resumed || !self.paths.is_active(id))
        {
            self.send_activate(now, index, &keep);
        }
        Ok(FrameOutcome::Open(index))
    }

    /// Adopts the epoch of a relay that has lost this session's state, or never had it. The records
    /// of both directions are numbered anew, and the unacknowledged ones are sent first. Returns
    /// the new index of the path at `index`, on which the epoch arrived.
    fn adopt_epoch(&mut self, now: Instant, index: usize, epoch: u64, rx_next: u64) -> usize {
        let former = |path: &Path| path.state != PathState::Connecting;
        let index = self.close_others(index, CloseCode::SessionGone, former);
        self.stats.renumbered += u64::from(self.epoch != 0);
        self.epoch = epoch;
        self.sender.replay.renumber(rx_next);
        self.receiver.restart();
        // The relay ignores what was written early for the former epoch.
        self.paths.iter_mut().for_each(|path| path.tx.number = None);
        // A path that waits for its own WELCOME can carry data for the new epoch.
        let pending = |at: usize| self.paths[at].side.client()?.pending_activation.clone();
        let mut others = (0..self.paths.len()).filter(|&at| at != index);
        if let Some((at, keep)) = others.find_map(|at| Some((at, pending(at)?))) {
            self.send_activate(now, at, &keep);
        }
        index
    }

    /// Takes a configuration of the relay, unless a later one of the same epoch is known.
    pub(super) fn apply_config(&mut self, new: VersionedConfig, new_epoch: bool) {
        let Side::Client(client) = &mut self.side else { return };
        let known = client.config.as_ref();
        if !new_epoch && known.is_some_and(|known| new.version < known.version) {
            return;
        }
        if known.is_none_or(|known| known.config != new.config) {
            self.events.push(Event::Config(new.config.clone()));
        }
        client.config = Some(new);
    }

    /// Reports [`Event::PathConfirmed`] once, if the path is still the active one and `answered`
    /// says that the relay has answered on it.
    pub(super) fn confirm_if(&mut self, index: usize, answered: impl Fn(&ClientPath) -> bool) {
        let id = self.paths[index].id;
        let active = self.paths.is_active(id);
        if let Some(client) = self.paths[index].side.client_mut()
            && active
            && answered(client)
        {
            client.confirming_nonce = None;
            self.events.push(Event::PathConfirmed { path: id });
        }
    }

    /// Handles DOUBT, which means that the relay gets no answers on the active path. The client
    /// judges the path by its own evidence, so the only effect is that it probes the path.
    pub(super) fn handle_doubt(&mut self, now: Instant) {
        let Side::Client(client) = &mut self.side else { return };
        let recent = |at: Instant| now.saturating_duration_since(at) < MIN_DOUBT_INTERVAL;
        if client.last_doubt.is_some_and(recent) {
            return;
        }
        let Some(index) = self.paths.active_index() else { return };
        let active = &self.paths[index];
        if !active.is_ready() || active.health.is_unresponsive() {
            // Probing shows nothing new about an unresponsive path.
            return;
        }
        client.last_doubt = Some(now);
        self.request_ping(now, index);
        let active = &mut self.paths[index];
        if active.health.start_probing(now) {
            let id = active.id;
            self.on_probing(now, id);
        }
    }

    /// Reports that a path is being probed. A client sends a PING on its other paths to find out
    /// which of them can replace this one, which may be dead.
    pub(super) fn on_probing(&mut self, now: Instant, probing: PathId) {
        self.stats.liveness_probes += 1;
        self.events.push(Event::PathProbing { path: probing });
        if self.side.is_client() {
            self.ping_each(now, |path| path.id != probing && path.is_ready() && path.pings.needs_rtt(now));
        }
    }

    /// Sends a PING on each path for which `chosen` returns true.
    fn ping_each(&mut self, now: Instant, chosen: impl Fn(&Path) -> bool) {
        for index in 0..self.paths.len() {
            if chosen(&self.paths[index]) {
                self.request_ping(now, index);
            }
        }
    }
}

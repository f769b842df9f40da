//! The relay's part of a session: it accepts paths, follows the client's choice of the active one,
//! and pushes the configuration.

use std::time::Instant;

use super::input::FrameOutcome;
use super::side::Side;
use super::{Event, Session};
use crate::message::{Activate, VersionedConfig, Welcome};
use crate::path::{Path, RelayPath};
use crate::{Announcement, CloseCode, Hello, PathId, ProtocolError, PushConfig};

impl Session {
    /// Relay: accepts the path that sent `hello` and queues WELCOME on it.
    ///
    /// An open path with the same id is closed with [`Event::PathClosed`]. So the caller has to
    /// handle the events before it stores the new transport under the id. If the maximum number of
    /// paths is reached, the standby path that was silent for the longest time is closed.
    ///
    /// [`Event::PathClosed`]: super::Event::PathClosed
    ///
    /// # Errors
    /// If this is a client's session, if `hello` is for another session, or if no path can be
    /// closed.
    pub fn accept_path(&mut self, now: Instant, hello: &Hello) -> Result<(), ProtocolError> {
        let path = hello.path;
        let Side::Relay(relay) = &self.side else { return Err(ProtocolError::NotAServer(path)) };
        if hello.session != self.id {
            return Err(ProtocolError::WrongSession { path, got: hello.session, expected: self.id });
        }
        let stale_epoch = hello.epoch != self.epoch;
        let side = RelayPath { switch: hello.switch, stale_epoch, ..RelayPath::default() };
        let compression = hello.compression && self.limits.compression;
        let mut new = Path::accept(now, path, side, compression);
        let VersionedConfig { version, config } = &relay.config;
        Welcome::put(&mut new.control, self.epoch, self.receiver.next(), *version, config, compression);
        if self.paths.find(path).is_some() {
            self.close_and_report(path, CloseCode::Replaced);
        }
        self.make_room_for(path)?;
        self.paths.add(new);
        Ok(())
    }

    /// Relay: sends a new configuration on all paths.
    pub fn set_config(&mut self, config: PushConfig) {
        let Side::Relay(relay) = &mut self.side else { return };
        if relay.config.config != config {
            relay.config = VersionedConfig { version: relay.config.version + 1, config };
            let paths = self.paths.iter_mut().filter_map(|path| path.side.relay_mut());
            paths.for_each(|path| path.config_due = true);
        }
    }

    /// Handles CONFIRM, with which the client says which announcement it has stored.
    pub(super) fn handle_confirm(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        if let Some(confirmed) = Announcement::decode_confirmation(payload)?.into_shared() {
            self.events.push(Event::Confirmed(confirmed));
        }
        Ok(())
    }

    /// Handles ACTIVATE, with which the client makes a path active.
    pub(super) fn handle_activate(
        &mut self,
        now: Instant,
        index: usize,
        payload: &[u8],
    ) -> Result<FrameOutcome, ProtocolError> {
        let activate = Activate::decode(payload)?;
        let path = &mut self.paths[index];
        // Written before the client knew that the relay has lost the session: the client will
        // repeat it. Until then the data received here has numbers of the former epoch.
        let stale = activate.epoch != self.epoch;
        if let Some(relay) = path.side.relay_mut() {
            relay.stale_epoch = stale;
        }
        if stale {
            self.stats.stale_frames += 1;
            return Ok(FrameOutcome::Open(index));
        }
        let (id, is_closing) = (path.id, path.is_closing());
        self.sender.acknowledge(activate.rx_next, &mut self.stats)?;
        if activate.switch <= self.switch || is_closing {
            // The client has switched again since, and that ACTIVATE arrived first.
            self.stats.stale_activates += 1;
            return Ok(FrameOutcome::Open(index));
        }
        self.switch = activate.switch;
        self.switch_to(id);
        // A path opened after this ACTIVATE was written cannot be in its list.
        let earlier = |relay: &RelayPath| relay.switch < activate.switch;
        let freed =
            |other: &Path| !activate.keep.contains(&other.id) && other.side.relay().is_some_and(earlier);
        let index = self.close_others(index, CloseCode::Replaced, freed);
        // The client replays from its oldest unacknowledged record: the sooner it gets the
        // acknowledgement, the less it sends again.
        self.receiver.ack.send_now();
        self.request_ping(now, index);
        Ok(FrameOutcome::Open(index))
    }

    /// Queues DOUBT on the other paths, which tells the client that no answers arrive on the active
    /// path. Only the client may switch, and it may have sent nothing that could go unanswered.
    pub(super) fn send_doubt(&mut self) {
        for path in self.paths.standby_mut() {
            let is_ready = path.is_ready();
            if let Some(relay) = path.side.relay_mut() {
                relay.doubt_due = is_ready;
            }
        }
    }

    fn make_room_for(&mut self, path: PathId) -> Result<(), ProtocolError> {
        let max = self.limits.max_paths;
        if self.paths.len() >= max {
            let quietest = self.paths.quietest_standby();
            let quietest = quietest.ok_or(ProtocolError::TooManyPaths { path, max })?;
            self.close_and_report(quietest, CloseCode::Replaced);
        }
        Ok(())
    }
}

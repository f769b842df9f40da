//! Received data: from bytes to frames, and from frames to deliveries and state changes.

use std::time::Instant;

use super::{Event, Role, Session};
use crate::frame::{self, Decoded};
use crate::message::{self, Activate, VersionedConfig, Welcome};
use crate::path::{ClientPath, Path, PathState, RelayPath};
use crate::{CloseCode, Packet, PathId, ProtocolError};

/// The effect of a received frame on its path.
enum FrameOutcome {
    /// The path stays open and now has this index in the list: it moves when a frame makes the
    /// session close other paths.
    Open(usize),
    Closed(CloseCode),
}

impl Session {
    /// Handles decrypted bytes received on a path, in pieces of any size. Each new inner packet is
    /// passed to `deliver` once, in order. Only the remainder of an incomplete frame is copied.
    ///
    /// # Errors
    /// If the peer violates the protocol. In that case CLOSE is queued and further input of the
    /// path is ignored; the session continues.
    pub fn handle_input(
        &mut self,
        now: Instant,
        path: PathId,
        bytes: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<(), ProtocolError> {
        let readable = self.find(path).filter(|&index| self.paths[index].state != PathState::Failed);
        let Some(index) = readable else {
            self.stats.stray_bytes += bytes.len() as u64;
            return Ok(());
        };
        if self.paths[index].on_bytes_received(now, bytes.len()) {
            self.events.push(Event::PathRecovered { path });
        }
        match self.read_frames(now, index, bytes, deliver) {
            Ok(FrameOutcome::Open(index)) => {
                if self.paths[index].pings.pong_due.is_some() {
                    // An idle peer's PING: this end is probably idle, too.
                    self.paths[index].trim();
                    self.trim_if_idle();
                }
                Ok(())
            }
            Ok(FrameOutcome::Closed(code)) => {
                self.close_and_report(path, code);
                Ok(())
            }
            Err(error) => {
                self.stats.protocol_errors += 1;
                self.deactivate(path);
                if let Some(index) = self.find(path) {
                    self.paths[index].fail(now);
                }
                Err(error)
            }
        }
    }

    fn read_frames(
        &mut self,
        now: Instant,
        mut index: usize,
        mut bytes: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<FrameOutcome, ProtocolError> {
        // The buffer is not borrowed from the path, because a frame in it may change all paths.
        let mut partial_frame = std::mem::take(&mut self.paths[index].rx.partial_frame);
        while !partial_frame.is_empty() && !bytes.is_empty() {
            match frame::decode(&partial_frame)? {
                Decoded::Incomplete { need } => {
                    let (more, rest) = bytes.split_at(bytes.len().min(need - partial_frame.len()));
                    // Room for the whole frame at once, as its length is known and checked.
                    partial_frame.reserve(need - partial_frame.len());
                    partial_frame.extend_from_slice(more);
                    bytes = rest;
                }
                Decoded::Frame { .. } => break,
            }
        }
        if let Decoded::Frame { kind, payload, .. } = frame::decode(&partial_frame)? {
            match self.handle_frame(now, index, kind, payload, deliver)? {
                FrameOutcome::Open(at) => index = at,
                closed @ FrameOutcome::Closed(_) => return Ok(closed),
            }
            partial_frame.clear();
        }
        // Either the partial frame is complete or no bytes are left.
        while !bytes.is_empty() {
            match frame::decode(bytes)? {
                Decoded::Incomplete { need } => {
                    partial_frame.reserve(need);
                    partial_frame.extend_from_slice(bytes);
                    break;
                }
                Decoded::Frame { kind, payload, consumed } => {
                    bytes = &bytes[consumed..];
                    match self.handle_frame(now, index, kind, payload, deliver)? {
                        FrameOutcome::Open(at) => index = at,
                        closed @ FrameOutcome::Closed(_) => return Ok(closed),
                    }
                }
            }
        }
        let path = &mut self.paths[index];
        let carries = |kind: u8| frame::is_data(kind) || kind == frame::COMPRESSED;
        if !path.is_stale() && partial_frame.first().is_some_and(|&kind| carries(kind)) {
            // A long record on a slow path: tell the sender that its bytes arrive.
            self.ack.schedule(now, &self.limits);
        }
        path.rx.partial_frame = partial_frame;
        Ok(FrameOutcome::Open(index))
    }

    fn handle_frame(
        &mut self,
        now: Instant,
        index: usize,
        kind: u8,
        payload: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<FrameOutcome, ProtocolError> {
        let (state, stale) = (self.paths[index].state, self.paths[index].is_stale());
        let connecting = state == PathState::Connecting;
        match (kind, self.role) {
            (frame::CLOSE, _) => return Ok(FrameOutcome::Closed(message::decode_close(payload)?)),
            (frame::WELCOME, Role::Client) if connecting => return self.handle_welcome(now, index, payload),
            (frame::WELCOME, Role::Client) if state == PathState::Closing => {}
            (frame::FIRST_IGNORABLE.., _) => self.stats.skipped_frames += 1,
            _ if connecting => return Err(unexpected(kind, "before WELCOME")),
            (frame::COMPRESSED, _) if !self.may_decompress(index) => {
                return Err(unexpected(kind, "on a path where compression was not agreed"));
            }
            // The frame is decoded even on a stale path, because later frames refer to it.
            (frame::COMPRESSED, _) => self.handle_record(now, index, kind, payload, deliver)?,
            (frame::SEQ | frame::ACK, Role::Server) if stale => self.stats.stale_frames += 1,
            (kind, Role::Server) if stale && frame::is_data(kind) => self.stats.stale_frames += 1,
            (kind, _) if frame::is_data(kind) => self.handle_record(now, index, kind, payload, deliver)?,
            (frame::SEQ, _) => self.handle_seq(now, index, message::decode_number("SEQ", payload)?),
            (frame::ACK, _) => {
                self.stats.acks_received += 1;
                self.handle_ack(message::decode_number("ACK", payload)?)?;
                // An unchanged ACK is progress, too: it shows that more of a record has arrived.
                self.on_progress(now, index);
            }
            (frame::PING, _) => {
                self.paths[index].pings.pong_due = Some(message::decode_nonce("PING", payload)?);
            }
            (frame::PONG, _) => {
                let nonce = message::decode_nonce("PONG", payload)?;
                if self.paths[index].handle_pong(now, nonce) {
                    self.on_progress(now, index);
                }
                self.confirm_if(index, |client| client.confirming_nonce.is_some_and(|by| nonce >= by));
            }
            (frame::ACTIVATE, Role::Server) => return self.handle_activate(now, index, payload),
            (frame::DOUBT, Role::Client) => {
                message::decode_empty("DOUBT", payload)?;
                self.handle_doubt(now);
            }
            (frame::CONFIG, Role::Client) => self.apply_config(VersionedConfig::decode(payload)?, false),
            _ => return Err(unexpected(kind, "from this peer in this state")),
        }
        Ok(FrameOutcome::Open(index))
    }

    /// Returns whether both ends agreed to compression on a path. A client has announced in HELLO
    /// that it reads compressed packets; a WELCOME on a closing path is ignored.
    fn may_decompress(&self, index: usize) -> bool {
        match self.role {
            Role::Client => self.limits.compression,
            Role::Server => self.paths[index].stats.compression,
        }
    }

    /// Handles a frame with a record, and delivers the packet if it is the next one.
    fn handle_record(
        &mut self,
        now: Instant,
        index: usize,
        kind: u8,
        payload: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<(), ProtocolError> {
        let path = &mut self.paths[index];
        let stale = path.is_stale();
        let packet = if kind == frame::COMPRESSED {
            let frame = frame::read_compressed(payload)?;
            let packet = path.rx.compression.decode(&frame)?;
            self.stats.rx_compressible_bytes += packet.len() as u64;
            self.stats.rx_compressed_bytes += frame.bytes.len() as u64;
            packet
        } else {
            frame::read_packet(kind, payload)?
        };
        if stale {
            self.stats.stale_frames += 1;
            return Ok(());
        }
        let number = path.rx.number.ok_or(unexpected(frame::DATA, "before the first SEQ"))?;
        path.rx.number = Some(number + 1);
        self.ack.received(now, packet.len(), &self.limits);
        // The numbers of a path continue from a SEQ, and `rx_next` is never behind that: so
        // `number` is never beyond it.
        if number == self.rx_next {
            self.rx_next += 1;
            if !self.segment_budget.admit(now, packet) {
                self.stats.dropped_segments += 1;
                return Ok(());
            }
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += packet.len() as u64;
            path.stats.rx_packets += 1;
            self.freeze.note_delivered(packet.bytes);
            deliver(packet);
        } else {
            self.stats.duplicates += 1;
            path.stats.duplicates += 1;
        }
        Ok(())
    }

    /// Handles SEQ, the number of the next record on the path. If it is beyond the expected number,
    /// the sender has given up all records between.
    fn handle_seq(&mut self, now: Instant, index: usize, first: u64) {
        self.paths[index].rx.number = Some(first);
        if first > self.rx_next {
            self.stats.lost = self.stats.lost.saturating_add(first - self.rx_next);
            self.rx_next = first;
            self.ack.schedule(now, &self.limits);
        }
    }

    fn handle_ack(&mut self, upto: u64) -> Result<(), ProtocolError> {
        let (buffers, stats) = (&mut self.buffers, &mut self.stats);
        self.replay.acknowledge(upto, |record| {
            stats.acked_packets += 1;
            buffers.recycle(record.packet);
        })
    }

    fn handle_welcome(
        &mut self,
        now: Instant,
        mut index: usize,
        payload: &[u8],
    ) -> Result<FrameOutcome, ProtocolError> {
        let welcome = Welcome::decode(payload)?;
        let resumed = welcome.epoch == self.epoch;
        if resumed {
            self.handle_ack(welcome.rx_next)?;
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
        self.events.push(Event::PathReady { path: id, resumed });
        self.on_progress(now, index);
        // An ACTIVATE that was written later may have crossed this WELCOME; a PONG will answer it.
        self.confirm_if(index, |client| {
            resumed && client.activated_early && client.confirming_nonce.is_some()
        });
        let client = self.paths[index].side.client_mut();
        if let Some(keep) = client.and_then(|client| client.pending_activation.take())
            && (!resumed || self.active != Some(id))
        {
            self.send_activate(now, index, &keep);
        }
        Ok(FrameOutcome::Open(index))
    }

    /// Reports [`Event::PathConfirmed`] once, if the path is still the active one and `answered`
    /// says that the relay has answered on it.
    fn confirm_if(&mut self, index: usize, answered: impl Fn(&ClientPath) -> bool) {
        let path = &mut self.paths[index];
        if let Some(client) = path.side.client_mut()
            && self.active == Some(path.id)
            && answered(client)
        {
            client.confirming_nonce = None;
            self.events.push(Event::PathConfirmed { path: path.id });
        }
    }

    /// Adopts the epoch of a relay that has lost this session's state, or never had it. The records
    /// of both directions are numbered anew, and the unacknowledged ones are sent first. Returns
    /// the new index of the path at `index`, on which the epoch arrived.
    fn adopt_epoch(&mut self, now: Instant, index: usize, epoch: u64, rx_next: u64) -> usize {
        let former = |path: &Path| path.state != PathState::Connecting;
        let index = self.close_others(index, CloseCode::SessionGone, former);
        self.stats.renumbered += u64::from(self.epoch != 0);
        self.epoch = epoch;
        self.replay.renumber(rx_next);
        self.rx_next = 0;
        self.ack.reset();
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

    fn apply_config(&mut self, new: VersionedConfig, new_epoch: bool) {
        if !new_epoch && self.config.is_some() && new.version < self.config_version {
            return;
        }
        self.config_version = new.version;
        if self.config.as_ref() != Some(&new.config) {
            self.config = Some(new.config.clone());
            self.events.push(Event::Config(new.config));
        }
    }

    fn handle_activate(
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
        let (id, closing) = (path.id, path.is_closing());
        self.handle_ack(activate.rx_next)?;
        if activate.switch <= self.switch || closing {
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
        self.ack.send_now();
        self.request_ping(now, index);
        Ok(FrameOutcome::Open(index))
    }
}

fn unexpected(kind: u8, place: &'static str) -> ProtocolError {
    ProtocolError::Unexpected { frame: frame::name(kind), place }
}

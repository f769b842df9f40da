//! What comes in: bytes to frames, frames to deliveries and state.

use std::time::Instant;

use super::{Event, Role, Session};
use crate::compression::Decoder;
use crate::frame::{self, Decoded};
use crate::message::{self, Activate, VersionedConfig, Welcome};
use crate::path::{Path, State};
use crate::{CloseCode, Packet, PathId, ProtocolError};

/// What a frame did to its path.
#[derive(PartialEq, Eq)]
enum Fate {
    Open,
    Closed(CloseCode),
}

impl Session {
    /// Takes decrypted bytes of a path, in any pieces. Each new inner packet is given to `deliver`
    /// once, in order. Only the rest of an unfinished frame is copied. After an error the path takes
    /// no more input, and CLOSE waits to be sent; the session goes on.
    pub fn handle_input(
        &mut self,
        now: Instant,
        path: PathId,
        bytes: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<(), ProtocolError> {
        // The path is out of the list while its frames are read, so that they can change the rest.
        let Some(mut path) = self.take(path) else {
            self.stats.stray_bytes += bytes.len() as u64;
            return Ok(());
        };
        if path.state == State::Failed {
            self.stats.stray_bytes += bytes.len() as u64;
            self.paths.push(path);
            return Ok(());
        }
        if path.heard(now, bytes.len()) {
            self.events.push(Event::PathRecovered { path: path.id });
        }
        match self.read_frames(now, &mut path, bytes, deliver) {
            Ok(Fate::Open) => {
                if path.pong.is_some() {
                    // An idle peer's PING: this end is probably idle too.
                    path.trim();
                    self.trim_if_idle();
                }
                self.paths.push(path);
                Ok(())
            }
            Ok(Fate::Closed(code)) => {
                self.closed(path.id, code);
                Ok(())
            }
            Err(error) => {
                self.stats.protocol_errors += 1;
                self.deactivate(path.id);
                path.close(now, CloseCode::ProtocolError, State::Failed);
                path.partial = Vec::new();
                self.paths.push(path);
                Err(error)
            }
        }
    }

    fn read_frames(
        &mut self,
        now: Instant,
        path: &mut Path,
        mut bytes: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<Fate, ProtocolError> {
        let mut partial = std::mem::take(&mut path.partial);
        while !partial.is_empty() && !bytes.is_empty() {
            match frame::decode(&partial)? {
                Decoded::Incomplete { need } => {
                    let (more, rest) = bytes.split_at(bytes.len().min(need - partial.len()));
                    // Room for the whole frame at once, now that its length is known and checked.
                    partial.reserve(need - partial.len());
                    partial.extend_from_slice(more);
                    bytes = rest;
                }
                Decoded::Frame { .. } => break,
            }
        }
        if let Decoded::Frame { kind, payload, .. } = frame::decode(&partial)? {
            let fate = self.handle_frame(now, path, kind, payload, deliver)?;
            if fate != Fate::Open {
                return Ok(fate);
            }
            partial.clear();
        }
        // Either the partial frame is done or no bytes are left.
        while !bytes.is_empty() {
            match frame::decode(bytes)? {
                Decoded::Incomplete { need } => {
                    partial.reserve(need);
                    partial.extend_from_slice(bytes);
                    break;
                }
                Decoded::Frame { kind, payload, consumed } => {
                    bytes = &bytes[consumed..];
                    let fate = self.handle_frame(now, path, kind, payload, deliver)?;
                    if fate != Fate::Open {
                        return Ok(fate);
                    }
                }
            }
        }
        let carries = |kind: u8| frame::is_data(kind) || kind == frame::COMPRESSED;
        if !path.foreign && partial.first().is_some_and(|&kind| carries(kind)) {
            // A long record on a slow path: tell the sender that its bytes arrive.
            self.ack.soon(now, &self.limits);
        }
        path.partial = partial;
        Ok(Fate::Open)
    }

    fn handle_frame(
        &mut self,
        now: Instant,
        path: &mut Path,
        kind: u8,
        payload: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<Fate, ProtocolError> {
        let connecting = path.state == State::Connecting;
        match (kind, self.role) {
            (frame::CLOSE, _) => return Ok(Fate::Closed(message::decode_close(payload)?)),
            (frame::WELCOME, Role::Client) if connecting => return self.handle_welcome(now, path, payload),
            (frame::WELCOME, Role::Client) if path.state == State::Closing => {}
            (frame::FIRST_IGNORABLE.., _) => self.stats.skipped_frames += 1,
            _ if connecting => return Err(unexpected(kind, "before WELCOME")),
            (frame::COMPRESSED, _) => self.handle_compressed(now, path, payload, deliver)?,
            (frame::SEQ | frame::ACK, Role::Server) if path.foreign => self.stats.stale_frames += 1,
            (kind, Role::Server) if path.foreign && frame::is_data(kind) => self.stats.stale_frames += 1,
            (kind, _) if frame::is_data(kind) => {
                self.handle_data(now, path, frame::packet(kind, payload)?, deliver)?;
            }
            (frame::SEQ, _) => self.handle_seq(now, path, message::decode_number("SEQ", payload)?),
            (frame::ACK, _) => {
                self.stats.acks_received += 1;
                self.acknowledged(message::decode_number("ACK", payload)?)?;
                // Even an unchanged one: it says that more of a record has come.
                self.progress(now, path);
            }
            (frame::PING, _) => path.pong = Some(message::decode_nonce("PING", payload)?),
            (frame::PONG, _) => {
                let nonce = message::decode_nonce("PONG", payload)?;
                if path.handle_pong(now, nonce) {
                    self.progress(now, path);
                }
                self.confirm_if(path, |path| path.confirmed_by.is_some_and(|by| nonce >= by));
            }
            (frame::ACTIVATE, Role::Server) => self.handle_activate(now, path, payload)?,
            (frame::DOUBT, Role::Client) => {
                message::decode_empty("DOUBT", payload)?;
                self.nudged(now, path);
            }
            (frame::CONFIG, Role::Client) => self.take_config(VersionedConfig::decode(payload)?, false),
            _ => return Err(unexpected(kind, "where it has no meaning")),
        }
        Ok(Fate::Open)
    }

    fn handle_data(
        &mut self,
        now: Instant,
        path: &mut Path,
        packet: Packet<'_>,
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<(), ProtocolError> {
        let number = path.rx_number.ok_or(unexpected(frame::DATA, "before the first SEQ"))?;
        path.rx_number = Some(number + 1);
        self.ack.received(now, packet.len(), &self.limits);
        // A path's numbers run on from a SEQ, which `rx_next` has reached: never beyond it.
        if number == self.rx_next {
            self.rx_next += 1;
            if !self.segments.admit(now, packet) {
                self.stats.dropped_segments += 1;
                return Ok(());
            }
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += packet.len() as u64;
            path.stats.rx_packets += 1;
            self.note_delivered(packet.bytes);
            deliver(packet);
        } else {
            self.stats.duplicates += 1;
            path.stats.duplicates += 1;
        }
        Ok(())
    }

    fn handle_compressed(
        &mut self,
        now: Instant,
        path: &mut Path,
        payload: &[u8],
        deliver: &mut dyn FnMut(Packet<'_>),
    ) -> Result<(), ProtocolError> {
        // A client has said in HELLO that it reads them; a WELCOME that comes to a closing path is not looked at.
        let agreed = match self.role {
            Role::Client => self.limits.compression,
            Role::Server => path.stats.compression,
        };
        if !agreed {
            return Err(unexpected(frame::COMPRESSED, "where compression was not agreed"));
        }
        // Out of the path while its packet is looked at.
        let mut decoder = match path.decoder.take() {
            Some(decoder) => decoder,
            None => Box::new(Decoder::new()?),
        };
        let frame::Compressed { offload, length, bytes } = frame::compressed(payload)?;
        let packet = Packet { bytes: decoder.decode(length, bytes)?, offload };
        self.stats.rx_compressible_bytes += packet.len() as u64;
        self.stats.rx_compressed_bytes += bytes.len() as u64;
        if path.foreign {
            // Read all the same: what follows refers to it.
            self.stats.stale_frames += 1;
        } else {
            self.handle_data(now, path, packet, deliver)?;
        }
        path.decoder = Some(decoder);
        Ok(())
    }

    /// A number beyond the expected one: the sender has given up all between.
    fn handle_seq(&mut self, now: Instant, path: &mut Path, first: u64) {
        path.rx_number = Some(first);
        if first > self.rx_next {
            self.stats.lost = self.stats.lost.saturating_add(first - self.rx_next);
            self.rx_next = first;
            self.ack.soon(now, &self.limits);
        }
    }

    fn acknowledged(&mut self, upto: u64) -> Result<(), ProtocolError> {
        let (pool, stats) = (&mut self.pool, &mut self.stats);
        self.replay.acknowledge(upto, |record| {
            stats.acked_packets += 1;
            pool.give(record.packet);
        })
    }

    fn handle_welcome(
        &mut self,
        now: Instant,
        path: &mut Path,
        payload: &[u8],
    ) -> Result<Fate, ProtocolError> {
        let welcome = Welcome::decode(payload)?;
        let resumed = welcome.epoch == self.epoch;
        if resumed {
            self.acknowledged(welcome.rx_next)?;
        } else if path.epoch != self.epoch {
            // The relay answered a HELLO that named an older epoch than the one another path has
            // told since. Which of the two answers is the newer one? The next HELLO will find out.
            return Ok(Fate::Closed(CloseCode::SessionGone));
        } else {
            self.adopt_epoch(now, welcome.epoch, welcome.rx_next);
            path.tx_number = None;
        }
        path.epoch = self.epoch;
        path.agree(welcome.compression && self.limits.compression);
        path.state = State::Ready;
        path.sample_due = true;
        if let Some(sent) = path.hello_sent {
            path.measured(now.saturating_duration_since(sent));
        }
        self.take_config(welcome.config, !resumed);
        self.events.push(Event::PathReady { path: path.id, resumed });
        self.progress(now, path);
        // An ACTIVATE that was written later may have crossed this; a PONG will answer it.
        self.confirm_if(path, |path| resumed && path.early && path.confirmed_by.is_some());
        if let Some(keep) = path.wish.take()
            && (!resumed || self.active != Some(path.id))
        {
            self.carry_out(now, path, &keep);
        }
        Ok(Fate::Open)
    }

    /// The relay has answered on the path: told once, and only if it is still the one in use.
    fn confirm_if(&mut self, path: &mut Path, answered: impl Fn(&Path) -> bool) {
        if self.active == Some(path.id) && answered(path) {
            path.confirmed_by = None;
            self.events.push(Event::PathConfirmed { path: path.id });
        }
    }

    /// The relay has lost this session's state (or never had it): both directions start anew, with
    /// what is unacknowledged first.
    fn adopt_epoch(&mut self, now: Instant, epoch: u64, rx_next: u64) {
        let former = |path: &Path| path.state != State::Connecting;
        let gone: Vec<_> = self.paths.iter().filter(|path| former(path)).map(|path| path.id).collect();
        gone.into_iter().for_each(|path| self.closed(path, CloseCode::SessionGone));
        self.stats.renumbered += u64::from(self.epoch != 0);
        self.epoch = epoch;
        self.replay.renumber(rx_next);
        self.rx_next = 0;
        self.ack.done();
        // What was written in haste, for the former epoch, the relay ignores.
        self.paths.iter_mut().for_each(|path| path.tx_number = None);
        // A path that waits for its own WELCOME can carry data for the epoch that is known now.
        if let Some(at) = self.paths.iter().position(|path| path.wish.is_some()) {
            let mut wanted = self.paths.swap_remove(at);
            let keep = wanted.wish.clone().unwrap_or_default();
            self.carry_out(now, &mut wanted, &keep);
            self.paths.push(wanted);
        }
    }

    fn take_config(&mut self, new: VersionedConfig, new_epoch: bool) {
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
        path: &mut Path,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        let activate = Activate::decode(payload)?;
        // Written before the client knew that this session is not the one it had: it will repeat
        // it. Until then what comes here has numbers of the former epoch.
        path.foreign = activate.epoch != self.epoch;
        if path.foreign {
            self.stats.stale_frames += 1;
            return Ok(());
        }
        self.acknowledged(activate.rx_next)?;
        if activate.switch <= self.switch || path.is_closing() {
            // The client has switched again since, and that came first.
            self.stats.stale_activates += 1;
            return Ok(());
        }
        self.switch = activate.switch;
        // A path opened after this ACTIVATE was written cannot be in its list.
        let freed = |other: &Path| !activate.keep.contains(&other.id) && other.switch < activate.switch;
        let freed: Vec<_> = self.paths.iter().filter(|other| freed(other)).map(|other| other.id).collect();
        self.move_to(path.id);
        freed.into_iter().for_each(|other| self.closed(other, CloseCode::Replaced));
        // The client replays from its oldest unacknowledged record: the sooner it knows, the less.
        self.ack.at_once();
        path.ask(now, self.is_unanswered(path));
        Ok(())
    }
}

fn unexpected(kind: u8, place: &'static str) -> ProtocolError {
    ProtocolError::Unexpected { frame: frame::name(kind), place }
}

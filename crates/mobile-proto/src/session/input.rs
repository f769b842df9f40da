//! Received data: from bytes to frames, and from frames to deliveries and state changes.

use std::time::Instant;

use super::side::Side;
use super::{Event, Session};
use crate::frame::{self, Decoded};
use crate::message::{self, VersionedConfig};
use crate::packet::InnerPacket;
use crate::path::PathState;
use crate::{CloseCode, Packet, PathId, ProtocolError};

/// The effect of a received frame on its path.
pub(super) enum FrameOutcome {
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
        deliver: &mut dyn FnMut(InnerPacket<'_>),
    ) -> Result<(), ProtocolError> {
        let readable = self.paths.find(path).filter(|&index| self.paths[index].state != PathState::Failed);
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
                    self.sender.trim_if_idle();
                }
                Ok(())
            }
            Ok(FrameOutcome::Closed(code)) => {
                self.close_and_report(path, code);
                Ok(())
            }
            Err(error) => {
                self.stats.protocol_errors += 1;
                self.paths.deactivate(path);
                if let Some(index) = self.paths.find(path) {
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
        deliver: &mut dyn FnMut(InnerPacket<'_>),
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
            self.receiver.ack.schedule(now, &self.limits);
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
        deliver: &mut dyn FnMut(InnerPacket<'_>),
    ) -> Result<FrameOutcome, ProtocolError> {
        let (state, stale) = (self.paths[index].state, self.paths[index].is_stale());
        let connecting = state == PathState::Connecting;
        match (kind, &self.side) {
            (frame::CLOSE, _) => return Ok(FrameOutcome::Closed(message::decode_close(payload)?)),
            (frame::WELCOME, Side::Client(_)) if connecting => {
                return self.handle_welcome(now, index, payload);
            }
            (frame::WELCOME, Side::Client(_)) if state == PathState::Closing => {}
            (frame::FIRST_IGNORABLE.., _) => self.stats.skipped_frames += 1,
            _ if connecting => return Err(unexpected(kind, "before WELCOME")),
            // The frame is decoded even on a stale path, because later frames refer to it.
            (frame::COMPRESSED, _) => self.handle_record(now, index, kind, payload, deliver)?,
            (frame::SEQ | frame::ACK, Side::Relay(_)) if stale => self.stats.stale_frames += 1,
            (kind, Side::Relay(_)) if stale && frame::is_data(kind) => self.stats.stale_frames += 1,
            (kind, _) if frame::is_data(kind) => self.handle_record(now, index, kind, payload, deliver)?,
            (frame::SEQ, _) => {
                let number = message::decode_number("SEQ", payload)?;
                self.paths[index].rx.number = Some(number);
                self.receiver.skip_to(now, number, &self.limits, &mut self.stats);
            }
            (frame::ACK, _) => {
                self.stats.acks_received += 1;
                let upto = message::decode_number("ACK", payload)?;
                self.sender.acknowledge(upto, &mut self.stats)?;
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
            (frame::ACTIVATE, Side::Relay(_)) => return self.handle_activate(now, index, payload),
            (frame::CONFIRM, Side::Relay(_)) => self.handle_confirm(payload)?,
            (frame::DOUBT, Side::Client(_)) => {
                message::decode_empty("DOUBT", payload)?;
                self.handle_doubt(now);
            }
            (frame::CONFIG, Side::Client(_)) => self.apply_config(VersionedConfig::decode(payload)?, false),
            _ => return Err(unexpected(kind, "from this peer in this state")),
        }
        Ok(FrameOutcome::Open(index))
    }

    /// Handles a frame with a record, and delivers the packet if it is the next one.
    fn handle_record(
        &mut self,
        now: Instant,
        index: usize,
        kind: u8,
        payload: &[u8],
        deliver: &mut dyn FnMut(InnerPacket<'_>),
    ) -> Result<(), ProtocolError> {
        let path = &mut self.paths[index];
        let stale = path.is_stale();
        let packet = if kind == frame::COMPRESSED {
            let decoder = path.rx.compression.decoder()?;
            let decoder = decoder.ok_or(unexpected(kind, "on a path where compression was not agreed"))?;
            let frame::Compressed { offload, length, bytes } = frame::read_compressed(payload)?;
            let packet = Packet { bytes: decoder.decode(length, bytes)?, offload };
            self.stats.rx_compressible_bytes += packet.len() as u64;
            self.stats.rx_compressed_bytes += bytes.len() as u64;
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
        let path_stats = &mut path.stats;
        if self.receiver.accept(now, number, packet, &self.limits, path_stats, &mut self.stats) {
            let packet = InnerPacket::from(packet);
            self.sender.freeze.note_delivered(&packet);
            deliver(packet);
        }
        Ok(())
    }
}

fn unexpected(kind: u8, place: &'static str) -> ProtocolError {
    ProtocolError::Unexpected { frame: frame::name(kind), place }
}

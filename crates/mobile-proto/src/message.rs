//! The control frames besides HELLO: WELCOME, ACTIVATE, CONFIG, CONFIRM, CLOSE, DOUBT, PING, PONG,
//! SEQ and ACK.

use crate::compression::ZSTD;
use crate::frame::{self, PayloadReader};
use crate::{Announcement, CloseCode, PathId, ProtocolError, PushConfig, config, varint};

/// The relay's answer to HELLO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// Identifies this lifetime of the session at the relay; never 0.
    pub(crate) epoch: u64,
    /// The number of the record that the relay expects next.
    pub(crate) rx_next: u64,
    pub(crate) config: VersionedConfig,
    /// Whether the relay grants the compression that the client requested in HELLO.
    pub(crate) compression: bool,
}

/// A configuration with its version number, which the relay counts within an epoch. The number lets
/// the client ignore an older configuration that arrives later on another path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct VersionedConfig {
    pub(crate) version: u64,
    pub(crate) config: PushConfig,
}

/// The client's request to make the path active.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Activate {
    /// The relay's epoch, to which this frame and the following ones on the path belong. The frame
    /// may be written before the relay has sent its current epoch.
    pub(crate) epoch: u64,
    /// The client's switch counter, which lets the relay ignore an ACTIVATE that arrives after a
    /// later one.
    pub(crate) switch: u64,
    /// The number of the record that the client expects next.
    pub(crate) rx_next: u64,
    /// The paths that the relay keeps besides this one.
    pub(crate) keep: Vec<PathId>,
}

impl Welcome {
    pub(crate) fn put(
        out: &mut Vec<u8>,
        epoch: u64,
        rx_next: u64,
        version: u64,
        config: &PushConfig,
        compression: bool,
    ) {
        let mut payload = Vec::with_capacity(64);
        payload.extend_from_slice(&epoch.to_be_bytes());
        varint::put(&mut payload, rx_next);
        varint::put(&mut payload, version);
        config.encode(&mut payload);
        if compression {
            config::put_item(&mut payload, config::TAG_COMPRESSION, &[ZSTD]);
        }
        frame::put(out, frame::WELCOME, &payload);
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = PayloadReader::new("WELCOME", payload);
        let epoch = u64::from_be_bytes(reader.array()?);
        if epoch == 0 {
            return Err(reader.malformed("the epoch is 0"));
        }
        let rx_next = reader.counter()?;
        let version = reader.counter()?;
        let (config, compression) = PushConfig::decode_with_compression(&mut reader)?;
        let compression = compression == Some(ZSTD);
        Ok(Self { epoch, rx_next, config: VersionedConfig { version, config }, compression })
    }
}

impl VersionedConfig {
    pub(crate) fn put(out: &mut Vec<u8>, version: u64, config: &PushConfig) {
        let mut payload = Vec::with_capacity(64);
        varint::put(&mut payload, version);
        config.encode(&mut payload);
        frame::put(out, frame::CONFIG, &payload);
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, ProtocolError> {
        Self::read(&mut PayloadReader::new("CONFIG", payload))
    }

    fn read(reader: &mut PayloadReader<'_>) -> Result<Self, ProtocolError> {
        Ok(Self { version: reader.counter()?, config: PushConfig::decode(reader)? })
    }
}

impl Activate {
    /// Maximum number of paths that the message lists for the peer to keep open: more than any
    /// client has, and no more than a control frame can hold.
    pub(crate) const MAX_KEEP: usize = 200;

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(24 + self.keep.len().min(Self::MAX_KEEP) * 4);
        payload.extend_from_slice(&self.epoch.to_be_bytes());
        varint::put(&mut payload, self.switch);
        varint::put(&mut payload, self.rx_next);
        for path in self.keep.iter().take(Self::MAX_KEEP) {
            payload.extend_from_slice(&path.0.to_be_bytes());
        }
        frame::put(out, frame::ACTIVATE, &payload);
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = PayloadReader::new("ACTIVATE", payload);
        let epoch = u64::from_be_bytes(reader.array()?);
        let (switch, rx_next) = (reader.counter()?, reader.counter()?);
        let mut keep = Vec::new();
        while !reader.is_empty() {
            keep.push(PathId(u32::from_be_bytes(reader.array()?)));
        }
        Ok(Self { epoch, switch, rx_next, keep })
    }
}

/// Appends a CLOSE frame.
pub(crate) fn put_close(out: &mut Vec<u8>, code: CloseCode) {
    frame::put(out, frame::CLOSE, &[code.to_wire()]);
}

/// Parses CLOSE. Bytes after the code are ignored, because they belong to a later version.
pub(crate) fn decode_close(payload: &[u8]) -> Result<CloseCode, ProtocolError> {
    PayloadReader::new("CLOSE", payload).array().map(|[code]| CloseCode::from_wire(code))
}

/// Appends a CONFIRM frame.
pub(crate) fn put_confirm(out: &mut Vec<u8>, stored: &Announcement) {
    let mut payload = Vec::with_capacity(64);
    stored.encode(&mut payload);
    frame::put(out, frame::CONFIRM, &payload);
}

/// Appends a PING or PONG frame with its nonce.
pub(crate) fn put_nonce(out: &mut Vec<u8>, kind: u8, nonce: u64) {
    frame::put(out, kind, &nonce.to_be_bytes());
}

/// Parses PING or PONG, and returns the nonce.
pub(crate) fn decode_nonce(frame: &'static str, payload: &[u8]) -> Result<u64, ProtocolError> {
    let mut reader = PayloadReader::new(frame, payload);
    let nonce = u64::from_be_bytes(reader.array()?);
    reader.end()?;
    Ok(nonce)
}

/// Checks that the payload of a frame without content (DOUBT) is empty. The error names `frame`.
pub(crate) fn decode_empty(frame: &'static str, payload: &[u8]) -> Result<(), ProtocolError> {
    PayloadReader::new(frame, payload).end()
}

/// Parses SEQ or ACK, and returns the record number.
pub(crate) fn decode_number(frame: &'static str, payload: &[u8]) -> Result<u64, ProtocolError> {
    let mut reader = PayloadReader::new(frame, payload);
    let number = reader.counter()?;
    reader.end()?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Decoded;

    fn payload(wire: &[u8]) -> &[u8] {
        match frame::decode(wire).unwrap() {
            Decoded::Frame { payload, consumed, .. } if consumed == wire.len() => payload,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn control_frames_survive_a_round_trip() {
        let config = PushConfig { ipv4: Some([10, 0, 0, 2].into()), mtu: 1280, ..PushConfig::default() };
        let mut wire = Vec::new();
        for compression in [false, true] {
            wire.clear();
            Welcome::put(&mut wire, 5, 1 << 40, 3, &config, compression);
            let welcome = Welcome::decode(payload(&wire)).unwrap();
            let config = VersionedConfig { version: 3, config: config.clone() };
            assert_eq!(welcome, Welcome { epoch: 5, rx_next: 1 << 40, config, compression });
        }

        let activate = Activate { epoch: 9, switch: 1, rx_next: 2, keep: vec![PathId(3), PathId(u32::MAX)] };
        wire.clear();
        activate.put(&mut wire);
        assert_eq!(Activate::decode(payload(&wire)), Ok(activate));

        wire.clear();
        put_nonce(&mut wire, frame::PING, u64::MAX);
        assert_eq!(decode_nonce("PING", payload(&wire)), Ok(u64::MAX));
        wire.clear();
        put_close(&mut wire, CloseCode::Revoked);
        assert_eq!(decode_close(payload(&wire)), Ok(CloseCode::Revoked));
    }

    #[test]
    fn the_longest_keep_list_fits_a_control_frame() {
        let keep = (0..1000).map(PathId).collect();
        let mut wire = Vec::new();
        Activate { epoch: u64::MAX, switch: varint::MAX / 2, rx_next: varint::MAX / 2, keep }.put(&mut wire);
        assert_eq!(Activate::decode(payload(&wire)).unwrap().keep.len(), Activate::MAX_KEEP);
    }

    #[test]
    fn impossible_values_are_refused() {
        assert!(Welcome::decode(&[0; 12]).is_err(), "epoch 0");
        let mut number = Vec::new();
        varint::put(&mut number, varint::MAX / 2 + 1);
        assert!(decode_number("SEQ", &number).is_err());
        assert!(decode_number("SEQ", &[1, 1]).is_err(), "too long");
        assert!(decode_nonce("PONG", &[0; 7]).is_err());
        assert!(Activate::decode(&[0, 0, 0, 0, 0, 0, 0, 5, 1, 1, 0, 0, 0]).is_err(), "a path of three bytes");
        assert!(decode_close(&[]).is_err());
    }
}

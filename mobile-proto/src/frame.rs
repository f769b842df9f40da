//! Frames: `type u8 | length varint | payload`. Everything on a path is one.

use crate::varint::{self, Varint};
use crate::{Offload, Packet, ProtocolError};

/// The longest inner packet: what an IPv6 header can say, which does not count itself (RFC 8200, 3).
pub const MAX_PACKET: usize = 65_535 + 40;

/// The longest payload of a DATA frame: a packet and its segment size.
const MAX_DATA: usize = MAX_PACKET + 2;

/// The longest payload of COMPRESSED: what cannot be compressed grows by less than this (zstd's own bound is 320 bytes).
const MAX_COMPRESSED: usize = MAX_DATA + 512;

/// The longest payload of a frame that is neither. The longest real one, CONFIG with every
/// resolver, has less than half of it.
pub(crate) const MAX_CONTROL: usize = 1024;

/// One inner packet; its number is the path's counter, which it moves on by one.
pub(crate) const DATA: u8 = 0x01;
/// Sets the path's counter.
pub(crate) const SEQ: u8 = 0x02;
/// The number that the receiver expects next.
pub(crate) const ACK: u8 = 0x03;
/// Asks for a PONG.
pub(crate) const PING: u8 = 0x04;
/// Answers a PING.
pub(crate) const PONG: u8 = 0x05;
/// DATA whose TCP or UDP checksum is partial.
pub(crate) const DATA_CHECKSUM: u8 = 0x06;
/// DATA that is to be cut: the segment size (16 bits), then the packet.
pub(crate) const DATA_SEGMENT: u8 = 0x07;
/// DATA of any of the three kinds, compressed.
pub(crate) const COMPRESSED: u8 = 0x08;
/// Client: opens the path.
pub(crate) const HELLO: u8 = 0x10;
/// Relay: accepts it.
pub(crate) const WELCOME: u8 = 0x11;
/// Client: this path is the active one now.
pub(crate) const ACTIVATE: u8 = 0x12;
/// Relay: the configuration has changed.
pub(crate) const CONFIG: u8 = 0x13;
/// Either side: the path ends here.
pub(crate) const CLOSE: u8 = 0x14;
/// Relay: nothing gets through to it, or back from it, on the active path.
pub(crate) const DOUBT: u8 = 0x15;

/// What a type is called.
pub(crate) fn name(kind: u8) -> &'static str {
    match kind {
        DATA | DATA_CHECKSUM | DATA_SEGMENT => "DATA",
        COMPRESSED => "COMPRESSED",
        SEQ => "SEQ",
        ACK => "ACK",
        PING => "PING",
        PONG => "PONG",
        HELLO => "HELLO",
        WELCOME => "WELCOME",
        ACTIVATE => "ACTIVATE",
        CONFIG => "CONFIG",
        CLOSE => "CLOSE",
        DOUBT => "DOUBT",
        _ => "unknown",
    }
}

/// Types from here on may be skipped by a receiver that does not know them.
pub(crate) const FIRST_IGNORABLE: u8 = 0x80;

/// What stands at the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded<'a> {
    /// A whole frame; it took `consumed` bytes.
    Frame { kind: u8, payload: &'a [u8], consumed: usize },
    /// The start of one: at least `need` bytes are needed to go on.
    Incomplete { need: usize },
}

/// Reads one frame. Type and length are checked as soon as they are there, so nothing is ever
/// kept or allocated for a frame that will be refused.
pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded<'_>, ProtocolError> {
    decode_bounded(bytes, max_payload)
}

/// The same for other types than those of a path: `max_payload` knows them and their bounds.
pub(crate) fn decode_bounded(
    bytes: &[u8],
    max_payload: impl FnOnce(u8) -> Result<usize, ProtocolError>,
) -> Result<Decoded<'_>, ProtocolError> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(Decoded::Incomplete { need: 1 }) };
    let max = max_payload(kind)?;
    let (length, header) = match varint::get(rest) {
        Varint::Whole(length, taken) => (length, 1 + taken),
        Varint::Incomplete(len) => return Ok(Decoded::Incomplete { need: 1 + len }),
    };
    let payload_len = usize::try_from(length)
        .ok()
        .filter(|&length| length <= max)
        .ok_or(ProtocolError::FrameTooLong { kind, length, max })?;
    let consumed = header + payload_len;
    Ok(match bytes.get(header..consumed) {
        Some(payload) => Decoded::Frame { kind, payload, consumed },
        None => Decoded::Incomplete { need: consumed },
    })
}

fn max_payload(kind: u8) -> Result<usize, ProtocolError> {
    match kind {
        DATA | DATA_CHECKSUM | DATA_SEGMENT | FIRST_IGNORABLE.. => Ok(MAX_DATA),
        COMPRESSED => Ok(MAX_COMPRESSED),
        SEQ | ACK | PING | PONG | HELLO | WELCOME | ACTIVATE | CONFIG | CLOSE | DOUBT => Ok(MAX_CONTROL),
        unknown => Err(ProtocolError::UnknownFrame(unknown)),
    }
}

/// Whether a frame of this type carries an inner packet as it is.
pub(crate) fn is_data(kind: u8) -> bool {
    matches!(kind, DATA | DATA_CHECKSUM | DATA_SEGMENT)
}

/// Appends an inner packet.
pub(crate) fn put_packet(out: &mut Vec<u8>, packet: Packet<'_>) {
    match packet.offload {
        Offload::None => put(out, DATA, packet.bytes),
        Offload::Checksum => put(out, DATA_CHECKSUM, packet.bytes),
        Offload::Segment(size) => {
            out.push(DATA_SEGMENT);
            varint::put(out, packet.len() as u64 + 2);
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(packet.bytes);
        }
    }
}

/// Appends an inner packet that has been compressed to `made`.
pub(crate) fn put_compressed(out: &mut Vec<u8>, packet: Packet<'_>, compressed: &[u8]) {
    let (kind, size) = match packet.offload {
        Offload::None => (DATA, None),
        Offload::Checksum => (DATA_CHECKSUM, None),
        Offload::Segment(size) => (DATA_SEGMENT, Some(size.to_be_bytes())),
    };
    let size = size.as_ref().map_or(&[][..], |size| size);
    let header = 1 + size.len() + varint::len(packet.len() as u64);
    out.push(COMPRESSED);
    varint::put(out, (header + compressed.len()) as u64);
    out.push(kind);
    out.extend_from_slice(size);
    varint::put(out, packet.len() as u64);
    out.extend_from_slice(compressed);
}

/// An inner packet that has been compressed.
pub(crate) struct Compressed<'a> {
    pub(crate) offload: Offload,
    /// Of the packet, as the peer says.
    pub(crate) length: usize,
    pub(crate) bytes: &'a [u8],
}

/// Reads the payload of COMPRESSED.
pub(crate) fn read_compressed(payload: &[u8]) -> Result<Compressed<'_>, ProtocolError> {
    let mut reader = PayloadReader::new("COMPRESSED", payload);
    let [kind] = reader.array()?;
    let offload = match kind {
        DATA => Offload::None,
        DATA_CHECKSUM => Offload::Checksum,
        DATA_SEGMENT => Offload::Segment(u16::from_be_bytes(reader.array()?)),
        _ => return Err(reader.malformed("it stands for another frame than DATA")),
    };
    let length = usize::try_from(reader.varint()?).ok().filter(|&length| length <= MAX_PACKET);
    let length = length.ok_or(reader.malformed("its packet is too long"))?;
    Ok(Compressed { offload, length, bytes: reader.rest })
}

/// Reads the payload of a frame that carries an inner packet.
pub(crate) fn read_packet(kind: u8, payload: &[u8]) -> Result<Packet<'_>, ProtocolError> {
    let (bytes, offload) = match kind {
        DATA_CHECKSUM => (payload, Offload::Checksum),
        DATA_SEGMENT => {
            let mut reader = PayloadReader::new("DATA", payload);
            let size = u16::from_be_bytes(reader.array()?);
            (reader.rest, Offload::Segment(size))
        }
        _ => (payload, Offload::None),
    };
    if bytes.is_empty() {
        return Err(ProtocolError::Malformed { frame: "DATA", what: "it has no packet" });
    }
    Ok(Packet { bytes, offload })
}

/// Appends a frame.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    varint::put(out, payload.len() as u64);
    out.extend_from_slice(payload);
}

/// Appends a frame whose payload is one integer.
pub(crate) fn put_number(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    varint::put(out, varint::len(number) as u64);
    varint::put(out, number);
}

/// Reads the payload of a known frame piece by piece; every error names the frame.
pub(crate) struct PayloadReader<'a> {
    frame: &'static str,
    rest: &'a [u8],
}

impl<'a> PayloadReader<'a> {
    pub(crate) fn new(frame: &'static str, payload: &'a [u8]) -> Self {
        Self { frame, rest: payload }
    }

    pub(crate) fn malformed(&self, what: &'static str) -> ProtocolError {
        ProtocolError::Malformed { frame: self.frame, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(self.malformed("it is too short"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, ProtocolError> {
        match varint::get(self.rest) {
            Varint::Whole(value, taken) => {
                self.rest = &self.rest[taken..];
                Ok(value)
            }
            Varint::Incomplete(_) => Err(self.malformed("it is too short")),
        }
    }

    /// A counter (record number, switch counter). A path of 2^61 records is not of this world,
    /// and so a counter that grows from one received here always fits a varint again.
    pub(crate) fn counter(&mut self) -> Result<u64, ProtocolError> {
        match self.varint()? {
            value if value <= varint::MAX / 2 => Ok(value),
            _ => Err(self.malformed("a counter is impossibly large")),
        }
    }

    /// Nothing may follow.
    pub(crate) fn end(self) -> Result<(), ProtocolError> {
        if self.is_empty() { Ok(()) } else { Err(self.malformed("it is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_too_long_before_the_payload_is_there() {
        let mut header = vec![DATA];
        varint::put(&mut header, MAX_DATA as u64 + 1);
        assert!(matches!(decode(&header), Err(ProtocolError::FrameTooLong { length: 65_578, .. })));
        let mut header = vec![PING];
        varint::put(&mut header, MAX_CONTROL as u64 + 1);
        assert!(matches!(decode(&header), Err(ProtocolError::FrameTooLong { .. })));
        let mut header = vec![0xff];
        varint::put(&mut header, varint::MAX);
        assert!(matches!(decode(&header), Err(ProtocolError::FrameTooLong { .. })));
    }

    #[test]
    fn refuses_an_unknown_type_at_its_first_byte() {
        assert_eq!(decode(&[0]), Err(ProtocolError::UnknownFrame(0)));
        assert_eq!(decode(&[0x7f, 0]), Err(ProtocolError::UnknownFrame(0x7f)));
        assert_eq!(decode(&[0x80]), Ok(Decoded::Incomplete { need: 2 }));
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_frame_is_incomplete(len in 0..40_000_usize, cut in any::<prop::sample::Index>()) {
            let payload = vec![7; len];
            let mut wire = Vec::new();
            put(&mut wire, DATA, &payload);
            let whole = wire.len();
            let cut = cut.index(whole);
            match decode(&wire[..cut]).unwrap() {
                Decoded::Incomplete { need } => prop_assert!(need > cut && need <= whole),
                frame @ Decoded::Frame { .. } => prop_assert!(false, "{frame:?} from {cut} of {whole}"),
            }
            wire.push(0);
            let expected = Decoded::Frame { kind: DATA, payload: &payload, consumed: whole };
            prop_assert_eq!(decode(&wire).unwrap(), expected);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Decoded::Frame { consumed, .. }) = decode(&bytes) {
                prop_assert!(consumed <= bytes.len());
            }
        }
    }
}

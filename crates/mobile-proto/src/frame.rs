//! Frames: `type u8 | length varint | payload`. All data on a path consists of frames.

use crate::varint::{self, Varint};
use crate::{Offload, Packet, ProtocolError};

/// Maximum length of an inner packet in bytes: the largest payload length of an IPv6 header plus
/// the header, which that length does not count (RFC 8200, 3).
pub const MAX_PACKET: usize = 65_535 + 40;

/// Maximum payload of a DATA frame in bytes: a packet and its segment size.
const MAX_DATA: usize = MAX_PACKET + 2;

/// Maximum payload of COMPRESSED in bytes. An incompressible packet grows by less than this (zstd's
/// own bound is 320 bytes).
const MAX_COMPRESSED: usize = MAX_DATA + 512;

/// Maximum payload of all other frames in bytes. The longest in use, CONFIG with all resolvers, has
/// less than half of it.
pub(crate) const MAX_CONTROL: usize = 1024;

/// Frame with one inner packet. The packet's record number is the path's counter, which the frame
/// increments.
pub(crate) const DATA: u8 = 0x01;
/// Frame that sets the path's counter, the record number of the next packet.
pub(crate) const SEQ: u8 = 0x02;
/// Frame that acknowledges records: the number of the record that the receiver expects next.
pub(crate) const ACK: u8 = 0x03;
/// Frame that asks the peer for a PONG with the same nonce.
pub(crate) const PING: u8 = 0x04;
/// Frame that answers a PING.
pub(crate) const PONG: u8 = 0x05;
/// DATA frame whose packet has a partial TCP or UDP checksum.
pub(crate) const DATA_CHECKSUM: u8 = 0x06;
/// DATA frame whose packet has to be segmented: the segment size (16 bits), then the packet.
pub(crate) const DATA_SEGMENT: u8 = 0x07;
/// Frame with a packet as in any of the three kinds of DATA frames, compressed.
pub(crate) const COMPRESSED: u8 = 0x08;
/// Frame of a client that opens the path.
pub(crate) const HELLO: u8 = 0x10;
/// Frame of a relay that accepts the path.
pub(crate) const WELCOME: u8 = 0x11;
/// Frame of a client that makes this path the active one.
pub(crate) const ACTIVATE: u8 = 0x12;
/// Frame with which a relay pushes a changed configuration.
pub(crate) const CONFIG: u8 = 0x13;
/// Frame of either side that closes the path.
pub(crate) const CLOSE: u8 = 0x14;
/// Frame of a relay that gets no answers on the active path, sent on the other paths.
pub(crate) const DOUBT: u8 = 0x15;

/// Frame with which a client confirms the announcement of the relay that it has stored.
pub(crate) const CONFIRM: u8 = 0x16;

/// Returns the name of a frame type.
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
        CONFIRM => "CONFIRM",
        _ => "unknown",
    }
}

/// The first of the frame types that a receiver skips if it does not know them.
pub(crate) const FIRST_IGNORABLE: u8 = 0x80;

/// The result of decoding the start of a buffer as a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded<'a> {
    /// A complete frame, of `consumed` bytes.
    Frame { kind: u8, payload: &'a [u8], consumed: usize },
    /// The start of a frame; the buffer needs at least `need` bytes.
    Incomplete { need: usize },
}

/// Decodes one frame. The type and length are checked as soon as they are available, so nothing is
/// kept or allocated for a frame that will be refused.
pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded<'_>, ProtocolError> {
    decode_bounded(bytes, max_payload)
}

/// Decodes one frame of a protocol with its own frame types: `max_payload` returns the maximum
/// payload of each type.
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
        SEQ | ACK | PING | PONG | HELLO | WELCOME | ACTIVATE | CONFIG | CLOSE | DOUBT | CONFIRM => {
            Ok(MAX_CONTROL)
        }
        unknown => Err(ProtocolError::UnknownFrame(unknown)),
    }
}

/// Returns whether a frame of this type carries an uncompressed inner packet.
pub(crate) fn is_data(kind: u8) -> bool {
    matches!(kind, DATA | DATA_CHECKSUM | DATA_SEGMENT)
}

/// Appends a DATA frame of the kind that the packet's offload requires.
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

/// Appends a COMPRESSED frame with the packet in its `compressed` form.
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

/// The payload of a COMPRESSED frame: a compressed inner packet.
pub(crate) struct Compressed<'a> {
    pub(crate) offload: Offload,
    /// The length of the decompressed packet in bytes, as announced by the peer.
    pub(crate) length: usize,
    pub(crate) bytes: &'a [u8],
}

/// Parses the payload of COMPRESSED.
pub(crate) fn read_compressed(payload: &[u8]) -> Result<Compressed<'_>, ProtocolError> {
    let mut reader = PayloadReader::new("COMPRESSED", payload);
    let [kind] = reader.array()?;
    let offload = match kind {
        DATA => Offload::None,
        DATA_CHECKSUM => Offload::Checksum,
        DATA_SEGMENT => Offload::Segment(u16::from_be_bytes(reader.array()?)),
        _ => return Err(reader.malformed("the inner frame type is not DATA")),
    };
    let length = usize::try_from(reader.varint()?).ok().filter(|&length| length <= MAX_PACKET);
    let length = length.ok_or(reader.malformed("the packet is too long"))?;
    Ok(Compressed { offload, length, bytes: reader.rest })
}

/// Parses the payload of a frame that carries an inner packet.
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
        return Err(ProtocolError::Malformed { frame: "DATA", what: "the packet is empty" });
    }
    Ok(Packet { bytes, offload })
}

/// Appends a frame with its header.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    varint::put(out, payload.len() as u64);
    out.extend_from_slice(payload);
}

/// Appends a frame whose payload is one variable-length integer.
pub(crate) fn put_number(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    varint::put(out, varint::len(number) as u64);
    varint::put(out, number);
}

/// Parses the payload of a known frame field by field; every error names the frame.
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
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(self.malformed("the payload is too short"))?;
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
            Varint::Incomplete(_) => Err(self.malformed("the payload is too short")),
        }
    }

    /// Reads a counter (record number, switch counter). No path carries 2^61 records, so a counter
    /// that grows from a received one always fits a varint.
    pub(crate) fn counter(&mut self) -> Result<u64, ProtocolError> {
        match self.varint()? {
            value if value <= varint::MAX / 2 => Ok(value),
            _ => Err(self.malformed("a counter is above 2^61 - 1")),
        }
    }

    /// Checks that the payload has no further bytes.
    pub(crate) fn end(self) -> Result<(), ProtocolError> {
        if self.is_empty() { Ok(()) } else { Err(self.malformed("the payload is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_header() {
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
    fn an_unknown_type_is_refused_at_its_first_byte() {
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

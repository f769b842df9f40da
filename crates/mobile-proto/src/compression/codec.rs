//! The encoder and decoder of a zstd stream.

use std::fmt;

use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, compress_bound};

use crate::{MAX_PACKET, ProtocolError};

/// The zstd level. Level 1 reduces text in packets of 1 KiB to 36 %; levels 2 and 3 reduce it to 34
/// and 32 % for up to twice the memory and time.
const LEVEL: i32 = 1;

/// The base-2 logarithm of zstd's window of 64 KiB, the size of the kernel's largest packet. It
/// bounds the memory at both ends; a decoder refuses a stream that asks for more.
const WINDOW_LOG: u32 = 16;

/// The sending end of a compressed stream: compresses packet after packet with the history of the
/// earlier ones.
pub(crate) struct Encoder {
    context: CCtx<'static>,
    output: Vec<u8>,
}

/// The receiving end of a compressed stream: decompresses packet after packet with the history of
/// the earlier ones.
pub(crate) struct Decoder {
    context: DCtx<'static>,
    /// Output buffer for the longest packet and one more byte, which reveals a packet that is
    /// longer than announced.
    packet: Box<[u8]>,
}

impl Encoder {
    /// Creates an encoder; returns `None` if memory is exhausted.
    pub(crate) fn new() -> Option<Self> {
        let mut context = CCtx::try_create()?;
        context.set_parameter(CParameter::CompressionLevel(LEVEL)).ok()?;
        context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).ok()?;
        Some(Self { context, output: Vec::with_capacity(compress_bound(MAX_PACKET)) })
    }

    /// Compresses a packet of at most [`MAX_PACKET`] bytes into [`output`](Self::output). Returns
    /// false if the stream is broken; in this case no part of the output may be sent.
    pub(crate) fn encode(&mut self, packet: &[u8]) -> bool {
        self.output.clear();
        let mut output = OutBuffer::around(&mut self.output);
        let mut input = InBuffer::around(packet);
        let flush = ZSTD_EndDirective::ZSTD_e_flush;
        // The output buffer has zstd's own bound, so one call is enough; remaining data means a
        // failure.
        let left = self.context.compress_stream2(&mut output, &mut input, flush);
        left == Ok(0) && input.pos() == packet.len()
    }

    /// Returns the last packet in its compressed form.
    pub(crate) fn output(&self) -> &[u8] {
        &self.output
    }
}

impl Decoder {
    /// Creates a decoder for a new stream.
    ///
    /// # Errors
    ///
    /// If memory is exhausted.
    pub(crate) fn new() -> Result<Self, ProtocolError> {
        let mut context = DCtx::try_create().ok_or(malformed("cannot allocate the decoder"))?;
        let limited = context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG));
        limited.map_err(|_| malformed("cannot limit the decoder's window"))?;
        Ok(Self { context, packet: vec![0; MAX_PACKET + 1].into_boxed_slice() })
    }

    /// Decompresses `bytes` to a packet of `length` bytes, the length that the peer announced.
    /// Memory and time are bounded by that length.
    ///
    /// # Errors
    /// If the stream is invalid or the length differs. The stream is broken from then on.
    pub(crate) fn decode(&mut self, length: usize, bytes: &[u8]) -> Result<&[u8], ProtocolError> {
        if length == 0 || length > MAX_PACKET {
            return Err(malformed("the packet length is 0 or above the maximum"));
        }
        let room = &mut self.packet[..=length];
        let mut output = OutBuffer::around(room);
        let mut input = InBuffer::around(bytes);
        loop {
            let before = (input.pos(), output.pos());
            self.context
                .decompress_stream(&mut output, &mut input)
                .map_err(|_| malformed("the payload is not a zstd stream with a window of at most 64 KiB"))?;
            if (input.pos(), output.pos()) == before || output.pos() > length {
                break;
            }
        }
        if input.pos() != bytes.len() || output.pos() != length {
            return Err(malformed("the packet does not have the announced length"));
        }
        Ok(&self.packet[..length])
    }
}

fn malformed(what: &'static str) -> ProtocolError {
    ProtocolError::Malformed { frame: "COMPRESSED", what }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use zstd_safe::CompressionLevel;

    use super::*;

    /// Compresses `data` as another implementation may do it.
    fn stream(window_log: u32, level: CompressionLevel, data: &[u8]) -> Vec<u8> {
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level)).unwrap();
        context.set_parameter(CParameter::WindowLog(window_log)).unwrap();
        let mut compressed = Vec::with_capacity(compress_bound(data.len()));
        let mut input = InBuffer::around(data);
        let mut output = OutBuffer::around(&mut compressed);
        let flush = ZSTD_EndDirective::ZSTD_e_flush;
        assert_eq!(context.compress_stream2(&mut output, &mut input, flush), Ok(0));
        compressed
    }

    #[test]
    fn earlier_packets_make_the_next_one_smaller() {
        let packet: Vec<u8> =
            (0..1000_u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let mut encoder = Encoder::new().unwrap();
        assert!(encoder.encode(&packet));
        let first = encoder.output().len();
        assert!(encoder.encode(&packet));
        assert!(first > 3900 && encoder.output().len() < 50, "{first}, then {}", encoder.output().len());
    }

    #[test]
    fn the_longest_incompressible_packet_passes() {
        let mut noise = 1_u32;
        let packet: Vec<u8> = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            noise as u8
        })
        .take(MAX_PACKET)
        .collect();
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
        for _ in 0..3 {
            assert!(encoder.encode(&packet));
            assert_eq!(decoder.decode(MAX_PACKET, encoder.output()).unwrap(), packet);
        }
    }

    #[test]
    fn a_decompression_bomb_and_a_wrong_length_are_refused() {
        let bomb = stream(WINDOW_LOG, 1, &vec![0; 4 << 20]);
        assert!(bomb.len() < 1000, "{} bytes", bomb.len());
        for length in [1, 1500, MAX_PACKET] {
            assert!(Decoder::new().unwrap().decode(length, &bomb).is_err(), "{length} bytes");
        }
        let honest = stream(WINDOW_LOG, 1, &[7; 1000]);
        for length in [0, 999, 1001, MAX_PACKET, MAX_PACKET + 1, usize::MAX] {
            assert!(Decoder::new().unwrap().decode(length, &honest).is_err(), "{length} bytes");
        }
        assert_eq!(Decoder::new().unwrap().decode(1000, &honest).unwrap(), [7; 1000]);
    }

    #[test]
    fn a_stream_with_a_larger_window_is_refused() {
        let data = vec![1; 1000];
        assert!(Decoder::new().unwrap().decode(1000, &stream(WINDOW_LOG + 1, 3, &data)).is_err());
        assert!(Decoder::new().unwrap().decode(1000, &stream(WINDOW_LOG, 19, &data)).is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
        for round in 0..100_u8 {
            let packet: Vec<u8> = (0..60_000_u32).map(|at| (at % 251) as u8 ^ round).collect();
            assert!(encoder.encode(&packet));
            decoder.decode(packet.len(), encoder.output()).unwrap();
        }
        let (there, back) = (encoder.context.sizeof(), decoder.context.sizeof());
        assert!(there < 640 << 10 && back < 384 << 10, "{there} and {back} bytes");
    }

    proptest! {
        #[test]
        fn packets_survive_a_round_trip(packets in vec(vec(0..4_u8, 1..3000), 1..20)) {
            let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
            for packet in packets {
                prop_assert!(encoder.encode(&packet));
                prop_assert_eq!(decoder.decode(packet.len(), encoder.output()).unwrap(), &packet[..]);
            }
        }

        #[test]
        fn garbage_never_panics(length in 0..70_000_usize, bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = Decoder::new().unwrap().decode(length, &bytes) {
                prop_assert_eq!(packet.len(), length);
            }
        }

        #[test]
        fn a_damaged_stream_never_panics(
            packet in vec(0..4_u8, 1..3000),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
            encoder.encode(&packet);
            let mut damaged = encoder.output().to_vec();
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << bit;
            if let Ok(got) = decoder.decode(packet.len(), &damaged) {
                prop_assert_eq!(got.len(), packet.len());
            }
        }
    }
}

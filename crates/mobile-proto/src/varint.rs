//! Variable-length integers as in QUIC (RFC 9000, section 16): the two top bits of the first byte
//! encode the number of bytes.

/// The largest integer that can be encoded.
pub(crate) const MAX: u64 = (1 << 62) - 1;

/// Returns the number of bytes that `value` takes.
pub(crate) fn len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends `value` in its shortest form.
pub(crate) fn put(out: &mut Vec<u8>, value: u64) {
    debug_assert!(value <= MAX, "numbers from the wire are bounded far below this");
    let bytes = value.to_be_bytes();
    match len(value) {
        1 => out.push(bytes[7]),
        2 => out.extend_from_slice(&[bytes[6] | 0x40, bytes[7]]),
        4 => out.extend_from_slice(&[bytes[4] | 0x80, bytes[5], bytes[6], bytes[7]]),
        _ => {
            out.push(bytes[0] | 0xc0);
            out.extend_from_slice(&bytes[1..]);
        }
    }
}

/// The result of decoding an integer at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Varint {
    /// An integer, and the number of bytes that encode it.
    Whole(u64, usize),
    /// The start of an integer that is encoded in this many bytes.
    Incomplete(usize),
}

/// Decodes an integer. Longer forms than needed are accepted, as in QUIC.
pub(crate) fn get(bytes: &[u8]) -> Varint {
    let Some(&first) = bytes.first() else { return Varint::Incomplete(1) };
    let len = 1 << (first >> 6);
    let Some(rest) = bytes.get(1..len) else { return Varint::Incomplete(len) };
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, &byte| (value << 8) | u64::from(byte));
    Varint::Whole(value, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000_are_decoded() {
        let cases: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in cases {
            assert_eq!(get(bytes), Varint::Whole(value, bytes.len()));
            assert_eq!(get(&bytes[..bytes.len() - 1]), Varint::Incomplete(bytes.len().max(1)));
        }
    }

    proptest! {
        #[test]
        fn round_trip(value in 0..=MAX, shift in 0_u32..62) {
            let value = value >> shift;
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), len(value));
            prop_assert_eq!(get(&out), Varint::Whole(value, out.len()));
        }
    }
}

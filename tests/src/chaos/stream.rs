//! The pseudorandom bytes of one direction of a flow, which the receiver generates again for
//! comparison.

/// An endless stream of pseudorandom bytes that a seed determines.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Stream {
    /// Creates the stream of bytes that `seed` determines.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // xorshift64 must not start at zero. The multiplication by splitmix64's constant separates
        // neighbouring seeds.
        let state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self { state, word: [0; 8], used: 8 }
    }

    /// Writes the stream's next bytes to `to`.
    pub fn fill(&mut self, to: &mut [u8]) {
        for byte in to {
            if self.used == self.word.len() {
                // Marsaglia's xorshift64, whose output shows any error of offset.
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                (self.word, self.used) = (self.state.to_le_bytes(), 0);
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }

    /// Compares the stream's next bytes with `got`.
    ///
    /// # Errors
    /// Returns the index in `got` of the first byte that differs.
    pub fn check(&mut self, got: &[u8]) -> Result<(), usize> {
        let mut expected = vec![0; got.len()];
        self.fill(&mut expected);
        match expected.iter().zip(got).position(|(expected, got)| expected != got) {
            Some(place) => Err(place),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_does_not_depend_on_the_chunk_size() {
        let mut whole = [0; 1_000];
        Stream::new(5).fill(&mut whole);
        let mut checked = Stream::new(5);
        for part in whole.chunks(7) {
            assert_eq!(checked.check(part), Ok(()));
        }
    }

    #[test]
    fn a_wrong_a_missing_and_a_doubled_byte_are_seen() {
        let mut bytes = [0; 100];
        Stream::new(5).fill(&mut bytes);
        let mut wrong = bytes;
        wrong[41] ^= 1;
        assert_eq!(Stream::new(5).check(&wrong), Err(41));
        let missing = [&bytes[..41], &bytes[42..]].concat();
        assert!(Stream::new(5).check(&missing).is_err());
        let doubled = [&bytes[..41], &bytes[40..]].concat();
        assert!(Stream::new(5).check(&doubled).is_err());
        assert!(Stream::new(6).check(&bytes).is_err());
    }
}

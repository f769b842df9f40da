//! Decides which flows' packets are compressed, because most traffic is compressed or encrypted
//! already.

/// Bytes of a flow after which the heuristic decides whether to compress the flow.
const SAMPLE_BYTES: u32 = 16 << 10;

/// Compression of a flow pays if it saves at least one byte in this many.
const MIN_SAVED_SHARE: u64 = 16;

/// Bytes of an incompressible flow that are sent uncompressed before the next attempt. The pause
/// doubles each time up to [`MAX_PAUSE`], where the attempts cost a thousandth of compressing the
/// whole flow.
const FIRST_PAUSE: u32 = 256 << 10;
const MAX_PAUSE: u32 = 16 << 20;

/// Decides for each flow queue whether its packets are compressed, by the measured compression. A
/// flow usually has a queue to itself.
#[derive(Debug, Default)]
pub(crate) struct Heuristic {
    samples: Vec<FlowSample>,
}

#[derive(Clone, Debug, Default)]
struct FlowSample {
    original: u32,
    compressed: u64,
    /// Bytes that are sent uncompressed before the next attempt.
    skip_bytes: u32,
    pause: u32,
}

impl Heuristic {
    /// Returns whether the next packet, of `length` bytes in the flow queue `bucket`, should be
    /// compressed.
    pub(crate) fn should_compress(&mut self, bucket: u16, length: usize) -> bool {
        let sample = self.sample(bucket);
        let tried = sample.skip_bytes == 0;
        // A packet's length is below 2^17.
        sample.skip_bytes = sample.skip_bytes.saturating_sub(length as u32);
        tried
    }

    /// Records the length of a packet of the flow queue `bucket` before and after compression.
    pub(crate) fn observe(&mut self, bucket: u16, length: usize, compressed: usize) {
        let sample = self.sample(bucket);
        sample.original += length as u32;
        sample.compressed += compressed as u64;
        if sample.original < SAMPLE_BYTES {
            return;
        }
        let original = u64::from(sample.original);
        if sample.compressed > original - original / MIN_SAVED_SHARE {
            sample.pause = (sample.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
            sample.skip_bytes = sample.pause;
        } else {
            sample.pause = 0;
        }
        (sample.original, sample.compressed) = (0, 0);
    }

    fn sample(&mut self, bucket: u16) -> &mut FlowSample {
        let index = usize::from(bucket);
        if index >= self.samples.len() {
            self.samples.resize(index + 1, FlowSample::default());
        }
        &mut self.samples[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `total` bytes in packets of 1000 bytes, each of which compresses to `compressed`
    /// bytes. Returns how many the heuristic chose to compress.
    fn send(heuristic: &mut Heuristic, bucket: u16, total: usize, compressed: usize) -> usize {
        let mut tried = 0;
        for _ in 0..total / 1000 {
            if heuristic.should_compress(bucket, 1000) {
                heuristic.observe(bucket, 1000, compressed);
                tried += 1;
            }
        }
        tried
    }

    #[test]
    fn an_incompressible_flow_is_paused_and_tried_again() {
        let mut heuristic = Heuristic::default();
        assert_eq!(send(&mut heuristic, 7, 200_000, 990), 17, "one sample, then paused");
        assert_eq!(send(&mut heuristic, 8, 200_000, 500), 200, "another flow is not affected");
        // 79 KB of the first pause are left; each further pause is twice as long.
        assert!((100..200).contains(&send(&mut heuristic, 7, 60 << 20, 1010)), "tried from time to time");
        // Sends beyond the end of the longest pause.
        send(&mut heuristic, 7, 17 << 20, 500);
        assert_eq!(send(&mut heuristic, 7, 1 << 20, 500), 1048, "compressed again after the data changed");
    }
}

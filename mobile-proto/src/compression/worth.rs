//! Whose packets are worth compressing: most of what travels is compressed or encrypted already.

/// A flow is judged by this much of it.
const SAMPLE: u32 = 16 << 10;

/// Less saved than one part in so many is not worth the time.
const LEAST_SAVED: u64 = 16;

/// A flow that does not compress is left alone for so many bytes, twice as many each time, up to the second: then compressing
/// costs a permille of what it would.
const FIRST_PAUSE: u32 = 256 << 10;
const LONGEST_PAUSE: u32 = 16 << 20;

/// What is known of each place of the queue, in which a flow usually is alone.
#[derive(Debug, Default)]
pub(crate) struct Worth {
    flows: Vec<Flow>,
}

#[derive(Clone, Debug, Default)]
struct Flow {
    sampled: u32,
    made: u64,
    /// Bytes that are to go as they are before it is tried again.
    left_alone: u32,
    pause: u32,
}

impl Worth {
    /// Whether the next packet of a flow is to be compressed.
    pub(crate) fn is_worth(&mut self, flow: u16, length: usize) -> bool {
        let flow = self.flow(flow);
        let tried = flow.left_alone == 0;
        // A packet's length is below 2^17.
        flow.left_alone = flow.left_alone.saturating_sub(length as u32);
        tried
    }

    /// A packet of a flow was compressed.
    pub(crate) fn learn(&mut self, flow: u16, length: usize, made: usize) {
        let flow = self.flow(flow);
        flow.sampled += length as u32;
        flow.made += made as u64;
        if flow.sampled < SAMPLE {
            return;
        }
        let sampled = u64::from(flow.sampled);
        if flow.made > sampled - sampled / LEAST_SAVED {
            flow.pause = (flow.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            flow.left_alone = flow.pause;
        } else {
            flow.pause = 0;
        }
        (flow.sampled, flow.made) = (0, 0);
    }

    fn flow(&mut self, flow: u16) -> &mut Flow {
        let place = usize::from(flow);
        if place >= self.flows.len() {
            self.flows.resize(place + 1, Flow::default());
        }
        &mut self.flows[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `total` bytes in packets of 1000 that become `made` each; returns how many were compressed.
    fn send(worth: &mut Worth, flow: u16, total: usize, made: usize) -> usize {
        let mut tried = 0;
        for _ in 0..total / 1000 {
            if worth.is_worth(flow, 1000) {
                worth.learn(flow, 1000, made);
                tried += 1;
            }
        }
        tried
    }

    #[test]
    fn a_flow_that_does_not_compress_is_given_up_and_tried_again() {
        let mut worth = Worth::default();
        assert_eq!(send(&mut worth, 7, 200_000, 990), 17, "one sample, then left alone");
        assert_eq!(send(&mut worth, 8, 200_000, 500), 200, "another flow is not concerned");
        // 79 KB of the first pause are left; then each is twice as long.
        assert!((100..200).contains(&send(&mut worth, 7, 60 << 20, 1010)), "tried now and then");
        // The end of the longest pause, at the latest.
        send(&mut worth, 7, 17 << 20, 500);
        assert_eq!(send(&mut worth, 7, 1 << 20, 500), 1048, "it has changed its mind, and so have we");
    }
}

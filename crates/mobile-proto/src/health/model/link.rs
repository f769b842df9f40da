//! The modelled link, which delays and loses packets.

/// One direction of the link.
#[derive(Clone, Debug)]
pub(in crate::health) struct LinkDirection {
    pub(in crate::health) delay_ms: u64,
    /// Probability in percent that a packet is lost.
    pub(in crate::health) loss: u64,
    pub(in crate::health) bytes_per_ms: u64,
    pub(in crate::health) dead: bool,
    /// The time in milliseconds at which all queued packets will have been sent.
    busy_until: f64,
}

impl LinkDirection {
    pub(in crate::health) fn new(delay_ms: u64, loss: u64, bytes_per_ms: u64) -> Self {
        Self { delay_ms, loss, bytes_per_ms, dead: false, busy_until: 0.0 }
    }
}

/// Both directions of the link, and what is in flight.
pub(in crate::health) struct Link {
    pub(in crate::health) up: LinkDirection,
    pub(in crate::health) down: LinkDirection,
    /// Segments in flight (arrival, sequence), and acknowledgements in flight (arrival, cumulative,
    /// selective).
    to_peer: Vec<(u64, u64)>,
    to_us: Vec<(u64, u64, Vec<u64>)>,
    seed: u64,
}

impl Link {
    pub(super) fn new(up: LinkDirection, down: LinkDirection, seed: u64) -> Self {
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { up, down, to_peer: Vec::new(), to_us: Vec::new(), seed }
    }

    /// Sends a segment to the peer at the time `ms`.
    pub(super) fn send_up(&mut self, ms: u64, sequence: u64, size: u64) {
        if let Some(at) = self.pass(ms, true, size) {
            self.to_peer.push((at, sequence));
        }
    }

    /// Sends an acknowledgement of the peer at the time `ms`.
    pub(super) fn send_down(&mut self, ms: u64, cumulative: u64, selective: &[u64]) {
        if let Some(at) = self.pass(ms, false, 40) {
            self.to_us.push((at, cumulative, selective.to_vec()));
        }
    }

    /// Returns the segments that have reached the peer by the time `ms`.
    pub(super) fn arrived_up(&mut self, ms: u64) -> Vec<u64> {
        self.to_peer.extract_if(.., |(at, _)| *at <= ms).map(|(_, sequence)| sequence).collect()
    }

    /// Returns the acknowledgements that have arrived by the time `ms`.
    pub(super) fn arrived_down(&mut self, ms: u64) -> Vec<(u64, Vec<u64>)> {
        let arrived = self.to_us.extract_if(.., |(at, _, _)| *at <= ms);
        arrived.map(|(_, cumulative, selective)| (cumulative, selective)).collect()
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed >> 11
    }

    /// Returns the arrival time of a packet sent now, in milliseconds of the model's clock, or
    /// `None` if it is lost.
    fn pass(&mut self, ms: u64, up: bool, size: u64) -> Option<u64> {
        let lost = self.random() % 100;
        let (ms, direction) = (ms as f64, if up { &mut self.up } else { &mut self.down });
        let queued = direction.busy_until.max(ms) - ms;
        // A router queues 300 ms and then drops.
        if direction.dead || lost < direction.loss || queued > 300.0 {
            return None;
        }
        direction.busy_until =
            direction.busy_until.max(ms) + (size + 52) as f64 / direction.bytes_per_ms as f64;
        Some(direction.busy_until.ceil() as u64 + direction.delay_ms)
    }
}

//! The plan of a flow, which both ends of its connection follow.

/// The rate of an interactive flow in bytes per second. All interactive flows together need a tenth
/// of the uplinks' rate.
const INTERACTIVE_RATE: u64 = 8_000;

/// The directions, the rate and the content of one flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlowPlan {
    pub(super) up: bool,
    pub(super) down: bool,
    /// The rate in bytes per second in each direction, or `None` for as much as the path can carry.
    pub(super) rate: Option<u64>,
    /// The seed of the bytes that the client sends; the server's bytes have the next number as
    /// their seed.
    pub(super) seed: u64,
}

impl FlowPlan {
    /// Returns the plan of the flow with this number, from 0, in the chaos test of this seed.
    pub(super) fn new(number: usize, seed: u64) -> Self {
        // 8 flows send up, 8 down and 4 both ways. The first two of those that go one way are bulk
        // transfers.
        let (up, down) = match number {
            0..8 => (true, false),
            8..16 => (false, true),
            _ => (true, true),
        };
        let bulk = matches!(number, 0 | 1 | 8 | 9);
        Self {
            up,
            down,
            rate: (!bulk).then_some(INTERACTIVE_RATE),
            seed: seed.wrapping_add(2 * number as u64),
        }
    }

    /// Returns the arguments of [`super::client`] for the directions, the rate and the seed.
    pub(super) fn client_arguments(&self) -> [String; 3] {
        let ways = match (self.up, self.down) {
            (true, true) => "both",
            (true, false) => "up",
            _ => "down",
        };
        [ways.to_owned(), self.rate.unwrap_or(0).to_string(), self.seed.to_string()]
    }
}

//! Tests the rate control on a modelled path ([`model::Link`]).
//!
//! The properties hold for the model, which leaves out:
//!
//! - the queue of the session: bulk data never runs out and is never dropped for its delay, and a
//!   keystroke goes before all of it. The inner connections and their congestion control are not
//!   modelled, nor is the opposite direction: acknowledgements are neither queued nor lost;
//! - the blocking of a stream behind a lost segment: the delay of a keystroke ends when its segment
//!   has passed the bottleneck;
//! - variation of the round trip that is not due to the FIFO, reordering, and a rate that changes
//!   from one packet to the next, as over radio. The bottleneck drops only the newest packets (no
//!   AQM, no ECN);
//! - retransmission time-outs, the peer's receive window, and the aggregation of segments by TSO,
//!   GRO and wireless links. The competing flow has the same round trip;
//! - other processes on the host: the driver runs within 2 ms of its timer.
//!
//! The kernel's congestion controls are simplified: cubic without fast convergence, and bbr
//! (version 1) without long-term rate sampling, and with a fixed first phase of its cycle.

mod commands;
pub(super) mod model;

use std::time::Duration;

use model::{Link, MS, PACKET};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const SECOND: Duration = Duration::from_secs(1);

/// The parameters of one bottleneck.
#[derive(Debug, Clone, Copy)]
struct BottleneckParameters {
    /// The rate in bytes per second.
    rate: u64,
    rtt: Duration,
    /// The number of bytes in the FIFO.
    fifo: u64,
}

impl BottleneckParameters {
    fn link(self) -> Link {
        let mut link = Link::new(self.rate, self.rtt);
        link.bottleneck.fifo = self.fifo;
        link
    }

    /// Returns the time within which the kernel has found the rate: two seconds, or ten round trips
    /// more on a long path.
    fn start_up(self) -> Duration {
        2 * SECOND + self.rtt * 10
    }

    /// Returns which share of the bottleneck's rate `bytes` in `time` are.
    fn share(self, bytes: u64, time: Duration) -> f64 {
        bytes as f64 / (self.rate as f64 * time.as_secs_f64())
    }

    /// Returns the time that the FIFO takes to drain.
    fn drain_time(self) -> Duration {
        Duration::from_secs_f64(self.fifo as f64 / self.rate as f64)
    }
}

/// Generates a number between `low` and `high`, each order of magnitude with the same probability.
fn log_uniform(low: f64, high: f64) -> impl Strategy<Value = f64> {
    (0.0..1.0).prop_map(move |exponent| low * (high / low).powf(exponent))
}

/// Generates bottlenecks of 0.5 Mbit/s up to `max_mbits`, and 5 to 200 ms. The FIFO holds 20
/// packets, and a half to four bandwidth-delay products.
fn settings(max_mbits: f64) -> impl Strategy<Value = BottleneckParameters> {
    let parts = (log_uniform(0.5, max_mbits), log_uniform(0.005, 0.2), log_uniform(0.5, 4.0));
    parts.prop_map(|(mbits, rtt, products)| {
        let rate = mbits * 125_000.0;
        BottleneckParameters {
            rate: rate as u64,
            rtt: Duration::from_secs_f64(rtt),
            fifo: 20 * PACKET + (rate * rtt * products) as u64,
        }
    })
}

/// Returns the configuration of a property of which some cases come close to its bound. The cases
/// are the same in every run, so that a failure always has a cause in the code.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 20, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(24))]

    /// Tests that a path without loss is used: four fifths of the rate in the ten seconds after the
    /// start-up, one of bbr's measurements of the round trip included.
    #[test]
    fn the_rate_of_a_path_without_loss_is_used(setting in settings(200.0)) {
        let mut link = setting.link();
        link.run(setting.start_up());
        let share = setting.share(link.run(10 * SECOND).bytes, 10 * SECOND);
        prop_assert!(share >= 0.8, "{share}, {:?}", link.switches);
    }

    /// Tests that a path is used as well if up to 1 % of its packets are lost without congestion.
    #[test]
    fn the_rate_of_a_lossy_path_is_used(setting in settings(200.0), loss in 0.0..0.01) {
        let mut link = setting.link();
        link.bottleneck.loss = loss;
        link.run(setting.start_up());
        let share = setting.share(link.run(10 * SECOND).bytes, 10 * SECOND);
        prop_assert!(share >= 0.8, "{share}, {:?}", link.switches);
    }

    /// Tests that a keystroke passes a bulk transfer on a limited path.
    ///
    /// Of the bound, 20 ms are the pause of a path (10 ms) with a timer that is 2 ms late, and the
    /// two backlogs of 4 ms each. A quarter of the round trip is the probing for more capacity, and
    /// an eighth the variation that the limit permits. The 23 packets are three times the least
    /// sizes of the backlogs and of the slack, and two packets being sent: on a slow path, where
    /// few packets make up a sample, the measured rate and variation are imprecise by this much.
    ///
    /// While bbr measures the round trip, for 200 ms, it has no more than four segments in flight.
    /// A keystroke then also waits until the data in flight has arrived, and behind the little data
    /// that the kernel already has: two round trips more.
    #[test]
    fn a_keystroke_waits_little_behind_bulk_data(setting in settings(60.0)) {
        let mut link = setting.link();
        link.typing = Some(97 * MS);
        link.run(setting.start_up());
        let packets = Duration::from_secs_f64(23.0 * PACKET as f64 / setting.rate as f64);
        let bound = 20 * MS + setting.rtt * 3 / 8 + packets;
        let slowest = link.run(5 * SECOND).slowest_keystroke;
        prop_assert!(slowest <= bound, "{slowest:?}, at most {bound:?}");
        let bound = bound + setting.rtt * 2 + 200 * MS;
        let slowest = link.run(5 * SECOND).slowest_keystroke;
        prop_assert!(slowest <= bound, "{slowest:?}, at most {bound:?} around bbr's measurement");
    }
}

proptest! {
    #![proptest_config(cases(12))]

    /// Tests that neither the path nor a competing flow with loss-based congestion control starves.
    ///
    /// With a FIFO of 100 ms or more, each has a tenth of the rate at least. A shorter queue is no
    /// evidence of cross traffic, because it is not 20 ms beyond the path's own, and the path keeps
    /// a small share only. The same is true of FIFOs that are deeper than these on a path with a
    /// short round trip: bbr takes the queue that never drains for a part of the path.
    #[test]
    fn beside_a_competing_flow_neither_starves(setting in settings(50.0), head_start in any::<bool>()) {
        let mut link = setting.link();
        if head_start {
            link.run(setting.start_up());
        }
        link.compete();
        link.run(10 * SECOND);
        let run = link.run(40 * SECOND);
        let own = setting.share(run.bytes, 40 * SECOND);
        let competing = setting.share(run.competing_bytes, 40 * SECOND);
        let least = if setting.drain_time() >= 100 * MS { 0.1 } else { 0.02 };
        prop_assert!(own >= least && competing >= 0.1, "{own} {competing}, {:?}", link.switches);
        prop_assert!(own + competing >= 0.9, "{own} {competing}");
    }
}

/// Tests that a path gets a larger share beside a competing flow because it detects the flow: 42 %
/// of the rate on average, not the 28 % that its send limit alone would leave it.
///
/// The shares of one path vary, because either flow is a few drops ahead by chance.
#[test]
fn paths_that_detect_cross_traffic_have_their_share() {
    let mut shares = Vec::new();
    for (mbits, rtt) in [(20, 80), (30, 40), (30, 80), (30, 120), (40, 40), (40, 80), (40, 120), (50, 80)] {
        let rate = mbits * 125_000;
        let setting = BottleneckParameters { rate, rtt: rtt * MS, fifo: rate / 4 };
        let mut link = setting.link();
        link.run(setting.start_up());
        link.compete();
        link.run(10 * SECOND);
        let run = link.run(40 * SECOND);
        shares.push(setting.share(run.bytes, 40 * SECOND));
    }
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((0.36..0.55).contains(&mean), "{shares:.2?}, {mean}");
}

/// Tests that a path whose capacity exceeds the data in flight that the kernel permits by default,
/// 4 MiB, gets a larger send buffer, and that a path whose FIFO fills does not.
#[test]
fn a_path_without_a_queue_gets_a_larger_send_buffer_and_one_with_a_queue_does_not() {
    let rtt = 200 * MS;
    let mut link = Link::new(125_000_000, rtt);
    link.run(10 * SECOND);
    let in_flight = link.run(5 * SECOND).bytes / 25;
    assert!(link.has_raised_send_buffer() && in_flight > 8 << 20, "{in_flight}, {:?}", link.switches);
    let mut link = Link::new(1_250_000, rtt);
    link.run(10 * SECOND);
    assert!(!link.has_raised_send_buffer(), "{:?}", link.switches);
}

//! What a path shows of itself: that it has bounds, so that its congestion control is to go by rate, or that it takes more than
//! the kernel lets one connection have on its way.
//!
//! One that goes by loss (cubic) fills whatever FIFO the uplink has, and all that we send waits in it, keystrokes as well; and
//! by losses of the air it is slowed down. bbr goes by rate and round trip. But it paces, with a timer for each packet,
//! and on a path that carries more than its ends can send there is nothing to gain by that: a third of the speed is lost.
//! The kernel never stops to pace a connection that has once been paced, so each begins with the system's congestion control, or
//! with cubic where that is bbr, and is given bbr when the path shows that it has bounds, until it is found to be shared
//! ([`CrossTraffic`](super::cross_traffic::CrossTraffic)).
//!
//! What one connection may have on its way is bounded by the kernel, and a path carries all inner connections. One that has much
//! there without a queue is given room; an idle one is not, nor one that queues.

use std::time::Duration;

use crate::tcp_info::SendState;

/// With a shorter round trip than this there is no Internet between.
const LOCAL_RTT: Duration = Duration::from_millis(1);

/// A round trip that a near path has only with a queue on it: the target of our own queue (CoDel, RFC 8289).
const LOCAL_QUEUE_RTT: Duration = Duration::from_millis(5);

/// So much on its way is a transfer: RFC 6928's initial window, of 1448 bytes each. The acknowledgement of less may have been delayed.
const BULK_BYTES: u64 = 10 * 1448;

/// Half of what the kernel lets one connection have on its way (`tcp_wmem`).
const HALF_TCP_WMEM: u64 = 2 << 20;

/// Does a path show that it carries no more than is sent?
pub(super) fn is_bandwidth_limited(path: &SendState) -> bool {
    let Some(min_rtt) = path.min_rtt else { return false };
    if min_rtt < LOCAL_RTT {
        // What else looks like bounds there is how two busy ends take turns. A slow or lossy wireless network has both.
        return path.retransmitted && path.rtt >= LOCAL_QUEUE_RTT;
    }
    path.retransmitted || path.left_slow_start || fills_bottleneck_queue(path)
}

/// Does a transfer of ours fill the path's FIFO?
pub(super) fn fills_bottleneck_queue(path: &SendState) -> bool {
    path.outstanding > BULK_BYTES && path.base_rtt().is_some_and(|base_rtt| has_queue(path, base_rtt))
}

/// Does a path take so much without a queue that the kernel's bound may soon be less than the path's?
pub(super) fn needs_larger_send_buffer(path: &SendState) -> bool {
    let in_flight = path.outstanding.saturating_sub(path.unsent);
    in_flight > HALF_TCP_WMEM && path.min_rtt.is_some_and(|min_rtt| !has_queue(path, min_rtt))
}

/// What varies without us is not a queue of ours.
pub(super) fn has_queue(path: &SendState, min_rtt: Duration) -> bool {
    path.rtt > min_rtt * 5 / 4 + path.rttvar * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn far() -> SendState {
        SendState {
            rtt: 21 * MS,
            rttvar: MS,
            min_rtt: Some(20 * MS),
            outstanding: 4 << 20,
            ..SendState::default()
        }
    }

    #[test]
    fn a_path_that_takes_all_it_is_given_has_no_bounds() {
        assert!(!is_bandwidth_limited(&far()));
        assert!(!is_bandwidth_limited(&SendState::default()), "before the first round trip");
    }

    #[test]
    fn loss_a_growing_round_trip_and_the_end_of_slow_start_are_bounds() {
        for path in [
            SendState { retransmitted: true, ..far() },
            SendState { left_slow_start: true, ..far() },
            SendState { rtt: 28 * MS, ..far() },
        ] {
            assert!(is_bandwidth_limited(&path), "{path:?}");
        }
    }

    #[test]
    fn in_one_house_only_a_loss_with_a_queue_is_a_bound() {
        let near = || SendState { rtt: 4 * MS, min_rtt: Some(MS / 10), ..far() };
        for path in [
            SendState { retransmitted: true, ..near() },
            SendState { left_slow_start: true, ..near() },
            SendState { rtt: 28 * MS, ..near() },
        ] {
            assert!(!is_bandwidth_limited(&path), "{path:?}");
        }
        assert!(is_bandwidth_limited(&SendState { retransmitted: true, rtt: LOCAL_QUEUE_RTT, ..near() }));
    }

    #[test]
    fn a_path_that_takes_much_outgrows_the_kernel_s_bound_unless_it_queues() {
        assert!(needs_larger_send_buffer(&far()));
        for path in [
            SendState { outstanding: HALF_TCP_WMEM, ..far() },
            SendState { unsent: 3 << 20, ..far() },
            SendState { rtt: 28 * MS, ..far() },
            SendState { min_rtt: None, ..far() },
        ] {
            assert!(!needs_larger_send_buffer(&path), "{path:?}");
        }
    }

    #[test]
    fn a_delayed_acknowledgement_and_a_round_trip_that_varies_are_no_queue() {
        assert!(!is_bandwidth_limited(&SendState { rtt: 60 * MS, outstanding: 100, ..far() }));
        assert!(!is_bandwidth_limited(&SendState { rtt: 40 * MS, rttvar: 10 * MS, ..far() }));
    }
}

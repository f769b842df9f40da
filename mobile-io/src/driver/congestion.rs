//! Decides from the kernel's statistics when a path should use bbr, and when it needs a larger send
//! buffer.
//!
//! Loss-based congestion control (cubic) fills the FIFO of the bottleneck, and everything sent
//! waits in it, keystrokes included. It also slows down after losses on the air. bbr follows the
//! delivery rate and the round trip instead. However, bbr paces every packet with a timer. On a
//! path that carries more than its ends can send, pacing gains nothing and costs a third of the
//! throughput.
//!
//! The kernel never stops pacing a socket once bbr has paced it (`sk_pacing_status`). So each path
//! starts with the system's congestion control, or with cubic if that is bbr. It is switched to bbr
//! when it turns out to be bandwidth-limited, until competing traffic is detected
//! ([`CrossTraffic`](super::cross_traffic::CrossTraffic)).
//!
//! The kernel limits the bytes in flight of one connection, but a path carries all inner
//! connections. A path that has much in flight without a queue gets a larger send buffer; an idle
//! or queueing path does not.

use std::time::Duration;

use crate::tcp_info::SendState;

/// Below this round-trip time there is no Internet between the two ends.
const LOCAL_RTT: Duration = Duration::from_millis(1);

/// The round-trip time that a local path reaches only with a queue: the target of the session's own
/// queue (CoDel, RFC 8289).
const LOCAL_QUEUE_RTT: Duration = Duration::from_millis(5);

/// The number of bytes in flight that indicates a bulk transfer: RFC 6928's initial window of ten
/// segments of 1448 bytes.
///
/// The acknowledgement of less may have been delayed.
const BULK_BYTES: u64 = 10 * 1448;

/// Half of the kernel's default limit for the bytes in flight of one connection (`tcp_wmem`).
const HALF_TCP_WMEM: u64 = 2 << 20;

/// Returns whether the path carries no more than is being sent.
pub(super) fn is_bandwidth_limited(path: &SendState) -> bool {
    let Some(min_rtt) = path.min_rtt else { return false };
    if min_rtt < LOCAL_RTT {
        // On a local path, two busy ends that take turns look bandwidth-limited by the other
        // criteria. A slow or lossy wireless network shows both loss and a queue.
        return path.retransmitted && path.rtt >= LOCAL_QUEUE_RTT;
    }
    path.retransmitted || path.left_slow_start || fills_bottleneck_queue(path)
}

/// Returns whether a bulk transfer of ours fills the bottleneck's FIFO.
pub(super) fn fills_bottleneck_queue(path: &SendState) -> bool {
    path.outstanding > BULK_BYTES && path.base_rtt().is_some_and(|base_rtt| has_queue(path, base_rtt))
}

/// Returns whether the path has so much in flight without a queue that the kernel's limit may soon
/// be lower than the path's capacity.
pub(super) fn needs_larger_send_buffer(path: &SendState) -> bool {
    let in_flight = path.outstanding.saturating_sub(path.unsent);
    in_flight > HALF_TCP_WMEM && path.min_rtt.is_some_and(|min_rtt| !has_queue(path, min_rtt))
}

/// Returns whether the smoothed round trip exceeds `min_rtt` by more than its usual variation.
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

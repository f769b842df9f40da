//! Decides from the kernel's statistics when a path should use bbr, and when it needs a larger send
//! buffer.
//!
//! Loss-based congestion control (cubic) fills the FIFO of the bottleneck, and everything sent
//! waits in the FIFO, keystrokes included. Loss-based congestion control also slows down after
//! losses that are due to radio, not to congestion. bbr follows the delivery rate and the round
//! trip instead. However, bbr paces every packet with a timer. On a path that carries more than its
//! ends can send, pacing gains nothing and costs a third of the throughput.
//!
//! The kernel never stops pacing a socket once bbr has paced it (`sk_pacing_status`). So each path
//! starts with the system's congestion control, or with cubic if that is bbr. A path is switched to
//! bbr when it turns out to be bandwidth-limited, and back when competing traffic is detected
//! ([`CrossTraffic`](super::cross_traffic::CrossTraffic)).
//!
//! The kernel limits the bytes in flight of one connection, but a path carries all inner
//! connections. A path that has much in flight without a queue gets a larger send buffer; an idle
//! or queueing path does not.

use std::time::Duration;

use super::sample::TcpSample;

/// The round-trip time below which a path counts as local, that is, as one that does not lead
/// through the Internet.
const LOCAL_RTT: Duration = Duration::from_millis(1);

/// The round-trip time from which a local path counts as queueing. Equals the target delay of the
/// session's own queue (CoDel, RFC 8289).
const LOCAL_QUEUE_RTT: Duration = Duration::from_millis(5);

/// The number of bytes in flight that indicates a bulk transfer: RFC 6928's initial window of ten
/// segments of 1448 bytes.
///
/// With fewer bytes in flight a long round trip is no sign of a queue, because the peer may have
/// delayed the acknowledgement.
const BULK_BYTES: u64 = 10 * 1448;

/// Half of the kernel's default limit for the bytes in flight of one connection (`tcp_wmem`).
const HALF_TCP_WMEM: u64 = 2 << 20;

/// Returns whether the network limits the rate of the path, not the two ends: segments were lost,
/// slow start has ended, or a bulk transfer has built a queue.
pub(super) fn is_bandwidth_limited(path: &TcpSample) -> bool {
    let Some(min_rtt) = path.min_rtt else { return false };
    if min_rtt < LOCAL_RTT {
        // On a local path, two busy ends that take turns look bandwidth-limited by the other
        // criteria. A slow or lossy wireless network shows both loss and a queue.
        return path.retransmitted && path.rtt >= LOCAL_QUEUE_RTT;
    }
    path.retransmitted || path.left_slow_start || fills_bottleneck_queue(path)
}

/// Returns whether a bulk transfer of this session fills the bottleneck's FIFO.
pub(super) fn fills_bottleneck_queue(path: &TcpSample) -> bool {
    path.outstanding > BULK_BYTES && path.base_rtt().is_some_and(|base_rtt| has_queue(path, base_rtt))
}

/// Returns whether so much data is in flight, without a queue at the bottleneck, that the kernel's
/// limit for one connection may soon keep the path below its capacity.
pub(super) fn needs_larger_send_buffer(path: &TcpSample) -> bool {
    let in_flight = path.outstanding.saturating_sub(path.unsent);
    in_flight > HALF_TCP_WMEM && path.min_rtt.is_some_and(|min_rtt| !has_queue(path, min_rtt))
}

/// Returns whether there is a queue at the bottleneck: the smoothed round trip exceeds `min_rtt` by
/// more than a quarter and twice the kernel's `rttvar` (variation of the round trip).
pub(super) fn has_queue(path: &TcpSample, min_rtt: Duration) -> bool {
    path.rtt > min_rtt * 5 / 4 + path.rttvar * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn far() -> TcpSample {
        TcpSample {
            rtt: 21 * MS,
            rttvar: MS,
            min_rtt: Some(20 * MS),
            outstanding: 4 << 20,
            ..TcpSample::default()
        }
    }

    #[test]
    fn a_path_without_loss_or_queue_is_not_bandwidth_limited() {
        assert!(!is_bandwidth_limited(&far()));
        assert!(!is_bandwidth_limited(&TcpSample::default()), "before the first round trip");
    }

    #[test]
    fn loss_a_queue_and_the_end_of_slow_start_indicate_a_limit() {
        for path in [
            TcpSample { retransmitted: true, ..far() },
            TcpSample { left_slow_start: true, ..far() },
            TcpSample { rtt: 28 * MS, ..far() },
        ] {
            assert!(is_bandwidth_limited(&path), "{path:?}");
        }
    }

    #[test]
    fn on_a_local_path_only_loss_with_a_queue_indicates_a_limit() {
        let near = || TcpSample { rtt: 4 * MS, min_rtt: Some(MS / 10), ..far() };
        for path in [
            TcpSample { retransmitted: true, ..near() },
            TcpSample { left_slow_start: true, ..near() },
            TcpSample { rtt: 28 * MS, ..near() },
        ] {
            assert!(!is_bandwidth_limited(&path), "{path:?}");
        }
        assert!(is_bandwidth_limited(&TcpSample { retransmitted: true, rtt: LOCAL_QUEUE_RTT, ..near() }));
    }

    #[test]
    fn a_path_with_much_in_flight_needs_a_larger_buffer_unless_it_queues() {
        assert!(needs_larger_send_buffer(&far()));
        for path in [
            TcpSample { outstanding: HALF_TCP_WMEM, ..far() },
            TcpSample { unsent: 3 << 20, ..far() },
            TcpSample { rtt: 28 * MS, ..far() },
            TcpSample { min_rtt: None, ..far() },
        ] {
            assert!(!needs_larger_send_buffer(&path), "{path:?}");
        }
    }

    #[test]
    fn delayed_acknowledgements_and_jitter_are_not_a_queue() {
        assert!(!is_bandwidth_limited(&TcpSample { rtt: 60 * MS, outstanding: 100, ..far() }));
        assert!(!is_bandwidth_limited(&TcpSample { rtt: 40 * MS, rttvar: 10 * MS, ..far() }));
    }
}

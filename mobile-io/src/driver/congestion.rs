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

use crate::tcp_info::Outgoing;

/// With a shorter round trip than this there is no Internet between.
const NEAR: Duration = Duration::from_millis(1);

/// A round trip that a near path has only with a queue on it: the target of our own queue (CoDel, RFC 8289).
const QUEUED: Duration = Duration::from_millis(5);

/// So much on its way is a transfer: RFC 6928's initial window, of 1448 bytes each. The acknowledgement of less may have been delayed.
const TRANSFER: u64 = 10 * 1448;

/// Half of what the kernel lets one connection have on its way (`tcp_wmem`).
const MUCH: u64 = 2 << 20;

/// Does a path show that it carries no more than is sent?
pub(super) fn has_bounds(path: &Outgoing) -> bool {
    let Some(min_rtt) = path.min_rtt else { return false };
    if min_rtt < NEAR {
        // What else looks like bounds there is how two busy ends take turns. A slow or lossy wireless network has both.
        return path.retransmitted && path.rtt >= QUEUED;
    }
    path.retransmitted || path.full || is_filled(path)
}

/// Does a transfer of ours fill the path's FIFO?
pub(super) fn is_filled(path: &Outgoing) -> bool {
    path.outstanding > TRANSFER && path.shortest().is_some_and(|shortest| is_queued(path, shortest))
}

/// Does a path take so much without a queue that the kernel's bound may soon be less than the path's?
pub(super) fn outgrows(path: &Outgoing) -> bool {
    let on_the_way = path.outstanding.saturating_sub(path.unsent);
    on_the_way > MUCH && path.min_rtt.is_some_and(|min_rtt| !is_queued(path, min_rtt))
}

/// What varies without us is not a queue of ours.
pub(super) fn is_queued(path: &Outgoing, min_rtt: Duration) -> bool {
    path.rtt > min_rtt * 5 / 4 + path.rttvar * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn far() -> Outgoing {
        Outgoing {
            rtt: 21 * MS,
            rttvar: MS,
            min_rtt: Some(20 * MS),
            outstanding: 4 << 20,
            ..Outgoing::default()
        }
    }

    #[test]
    fn a_path_that_takes_all_it_is_given_has_no_bounds() {
        assert!(!has_bounds(&far()));
        assert!(!has_bounds(&Outgoing::default()), "before the first round trip");
    }

    #[test]
    fn loss_a_growing_round_trip_and_the_end_of_slow_start_are_bounds() {
        for path in [
            Outgoing { retransmitted: true, ..far() },
            Outgoing { full: true, ..far() },
            Outgoing { rtt: 28 * MS, ..far() },
        ] {
            assert!(has_bounds(&path), "{path:?}");
        }
    }

    #[test]
    fn in_one_house_only_a_loss_with_a_queue_is_a_bound() {
        let near = || Outgoing { rtt: 4 * MS, min_rtt: Some(MS / 10), ..far() };
        for path in [
            Outgoing { retransmitted: true, ..near() },
            Outgoing { full: true, ..near() },
            Outgoing { rtt: 28 * MS, ..near() },
        ] {
            assert!(!has_bounds(&path), "{path:?}");
        }
        assert!(has_bounds(&Outgoing { retransmitted: true, rtt: QUEUED, ..near() }));
    }

    #[test]
    fn a_path_that_takes_much_outgrows_the_kernel_s_bound_unless_it_queues() {
        assert!(outgrows(&far()));
        for path in [
            Outgoing { outstanding: MUCH, ..far() },
            Outgoing { unsent: 3 << 20, ..far() },
            Outgoing { rtt: 28 * MS, ..far() },
            Outgoing { min_rtt: None, ..far() },
        ] {
            assert!(!outgrows(&path), "{path:?}");
        }
    }

    #[test]
    fn a_delayed_acknowledgement_and_a_round_trip_that_varies_are_no_queue() {
        assert!(!has_bounds(&Outgoing { rtt: 60 * MS, outstanding: 100, ..far() }));
        assert!(!has_bounds(&Outgoing { rtt: 40 * MS, rttvar: 10 * MS, ..far() }));
    }
}

//! Retransmission timeouts of mobile TCP sockets.

/// The maximum retransmission timeout in milliseconds (`TCP_RTO_MAX_MS`, Linux 6.15); the kernel's
/// default is two minutes.
///
/// Data in flight during an outage leaves a sender with a round-trip time as long as the outage,
/// and the next loss would cost it as much again. A shorter timeout is not better: the kernel gives
/// up after a number of retransmissions (`tcp_retries2`, 15), and the time this takes shrinks with
/// the timeout (`tcp_model_timeout()`). One second would end a connection after 15 s without an
/// answer from a host that is away (measured), ten seconds after 112 s. Half a minute leaves five
/// minutes, in which a server restarts. A flow whose window was closed in an outage is given up
/// after two such timeouts without an answer, for instance when the agent is restarted meanwhile.
pub const RTO_MAX_MS: i32 = 30_000;

/// The maximum value of `TCP_SYNCNT`.
const MAX_SYN_COUNT: i32 = 127;
/// The number of retransmissions before the timeout reaches [`RTO_MAX_MS`]: the timeout is 1 s
/// before the first one, and 2, 4, 8 and 16 s after the four.
const UNBOUNDED: i32 = 4;

/// Returns the number of SYN retransmissions (`TCP_SYNCNT`) that takes as long with timeouts of at
/// most [`RTO_MAX_MS`] as `count` retransmissions with the kernel's default. A connect() during an
/// outage must not give up earlier.
#[inline(always)]
#[must_use]
pub const fn syn_count(count: i32) -> i32 {
    if count <= UNBOUNDED {
        return count;
    }
    // The timeouts double up to 64 s, and are two minutes after that.
    let seconds = if count <= 6 { (2 << count) - 1 } else { 127 + 120 * (count - 6) };
    let bound = RTO_MAX_MS / 1000;
    let more = (seconds - ((2 << UNBOUNDED) - 1) + bound - 1) / bound;
    if UNBOUNDED + more > MAX_SYN_COUNT { MAX_SYN_COUNT } else { UNBOUNDED + more }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the seconds that `tcp_model_timeout()` in the kernel computes for `count`
    /// retransmissions, with a first timeout of one second and none longer than `bound` seconds.
    fn seconds(count: i32, bound: i32) -> i32 {
        (0..=count).map(|n| (1 << n.min(20)).min(bound)).sum()
    }

    #[test]
    fn a_connect_gives_up_no_earlier_and_not_much_later() {
        assert_eq!(syn_count(6), 8, "the kernel's default");
        for count in 0..=15 {
            let (before, after) = (seconds(count, 120), seconds(syn_count(count), RTO_MAX_MS / 1000));
            assert!(
                after >= before && after <= before + RTO_MAX_MS / 1000,
                "{count}: {before} s became {after} s"
            );
        }
        assert_eq!(syn_count(127), MAX_SYN_COUNT);
    }
}

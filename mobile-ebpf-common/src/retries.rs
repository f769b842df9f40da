//! How long the TCP of a mobile socket pauses between repetitions.

/// The longest pause (`TCP_RTO_MAX_MS`, Linux 6.15), which is two minutes otherwise. What was in flight in an outage leaves a
/// sender with a round-trip time as long as the outage; the next loss would cost it as much again. Shorter is not
/// better: the kernel gives up after a number of repetitions (`tcp_retries2`, 15), and how long that takes shrinks with the
/// pause (`tcp_model_timeout()`). One second would end a connection after 15 s without an answer from a host that is away
/// (measured), ten after 112 s, half a minute leaves five minutes, in which a server restarts. And a flow whose window was
/// closed in an outage is given up after two such pauses without an answer, as when the agent is restarted meanwhile.
pub const RTO_MAX_MS: i32 = 30_000;

/// The most that `TCP_SYNCNT` takes.
const MAX_SYN_COUNT: i32 = 127;
/// With pauses of 1, 2, 4, 8 and 16 s the bound is not reached yet.
const UNBOUNDED: i32 = 4;

/// The repetitions of SYN (`TCP_SYNCNT`) that with bounded pauses last as long as `count` of them without: a connect() in
/// an outage must not give up earlier.
#[inline(always)]
#[must_use]
pub const fn syn_count(count: i32) -> i32 {
    if count <= UNBOUNDED {
        return count;
    }
    // Doubling up to 64 s, then two minutes each.
    let seconds = if count <= 6 { (2 << count) - 1 } else { 127 + 120 * (count - 6) };
    let bound = RTO_MAX_MS / 1000;
    let more = (seconds - ((2 << UNBOUNDED) - 1) + bound - 1) / bound;
    if UNBOUNDED + more > MAX_SYN_COUNT { MAX_SYN_COUNT } else { UNBOUNDED + more }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `tcp_model_timeout()` in the kernel reckons, with a first pause of one second.
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

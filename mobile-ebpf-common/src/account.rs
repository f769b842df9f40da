//! What the TCP connections of a mobile process carried: kept at each socket while it lives, and summed up when it ends.
//!
//! The kernel counts sequence numbers, which are bytes but for the SYN and the FIN of each direction. Here it is told which
//! of them were.

/// Whose a socket is: the value of [`map::OWNERS`](crate::map::OWNERS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// When it connected, in nanoseconds of CLOCK_BOOTTIME.
    pub since: u64,
    /// What the kernel had counted as received when the other end had acknowledged our FIN.
    pub half_closed_at: u64,
    /// The process that connected it: what user space calls its pid. As wide as the others, which leaves no padding.
    pub process: u64,
}

/// What a process's connections that are over carried: the value of [`map::ACCOUNTS`](crate::map::ACCOUNTS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// When the one that ended first had connected, in nanoseconds of CLOCK_BOOTTIME: a process that has the number of an
    /// ended one is younger.
    pub since: u64,
    /// How many there were.
    pub connections: u64,
    /// Bytes that the other ends acknowledged.
    pub sent: u64,
    /// Bytes that came, in order.
    pub received: u64,
}

// SAFETY: repr(C), of integers only, without padding: see the test.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Account {}

/// The states of a TCP connection that matter here (`enum` in the kernel's tcp_states.h).
pub mod state {
    /// A SYN of ours is under way.
    pub const SYN_SENT: u32 = 2;
    /// Both sides have sent one.
    pub const SYN_RECV: u32 = 3;
    /// Our FIN is acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// It is over.
    pub const CLOSE: u32 = 7;
    /// The other end's FIN has come.
    pub const CLOSE_WAIT: u32 = 8;
    /// Then ours was sent.
    pub const LAST_ACK: u32 = 9;
    /// Ours was sent, then the other end's came.
    pub const CLOSING: u32 = 11;
}

/// Whether a connection in this state was ever made.
#[inline(always)]
#[must_use]
pub const fn is_made(state: u32) -> bool {
    state != state::SYN_SENT && state != state::SYN_RECV
}

/// Bytes that the other end of a connection acknowledged. `state` is the last one before it closed, `acked` the kernel's count
/// and `all` whether everything sent is in it.
#[inline(always)]
#[must_use]
pub const fn sent(state: u32, acked: u64, all: bool) -> u64 {
    let fin = match state {
        state::FIN_WAIT2 => true,
        state::LAST_ACK | state::CLOSING => all,
        _ => false,
    };
    acked.saturating_sub(1 + fin as u64)
}

/// Bytes that came. `received` is the kernel's count, `half_closed_at` what it was when our FIN was acknowledged.
///
/// Who has sent a FIN usually waits for the other one: what came since then ends with it. If it did not wait, this is a byte
/// too little; the kernel does not say.
#[inline(always)]
#[must_use]
pub const fn received(state: u32, received: u64, half_closed_at: u64) -> u64 {
    let fin = match state {
        state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING => true,
        state::FIN_WAIT2 => received > half_closed_at,
        _ => false,
    };
    received.saturating_sub(fin as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u32 = 1;
    const FIN_WAIT1: u32 = 4;

    #[test]
    fn what_is_no_byte_is_not_counted() {
        for (state, all, sent_fin, received_fin) in [
            (ESTABLISHED, true, 0, 0),
            (FIN_WAIT1, true, 0, 0),
            (state::FIN_WAIT2, true, 1, 1),
            (state::CLOSE_WAIT, true, 0, 1),
            (state::LAST_ACK, true, 1, 1),
            (state::LAST_ACK, false, 0, 1),
            (state::CLOSING, true, 1, 1),
            (state::CLOSING, false, 0, 1),
        ] {
            assert_eq!(sent(state, 101 + sent_fin, all), 100, "{state} {all}");
            assert_eq!(received(state, 50 + received_fin, 50), 50, "{state} {all}");
        }
        assert_eq!(received(state::FIN_WAIT2, 50, 50), 50, "its FIN has not come");
        assert_eq!((sent(ESTABLISHED, 0, true), received(state::CLOSE_WAIT, 0, 0)), (0, 0));
        assert!(!is_made(state::SYN_SENT) && !is_made(state::SYN_RECV) && is_made(ESTABLISHED));
    }

    #[test]
    fn there_is_no_padding() {
        assert_eq!((size_of::<Owner>(), size_of::<Account>()), (24, 32));
    }
}

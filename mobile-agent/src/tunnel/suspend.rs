//! Detects when the host resumes from a suspend.
//!
//! All timers of the agent use the monotonic clock, which stands still while the machine sleeps.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The shortest suspend to report, because neither a NAT nor the relay drops a path in less time.
const MIN_SUSPEND: Duration = Duration::from_secs(1);

/// Detects the end of each suspend of the host.
pub(super) struct SuspendWatch {
    /// A timer that the kernel cancels whenever the wall clock is set. At the end of a suspend, the
    /// kernel acts as if the clock had been set (`timerfd_resume`).
    timer: Option<AsyncFd<OwnedFd>>,
    /// The total suspended time so far: `CLOCK_BOOTTIME` minus `CLOCK_MONOTONIC`.
    suspended: Duration,
}

impl SuspendWatch {
    /// Creates a watch. If the kernel's timer is unavailable, the end of a suspend is noticed only
    /// because links come back.
    pub(super) fn new() -> Self {
        let timer = clock_change_timer()
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot detect the end of a suspend: paths are not probed then");
            })
            .ok();
        Self { timer, suspended: total_suspended() }
    }

    /// Waits for the end of the next suspend and returns its length.
    pub(super) async fn resumed(&mut self) -> Duration {
        loop {
            self.clock_set().await;
            if let Some(slept) = new_suspend(&mut self.suspended, total_suspended()) {
                return slept;
            }
        }
    }

    async fn clock_set(&mut self) {
        let Some(timer) = &self.timer else { return pending().await };
        let Ok(mut guard) = timer.readable().await else { return pending().await };
        // ECANCELED means that the clock was set. The timer stays armed.
        let outcome = guard.try_io(|timer| match nix::unistd::read(timer, &mut [0; 8]) {
            Ok(_) | Err(Errno::ECANCELED) => Ok(()),
            Err(errno) => Err(errno.into()),
        });
        if let Ok(Err(error)) = outcome {
            tracing::warn!(
                %error,
                "no longer detecting the end of a suspend: paths are not probed after one"
            );
            self.timer = None;
        }
    }
}

/// Returns by how much the total suspended time `now` exceeds `known`, if that is long enough to
/// report. Sets `known` to `now`.
fn new_suspend(known: &mut Duration, now: Duration) -> Option<Duration> {
    let slept = now.saturating_sub(std::mem::replace(known, now));
    (slept >= MIN_SUSPEND).then_some(slept)
}

fn total_suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn clock_change_timer() -> io::Result<AsyncFd<OwnedFd>> {
    /// A time that is never reached, some centuries after 1970, in seconds since then.
    const NEVER: i64 = 9_000_000_000;
    let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    timer.set(
        Expiration::OneShot(TimeSpec::new(NEVER, 0)),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
    )?;
    // SAFETY: the descriptor is open and owned, so it stays the same until the AsyncFd is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(OwnedFd::from(timer), Interest::READABLE) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_is_reported_once_and_a_clock_change_is_not() {
        let mut known = Duration::from_secs(100);
        assert_eq!(new_suspend(&mut known, Duration::from_secs(100)), None);
        assert_eq!(new_suspend(&mut known, Duration::from_secs(3700)), Some(Duration::from_secs(3600)));
        assert_eq!(new_suspend(&mut known, Duration::from_secs(3700)), None);
        // The two clocks are not read at the same instant.
        assert_eq!(new_suspend(&mut known, Duration::from_millis(3_700_001)), None);
        assert_eq!(new_suspend(&mut known, Duration::ZERO), None);
    }

    #[tokio::test]
    async fn the_kernel_supports_the_timer_and_nothing_is_reported_without_a_suspend() {
        let mut suspend = SuspendWatch::new();
        assert!(suspend.timer.is_some());
        let reported = tokio::time::timeout(Duration::from_millis(50), suspend.resumed()).await;
        assert!(reported.is_err());
    }
}

//! The end of a suspend: the monotonic clock, which every timer here goes by, has stood still meanwhile.

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

/// Shorter ones are not worth a packet: no NAT and no relay has forgotten a path by then.
const MIN_SUSPEND: Duration = Duration::from_secs(1);

/// Notices that the machine was suspended.
pub(super) struct SuspendWatch {
    /// The kernel cancels it whenever the wall clock is set, which it does at the end of a suspend (`timerfd_resume`).
    timer: Option<AsyncFd<OwnedFd>>,
    /// How far the clock that counts suspends is ahead of the one that does not.
    suspended: Duration,
}

impl SuspendWatch {
    /// Without such a timer, suspends go unnoticed; links that come back are news all the same.
    pub(super) fn new() -> Self {
        let timer = clock_change_timer()
            .inspect_err(|error| tracing::warn!(%error, "the end of a suspend is not noticed"))
            .ok();
        Self { timer, suspended: total_suspended() }
    }

    /// Waits for the end of the next suspend and tells how long it role.
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
        // ECANCELED: the clock was set. The timer stays armed.
        let outcome = guard.try_io(|timer| match nix::unistd::read(timer, &mut [0; 8]) {
            Ok(_) | Err(Errno::ECANCELED) => Ok(()),
            Err(errno) => Err(errno.into()),
        });
        if let Ok(Err(error)) = outcome {
            tracing::warn!(%error, "the end of a suspend is not noticed any more");
            self.timer = None;
        }
    }
}

/// How long the machine slept between two looks, if it is worth mentioning.
fn new_suspend(known: &mut Duration, now: Duration) -> Option<Duration> {
    let slept = now.saturating_sub(std::mem::replace(known, now));
    (slept >= MIN_SUSPEND).then_some(slept)
}

fn total_suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn clock_change_timer() -> io::Result<AsyncFd<OwnedFd>> {
    /// Some centuries from now, in seconds.
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
    fn a_suspend_is_told_once_and_a_clock_that_is_only_set_is_none() {
        let mut known = Duration::from_secs(100);
        assert_eq!(new_suspend(&mut known, Duration::from_secs(100)), None);
        assert_eq!(new_suspend(&mut known, Duration::from_secs(3700)), Some(Duration::from_secs(3600)));
        assert_eq!(new_suspend(&mut known, Duration::from_secs(3700)), None);
        // Two clocks that are not read at the same instant.
        assert_eq!(new_suspend(&mut known, Duration::from_millis(3_700_001)), None);
        assert_eq!(new_suspend(&mut known, Duration::ZERO), None);
    }

    #[tokio::test]
    async fn the_kernel_gives_the_timer_and_nothing_is_told_without_a_suspend() {
        let mut suspend = SuspendWatch::new();
        assert!(suspend.timer.is_some());
        let told = tokio::time::timeout(Duration::from_millis(50), suspend.resumed()).await;
        assert!(told.is_err());
    }
}

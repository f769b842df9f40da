//! What systemd is told. Without systemd (no `NOTIFY_SOCKET`) every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service is up.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The service is going down.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    tell(NotifyState::Status(text));
}

/// How often systemd wants to hear [`alive`], if it watches: half of its limit.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Feeds systemd's watchdog.
pub fn alive() {
    tell(NotifyState::Watchdog);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        // The service itself is well: systemd will complain if it misses anything.
        tracing::debug!(%error, "systemd was not notified");
    }
}

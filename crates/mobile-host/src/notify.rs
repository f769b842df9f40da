//! Notifies systemd of the state of the service (sd_notify(3)).
//!
//! Without systemd, that is without `NOTIFY_SOCKET`, every function does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Reports to systemd that the service is ready.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// Reports to systemd that the service reloads its configuration, until it calls [`ready`] again
/// (`Type=notify-reload`).
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify_all(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "cannot notify systemd of the reload"),
    }
}

/// Reports to systemd that the service is stopping.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// Sets the status line of the service in `systemctl status`.
pub fn status(text: &str) {
    // systemd would parse a second line as another assignment.
    notify(NotifyState::Status(text.lines().next().unwrap_or_default()));
}

/// Returns the interval at which to call [`keep_alive`], half of systemd's watchdog time-out;
/// `None` if systemd runs no watchdog for the service.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Resets systemd's watchdog timer.
pub fn keep_alive() {
    notify(NotifyState::Watchdog);
}

fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

fn notify_all(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // The service continues; systemd reports what it misses.
        tracing::debug!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "MOBILE_IO_NOTIFY_CHILD";

    #[test]
    fn systemd_receives_each_notification() {
        if env::var_os(CHILD).is_some() {
            ready();
            status("one line\nREADY=0");
            if watchdog_interval() == Some(Duration::from_secs(2)) {
                keep_alive();
            }
            reloading();
            stopping();
            return;
        }
        // Run the test in a child process, because environment variables apply to the whole
        // process.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "notify::tests::systemd_receives_each_notification"])
            .env(CHILD, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "4000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let received = || {
            let mut bytes = [0; 256];
            let length = systemd.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        assert_eq!([received(), received(), received()], ["READY=1\n", "STATUS=one line\n", "WATCHDOG=1\n"]);
        let reloading = received();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(since.trim_end().parse::<u64>().unwrap() > 0);
        assert_eq!(received(), "STOPPING=1\n");
    }
}

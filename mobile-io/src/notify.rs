//! What systemd is told. Without systemd (no `NOTIFY_SOCKET`) every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service is up.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// The service reads its configuration anew, until it is [`ready`] again (`Type=notify-reload`).
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify_all(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "systemd was not told of a reload"),
    }
}

/// The service is going down.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    // A second line would be taken for another word to systemd.
    notify(NotifyState::Status(text.lines().next().unwrap_or_default()));
}

/// How often systemd wants to hear [`alive`], if it watches: half of its limit.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Feeds systemd's watchdog.
pub fn keep_alive() {
    notify(NotifyState::Watchdog);
}

fn notify(state: NotifyState<'_>) {
    notify_all(&[state]);
}

fn notify_all(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // The service itself is well: systemd will complain if it misses anything.
        tracing::debug!(%error, "systemd was not notified");
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
    fn systemd_hears_each_word() {
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
        // A process of its own: the variables are the whole process's.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "notify::tests::systemd_hears_each_word"])
            .env(CHILD, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "4000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let heard = || {
            let mut bytes = [0; 256];
            let length = systemd.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        assert_eq!([heard(), heard(), heard()], ["READY=1\n", "STATUS=one line\n", "WATCHDOG=1\n"]);
        let reloading = heard();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(since.trim_end().parse::<u64>().unwrap() > 0);
        assert_eq!(heard(), "STOPPING=1\n");
    }
}

//! Finds out whether systemd is about to stop all services.

use std::io;
use std::process::Command;

/// The systemd targets that stop all services when they start.
///
/// Power-off, reboot, halt, kexec, soft-reboot and exit all start `shutdown.target`.
const TARGETS: [&str; 3] = ["shutdown.target", "rescue.target", "emergency.target"];

/// Returns whether systemd shuts the machine down or enters rescue or emergency mode.
///
/// `systemctl is-system-running` is no alternative, because it reports "starting" until the boot
/// has finished, even if a shutdown is queued.
///
/// # Errors
/// When systemd cannot be queried.
pub fn is_under_way() -> io::Result<bool> {
    let mut command = Command::new("systemctl");
    let output = command.args(["show", "--property=Id,ActiveState,Job"]).args(TARGETS).output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("systemctl failed ({}): {stderr}", output.status)));
    }
    read(&String::from_utf8_lossy(&output.stdout))
}

/// Returns whether a target is active or about to start, according to the output of `systemctl
/// show`: lines of the form `KEY=VALUE`, with an empty line between units.
fn read(text: &str) -> io::Result<bool> {
    let mut known = 0;
    let mut under_way = false;
    for line in text.lines() {
        match line.split_once('=') {
            Some(("ActiveState", state)) => {
                known += 1;
                under_way |= !matches!(state, "inactive" | "failed" | "deactivating");
            }
            // An inactive target has a job only if it is about to start.
            Some(("Job", job)) => under_way |= !matches!(job, "" | "0"),
            _ => {}
        }
    }
    if known < TARGETS.len() {
        return Err(io::Error::other(format!(
            "systemctl reported the state of {known} targets only: {text:?}"
        )));
    }
    Ok(under_way)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(states: [&str; 3], job: &str) -> io::Result<bool> {
        let [shutdown, rescue, emergency] = states;
        read(&format!(
            "Id=shutdown.target\nActiveState={shutdown}\n{job}\nId=rescue.target\nActiveState={rescue}\n\n\
             Id=emergency.target\nActiveState={emergency}\n"
        ))
    }

    #[test]
    fn an_active_or_queued_target_counts_as_shutdown() {
        const QUIET: [&str; 3] = ["inactive"; 3];
        assert!(!show(QUIET, "").unwrap());
        assert!(!show(QUIET, "Job=0\n").unwrap());
        assert!(show(QUIET, "Job=412\n").unwrap());
        assert!(show(["active", "inactive", "inactive"], "").unwrap());
        assert!(show(["inactive", "active", "inactive"], "").unwrap());
        assert!(show(["inactive", "inactive", "activating"], "").unwrap());
        assert!(!show(["inactive", "failed", "deactivating"], "").unwrap());
    }

    #[test]
    fn a_reply_without_all_targets_is_an_error() {
        assert!(read("").is_err());
        assert!(read("Id=shutdown.target\nActiveState=inactive\n").is_err());
    }
}

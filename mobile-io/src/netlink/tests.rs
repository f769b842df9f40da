//! The real kernel, in a network namespace for each test: it goes with its thread, and leaves nothing behind.

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

/// No test takes a second; a machine under load may be ten times slower.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `test` in a fresh network namespace, in a thread and runtime of its own. Wants root.
pub(crate) fn in_new_namespace(test: impl Future<Output = ()> + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(LIMIT, test).await.expect("took too long");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The same, with `lo` and a pair of virtual Ethernet devices, `left` and `right`, up.
pub(super) fn with_a_pair(test: impl Future<Output = ()> + Send + 'static) {
    in_new_namespace(async {
        ip("link set lo up");
        ip("link add left type veth peer name right");
        ip("link set left up");
        ip("link set right up");
        test.await;
    });
}

/// What somebody else does: the `ip` command, in this thread's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {problem}");
    String::from_utf8(output.stdout).unwrap()
}

//! Tests with the real kernel, each in a network namespace that ends with the test's thread.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};

use super::{Family, Netlink, NetlinkError, Route, Rule, Watch};

/// The maximum duration of a test. Tests take less than a second; a machine under load may be ten
/// times slower.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `test` in a new network namespace, on its own thread and runtime. Requires root.
pub(super) fn in_new_namespace(test: impl Future<Output = ()> + Send + 'static) {
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

/// Runs `test` in a new network namespace with `lo` and a veth pair, `left` and `right`, all up.
pub(super) fn with_a_pair(test: impl Future<Output = ()> + Send + 'static) {
    in_new_namespace(async {
        make_a_pair();
        test.await;
    });
}

/// Runs `test` like [`with_a_pair`], without the notifications that duplicate address detection
/// causes a second later.
pub(super) fn with_a_quiet_pair(test: impl Future<Output = ()> + Send + 'static) {
    in_new_namespace(async {
        write_sysctl("net/ipv6/conf/default/accept_dad", "0");
        make_a_pair();
        test.await;
    });
}

/// Writes `value` to the setting `name` below /proc/sys of this thread's network namespace.
pub(super) fn write_sysctl(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys").join(name), value).unwrap();
}

fn make_a_pair() {
    ip("link set lo up");
    ip("link add left type veth peer name right");
    ip("link set left up");
    ip("link set right up");
    // The kernel reports the carrier with a delay.
    while !["left", "right"].iter().all(|name| ip(&format!("link show {name}")).contains("state UP")) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the `ip` command in this thread's network namespace, as another program would.
pub(super) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {problem}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_host_with_ipv6_disabled_causes_no_other_errors() {
    with_a_pair(async {
        write_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        write_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        let netlink = Netlink::new().unwrap();
        let index = netlink.link_index("left").await.unwrap();
        let is_fine = |outcome: Result<bool, NetlinkError>| match outcome {
            Ok(_) => {}
            Err(error) => assert!(error.is_family_unavailable(), "{error}"),
        };
        for family in Family::ALL {
            let rule = Rule { priority: 4900, family, fwmark: Some((1, 1)), from: None, table: 7700 };
            let address: IpNet =
                if family == Family::V4 { "10.77.0.2/32" } else { "fd77::2/128" }.parse().unwrap();
            let route = Route::device(family.any(), 7700, index, Some(address.addr()));
            is_fine(netlink.ensure_rule(&rule).await);
            is_fine(netlink.ensure_route(&Route::unreachable(family, 7700)).await);
            is_fine(netlink.ensure_address(index, address).await);
            is_fine(netlink.ensure_route(&route).await);
            netlink.routes(7700, family).await.unwrap();
            is_fine(netlink.del_route(&route).await);
            is_fine(netlink.del_route(&Route::unreachable(family, 7700)).await);
            is_fine(netlink.del_address(index, address).await);
            is_fine(netlink.del_rule(&rule).await);
            assert_eq!(netlink.routes(7700, family).await.unwrap(), []);
        }
        let snapshot = netlink.snapshot().await.unwrap();
        assert!(snapshot.addresses.iter().all(|address| address.net.addr().is_ipv4()), "{snapshot:?}");
    });
}

#[test]
fn clones_of_the_handle_execute_one_change_at_a_time() {
    with_a_pair(async {
        let netlink = Netlink::new().unwrap();
        let route = Route::throw(Family::V4.any(), 7700);
        let ensure = |netlink: Netlink| async move { netlink.ensure_route(&route).await.unwrap() };
        let made = futures_util::future::join_all((0..8).map(|_| ensure(netlink.clone()))).await;
        // Reading and writing are one step, so only one call adds the route.
        assert_eq!(made.iter().filter(|made| **made).count(), 1);
    });
}

#[test]
fn outside_a_runtime_opening_fails_without_a_panic() {
    let error = Netlink::new().unwrap_err().to_string();
    assert!(error.starts_with("the netlink socket failed while trying to open it: "), "{error}");
    assert!(Watch::new().is_err());
}

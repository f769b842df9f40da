//! Waits for changes of devices, addresses, routes and rules.

use futures_util::FutureExt;
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::task::coop::consume_budget;

use super::NetlinkError;
use super::notification::{Changes, RouteInterest, collect_changes};
use super::subscription::{Notification, Subscription};

/// The netlink multicast groups that have a bit (`RTMGRP_…`): links, addresses and routes of both
/// families, and rules of IPv4.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400;

/// The netlink multicast groups without a bit: `RTNLGRP_IPV6_RULE` and `RTNLGRP_NEXTHOP`.
const MORE_GROUPS: [u32; 2] = [19, 32];

/// The maximum number of further datagrams to combine into one report, so that an endless series of
/// changes does not delay the report.
const MAX_GATHERED: usize = 100;

/// A subscription to changes of the network configuration: devices, addresses, routes and rules.
pub struct Watch {
    subscription: Subscription,
    interest: RouteInterest,
}

impl Watch {
    /// Subscribes to all changes of devices, addresses, routes and rules in this thread's network
    /// namespace.
    ///
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel provides no socket.
    pub fn new() -> Result<Self, NetlinkError> {
        let subscription = Subscription::new(NETLINK_ROUTE, GROUPS, &MORE_GROUPS);
        let subscription = subscription.map_err(|error| NetlinkError::Socket {
            what: "subscribe to changes".to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self { subscription, interest: RouteInterest::All })
    }

    /// Subscribes to all changes of devices, addresses and rules, and to changes of the routes of
    /// `interest`.
    ///
    /// Notifications of other routes are read and skipped.
    ///
    /// # Errors
    /// When the kernel provides no socket.
    pub fn with_interest(interest: RouteInterest) -> Result<Self, NetlinkError> {
        Ok(Self { interest, ..Self::new()? })
    }

    /// Replaces the selection of routes that matter, beginning with the next notification.
    pub fn set_interest(&mut self, interest: RouteInterest) {
        self.interest = interest;
    }

    /// Waits for a change and returns it, combined with all changes that are already queued.
    ///
    /// After an overrun of the socket, all kinds of objects are reported as changed. This method is
    /// cancel safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn changed(&mut self) -> Result<Changes, NetlinkError> {
        let mut changes = Changes::default();
        while !changes.any() {
            // Yield regularly: irrelevant changes may arrive faster than this loop reads.
            consume_budget().await;
            self.next(&mut changes).await?;
        }
        for _ in 0..MAX_GATHERED {
            match self.next(&mut changes).now_or_never() {
                Some(outcome) => outcome?,
                None => break,
            }
        }
        Ok(changes)
    }

    /// Receives one datagram of notifications and adds its changes to `changes`.
    async fn next(&mut self, changes: &mut Changes) -> Result<(), NetlinkError> {
        let Self { subscription, interest } = self;
        match subscription.next().await {
            Ok(Notification::Messages(bytes)) => collect_changes(bytes, interest, changes),
            Ok(Notification::Overrun) => *changes = Changes::ALL,
            Err(error) => {
                let what = "wait for a change".to_owned();
                return Err(NetlinkError::Socket { what, message: error.to_string() });
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::tests::{ip, with_a_quiet_pair};
    use super::super::{Family, Netlink, Route};
    use super::*;

    async fn next(watch: &mut Watch) -> Changes {
        timeout(Duration::from_secs(5), watch.changed()).await.expect("no change was reported").unwrap()
    }

    /// Waits until no change has been reported for 300 ms; returns all reported changes combined.
    async fn settle(watch: &mut Watch) -> Changes {
        let mut all = Changes::default();
        while let Ok(more) = timeout(Duration::from_millis(300), watch.changed()).await {
            let more = more.unwrap();
            all.links |= more.links;
            all.addresses |= more.addresses;
            all.routes |= more.routes;
            all.rules |= more.rules;
        }
        all
    }

    #[test]
    fn each_kind_of_change_is_reported_as_such() {
        with_a_quiet_pair(async {
            let mut watch = Watch::new().unwrap();
            settle(&mut watch).await;
            let none = Changes::default();
            for (command, expected) in [
                ("link set left mtu 1400", Changes { links: true, ..none }),
                ("route add default dev left table 7700", Changes { routes: true, ..none }),
                ("route flush table 7700", Changes { routes: true, ..none }),
                ("-6 route add unreachable default table 7700", Changes { routes: true, ..none }),
                ("-6 route flush table 7700", Changes { routes: true, ..none }),
                ("rule add priority 4900 lookup 7700", Changes { rules: true, ..none }),
                ("rule del priority 4900", Changes { rules: true, ..none }),
                ("-6 rule add priority 4900 lookup 7700", Changes { rules: true, ..none }),
                ("-6 rule del priority 4900", Changes { rules: true, ..none }),
                ("addr add 10.7.0.2/24 dev left", Changes { addresses: true, routes: true, ..none }),
                ("-6 addr add fd77::2/64 dev left nodad", Changes { addresses: true, routes: true, ..none }),
            ] {
                ip(command);
                assert_eq!(settle(&mut watch).await, expected, "ip {command}");
            }
        });
    }

    #[test]
    fn a_dropped_future_loses_no_change() {
        with_a_quiet_pair(async {
            let mut watch = Watch::new().unwrap();
            settle(&mut watch).await;
            assert!(watch.changed().now_or_never().is_none());
            ip("rule add priority 4900 lookup 7700");
            assert!(next(&mut watch).await.rules);
        });
    }

    #[test]
    fn many_changes_are_reported_once_and_an_overrun_as_everything() {
        with_a_quiet_pair(async {
            let netlink = Netlink::new().unwrap();
            let mut watch = Watch::new().unwrap();
            settle(&mut watch).await;
            let flip = async |times: u32| {
                let route = Route::throw(Family::V4.any(), 7700);
                for _ in 0..times {
                    netlink.add_route(&route).await.unwrap();
                    netlink.del_route(&route).await.unwrap();
                }
            };
            flip(10).await;
            assert_eq!(next(&mut watch).await, Changes { routes: true, ..Changes::default() });
            assert!(timeout(Duration::from_millis(100), watch.changed()).await.is_err());

            watch.subscription.socket().set_rx_buf_sz(2048u32).unwrap();
            flip(50).await;
            assert_eq!(next(&mut watch).await, Changes::ALL);
            // The subscription continues after an overrun.
            settle(&mut watch).await;
            flip(1).await;
            assert_eq!(next(&mut watch).await, Changes { routes: true, ..Changes::default() });
        });
    }

    #[test]
    fn routes_of_no_interest_are_skipped() {
        with_a_quiet_pair(async {
            let covering = vec!["198.51.100.2".parse().unwrap()];
            let mut watch =
                Watch::with_interest(RouteInterest::Only { tables: vec![7700], covering: covering.clone() })
                    .unwrap();
            settle(&mut watch).await;
            let none = Changes::default();
            let routes = Changes { routes: true, ..none };
            for (command, expected) in [
                ("route add 203.0.113.0/24 dev left", none),
                ("route del 203.0.113.0/24 dev left", none),
                ("route add 198.51.100.0/24 dev left table 9", routes),
                ("route add 203.0.113.0/24 dev left table 7700", routes),
                ("nexthop add id 5 dev left", routes),
                ("route add default nhid 5", routes),
                ("nexthop del id 5", routes),
            ] {
                ip(command);
                assert_eq!(settle(&mut watch).await, expected, "ip {command}");
            }
            watch.set_interest(RouteInterest::Only { tables: Vec::new(), covering });
            ip("route flush table 7700");
            assert_eq!(settle(&mut watch).await, none);
        });
    }
}

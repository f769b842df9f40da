//! The uplinks: what the kernel knows of them, watched. `policy` chooses among them.

pub(crate) mod policy;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mobile_io::netlink::{Address, Family, Netlink, Snapshot, Watch};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use policy::Uplink;

/// The least time between two dumps: a storm of events costs at most this rate, a single one waits for nothing.
const SPACING: Duration = Duration::from_millis(5);
/// The least time between two looks because somebody doubts a path: a relay could make us do it without end.
const LOOK_SPACING: Duration = Duration::from_millis(250);

/// The uplinks, kept up to date.
pub(crate) struct Uplinks {
    /// What is known of them.
    pub(crate) known: watch::Receiver<Vec<Uplink>>,
    look: Arc<Notify>,
}

impl Uplinks {
    /// Asks the kernel now. It announces a lost carrier up to a second late (`linkwatch_do_dev`), but knows of it at once.
    pub(crate) fn refresh(&self) {
        self.look.notify_one();
    }
}

/// Reads the uplinks and keeps them up to date. The returned future ends only when it cannot, with the reason.
pub(crate) async fn watch(
    netlink: Netlink,
    own_device: String,
) -> anyhow::Result<(Uplinks, impl Future<Output = anyhow::Error>)> {
    // Subscribed before the first dump: nothing falls in between.
    let watch = Watch::new().context("cannot watch the uplinks")?;
    let first = netlink.snapshot().await.context("cannot read the uplinks")?;
    let (publish, known) = watch::channel(from_snapshot(&first, &own_device));
    let look = Arc::new(Notify::new());
    let uplinks = Uplinks { known, look: Arc::clone(&look) };
    Ok((uplinks, follow(netlink, watch, look, own_device, publish)))
}

async fn follow(
    netlink: Netlink,
    mut watch: Watch,
    look: Arc<Notify>,
    own_device: String,
    publish: watch::Sender<Vec<Uplink>>,
) -> anyhow::Error {
    let (mut next, mut next_look) = (Instant::now(), Instant::now());
    loop {
        tokio::select! {
            changes = watch.changed() => match changes {
                Ok(changes) if changes.links || changes.addresses || changes.routes => {}
                Ok(_) => continue,
                Err(error) => return anyhow::Error::new(error).context("cannot watch the uplinks any more"),
            },
            () = look.notified() => {
                if Instant::now() < next_look {
                    continue;
                }
                next_look = Instant::now() + LOOK_SPACING;
            }
        }
        sleep_until(next).await;
        match netlink.snapshot().await {
            Ok(snapshot) => {
                let now = from_snapshot(&snapshot, &own_device);
                publish.send_if_modified(|known| {
                    let new = *known != now;
                    *known = now;
                    new
                });
            }
            // A dump can be interrupted by the very change it is about; the next event follows.
            Err(error) => tracing::warn!(%error, "cannot read the uplinks"),
        }
        next = Instant::now() + SPACING;
    }
}

/// Every link but loopback and our own device.
pub(crate) fn from_snapshot(snapshot: &Snapshot, own_device: &str) -> Vec<Uplink> {
    snapshot
        .links
        .iter()
        .filter(|link| !link.loopback && link.name != own_device)
        .map(|link| {
            let routes = || snapshot.default_routes.iter().filter(|route| route.oif == link.index);
            let metric =
                |family| routes().filter(|route| route.family == family).map(|route| route.metric).min();
            let mut gateways: Vec<IpAddr> = routes().filter_map(|route| route.gateway).collect();
            gateways.sort_unstable();
            let addresses = |usable| {
                let of_link = move |address: &&Address| {
                    address.index == link.index && address.global && address.usable == usable
                };
                snapshot.addresses.iter().filter(of_link).map(|address| address.net.addr()).collect()
            };
            Uplink {
                name: link.name.clone(),
                up: link.up,
                carrier: link.carrier,
                addresses: addresses(true),
                fading: addresses(false),
                ipv4_default: metric(Family::V4),
                ipv6_default: metric(Family::V6),
                gateways,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobile_io::netlink::{DefaultRoute, Link};

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: None,
            up: true,
            carrier: true,
            loopback: name == "lo",
            mtu: 1500,
            multicast: true,
        }
    }

    #[test]
    fn a_snapshot_becomes_uplinks_without_loopback_and_our_own_device() {
        let address =
            |net: &str, global, usable| Address { index: 2, net: net.parse().unwrap(), global, usable };
        let route = |metric, family, gateway: &str| DefaultRoute {
            oif: 2,
            gateway: Some(gateway.parse().unwrap()),
            metric,
            family,
        };
        let snapshot = Snapshot {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "mobile0"), link(4, "wlan0")],
            addresses: vec![
                address("192.0.2.7/24", true, true),
                address("2001:db8::7/64", true, false),
                address("fe80::1/64", false, true),
            ],
            default_routes: vec![route(200, Family::V4, "192.0.2.1"), route(100, Family::V4, "192.0.2.2")],
        };
        let uplinks = from_snapshot(&snapshot, "mobile0");
        assert_eq!(uplinks.iter().map(|uplink| uplink.name.as_str()).collect::<Vec<_>>(), ["eth0", "wlan0"]);
        assert_eq!(uplinks[0].addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(uplinks[0].fading, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
        assert_eq!((uplinks[0].ipv4_default, uplinks[0].ipv6_default), (Some(100), None));
        assert_eq!(uplinks[1].ipv4_default, None);
    }
}

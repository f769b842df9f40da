//! Reads this host's own networks, and follows their changes. The agent refuses addresses and
//! resolvers of the relay that conflict with them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mobile_netlink::{Family, Netlink, NetlinkError, Route, RouteKind, TABLE_MAIN, Watch};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use super::claim::HostNetworks;
use crate::publish::publish_if_changed;

/// The shortest time between two reads of this host's networks, so that many changes cost a bounded
/// share of a processor.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(5);

/// The pause after a read, as a multiple of the time that the read took. A read takes long on a
/// host with a million routes, and the change of any route causes one.
const PAUSE_FACTOR: u32 = 20;

/// The time between two reads of the resolver files, whose changes the kernel does not announce.
const RESOLVER_FILE_INTERVAL: Duration = Duration::from_secs(30);

/// The files that name the resolvers of this host: the C library's, and those of the resolvers
/// behind the local stubs of systemd-resolved and NetworkManager.
const RESOLVER_FILES: [&str; 3] =
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"];

/// The values of `rtm_protocol` of routes that place a network on a device (`RTPROT_KERNEL`,
/// `RTPROT_RA`, `RTPROT_DHCP`). Other routes over a device without a next hop, such as a VPN's, do
/// not say which addresses are on the link.
const ON_LINK_PROTOCOLS: [u8; 3] = [2, 9, 16];

/// Reads this host's networks, and returns a receiver of them with a future that keeps them up to
/// date. The future ends only on an error, with the reason.
pub(crate) async fn watch(
    own_device: String,
    relay: watch::Receiver<Arc<[SocketAddr]>>,
) -> anyhow::Result<(watch::Receiver<Arc<HostNetworks>>, impl Future<Output = anyhow::Error>)> {
    // Subscribe before the first read, so that no change is missed in between.
    let watch = Watch::new().context("cannot watch the networks of this host")?;
    let first = read_on_thread(&own_device, &relay).await?;
    let (publish, known) = watch::channel(Arc::new(first));
    Ok((known, follow(watch, own_device, relay, publish)))
}

async fn follow(
    mut watch: Watch,
    own_device: String,
    mut relay: watch::Receiver<Arc<[SocketAddr]>>,
    publish: watch::Sender<Arc<HostNetworks>>,
) -> anyhow::Error {
    let mut next = Instant::now();
    let mut files = tokio::time::interval(RESOLVER_FILE_INTERVAL);
    files.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changes = watch.changed() => match changes {
                Ok(changes) if changes.links || changes.addresses || changes.routes => {}
                Ok(_) => continue,
                Err(error) => {
                    return anyhow::Error::new(error).context("no longer watching the networks of this host");
                }
            },
            changed = relay.changed() => if changed.is_err() {
                return anyhow::anyhow!("the tunnel has ended");
            },
            _ = files.tick() => {}
        }
        sleep_until(next).await;
        let began = Instant::now();
        match read_on_thread(&own_device, &relay).await {
            Ok(now) => {
                publish_if_changed(&publish, now);
            }
            // A change during a dump can interrupt it. The event of that change triggers another
            // read.
            Err(error) => tracing::warn!(
                error = mobile_host::error_chain(&error),
                "cannot read the networks of this host: judging the relay's claims by the previous facts"
            ),
        }
        next = Instant::now() + MIN_READ_INTERVAL.max(began.elapsed().saturating_mul(PAUSE_FACTOR));
    }
}

/// Reads this host's networks on a separate thread, so that a long read does not block the caller's
/// thread.
async fn read_on_thread(
    own_device: &str,
    relay: &watch::Receiver<Arc<[SocketAddr]>>,
) -> anyhow::Result<HostNetworks> {
    let own_device = own_device.to_owned();
    let relay = relay.borrow().iter().map(|address| address.ip().to_canonical()).collect();
    let work = move || -> anyhow::Result<HostNetworks> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime to read the networks of this host")?;
        runtime.block_on(async {
            let netlink = Netlink::new()?;
            read(&netlink, &own_device, relay).await.context("cannot read the networks of this host")
        })
    };
    tokio::task::spawn_blocking(work)
        .await
        .context("the thread that reads the networks of this host failed")?
}

/// Reads the networks of all devices except `own_device` once; `relay` are the addresses of the
/// relay's endpoint, which become part of the result.
pub(crate) async fn read(
    netlink: &Netlink,
    own_device: &str,
    relay: Vec<IpAddr>,
) -> Result<HostNetworks, NetlinkError> {
    let links = netlink.links().await?;
    let own = links.iter().find(|link| link.name == own_device).map(|link| link.index);
    let name = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("device {index}"), |link| link.name.clone())
    };
    let addresses = netlink.all_addresses().await?;
    let addresses = addresses.iter().filter(|address| Some(address.index) != own);
    let addresses = addresses.map(|address| (name(address.index), address.net)).collect();
    let (mut on_link, mut next_hops) = (Vec::new(), BTreeSet::new());
    for family in Family::ALL {
        for Route { dst, kind, protocol, .. } in netlink.routes(TABLE_MAIN, family).await? {
            let RouteKind::Unicast { oif, gateway, .. } = kind else { continue };
            if Some(oif) == own {
                continue;
            }
            match gateway {
                Some(gateway) => {
                    next_hops.insert(gateway);
                }
                None if dst.prefix_len() > 0 && ON_LINK_PROTOCOLS.contains(&protocol) => {
                    on_link.push((name(oif), dst));
                }
                None => {}
            }
        }
    }
    let resolvers =
        RESOLVER_FILES.iter().flat_map(|file| resolvers(&std::fs::read_to_string(file).unwrap_or_default()));
    let resolvers: BTreeSet<IpAddr> = resolvers.collect();
    Ok(HostNetworks {
        addresses,
        on_link,
        next_hops: next_hops.into_iter().collect(),
        resolvers: resolvers.into_iter().collect(),
        relay,
    })
}

/// Returns the name servers in the text of a resolv.conf file.
pub(crate) fn resolvers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next())
        // A link-local name server has a device as its scope.
        .filter_map(|server| server.split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# a comment\nsearch example.org\nnameserver 127.0.0.53\n nameserver\tfe80::1%eth0 \nnameserverx 1\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "fe80::1"]);
    }
}

//! A tethered telephone: a third uplink of the host, created and deleted while a case runs.

use anyhow::Result;

use crate::lab::{Lab, LabOptions};
use crate::link::LinkEmulator;
use crate::ns::Ns;
use crate::wait::until;

/// The name of the tether's device on the host.
const DEVICE: &str = "usb0";

/// The name of the device at the tether's far end, on the router of wlan0's visited network, which
/// forwards the tether's packets.
const FAR: &str = "lan1";

/// A tethered telephone as an uplink: IPv4 only, behind the same NAT as wlan0. Its device
/// disappears when this value is dropped.
pub struct Tether {
    /// The emulated link, which a case can slow down or blackhole.
    pub link: LinkEmulator,
    visited: Ns,
}

impl Tether {
    /// The name of the tether's device on the host.
    pub const DEVICE: &str = DEVICE;

    /// Plugs the telephone in: creates the device with its address, and adds a default route with
    /// `metric`.
    pub fn plug_in(lab: &Lab, metric: u32) -> Result<Self> {
        let visited = lab.visited[0].clone();
        let link = LinkEmulator::new((&lab.host, DEVICE), (&visited, FAR))?;
        link.set_delay(LabOptions::DELAY);
        visited.ip(&[&format!("link set {FAR} up"), &format!("address add 192.168.42.1/24 dev {FAR}")])?;
        visited.run(&["nft", "add", "rule", "inet", "home", "forward", "iifname", FAR, "accept"])?;
        let tether = Self { link, visited };
        lab.host.ip(&[&format!("link set {DEVICE} up")])?;
        until("the tether's carrier", || {
            let link = lab.host.run(&["ip", "-o", "link", "show", "dev", DEVICE]);
            link.is_ok_and(|text| text.contains("LOWER_UP") && !text.contains(" state DOWN "))
        })?;
        lab.host.ip(&[
            &format!("address add 192.168.42.2/24 dev {DEVICE}"),
            &format!("route add default via 192.168.42.1 dev {DEVICE} metric {metric}"),
        ])?;
        Ok(tether)
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        // Without this, each tether of a long run would leave a rule in the lab. A failure does not
        // matter: the namespace ends with the lab.
        let _ = self.visited.feed(
            &["nft", "-f", "-"],
            "flush chain inet home forward\nadd rule inet home forward iifname lan0 accept\n\
             add rule inet home forward ct state established,related accept\n",
        );
    }
}

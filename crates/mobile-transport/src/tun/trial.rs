//! Tries whether a TUN device can be opened, without a trace on the host.

use mobile_host::isolation::run_isolated;

use super::{DeviceLifetime, Tun};
use crate::tunnel_options::Offloading;

/// The name of the device that [`try_open`] creates in its own network namespace.
const TRIAL_DEVICE: &str = "mobile-check";

/// Opens a TUN device with `IFF_VNET_HDR`, as both programs do, and closes it again.
///
/// The device is created in a separate network namespace. Requires root.
///
/// # Errors
/// When no TUN device can be opened; the error is a text for the user.
pub fn try_open() -> Result<(), String> {
    run_isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let _entered = runtime.enter();
        Tun::open(TRIAL_DEVICE, DeviceLifetime::Process, Offloading::Auto)
            .map(drop)
            .map_err(|error| error.to_string())
    })
    .map_err(|error| format!("cannot create namespaces for the check: {error}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_device_is_invisible_to_the_host() {
        try_open().unwrap();
        assert!(nix::net::if_::if_nametoindex(TRIAL_DEVICE).is_err());
    }
}

//! Being told that something changed.

use super::NetlinkError;

/// The kinds of things that changed since the last time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Devices.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
    /// Rules.
    pub rules: bool,
}

/// A subscription to the kernel's notifications.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Subscribes, in this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn new() -> Result<Self, NetlinkError> {
        unimplemented!()
    }

    /// Waits for a change; gathers what is waiting already. After an overrun everything may have changed.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn changed(&mut self) -> Result<Changes, NetlinkError> {
        unimplemented!()
    }
}

//! The wire between a client and a relay.

use std::collections::VecDeque;

use mobile_proto::HelloReader;

use super::kernel::KernelModel;

/// The two directions of a wire: up is from the client to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// One connection between the client and the relay. A closed end neither reads nor writes; bytes
/// that it wrote before still arrive.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) up: VecDeque<u8>,
    pub(crate) down: VecDeque<u8>,
    /// Whether no byte arrives in a direction.
    pub(crate) stalled_up: bool,
    pub(crate) stalled_down: bool,
    /// Whether the client's transport takes no more bytes, so that its session is not polled.
    pub(crate) full: bool,
    pub(super) client_open: bool,
    pub(super) server_open: bool,
    pub(super) hello: Option<HelloReader>,
    /// The TCP state of the client's and of the relay's kernel for the bytes that it sends.
    pub(super) at_client: KernelModel,
    pub(super) at_server: KernelModel,
}

impl Wire {
    /// Returns whether nothing gets through in at least one direction.
    pub(crate) fn is_dead(&self) -> bool {
        self.stalled_up || self.stalled_down
    }
}

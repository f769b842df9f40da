//! The control socket: what the verbs ask the daemon, and who may ask what.

mod access;
pub(crate) mod calls;
pub(crate) mod protocol;
pub(crate) mod server;

//! The route selection mechanism: which processes are mobile, and the programs that mark their sockets.

pub(crate) mod account;
pub(crate) mod addresses;
pub(crate) mod bpf;
mod bpf_error;
mod bpf_log;
mod bypass;
pub(crate) mod cgroup;
mod cgroup2;
pub(crate) mod deadline;
mod diag;
mod extent;
mod features;
pub(crate) mod floor;
pub(crate) mod ingress;
pub(crate) mod instance;
mod link;
pub(crate) mod owner;
mod pins;
pub(crate) mod process;
pub(crate) mod slice;
pub(crate) mod sockets;

#[cfg(test)]
mod probe;
#[cfg(test)]
mod tests;

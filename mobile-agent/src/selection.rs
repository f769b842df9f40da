//! The route selection mechanism: which processes are mobile, and the programs that mark their sockets.

pub(crate) mod account;
pub(crate) mod addresses;
mod attach_scope;
pub(crate) mod bpf;
mod bpf_error;
mod bpf_log;
mod bypass;
pub(crate) mod cgroup;
mod cgroup2;
pub(crate) mod cgroup_lock;
pub(crate) mod deadline;
mod diag;
mod features;
pub(crate) mod ingress;
pub(crate) mod instance;
mod link;
pub(crate) mod oldest_kernel;
mod pins;
pub(crate) mod process;
pub(crate) mod slice;
pub(crate) mod sockets;

#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod tests;

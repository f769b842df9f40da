//! Route selection: which processes are mobile, and the eBPF programs that mark their sockets.
//!
//! A process is mobile while it is in the mobile cgroup ([`cgroup`]) or in systemd's `mobile.slice`
//! ([`mod@slice`]). The eBPF programs of the crate `mobile-ebpf` run at the socket calls of every
//! process, look up the calling task's cgroup and set or clear the mark of its socket. [`bpf`]
//! loads, attaches and pins the programs ([`object`], [`programs`]), so that they outlive the agent
//! ([`pins`]) until the next agent replaces them. The other modules fill or read the programs' maps
//! ([`addresses`], [`bypass`], [`deadline`], [`config_map`], [`counters`], [`account`]), change
//! sockets that a process holds already ([`sockets`]) or read `/proc` ([`process`], [`instance`]).

pub(crate) mod account;
pub(crate) mod addresses;
mod attach_scope;
pub(crate) mod bpf;
mod bpf_error;
mod bpf_log;
mod bypass;
pub(crate) mod cgroup;
mod cgroup2;
mod cgroup_error;
pub(crate) mod cgroup_lock;
mod config_map;
mod counters;
pub(crate) mod deadline;
mod diag;
mod features;
pub(crate) mod ingress;
pub(crate) mod instance;
mod link;
mod object;
pub(crate) mod oldest_kernel;
mod pins;
pub(crate) mod process;
mod programs;
pub(crate) mod slice;
pub(crate) mod sockets;

#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod tests;

//! The route selection mechanism: which processes are mobile, and the programs that mark their sockets.

pub(crate) mod bpf;
pub(crate) mod cgroup;
mod pins;
pub(crate) mod process;

#[cfg(test)]
mod probe;
#[cfg(test)]
mod tests;

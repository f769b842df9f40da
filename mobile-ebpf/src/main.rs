//! The cgroup programs that choose the MOBILE route.

fn main() {}

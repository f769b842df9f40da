//! home-relay: the home virtual device, on a router reachable from the Internet.

fn main() {}

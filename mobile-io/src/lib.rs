//! The shell around the protocol: TLS, TUN, netlink, configuration, logging, metrics.

//! The declarations of the relay's metrics, and nothing else: `cargo xtask gen` includes this file
//! to write docs/use/metrics.md.

mobile_host::declare_metrics! {
    BUILD_INFO: Gauge "homerelay_build_info" ["version"]
        "Always 1; the label is the running version.";
    CLIENTS: Gauge "homerelay_clients" []
        "Authorised clients.";
    SESSIONS: Gauge "homerelay_sessions" []
        "Sessions, including those without a path.";
    PATHS: Gauge "homerelay_paths" []
        "Open paths of all sessions.";
    HALF_OPEN: Gauge "homerelay_half_open_connections" []
        "Connections in their handshake.";
    HANDSHAKES: Counter "homerelay_handshakes_total" ["result"]
        "Connections from clients, by the result of their handshake. `opened`: began a new session; \
         `resumed`: joined an existing session; `enrolment`: asked to redeem an invitation; \
         `unauthorized`: the key is not authorised; `tls`: TLS failed for another reason; \
         `oversized`: sent more bytes than a handshake takes; `hello`: sent no valid HELLO; \
         `timeout`: exceeded `[limits]` `handshake_timeout`; `busy`, `source_busy`, `source_rate` and \
         `rate`: closed before TLS because of `[limits]` `half_open`, `half_open_per_source`, \
         `handshake_rate_per_source` and `handshake_rate`.";
    RELOADS: Counter "homerelay_reloads_total" ["outcome"]
        "Reloads of the configuration. `done`: the file is in force; `refused`: the old \
         configuration stays in force.";
    NETWORK_RESTORED: Counter "homerelay_network_restored_total" []
        "Addresses, routes, settings and nftables rules that another program changed and the relay \
         restored; the nftables table counts as one.";
    ENROLMENTS: Counter "homerelay_enrolments_total" ["result"]
        "Attempts to redeem an invitation or to replace a key, by result. `enrolled`: the key is a \
         client; `key_changed`: a client replaces its key; `not_a_client`: the key to replace is no \
         client's; `unknown`: no invitation has the token; `expired`; `used`: another key redeemed the token; \
         `key_taken`: the key is a client under another name; `no_address`: the pool is exhausted; \
         `failed`: the store failed; `malformed`: the request was invalid; `busy`: too many \
         concurrent attempts.";
    POOL_EXHAUSTED: Counter "homerelay_pool_exhausted_total" []
        "Requests for an address that found none free in the pool.";
    HANDOVERS: Counter "homerelay_handovers_total" []
        "Changes of a session's active path.";
    REPLAYED_RECORDS: Counter "homerelay_replayed_records_total" []
        "Records retransmitted to clients on another path.";
    DUPLICATE_RECORDS: Counter "homerelay_duplicate_records_total" []
        "Records that clients retransmitted although they had arrived.";
    LOST_RECORDS: Counter "homerelay_lost_records_total" []
        "Records given up because an outage exceeded the session's bounds.";
    PACKETS: Counter "homerelay_packets_total" ["direction"]
        "Packets forwarded.";
    BYTES: Counter "homerelay_bytes_total" ["direction"]
        "Bytes of packets forwarded.";
    COMPRESSIBLE_BYTES: Counter "homerelay_compressible_bytes_total" ["direction"]
        "Bytes of the packets sent compressed, before compression.";
    COMPRESSED_BYTES: Counter "homerelay_compressed_bytes_total" ["direction"]
        "Bytes of the packets sent compressed, after compression.";
    DROPS: Counter "homerelay_drops_total" ["reason"]
        "Packets not forwarded. From a client: `source`: the source address is not the client's; \
         `isolation`: to another client; `destination`: to an address that no router forwards to; \
         `reach`: to a destination outside the client's reach; `connections` and \
         `connection_rate`: the first packet of a connection beyond `[limits]` \
         `connections_per_client` or `connection_rate_per_client`; `segments`: would be cut into \
         more, or more small, segments than allowed; `device`: the TUN device did not accept it. \
         To a client: `unsolicited`: the client did not ask for it; `no_session`: the client has \
         no session; `queue_full`: the client takes packets more slowly than they arrive; \
         `session_bounds`: beyond the session's bounds of memory and time, of flows that send \
         faster than the client's path, or TCP data queued already, which is no loss. `malformed`: \
         not a valid IP packet; `invalid`: belongs to no known connection and begins none; \
         `transit`: between other devices of the host. Drops by nftables are added every 5 s.";
    SOURCE_VIOLATIONS: Counter "homerelay_source_violations_total" []
        "Packets from clients whose source address is not the client's.";
}

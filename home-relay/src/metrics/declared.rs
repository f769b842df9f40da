//! Every metric of the relay. Nothing but declarations here: `cargo xtask gen` makes docs/use/metrics.md of this very file.

mobile_io::declare_metrics! {
    BUILD_INFO: Gauge "homerelay_build_info" ["version"]
        "Always 1; the label says what is running.";
    CLIENTS: Gauge "homerelay_clients" []
        "Authorised clients.";
    SESSIONS: Gauge "homerelay_sessions" []
        "Sessions, also of clients out of reach.";
    PATHS: Gauge "homerelay_paths" []
        "Open connections of clients.";
    HALF_OPEN: Gauge "homerelay_half_open_connections" []
        "Connections in their handshake.";
    HANDSHAKES: Counter "homerelay_handshakes_total" ["result"]
        "Connections of clients, by how they began. `opened`: a new session; `resumed`: one that was there; `enrolment`: an \
         invitation was to be redeemed; `unauthorized`: the key is none of a client; `tls`: TLS failed otherwise; \
         `oversized`: more bytes came than a handshake takes; `hello`: what \
         came then was not our protocol; `timeout`: too slow; `busy`, `source_busy`, `source_rate` and `rate`: closed before TLS, for \
         `[limits]` `half_open`, `half_open_per_source`, `handshake_rate_per_source` and `handshake_rate`.";
    RELOADS: Counter "homerelay_reloads_total" ["outcome"]
        "Configurations read anew. `done`; `refused`: the file could not be used, and the old configuration stays.";
    NETWORK_RESTORED: Counter "homerelay_network_restored_total" []
        "Rules, addresses, routes and settings that others removed or changed, and the relay put back; the table of rules is \
         one.";
    ENROLMENTS: Counter "homerelay_enrolments_total" ["result"]
        "Attempts to redeem an invitation: `enrolled`, or why not: `unknown`, `expired`, `used`, `key_taken`, `no_address`, \
         `failed`, `malformed`, `busy`.";
    POOL_EXHAUSTED: Counter "homerelay_pool_exhausted_total" []
        "Times a client or an invitation got no address because none was left.";
    HANDOVERS: Counter "homerelay_handovers_total" []
        "Times a session moved to another path.";
    REPLAYED_RECORDS: Counter "homerelay_replayed_records_total" []
        "Records sent to clients again on another path.";
    DUPLICATE_RECORDS: Counter "homerelay_duplicate_records_total" []
        "Records of clients that had arrived before.";
    LOST_RECORDS: Counter "homerelay_lost_records_total" []
        "Records given up because an outage exceeded the bounds.";
    PACKETS: Counter "homerelay_packets_total" ["direction"]
        "Packets forwarded.";
    BYTES: Counter "homerelay_bytes_total" ["direction"]
        "Bytes of packets forwarded.";
    COMPRESSIBLE_BYTES: Counter "homerelay_compressible_bytes_total" ["direction"]
        "Bytes of packets that travelled compressed, as they are.";
    COMPRESSED_BYTES: Counter "homerelay_compressed_bytes_total" ["direction"]
        "Bytes of packets that travelled compressed, as what they travelled.";
    DROPS: Counter "homerelay_drops_total" ["reason"]
        "Packets not forwarded. `malformed`: no IP packet; `source`: from a client, not with its address; `isolation`: from a client to \
         another; `destination`: to an address no router forwards to; `reach`: from a client to where `[clients] reach` does not lead; \
         `connections` and `connection_rate`: the first of a connection beyond `[limits]` `connections_per_client` or \
         `connection_rate_per_client`; `invalid`: of no known connection and beginning none; `unsolicited`: to a client that did not \
         ask for it; `transit`: between other devices of a host that the relay made a router; `no_session`: to a client that has none; `queue_full`: to one \
         that takes them more slowly than they come; `device`: the TUN did not take it; `segments`: from a client, to be cut into more, or \
          more small, segments than a client may have cut; `session_bounds`: by the session's bounds in \
         memory and time. It includes those of flows that send faster than the client's path takes it, \
         and TCP data that was sent again in an outage and is held already, no loss. What the kernel's rules drop is added \
         every 5 s.";
    SOURCE_VIOLATIONS: Counter "homerelay_source_violations_total" []
        "Packets from a client with a source address that is not the client's.";
}

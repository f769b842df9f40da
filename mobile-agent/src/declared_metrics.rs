//! The declarations of all metrics of the agent.
//!
//! This file is self-contained: `cargo xtask gen` includes it to generate docs/use/metrics.md.

mobile_host::declare_metrics! {
    BUILD_INFO: Gauge "mobile_build_info" ["version"]
        "Always 1; the label is the version of the running agent.";
    UPTIME: Gauge "mobile_uptime_seconds" []
        "Time since the agent started.";
    CONNECTED: Gauge "mobile_connected" []
        "1 while a path to the relay is active and its assignment is in force or refused.";
    RTT: Gauge "mobile_rtt_seconds" []
        "Smoothed round-trip time to the relay on the active path; absent without one.";
    UPLINK_STATE: Gauge "mobile_uplink_state" ["uplink", "state"]
        "1 for the current state of each uplink. `active`: carries the tunnel; `standby`: has a \
         path ready; `silent`: its path does not answer; `connecting`; `usable`; `failing`: \
         usable, but the relay was not reached over it; `unusable`.";
    PATH_RTT: Gauge "mobile_path_rtt_seconds" ["uplink"]
        "Smoothed round-trip time to the relay over each uplink.";
    PATH_LOSS: Gauge "mobile_path_loss_ratio" ["uplink"]
        "Share of TCP segments retransmitted on the path over each uplink, 0 to 1.";
    HANDOVERS: Counter "mobile_handovers_total" ["cause"]
        "Moves of the tunnel to another path. The old uplink lost its carrier (`carrier_lost`), \
         was set down (`link_down`), was removed or excluded (`link_gone`), or lost its address \
         (`address_lost`) or default route (`route_lost`). The old path stopped answering \
         (`silent`), its TCP or TLS failed (`transport_failed`), or the relay closed it \
         (`relay_closed`). The policy prefers another uplink (`better_uplink`), `mobile use` chose \
         one (`forced`), or a reload changed the relay (`reloaded`).";
    HANDOVER_BLACKOUT: Histogram "mobile_handover_blackout_seconds" []
        "Time from the end of the old path until the relay answered on the new path; 0 if the old \
         path still worked.";
    CONNECT_ATTEMPTS: Counter "mobile_connect_attempts_total" []
        "Attempts to connect to the relay.";
    CONNECT_FAILURES: Counter "mobile_connect_failures_total" ["reason"]
        "Failed attempts to connect to the relay. `resolve`: its name has no address; \
         `unreachable`: no connection; `timeout`; `unauthorised`: the relay does not know this \
         host's key; `revoked`: the key is revoked; `wrong_relay_key`: the server has another key \
         than `[relay] public_key`; `protocol`: the server is no relay of this version; \
         `relay_closed`.";
    PACKETS: Counter "mobile_packets_total" ["direction"]
        "Inner packets sent and received through the tunnel.";
    BYTES: Counter "mobile_bytes_total" ["direction"]
        "Bytes of inner packets sent and received through the tunnel.";
    COMPRESSIBLE_BYTES: Counter "mobile_compressible_bytes_total" ["direction"]
        "Bytes of compressed inner packets before compression.";
    COMPRESSED_BYTES: Counter "mobile_compressed_bytes_total" ["direction"]
        "Bytes of compressed inner packets after compression.";
    DROPPED_PACKETS: Counter "mobile_dropped_packets_total" ["reason"]
        "Inner packets dropped. `delayed`: to signal congestion to a flow that sends faster than \
         the path; `queue_full`: the queue had no room; `displaced`: replaced by newer packets \
         during an outage; `aged`: queued for a minute without a path; `duplicate`: TCP data \
         queued already, which is no loss; `given_up`: sent, not acknowledged and beyond the \
         retransmission limits; `lost_by_peer`: the same at the relay; `bad_length`: empty or too \
         long; `device_refused`: refused by the TUN device; `segments`: from the relay, would be \
         cut into more or smaller segments than allowed; `misaddressed`: from the relay, to an \
         address that this host does not have.";
    ASSIGNMENTS_DEFERRED: Counter "mobile_assignments_deferred_total" []
        "Assignments deferred or superseded because the relay changed them too often.";
    QUEUED_BYTES: Gauge "mobile_queued_bytes" []
        "Bytes queued and not sent yet.";
    UNACKNOWLEDGED_BYTES: Gauge "mobile_unacknowledged_bytes" []
        "Bytes sent and kept until the relay acknowledges them.";
    PROCESSES: Gauge "mobile_processes" []
        "Processes with the MOBILE attribute.";
    OPEN: Gauge "mobile_open" []
        "1 while new mobile connections go direct without a session (`[routing] on_failure = \
         \"open\"`).";
    OPENED: Counter "mobile_opened_total" []
        "Times that new mobile connections began to go direct without a session.";
    ROUTING_RESTORED: Counter "mobile_routing_restored_total" []
        "Rules, routes, addresses and settings that another program changed and the agent \
         restored.";
    CLAIMS_REFUSED: Counter "mobile_claims_refused_total" ["reason"]
        "Addresses, resolvers and assignments of the relay that the agent refused or withdrew. The address belongs to \
         another device of this host (`local`), lies in the network of one (`connected`), is the next hop of a route \
         (`next_hop`), a resolver of this host (`resolver`) or the relay's own address (`relay`), is neither private \
         nor in `[tunnel] addresses` (`not_allowed`), or cannot be the address of a host (`unusable`). The resolver is \
         a persistent address (`persistent`). The assignment has an MTU out of range (`mtu`) or no address (`empty`).";
    KERNEL_LOOKS: Counter "mobile_kernel_looks_total" ["what"]
        "Times the agent read the kernel's network configuration because of a change. `uplinks`: \
         links, addresses and their routes to the relay; `route`: the agent's own rules, routes \
         and addresses.";
    RIVAL_RULES: Gauge "mobile_rival_rules" []
        "Rules of other programs that take packets of mobile processes before the agent's rules.";
    RULES_MOVED: Counter "mobile_rules_moved_total" []
        "Moves of the agent's rules before those of other programs, or back.";
    INGRESS_FILTER: Gauge "mobile_ingress_filter" ["filter"]
        "1 for the ingress filter in force. `nftables`; `ebpf`: an eBPF classifier on each device, \
         because nftables does not work; `none`.";
    INGRESS_DROPPED: Counter "mobile_ingress_dropped_packets_total" []
        "Packets to a persistent address, or ICMP errors that quote one, dropped because they \
         arrived by another device than the tunnel's.";
    SELECTION_VERDICTS: Counter "mobile_selection_verdicts_total" ["verdict"]
        "Decisions of the eBPF programs about mobile processes and sockets since the programs were \
         first loaded. `marked`: the socket got the mark; `kept`: the socket had the mark already; \
         `cleared`: the socket lost the mark; `other_namespace`: the mobile process is in a \
         network namespace without the tunnel; `failed`: the kernel refused the change; `direct`: \
         no mark, because there is no session; `refused`: the call failed, because the socket is \
         bound to another device than the tunnel's or to an address of one.";
    MAP_FULL: Counter "mobile_map_full_total" ["map"]
        "Entries refused because an eBPF map was full. `bypass`: networks of `mobile bypass add` \
         since the agent started; `accounts`: connections that `mobile ps` does not count, since \
         the programs were first loaded.";
    SELECTION_EVENTS: Counter "mobile_selection_events_total" ["event"]
        "Actions of the eBPF programs on DNS queries, packets and socket options since the \
         programs were first loaded. `dns_redirected`: queries sent to the relay's resolver; \
         `dns_left`: queries not redirected, because the relay offers no resolver of their address \
         family or its resolver is bypassed; `dns_failed`: queries not redirected for lack of \
         memory; `dns_forgotten`: answers under the address of the relay's resolver, because the \
         queried address is not known; `egress_refused`: packets of mobile sockets that would have \
         left by another device; `egress_late`: datagrams that were routed before their socket got \
         the mark; `unaccounted`: connections that `mobile ps` does not count; `mark_kept`: \
         SO_MARK calls on mobile sockets that changed only bits outside the agent's mask; \
         `mark_refused`: SO_MARK calls refused because they set the agent's mark on another \
         socket.";
}

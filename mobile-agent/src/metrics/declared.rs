//! The declarations of all metrics of the agent.
//!
//! This file is self-contained: `cargo xtask gen` includes it to generate docs/use/metrics.md.

mobile_io::declare_metrics! {
    BUILD_INFO: Gauge "mobile_build_info" ["version"]
        "Always 1; the label is the version of the running agent.";
    UPTIME: Gauge "mobile_uptime_seconds" []
        "Time since the agent started.";
    CONNECTED: Gauge "mobile_connected" []
        "1 while a path to the relay is active.";
    RTT: Gauge "mobile_rtt_seconds" []
        "Smoothed round-trip time to the relay on the active path; absent without one.";
    UPLINK_STATE: Gauge "mobile_uplink_state" ["uplink", "state"]
        "1 for the current state of each uplink. `active`: carries the tunnel; `standby`: has a path and could carry \
         the tunnel at once; `silent`: its path does not answer; `connecting`; `usable`; `failing`: usable, but the \
         relay was not reached over it; `unusable`.";
    PATH_RTT: Gauge "mobile_path_rtt_seconds" ["uplink"]
        "Smoothed round-trip time to the relay, for each uplink with a path.";
    PATH_LOSS: Gauge "mobile_path_loss_ratio" ["uplink"]
        "Share of TCP segments retransmitted since the path over each uplink was opened, 0 to 1.";
    HANDOVERS: Counter "mobile_handovers_total" ["cause"]
        "Moves of the tunnel to another path. The old uplink lost its carrier (`carrier_lost`), was set down \
         (`link_down`), was removed or excluded (`link_gone`), or lost its address (`address_lost`) or default route \
         (`route_lost`); the old path stopped answering (`silent`), its TCP or TLS failed (`transport_failed`), or the \
         relay closed it (`relay_closed`). Or the old path still worked: the policy prefers another uplink \
         (`better_uplink`), or the user chose one with `mobile use` (`forced`).";
    HANDOVER_BLACKOUT: Histogram "mobile_handover_blackout_seconds" []
        "Time from the end of the old path until the relay answered on the new path, for each handover; 0 if the old \
         path worked until then.";
    CONNECT_ATTEMPTS: Counter "mobile_connect_attempts_total" []
        "Attempts to connect to the relay.";
    CONNECT_FAILURES: Counter "mobile_connect_failures_total" ["reason"]
        "Failed attempts to connect to the relay. `resolve`: its name has no address; `unreachable`: no connection; \
         `timeout`; `unauthorised`: the relay does not know this host's key; `revoked`: the relay has revoked the key; \
         `wrong_relay_key`: the server has another key than `[relay] public_key`; `protocol`: the server is no relay of \
         this version; `relay_closed`: the relay closed the connection.";
    PACKETS: Counter "mobile_packets_total" ["direction"]
        "Inner packets sent and received through the tunnel.";
    BYTES: Counter "mobile_bytes_total" ["direction"]
        "Bytes of inner packets sent and received through the tunnel.";
    COMPRESSIBLE_BYTES: Counter "mobile_compressible_bytes_total" ["direction"]
        "Size before compression of the inner packets that travelled compressed, in bytes.";
    COMPRESSED_BYTES: Counter "mobile_compressed_bytes_total" ["direction"]
        "Size after compression of the inner packets that travelled compressed, in bytes.";
    DROPPED_PACKETS: Counter "mobile_dropped_packets_total" ["reason"]
        "Inner packets dropped. `delayed`: dropped to signal congestion to a flow that sends faster than the path; \
         `queue_full`: the queue had no room; `displaced`: replaced by newer packets during an outage; `aged`: queued \
         for a minute without a path; `duplicate`: TCP data that was retransmitted during an outage and is queued \
         already, which is no loss; `given_up`: sent, not acknowledged and beyond the retransmission limits; \
         `lost_by_peer`: the same at the relay; `bad_length`: empty or too long; `device_refused`: refused by the TUN \
         device; `segments`: from the relay, would be cut into more or smaller segments than allowed; `misaddressed`: \
         from the relay, to an address that this host does not have.";
    ASSIGNMENTS_DEFERRED: Counter "mobile_assignments_deferred_total" []
        "Assignments of the relay that were deferred, or superseded before they took effect, because the relay changed them too often.";
    QUEUED_BYTES: Gauge "mobile_queued_bytes" []
        "Bytes queued and not sent yet.";
    UNACKNOWLEDGED_BYTES: Gauge "mobile_unacknowledged_bytes" []
        "Bytes sent and kept until the relay acknowledges them.";
    PROCESSES: Gauge "mobile_processes" []
        "Processes with the MOBILE attribute.";
    OPEN: Gauge "mobile_open" []
        "1 while new connections of mobile processes go direct because there is no session (`[routing] on_failure = \"open\"`).";
    OPENED: Counter "mobile_opened_total" []
        "Times that new connections of mobile processes began to go direct because there was no session.";
    ROUTING_RESTORED: Counter "mobile_routing_restored_total" []
        "Rules (including nftables rules), routes, addresses and settings that another program removed or changed and the agent restored.";
    CLAIMS_REFUSED: Counter "mobile_claims_refused_total" ["reason"]
        "Addresses, resolvers and assignments of the relay that the agent refused or withdrew. The address belongs to \
         another device of this host (`local`), lies in the network of one (`connected`), is the next hop of a route \
         (`next_hop`), a resolver of this host (`resolver`) or the relay's own address (`relay`), is neither private \
         nor in `[tunnel] addresses` (`not_allowed`), or cannot be the address of a host (`unusable`). The resolver is \
         a persistent address (`persistent`). The assignment has an MTU out of range (`mtu`) or no address (`empty`).";
    KERNEL_LOOKS: Counter "mobile_kernel_looks_total" ["what"]
        "Times the agent read the kernel's network configuration because of a change. `uplinks`: links, addresses and \
         their routes to the relay; `route`: the rules, routes and addresses that the agent maintains for mobile \
         processes. Changes of other routes do not count.";
    RIVAL_RULES: Gauge "mobile_rival_rules" []
        "Rules of other programs that come before the agent's and take the packets of mobile processes.";
    RULES_MOVED: Counter "mobile_rules_moved_total" []
        "Times that the agent's rules moved before those of other programs, or back.";
    INGRESS_FILTER: Gauge "mobile_ingress_filter" ["filter"]
        "1 for the filter that drops packets to a persistent address that arrive by another device than the tunnel's. \
         `nftables`: nftables rules; `ebpf`: an eBPF classifier on each device, because nftables does not work; `none`: \
         no filter.";
    INGRESS_DROPPED: Counter "mobile_ingress_dropped_packets_total" []
        "Packets dropped because they were addressed to a persistent address, or quoted one in an ICMP error, and \
         arrived by another device than the tunnel's.";
    SELECTION_VERDICTS: Counter "mobile_selection_verdicts_total" ["verdict"]
        "Decisions of the eBPF programs about mobile processes and sockets since the programs were first loaded; \
         decisions about ordinary ones are not counted. `marked`: the socket got the mark; `kept`: the socket had the \
         mark already; `cleared`: the socket lost the mark; `other_namespace`: the mobile process is in a network \
         namespace without the tunnel; `failed`: the kernel refused the change; `direct`: no mark, because there is no \
         session; `refused`: the call failed, because the socket is bound to another device than the tunnel's or to an \
         address of one.";
    MAP_FULL: Counter "mobile_map_full_total" ["map"]
        "Entries refused because an eBPF map was full. `bypass`: networks of `mobile bypass add` since the agent \
         started; `accounts`: connections that `mobile ps` does not count, because the map or the memory was full, since \
         the programs were first loaded.";
    SELECTION_EVENTS: Counter "mobile_selection_events_total" ["event"]
        "Actions of the eBPF programs on DNS queries, packets and socket options since the programs were first loaded. \
         `dns_redirected`: queries sent to the relay's resolver; `dns_left`: queries not redirected, because the relay \
         offers no resolver of their address family or its resolver is bypassed; `dns_failed`: queries not redirected, \
         because memory was short; `dns_forgotten`: answers delivered under the address of the relay's resolver, because \
         the queried address is not known; `egress_refused`: packets of mobile sockets that would have left by another \
         device; `egress_late`: datagrams that were routed before their socket got the mark; `unaccounted`: connections \
         that `mobile ps` does not count; `mark_kept`: SO_MARK calls on mobile sockets that changed only the bits \
         outside the agent's mask; `mark_refused`: SO_MARK calls that would have given the agent's mark to another \
         socket, and failed.";
}

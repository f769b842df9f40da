//! Every metric of the agent. Nothing but declarations here: `cargo xtask gen` makes docs/metrics.md of this very file.

mobile_io::declare_metrics! {
    BUILD_INFO: Gauge "mobile_build_info" ["version"]
        "Always 1; the label says what is running.";
    UPTIME: Gauge "mobile_uptime_seconds" []
        "Time since the agent started.";
    CONNECTED: Gauge "mobile_connected" []
        "1 while a path to the relay is active.";
    RTT: Gauge "mobile_rtt_seconds" []
        "Smoothed round-trip time to the relay on the active path; absent without one.";
    UPLINK_STATE: Gauge "mobile_uplink_state" ["uplink", "state"]
        "1 for the state each uplink is in. `active`: it carries the tunnel; `standby`: it could at once; `silent`: its path does \
         not answer any more; `connecting`; `usable`; `failing`: usable, but the relay was not reached over it; `unusable`.";
    PATH_RTT: Gauge "mobile_path_rtt_seconds" ["uplink"]
        "Smoothed round-trip time to the relay, on the path over each uplink that has one.";
    PATH_LOSS: Gauge "mobile_path_loss_ratio" ["uplink"]
        "Share of TCP segments sent again since the path over each uplink was made, 0 to 1.";
    HANDOVERS: Counter "mobile_handovers_total" ["cause"]
        "Times the tunnel moved to another path. The old uplink had no carrier any more (`carrier_lost`), was set down \
         (`link_down`), was gone or excluded (`link_gone`), lost its address (`address_lost`) or default route (`route_lost`); \
         nothing was heard on the path (`silent`), its TCP or TLS failed (`transport_failed`), or the relay closed it \
         (`relay_closed`). Or it still worked: the policy prefers another uplink (`better_uplink`), or `mobile use` (`forced`).";
    HANDOVER_BLACKOUT: Histogram "mobile_handover_blackout_seconds" []
        "Of each handover, the time from the end of the old path until the relay answered on the new one; 0 where the old \
         one worked until then.";
    CONNECT_ATTEMPTS: Counter "mobile_connect_attempts_total" []
        "Attempts to reach the relay.";
    CONNECT_FAILURES: Counter "mobile_connect_failures_total" ["reason"]
        "Failed attempts to reach the relay. `resolve`: its name has no address; `unreachable`: no connection; `timeout`; \
         `unauthorised`: it does not know this host's key; `revoked`; `wrong_relay_key`: another key than `[relay] public_key` \
         answered; `protocol`: what answered is no relay of this version; `relay_closed`: it hung up.";
    PACKETS: Counter "mobile_packets_total" ["direction"]
        "Inner packets carried.";
    BYTES: Counter "mobile_bytes_total" ["direction"]
        "Bytes of inner packets carried.";
    COMPRESSIBLE_BYTES: Counter "mobile_compressible_bytes_total" ["direction"]
        "Bytes of inner packets that travelled compressed, as they are.";
    COMPRESSED_BYTES: Counter "mobile_compressed_bytes_total" ["direction"]
        "Bytes of inner packets that travelled compressed, as what they travelled.";
    DROPPED_PACKETS: Counter "mobile_dropped_packets_total" ["reason"]
        "Inner packets dropped. `delayed`: of flows that send faster than the path takes it, to say so; `queue_full`: the \
         newest, for want of room; `displaced`: by newer ones in an outage; `aged`: after a minute without a path; \
         `duplicate`: TCP data sent again in an outage that is held already, no loss; `given_up`: sent and never acknowledged, \
         beyond the bounds; `lost_by_peer`: the relay's, likewise; `bad_length`: empty or too long; `device_refused`: by the TUN; \
         `segments`: from the relay, to be cut into more, or more small, segments than it may have cut; \
         `misaddressed`: from the relay, to an address that is not ours.";
    ASSIGNMENTS_DEFERRED: Counter "mobile_assignments_deferred_total" []
        "Configurations of the relay that were put off, or superseded before they were used, because it changed them too often.";
    QUEUED_BYTES: Gauge "mobile_queued_bytes" []
        "Bytes waiting to be sent.";
    UNACKNOWLEDGED_BYTES: Gauge "mobile_unacknowledged_bytes" []
        "Bytes sent, and kept until the relay acknowledges them.";
    PROCESSES: Gauge "mobile_processes" []
        "Processes with the MOBILE attribute.";
    OPEN: Gauge "mobile_open" []
        "1 while new connections of mobile processes go directly for want of a session (`[routing] on_failure = \"open\"`).";
    OPENED: Counter "mobile_opened_total" []
        "Times that new connections of mobile processes began to go directly for want of a session.";
    ROUTING_RESTORED: Counter "mobile_routing_restored_total" []
        "Rules (nftables' too), routes, addresses and settings that others removed or changed, and the agent put back.";
    CLAIMS_REFUSED: Counter "mobile_claims_refused_total" ["reason"]
        "Addresses, resolvers and assignments that the relay pushed and the agent refused or withdrew. The address is one of \
         another device (`local`), in the network of one (`connected`), a router of a route (`next_hop`), a resolver of this host \
         (`resolver`), the relay's own (`relay`), neither private nor in `[tunnel] addresses` (`not_allowed`), or none that a host can \
         have (`unusable`); the resolver is a persistent address (`persistent`); the assignment has an MTU out of bounds (`mtu`) or no \
         address (`empty`).";
    KERNEL_LOOKS: Counter "mobile_kernel_looks_total" ["what"]
        "Times the kernel's network configuration was read because it may have changed. `uplinks`: links, addresses and their \
         routes to the relay; `route`: what the agent keeps for mobile processes. Changes of other routes do not count.";
    RIVAL_RULES: Gauge "mobile_rival_rules" []
        "Rules of others that come before ours and take the packets of mobile processes.";
    RULES_MOVED: Counter "mobile_rules_moved_total" []
        "Times that our rules moved before those of others, or back.";
    INGRESS_FILTER: Gauge "mobile_ingress_filter" ["filter"]
        "1 for what drops packets that are addressed to a persistent address and come by another device than the tunnel's. \
         `nftables`; `ebpf`: an eBPF classifier on each device, because nftables does not work; `none`: nothing does.";
    INGRESS_DROPPED: Counter "mobile_ingress_dropped_packets_total" []
        "Packets dropped because they were addressed to a persistent address, or quoted one in an ICMP error, and came by \
         another device than the tunnel's.";
    SELECTION_VERDICTS: Counter "mobile_selection_verdicts_total" ["verdict"]
        "Decisions of the eBPF programs about mobile processes and sockets, since they were first loaded; ordinary ones are not \
         counted. `marked`: a socket became mobile; `kept`: it was already; `cleared`: it is not any more; `other_namespace`: a mobile \
         process where there is no tunnel; `failed`: the kernel refused; `direct`: without a mark for want of a session; `refused`: the socket is bound to another device than the \
         tunnel's, or to an address of one, and the call failed.";
    MAP_FULL: Counter "mobile_map_full_total" ["map"]
        "Entries refused because an eBPF map was full. `bypass`: networks of `mobile bypass add`, since the agent started; \
         `accounts`: connections that `mobile ps` does not count, for want of a place or of memory, since the programs were \
         first loaded.";
    SELECTION_EVENTS: Counter "mobile_selection_events_total" ["event"]
        "What the eBPF programs did with queries and packets of mobile processes, since they were first loaded. \
         `dns_redirected`: queries sent to the relay's resolver; `dns_left`: not, for want of one of their \
         family, or because it is in the bypass; \
         `dns_failed`: not, for want of memory; `dns_forgotten`: answers under the relay's resolver's own address, because \
         what their socket had asked is not known; `egress_refused`: packets of mobile sockets that were about \
         to leave by another device; `egress_late`: datagrams whose route was older than their socket's mark; `unaccounted`: connections \
         that `mobile ps` does not count; `mark_kept`: SO_MARK calls of programs that left our bits of a mobile socket's mark as they \
         were; `mark_refused`: those that would have given our mark to another socket, and failed.";
}

//! The oldest kernel that the agent supports.
//!
//! The test looks up when the kernel got each program kind and each helper that the eBPF programs
//! use. docs/use/kernels.md lists the same requirements with the kernel's commits.

/// The oldest kernel version that has everything the agent needs, as (major, minor). The newest
/// requirement is not an eBPF helper but SO_NETNS_COOKIE, by which the agent tells the eBPF
/// programs its network namespace.
pub(crate) const OLDEST: (u32, u32) = (5, 14);

/// The first long-term kernel series that is not older than [`OLDEST`]. Kernels of version 5.14
/// come from distributors.
pub(crate) const OLDEST_LONGTERM: &str = "5.15";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aya_obj::{Function, Object, ProgramSection, programs::CgroupSockAddrAttachType as Hook};

    use super::*;
    use crate::selection::object::OBJECT;

    /// The opcode `BPF_JMP | BPF_CALL`, and the value of its source register for a call of a helper
    /// instead of another function of the program.
    const CALL: u8 = 0x85;
    const HELPER: u64 = 0;

    /// The eBPF helpers that are called only if the kernel has them, each with its number and its
    /// first kernel version. Calls of the first are guarded by the constant RECOGNISES_SUBFLOWS.
    /// The programs that call the second are loaded only if the kernel allows the call:
    /// `mobile_egress`, which `mobile_egress_own` replaces otherwise, and `mobile_setsockopt`,
    /// which may call it since 5.15.
    const OPTIONAL: [(&str, u32, (u32, u32)); 2] =
        [("bpf_skc_to_mptcp_sock", 196, (5, 19)), ("bpf_get_netns_cookie", 122, (6, 15))];

    /// Returns the first kernel version that can load eBPF programs of this kind and attach them by
    /// a link.
    fn program_kind_since(kind: &ProgramSection) -> (u32, u32) {
        match kind {
            // Links of cgroups.
            ProgramSection::CgroupSock { .. }
            | ProgramSection::CgroupSkb { .. }
            | ProgramSection::CgroupSockopt { .. } => (5, 7),
            ProgramSection::CgroupSockAddr { attach_type } => match attach_type {
                Hook::Connect4 | Hook::Connect6 | Hook::UDPSendMsg4 | Hook::UDPSendMsg6 => (5, 7),
                Hook::UDPRecvMsg4 | Hook::UDPRecvMsg6 => (5, 7),
                Hook::GetPeerName4 | Hook::GetPeerName6 => (5, 8),
                other => panic!("{other:?}: add the kernel version that supports this kind"),
            },
            other => panic!("{other:?}: add the kernel version that supports this kind"),
        }
    }

    /// Returns the first kernel version in which eBPF programs of this kind may call a helper.
    fn helper_since(kind: &ProgramSection, helper: u32) -> Option<(u32, u32)> {
        use ProgramSection::{CgroupSkb, CgroupSock, CgroupSockAddr};
        Some(match (helper, kind) {
            // Maps, and the time.
            (1 | 2 | 3 | 5, _) => (4, 1),
            // The calling task: bpf_get_current_pid_tgid, bpf_get_current_ancestor_cgroup_id; the
            // cookie of its namespace: bpf_get_netns_cookie.
            (14 | 123 | 122, CgroupSock { .. } | CgroupSockAddr { .. }) => (5, 7),
            // bpf_skb_load_bytes, bpf_sk_fullsock, bpf_tcp_sock.
            (26, CgroupSkb { .. }) => (4, 10),
            (95 | 96, CgroupSkb { .. }) => (5, 1),
            // bpf_setsockopt, bpf_getsockopt.
            (49 | 57, CgroupSockAddr { attach_type: Hook::Connect4 | Hook::Connect6 }) => (5, 8),
            (49, CgroupSockAddr { attach_type: Hook::UDPSendMsg4 | Hook::UDPSendMsg6 }) => (5, 12),
            // bpf_sk_storage_get and _delete, of the context's socket.
            (107, CgroupSock { .. }) => (5, 9),
            (107, CgroupSkb { .. }) => (5, 2),
            (107 | 108, CgroupSockAddr { .. }) => (5, 3),
            // bpf_ktime_get_boot_ns; the ring buffer of the log.
            (125 | 131 | 132 | 133, _) => (5, 8),
            _ => return None,
        })
    }

    fn helpers(function: &Function) -> BTreeSet<u32> {
        let calls = function
            .instructions
            .iter()
            .filter(|instruction| instruction.code == CALL && u64::from(instruction.src_reg()) == HELPER);
        calls.map(|call| call.imm.cast_unsigned()).collect()
    }

    #[test]
    fn the_programs_call_no_helper_that_is_newer_than_the_oldest_kernel() {
        let mut object = Object::parse(OBJECT).expect("the object is an eBPF object");
        assert!(object.programs.len() >= 13, "{:?}", object.programs.keys());
        // Append to each program the functions that it calls.
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_calls(&sections).expect("the functions are there");
        for (name, program) in &object.programs {
            assert!(program_kind_since(&program.section) <= OLDEST, "{name}");
            for helper in helpers(&object.functions[&program.function_key()]) {
                let is_optional = OPTIONAL.iter().any(|(_, id, since)| *id == helper && *since > OLDEST);
                match helper_since(&program.section, helper) {
                    Some(since) => assert!(since <= OLDEST, "{name} calls helper {helper} of {since:?}"),
                    None => assert!(
                        is_optional,
                        "{name} calls helper {helper}: add the kernel version that allows this"
                    ),
                }
            }
        }
    }
}

//! Detects optional kernel features, without which the eBPF programs work with restrictions.

use std::path::Path;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use super::bpf_error::{BpfError, Result};

/// Returns whether the eBPF programs can recognise MPTCP subflows: the kernel has MPTCP and the
/// helper `bpf_skc_to_mptcp_sock` (Linux 5.19).
pub(super) fn recognises_mptcp_subflows() -> Result<bool> {
    let has_mptcp = Path::new("/proc/sys/net/mptcp").exists();
    Ok(has_mptcp && has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_skc_to_mptcp_sock)?)
}

/// Returns whether an eBPF program for sent packets can identify network namespaces (Linux 6.15).
pub(super) fn egress_has_netns_cookie() -> Result<bool> {
    has_helper(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_netns_cookie)
}

/// Returns whether an eBPF program for setsockopt() can identify network namespaces (Linux 5.15).
pub(super) fn setsockopt_has_netns_cookie() -> Result<bool> {
    has_helper(ProgramType::CgroupSockopt, BpfHelper::BPF_FUNC_get_netns_cookie)
}

/// Loads a probe program to find out whether eBPF programs of this kind may call a helper. Only the
/// verifier's "unknown helper" means no; any other failure is an error.
fn has_helper(kind: ProgramType, helper: BpfHelper) -> Result<bool> {
    is_helper_supported(kind, helper)
        .map_err(|source| BpfError::Feature { helper: format!("{helper:?}"), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_of_another_program_kind_is_reported_missing_without_an_error() {
        assert!(has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get).unwrap());
        assert!(!has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_xdp_adjust_head).unwrap());
    }
}

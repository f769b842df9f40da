//! Features of the kernel that the programs do without where it has not got them.

use std::path::Path;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use super::bpf_error::{BpfError, Result};

/// Whether the programs may ask which sockets are MPTCP subflows (`bpf_skc_to_mptcp_sock`): the
/// kernel has MPTCP, and the question (Linux 5.19).
pub(super) fn tells_subflows() -> Result<bool> {
    let has_mptcp = Path::new("/proc/sys/net/mptcp").exists();
    Ok(has_mptcp && has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_skc_to_mptcp_sock)?)
}

/// Whether a program where packets leave can tell network namespaces apart (Linux 6.15).
pub(super) fn tells_namespaces_of_packets() -> Result<bool> {
    has_helper(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_netns_cookie)
}

/// Whether a program that sees socket options being set can tell network namespaces apart (Linux
/// 5.15).
pub(super) fn tells_namespaces_of_options() -> Result<bool> {
    has_helper(ProgramType::CgroupSockopt, BpfHelper::BPF_FUNC_get_netns_cookie)
}

/// Asks the verifier. Only its "unknown helper" is a no: whatever else keeps a program from being
/// loaded is an error.
fn has_helper(kind: ProgramType, helper: BpfHelper) -> Result<bool> {
    is_helper_supported(kind, helper)
        .map_err(|source| BpfError::Feature { helper: format!("{helper:?}"), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_of_another_kind_of_program_is_missing_and_no_error() {
        assert!(has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get).unwrap());
        assert!(!has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_xdp_adjust_head).unwrap());
    }
}

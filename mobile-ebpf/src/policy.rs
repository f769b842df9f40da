//! The policy of the eBPF programs: which socket gets the mark, which address is reached without
//! the tunnel, which DNS query is redirected, and which packet and which SO_MARK is refused.
//!
//! The functions are pure. A question whose answer costs a map look-up or a call of the kernel is
//! passed as a closure, so that a call that does not need the answer does not pay for it.

use mobile_ebpf_common::{
    Address, CountedEvent, MarkVerdict, ProgramConfig,
    map::{IPV4, IPV6},
};

/// Verdicts of the kernel's cgroup hooks: continue the call, or fail it with EPERM.
pub(crate) const ALLOW: i32 = 1;
pub(crate) const REFUSE: i32 = 0;

/// The interface index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// Whether a process, or the connection that a socket belongs to, has the MOBILE attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Mobile,
    Ordinary,
}

/// The reason why a decision about a socket's mark could not be made or carried out.
#[derive(Clone, Copy)]
pub(crate) enum Error {
    /// The configuration map is empty.
    NoConfig,
    /// The kernel refused to set the mark. Without the mark the call would leave outside the
    /// tunnel.
    SetMark,
    /// The kernel refused to clear the mark.
    ClearMark,
    /// An MPTCP connection could not be recorded as mobile, so its further subflows would leave
    /// outside the tunnel.
    Subflows,
}

/// A decision about a socket's mark.
pub(crate) enum Decision {
    /// Leave the mark as it is, for this reason.
    Leave(MarkVerdict),
    /// Set the mark to this value, for this reason.
    Set(u32, MarkVerdict),
}

/// Decides whether to set, keep or clear the mark in `old`, the mark of a socket. Asks for the
/// network namespace last, so that ordinary processes, which most are, do not pay for it.
#[inline(always)]
pub(crate) fn decide(
    config: &ProgramConfig,
    old: u32,
    attribute: Attribute,
    is_in_our_namespace: impl FnOnce() -> bool,
    deadline_has_passed: impl Fn() -> bool,
) -> Decision {
    let mobile = attribute == Attribute::Mobile;
    let marked = config.is_marked(old);
    if !mobile && !marked {
        return Decision::Leave(MarkVerdict::Ordinary);
    }
    if !is_in_our_namespace() {
        // A mark in another namespace is not the agent's, even if its value is the same.
        return Decision::Leave(if mobile { MarkVerdict::OtherNamespace } else { MarkVerdict::Ordinary });
    }
    match (mobile, marked) {
        (true, false) if deadline_has_passed() => Decision::Leave(MarkVerdict::Direct),
        (true, true) if deadline_has_passed() => Decision::Set(config.cleared(old), MarkVerdict::Direct),
        (true, false) => Decision::Set(config.marked(old), MarkVerdict::Marked),
        (true, true) => Decision::Leave(MarkVerdict::Kept),
        (false, _) => Decision::Set(config.cleared(old), MarkVerdict::Cleared),
    }
}

/// Returns the decision to count and the hook's verdict: the call fails only if it would leave
/// outside the tunnel. Returns `None` for decisions about ordinary processes, the great majority,
/// which are allowed and not counted.
#[inline(always)]
pub(crate) fn outcome(result: Result<MarkVerdict, Error>) -> Option<(MarkVerdict, i32)> {
    Some(match result {
        Ok(MarkVerdict::Ordinary) => return None,
        Ok(MarkVerdict::Refused) => (MarkVerdict::Refused, REFUSE),
        Ok(verdict) => (verdict, ALLOW),
        Err(Error::SetMark | Error::Subflows) => (MarkVerdict::Failed, REFUSE),
        Err(Error::NoConfig | Error::ClearMark) => (MarkVerdict::Failed, ALLOW),
    })
}

/// Returns whether even mobile processes reach an address without the tunnel.
#[inline(always)]
pub(crate) fn is_direct(to: Address, is_bypassed: impl FnOnce(Address) -> bool) -> bool {
    to.is_local() || to.is_link_local() || is_bypassed(to)
}

/// Returns whether packets that use a device stay in the host or the tunnel; other devices are
/// uplinks.
#[inline(always)]
pub(crate) fn is_own_device(config: &ProgramConfig, device: u32) -> bool {
    device == LOOPBACK || device == config.device
}

/// Returns the event to count if a packet of a marked socket must not leave by an uplink.
#[inline(always)]
pub(crate) fn stopped_packet(config: &ProgramConfig, packet_mark: u32) -> CountedEvent {
    if config.is_marked(packet_mark) { CountedEvent::EgressRefused } else { CountedEvent::EgressLate }
}

/// A decision about a DNS query of a mobile process.
pub(crate) enum QueryDecision {
    /// Leave the query as it is.
    Leave,
    /// Leave the query as it is, although it should be redirected, and count
    /// [`CountedEvent::DnsLeft`].
    Miss,
    /// Send the query to this resolver of the relay.
    Redirect(Address),
}

/// Decides whether to redirect a query for the resolver `queried`. A query is `bound_to_link` if
/// the kernel has already chosen the link of a link-local destination.
#[inline(always)]
pub(crate) fn redirection(
    queried: Address,
    bound_to_link: bool,
    is_bypassed: impl Fn(Address) -> bool,
    resolver: impl Fn(u32) -> Option<Address>,
) -> QueryDecision {
    if queried.is_local() || is_bypassed(queried) {
        return QueryDecision::Leave;
    }
    let (own, other) = if queried.is_mapped() { (IPV4, IPV6) } else { (IPV6, IPV4) };
    let Some(relay_resolver) = resolver(own) else {
        return if resolver(other).is_some() { QueryDecision::Miss } else { QueryDecision::Leave };
    };
    // A bypassed resolver would be looked up in the visited network.
    if is_bypassed(relay_resolver) || (bound_to_link && queried.is_link_local()) {
        return QueryDecision::Miss;
    }
    QueryDecision::Redirect(relay_resolver)
}

/// A decision about a process's SO_MARK.
pub(crate) enum MarkChange {
    /// Set the mark to the value that the process gave.
    AsAsked,
    /// Refuse the call, because the value has the agent's mark.
    Refused,
    /// Set the mark to this value, which keeps the agent's bits.
    Kept(u32),
}

/// Decides about a change of a socket's mark from `old` to `new`.
#[inline(always)]
pub(crate) fn mark_change(
    config: &ProgramConfig,
    old: u32,
    new: u32,
    is_of_agent: impl FnOnce() -> bool,
    is_in_our_namespace: impl FnOnce() -> bool,
) -> MarkChange {
    let was_marked = config.is_marked(old);
    if was_marked == config.is_marked(new) || is_of_agent() || !is_in_our_namespace() {
        MarkChange::AsAsked
    } else if was_marked {
        MarkChange::Kept(config.marked(new))
    } else {
        MarkChange::Refused
    }
}

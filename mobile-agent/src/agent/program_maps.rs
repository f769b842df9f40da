//! Keeps the maps of the eBPF programs up to date: the addresses that the relay assigns, and the
//! systemd slice of mobile processes.

use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use crate::routing::assignment::Assignment;
use crate::selection::addresses::Addresses;
use crate::selection::slice::SliceWatch;

/// The time until a failed update of the eBPF programs' maps is retried.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// Returns the resolvers and the persistent addresses of an assignment, in the form for the eBPF
/// programs.
pub(crate) fn program_addresses(assignment: Option<&Assignment>) -> (Addresses, Addresses) {
    let Some(Assignment { ipv4, ipv6, dns, .. }) = assignment else { return Default::default() };
    let persistent = Addresses { ipv4: *ipv4, ipv6: *ipv6 };
    (Addresses::resolvers(dns, persistent), persistent)
}

/// Updates the maps of the eBPF programs when the relay assigns other resolvers or addresses.
pub(super) async fn follow_assignment(agent: Arc<Agent>) -> anyhow::Error {
    let mut assignment = agent.route.assignment.clone();
    let mut in_force = None;
    loop {
        let view = program_addresses(assignment.borrow_and_update().as_deref());
        if in_force != Some(view) {
            let (resolvers, persistent) = view;
            tracing::debug!(?resolvers, ?persistent, "updating the addresses in the eBPF programs");
            let mut selector = agent.processes.selector();
            let (asked, sent) = (selector.set_resolvers(resolvers), selector.set_persistent(persistent));
            if let Err(error) = &asked {
                tracing::warn!(
                    %error,
                    "cannot update DNS redirection: still using the previous resolvers, retrying"
                );
            }
            if let Err(error) = &sent {
                tracing::warn!(
                    %error,
                    "cannot update the persistent addresses in the eBPF programs: datagrams of \
                    sockets opened before `mobile attach` keep their previous source, retrying"
                );
            }
            in_force = (asked.is_ok() && sent.is_ok()).then_some(view);
        }
        let changed = if in_force == Some(view) {
            assignment.changed().await
        } else {
            tokio::time::timeout(RETRY_DELAY, assignment.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            // The reconciler's own task ends with the reason, perhaps a moment later on another
            // thread.
            return std::future::pending().await;
        }
    }
}

/// Updates the maps of the eBPF programs when systemd creates or removes the slice of mobile
/// processes.
pub(super) async fn follow_slice(agent: Arc<Agent>) -> anyhow::Error {
    let slice = agent.processes.slice();
    let mut watch = match SliceWatch::new(slice) {
        Ok(watch) => watch,
        Err(error) => {
            let dir = slice.dir().display();
            tracing::warn!(
                %error,
                "cannot watch for the slice {dir}: if it is created later, its processes are not \
                mobile"
            );
            return std::future::pending().await;
        }
    };
    let mut in_force = None;
    loop {
        let id = slice.id();
        if in_force != Some(id) {
            tracing::debug!(
                slice = %slice.dir().display(), id,
                "updating the slice of mobile processes"
            );
            match agent.processes.selector().set_slice(id) {
                Ok(()) => in_force = Some(id),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "cannot update the slice of mobile processes: processes of {} are not \
                        mobile yet, retrying",
                        slice.dir().display()
                    );
                }
            }
        }
        let changed = if in_force == Some(id) {
            watch.changed().await
        } else {
            tokio::time::timeout(RETRY_DELAY, watch.changed()).await.unwrap_or(Ok(()))
        };
        if let Err(error) = changed {
            return anyhow::Error::new(error).context("no longer watching for the slice of mobile processes");
        }
    }
}

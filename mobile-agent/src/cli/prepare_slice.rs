//! The verb `mobile prepare-slice`, which has the agent prepare `mobile.slice` before a service
//! starts there.

use std::path::Path;

use anyhow::Context;

use crate::protocol::{Reply, Request};

/// Has the agent make the processes of systemd's `mobile.slice` mobile. If this fails, systemd
/// starts nothing in the slice.
pub(super) fn prepare_slice(config: Option<&Path>) -> anyhow::Result<()> {
    let prepared = super::agent(config).and_then(|mut agent| super::ask(&mut agent, &Request::PrepareSlice));
    match prepared.context(
        "services in mobile.slice are not started, because they would not be mobile: set this host up with \
         `mobile enroll`, or see `systemctl status mobile`",
    )? {
        Reply::Done => Ok(()),
        other => Err(super::unexpected(&other)),
    }
}

//! `mobile prepare-slice`: has the agent make services of `mobile.slice` mobile before the first one starts.

use std::path::Path;

use anyhow::Context;

use crate::control::protocol::{Answer, Request};

/// Succeeds once whatever runs in the slice is mobile. systemd starts nothing in it otherwise.
pub(super) fn prepare_slice(config: Option<&Path>) -> anyhow::Result<()> {
    let prepared = super::agent(config).and_then(|mut agent| super::ask(&mut agent, &Request::PrepareSlice));
    match prepared.context(
        "services in mobile.slice are not started, because they would not be mobile: set this host up with \
         `mobile enroll`, or see what `systemctl status mobile` says",
    )? {
        Answer::Done => Ok(()),
        other => Err(super::unexpected(&other)),
    }
}

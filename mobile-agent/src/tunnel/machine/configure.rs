//! Changes of the settings after a reload of the configuration.

use std::time::Instant;

use super::candidate::Stage;
use super::{Machine, Preferences};
use crate::config::{self, globs};
use crate::tunnel::PresentPaths;

impl Preferences {
    /// Compiles the settings of `[uplink]`.
    pub(crate) fn of(uplink: &config::Uplink) -> anyhow::Result<Self> {
        Ok(Self {
            prefer: globs("[uplink] prefer", &uplink.prefer)?,
            exclude: globs("[uplink] exclude", &uplink.exclude)?,
            standby: globs("[uplink] standby", &uplink.standby)?,
        })
    }
}

impl Machine {
    /// Ranks the uplinks by other preferences from now on.
    pub(crate) fn set_preferences(&mut self, now: Instant, preferences: Preferences) {
        self.preferences = preferences;
        self.reconcile(now);
    }

    /// Makes new attempts with the relay's or this host's new identity at once. Attempts in
    /// progress use the former one and are closed. Paths that the relay has accepted stay, or stay
    /// until the relay has accepted another.
    pub(crate) fn dial_anew(&mut self, now: Instant, present: PresentPaths) {
        self.close_where(|candidate| !matches!(candidate.stage, Stage::Ready(_)));
        if present == PresentPaths::Replace {
            self.paths.iter_mut().for_each(|candidate| candidate.is_outdated = true);
        }
        // Failures with the former identity say nothing about the new one.
        for uplink in &self.uplinks {
            self.record.forget(&uplink.name);
        }
        self.reconcile(now);
    }
}

//! The priority of the agent's rules: before the conflicting rules of other programs, such as those
//! of a VPN that was started after the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mobile_netlink::ListedRule;

use super::conflicting_rules::{MoveLimiter, conflicting_rules, rule_priority};
use crate::config::Routing;

/// Counters of other programs' rules that capture packets of mobile processes.
#[derive(Debug, Default)]
pub(crate) struct ConflictingRules {
    /// The number of other programs' rules that come before the agent's rules at present.
    pub(crate) before: AtomicU64,
    /// The number of times that the agent's rules were moved to another priority: ahead of
    /// conflicting rules, or back to the configured priority.
    pub(crate) moves: AtomicU64,
}

/// The priority of the agent's rules that match the firewall mark.
pub(super) struct RulePosition {
    priority: u32,
    move_limiter: MoveLimiter,
    conflicts: Arc<ConflictingRules>,
}

impl RulePosition {
    /// Creates the position at the configured priority.
    pub(super) fn new(routing: &Routing) -> Self {
        Self { priority: routing.rule_priority, move_limiter: MoveLimiter::new(), conflicts: Arc::default() }
    }

    /// Returns the counters, for status and metrics.
    pub(super) fn conflicts(&self) -> Arc<ConflictingRules> {
        Arc::clone(&self.conflicts)
    }

    /// Returns the chosen priority.
    pub(super) fn priority(&self) -> u32 {
        self.priority
    }

    /// Chooses a priority for the agent's rules before those of `rules`, the rules of all programs,
    /// that conflict. Returns whether the priority changed.
    pub(super) fn choose(&mut self, rules: &[ListedRule], routing: &Routing) -> bool {
        let first = conflicting_rules(rules, routing, routing.rule_priority).next();
        let wanted = rule_priority(rules, routing);
        let mut moved = false;
        if let Some(priority) = wanted
            && priority != self.priority
            && self.move_limiter.try_move(Instant::now())
        {
            self.priority = priority;
            moved = true;
            self.conflicts.moves.fetch_add(1, Ordering::Relaxed);
            match first {
                Some(rule) => tracing::warn!(
                    "the {} rule `{rule}` takes every packet of mobile processes: our rules go \
                    before it, to priority {priority}",
                    rule.family
                ),
                None => tracing::info!(
                    priority,
                    "no conflicting rule is left: our rules are back at the configured priority"
                ),
            }
        }
        let before = conflicting_rules(rules, routing, self.priority).count() as u64;
        if self.conflicts.before.swap(before, Ordering::Relaxed) != before
            && let Some(rule) = conflicting_rules(rules, routing, self.priority).next()
        {
            tracing::warn!(
                "the {} rule `{rule}` comes before ours ({}) and takes every packet of mobile processes: {}; see \
                 `mobile check`",
                rule.family,
                self.priority,
                if wanted.is_none() {
                    "there is no room before it"
                } else {
                    "our rules have moved too often"
                }
            );
        }
        moved
    }
}

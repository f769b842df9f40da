//! Finds routing rules of other programs that capture packets of mobile processes, and chooses a
//! priority that puts the agent's rules before them. All functions are pure.
//!
//! The kernel puts a rule that is added without a priority before all others. VPNs for all traffic
//! of the host (wg-quick) add such rules.

use std::time::{Duration, Instant};

use mobile_netlink::{ListedRule, Rule};

use crate::config::Routing;

/// The number of times that the agent may change the priority of its rules without a pause of
/// [`QUIET_PERIOD`]. A VPN that a person starts causes one change. If another program also wants
/// its rules to be first, the limit ends the contest.
const MAX_MOVES: u32 = 8;

/// The time without a change of priority after which [`MAX_MOVES`] changes are allowed again.
const QUIET_PERIOD: Duration = Duration::from_secs(600);

/// Returns whether a rule has the form of the agent's rules, at any priority up to the configured
/// one.
pub(crate) fn is_ours(rule: &Rule, routing: &Routing) -> bool {
    let marked = rule.fwmark == Some((routing.mark, routing.mark_mask)) && rule.from.is_none();
    let host = |net: ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
    let from = rule.fwmark.is_none() && rule.from.is_some_and(host);
    rule.table == routing.table && rule.priority <= routing.rule_priority + 1 && (marked || from)
}

/// Returns whether a rule from the listing of all rules has the form of the agent's rules.
pub(crate) fn is_listed_as_ours(rule: &ListedRule, routing: &Routing) -> bool {
    let ListedRule { priority, family, fwmark, from, .. } = *rule;
    !rule.inverted
        && !rule.has_other_selectors
        && rule.table.is_some_and(|table| is_ours(&Rule { priority, family, fwmark, from, table }, routing))
}

/// Returns other programs' rules that match packets of mobile processes before the agent's rule at
/// `priority` does.
pub(crate) fn conflicting_rules<'a>(
    rules: &'a [ListedRule],
    routing: &'a Routing,
    priority: u32,
) -> impl Iterator<Item = &'a ListedRule> {
    rules
        .iter()
        // Every host has the local table's rule at priority 0.
        .filter(move |rule| (1..=priority).contains(&rule.priority))
        .filter(|rule| {
            !is_listed_as_ours(rule, routing) && rule.matches_mark(routing.mark, routing.mark_mask)
        })
}

/// Returns the priority for the agent's first rule: the configured one if no rule conflicts, or one
/// before all conflicting rules. Returns `None` if no priority before them is left.
pub(crate) fn rule_priority(rules: &[ListedRule], routing: &Routing) -> Option<u32> {
    match conflicting_rules(rules, routing, routing.rule_priority).map(|rule| rule.priority).min() {
        None => Some(routing.rule_priority),
        // The agent has rules at two adjacent priorities, at least 1 and 2.
        Some(first) => first.checked_sub(2).filter(|priority| *priority > 0),
    }
}

/// Limits how often the agent's routing rules move to another priority.
#[derive(Debug)]
pub(crate) struct MoveLimiter {
    left: u32,
    moved: Option<Instant>,
}

impl MoveLimiter {
    pub(crate) fn new() -> Self {
        Self { left: MAX_MOVES, moved: None }
    }

    /// Returns whether the rules may move to another priority now, and if so, counts the move.
    pub(crate) fn try_move(&mut self, now: Instant) -> bool {
        if self.moved.is_some_and(|moved| now.saturating_duration_since(moved) >= QUIET_PERIOD) {
            self.left = MAX_MOVES;
        }
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        self.moved = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobile_netlink::Family;

    fn rule(priority: u32, fwmark: Option<(u32, u32)>, inverted: bool, table: u32) -> ListedRule {
        ListedRule {
            priority,
            family: Family::V4,
            table: Some(table),
            fwmark,
            from: None,
            inverted,
            has_other_selectors: false,
            suppresses_default_route: false,
        }
    }

    fn full_tunnel(priority: u32) -> ListedRule {
        rule(priority, Some((0xca6c, u32::MAX)), true, 51820)
    }

    #[test]
    fn rules_move_before_conflicting_ones_and_back() {
        let routing = Routing::default();
        let ours = |priority| rule(priority, Some((routing.mark, routing.mark_mask)), false, 7700);
        let ends = [rule(0, None, false, 255), rule(32766, None, false, 254)];
        let at = |middle: &[ListedRule]| rule_priority(&[&ends, middle].concat(), &routing);
        assert_eq!(at(&[ours(4900)]), Some(4900));
        assert_eq!(at(&[full_tunnel(4899), ours(4900)]), Some(4897));
        assert_eq!(at(&[ours(4897), full_tunnel(4899)]), Some(4897));
        assert_eq!(at(&[ours(4897)]), Some(4900));
        // A rule at the same priority conflicts. A later rule, or one for other marks, does not.
        assert_eq!(at(&[full_tunnel(4900)]), Some(4898));
        assert_eq!(at(&[full_tunnel(4901), rule(7, Some((0x8_0000, 0xff_0000)), false, 52)]), Some(4900));
        // There is no room before the other rule.
        assert_eq!(at(&[full_tunnel(2)]), None);
        assert_eq!(at(&[full_tunnel(3)]), Some(1));
    }

    #[test]
    fn moves_are_limited_until_a_quiet_period() {
        let (mut limiter, start) = (MoveLimiter::new(), Instant::now());
        assert_eq!((0..100).filter(|_| limiter.try_move(start)).count(), 8);
        assert!(!limiter.try_move(start + QUIET_PERIOD / 2));
        assert_eq!((0..100).filter(|_| limiter.try_move(start + QUIET_PERIOD)).count(), 8);
    }
}

//! Rules of others that come before ours and take what is ours, and where ours go instead: pure.
//!
//! A rule without a priority is put before all others by the kernel, and full tunnels (wg-quick) make such ones.

use std::time::{Duration, Instant};

use mobile_io::netlink::{ListedRule, Rule};

use crate::config::Routing;

/// How often our rules may move, until they have stayed for [`PEACE`]: every tunnel a person starts is one, and two programs
/// that both want to be first stop after a moment.
const MOVES: u32 = 8;

/// After this long without a move the next is not part of the same fight.
const PEACE: Duration = Duration::from_secs(600);

/// Whether a rule is of the kind that we make, wherever it is.
pub(crate) fn is_ours(rule: &Rule, routing: &Routing) -> bool {
    let marked = rule.fwmark == Some((routing.mark, routing.mark_mask)) && rule.from.is_none();
    let host = |net: ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
    let from = rule.fwmark.is_none() && rule.from.is_some_and(host);
    rule.table == routing.table && rule.priority <= routing.rule_priority + 1 && (marked || from)
}

/// The same of a rule that is listed with everybody's.
pub(crate) fn is_listed_as_ours(rule: &ListedRule, routing: &Routing) -> bool {
    let ListedRule { priority, family, fwmark, from, .. } = *rule;
    !rule.inverted
        && !rule.has_other_selectors
        && rule.table.is_some_and(|table| is_ours(&Rule { priority, family, fwmark, from, table }, routing))
}

/// Others' rules that take packets of mobile processes before one of ours at `priority` does.
pub(crate) fn before<'a>(
    rules: &'a [ListedRule],
    routing: &'a Routing,
    priority: u32,
) -> impl Iterator<Item = &'a ListedRule> {
    rules
        .iter()
        // The local table's rule, at 0, is everybody's first.
        .filter(move |rule| (1..=priority).contains(&rule.priority))
        .filter(|rule| {
            !is_listed_as_ours(rule, routing) && rule.matches_mark(routing.mark, routing.mark_mask)
        })
}

/// Where our rules are before everybody's: as configured if nothing is in the way. `None`: there is no room.
pub(crate) fn place(rules: &[ListedRule], routing: &Routing) -> Option<u32> {
    match before(rules, routing, routing.rule_priority).map(|rule| rule.priority).min() {
        None => Some(routing.rule_priority),
        // Two, at least at 1 and 2.
        Some(first) => first.checked_sub(2).filter(|place| *place > 0),
    }
}

/// How often we still move.
#[derive(Debug)]
pub(crate) struct Patience {
    left: u32,
    moved: Option<Instant>,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { left: MOVES, moved: None }
    }

    /// Whether to move now.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.moved.is_some_and(|moved| now.saturating_duration_since(moved) >= PEACE) {
            self.left = MOVES;
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
    use mobile_io::netlink::Family;

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
    fn our_rules_go_before_those_that_take_what_is_ours_and_back() {
        let routing = Routing::default();
        let ours = |priority| rule(priority, Some((routing.mark, routing.mark_mask)), false, 7700);
        let ends = [rule(0, None, false, 255), rule(32766, None, false, 254)];
        let at = |middle: &[ListedRule]| place(&[&ends, middle].concat(), &routing);
        assert_eq!(at(&[ours(4900)]), Some(4900));
        assert_eq!(at(&[full_tunnel(4899), ours(4900)]), Some(4897));
        assert_eq!(at(&[ours(4897), full_tunnel(4899)]), Some(4897));
        assert_eq!(at(&[ours(4897)]), Some(4900));
        // The same priority is in the way; one behind ours, or for others' marks, is not.
        assert_eq!(at(&[full_tunnel(4900)]), Some(4898));
        assert_eq!(at(&[full_tunnel(4901), rule(7, Some((0x8_0000, 0xff_0000)), false, 52)]), Some(4900));
        // No room.
        assert_eq!(at(&[full_tunnel(2)]), None);
        assert_eq!(at(&[full_tunnel(3)]), Some(1));
    }

    #[test]
    fn a_fight_ends_and_peace_restores_patience() {
        let (mut patience, start) = (Patience::new(), Instant::now());
        assert_eq!((0..100).filter(|_| patience.take(start)).count(), 8);
        assert!(!patience.take(start + PEACE / 2));
        assert_eq!((0..100).filter(|_| patience.take(start + PEACE)).count(), 8);
    }
}

//! The rules of everybody, as far as it matches to know which of them come between a mark and its table.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::channel::{Channel, Explain};
use super::{Family, Netlink, NetlinkError, TABLE_MAIN};

/// A rule that somebody made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedRule {
    /// The lower, the sooner it is asked.
    pub priority: u32,
    /// The family it is for.
    pub family: Family,
    /// The table it sends packets to; `None`: it does something else with them.
    pub table: Option<u32>,
    /// It asks for this mark under this mask.
    pub fwmark: Option<(u32, u32)>,
    /// It asks for these source addresses.
    pub from: Option<IpNet>,
    /// It is for the packets that do *not* fit.
    pub inverted: bool,
    /// It asks for more than is told here: a device, a user, a port…
    pub has_other_selectors: bool,
    /// It matches no default route from its table.
    pub suppresses_default_route: bool,
}

impl Netlink {
    /// Every rule of both families, in their order.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn all_rules(&self) -> Result<Vec<ListedRule>, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut rules = Vec::new();
        for family in Family::ALL {
            rules.extend(channel.all_rules(family).await?);
        }
        rules.sort_by_key(|rule| rule.priority);
        Ok(rules)
    }
}

impl Channel {
    async fn all_rules(&mut self, family: Family) -> Result<Vec<ListedRule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family.raw();
        let answer = self.dump(RouteNetlinkMessage::GetRule(message)).await;
        match answer.explain(Some(family), || format!("list the {family} rules")) {
            Err(error) if error.is_family_unavailable() => Ok(Vec::new()),
            answer => {
                let rules = answer?.into_iter().filter_map(ListedRule::from_message);
                // A kernel without IPv6 answers with the rules it does have.
                Ok(rules.filter(|rule| rule.family == family).collect())
            }
        }
    }
}

impl ListedRule {
    /// Whether it matches every packet that has `mark` in the bits of `mask`, whatever its other bits are.
    #[must_use]
    pub fn matches_mark(&self, mark: u32, mask: u32) -> bool {
        if self.has_other_selectors || self.from.is_some() {
            return false;
        }
        match (self.fwmark, self.inverted) {
            (None, inverted) => !inverted,
            (Some((value, theirs)), false) => theirs & !mask == 0 && mark & theirs == value,
            // One bit that is surely another is enough not to fit.
            (Some((value, theirs)), true) => (mark ^ value) & theirs & mask != 0,
        }
    }

    /// Whether one packet may carry both this rule's mark and `mark` in the bits of `mask`, which shares bits with it.
    #[must_use]
    pub fn conflicts_with_mark(&self, mark: u32, mask: u32) -> bool {
        self.fwmark.is_some_and(|(value, theirs)| {
            !self.inverted && theirs & mask != 0 && (mark ^ value) & theirs & mask == 0
        })
    }

    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRule(message) = message else { return None };
        let header = &message.header;
        let mut rule = Self {
            priority: 0,
            family: Family::of(header.family)?,
            table: Some(header.table.into()),
            fwmark: None,
            from: None,
            inverted: header.flags.contains(RuleFlags::Invert),
            // A rule that only jumps to another decides nothing itself.
            has_other_selectors: header.dst_len != 0
                || header.tos != 0
                || matches!(header.action, RuleAction::Goto | RuleAction::Nop),
            suppresses_default_route: false,
        };
        let (mut mark, mut mask) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = Some(*table),
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = Some(*value),
                RuleAttribute::Source(address) => rule.from = IpNet::new(*address, header.src_len).ok(),
                // "Suppress nothing": told of every rule.
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
                RuleAttribute::SuppressPrefixLen(_) => rule.suppresses_default_route = true,
                _ => rule.has_other_selectors = true,
            }
        }
        if mark.is_some() || mask.is_some() {
            rule.fwmark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
        }
        if header.action != RuleAction::ToTable {
            rule.table = None;
        }
        Some(rule)
    }
}

/// As `ip rule` would say it.
impl fmt::Display for ListedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.inverted {
            f.write_str(" not")?;
        }
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        match self.fwmark {
            Some((mark, u32::MAX)) => write!(f, " fwmark {mark:#x}")?,
            Some((mark, mask)) => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
            None => {}
        }
        if self.has_other_selectors {
            f.write_str(" and more")?;
        }
        match self.table {
            Some(255) => f.write_str(" lookup local")?,
            Some(TABLE_MAIN) => f.write_str(" lookup main")?,
            Some(253) => f.write_str(" lookup default")?,
            Some(table) => write!(f, " lookup {table}")?,
            None => f.write_str(" to no table")?,
        }
        if self.suppresses_default_route { f.write_str(" except default routes") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair};
    use super::*;

    const MARK: u32 = 0x4d00_0000;
    const MASK: u32 = 0xff00_0000;

    fn rule(fwmark: Option<(u32, u32)>, inverted: bool) -> ListedRule {
        ListedRule {
            priority: 100,
            family: Family::V4,
            table: Some(51820),
            fwmark,
            from: None,
            inverted,
            has_other_selectors: false,
            suppresses_default_route: false,
        }
    }

    #[test]
    fn a_rule_takes_what_it_surely_matches() {
        for (fwmark, inverted, matches) in [
            (None, false, true),
            (None, true, false),
            // wg-quick.
            (Some((0xca6c, u32::MAX)), true, true),
            (Some((0xca6c, u32::MAX)), false, false),
            // Ours, and half of ours.
            (Some((MARK, MASK)), false, true),
            (Some((MARK, MASK)), true, false),
            (Some((0x4000_0000, 0xf000_0000)), false, true),
            // It depends on bits that are not ours.
            (Some((MARK, u32::MAX)), false, false),
            (Some((0x1, 0xff)), true, false),
        ] {
            assert_eq!(rule(fwmark, inverted).matches_mark(MARK, MASK), matches, "{fwmark:x?} {inverted}");
        }
        assert!(!ListedRule { has_other_selectors: true, ..rule(None, false) }.matches_mark(MARK, MASK));
    }

    #[test]
    fn marks_collide_when_one_packet_can_have_both() {
        for (fwmark, conflicts) in [
            ((MARK, u32::MAX), true),
            ((0x0d00_0001, 0x0f00_00ff), true),
            ((0xca6c, u32::MAX), false),
            ((0x1, 0xff), false),
        ] {
            assert_eq!(rule(Some(fwmark), false).conflicts_with_mark(MARK, MASK), conflicts, "{fwmark:x?}");
            assert!(!rule(Some(fwmark), true).conflicts_with_mark(MARK, MASK));
        }
    }

    #[test]
    fn others_rules_are_told_as_they_are() {
        with_a_pair(async {
            ip("rule add not fwmark 0xca6c lookup 51820 pref 4000");
            ip("rule add lookup main suppress_prefixlength 0 pref 3999");
            ip("rule add fwmark 0x10/0xf0 from 10.0.0.0/8 iif left blackhole pref 3998");
            ip("-6 rule add not fwmark 0xca6c lookup 51820 pref 4000");
            let told = Netlink::new().unwrap().all_rules().await.unwrap();
            let words: Vec<String> =
                told.iter().filter(|rule| rule.priority < 5000).map(ToString::to_string).collect();
            assert_eq!(
                words,
                [
                    "0: from all lookup local",
                    "0: from all lookup local",
                    "3998: from 10.0.0.0/8 fwmark 0x10/0xf0 and more to no table",
                    "3999: from all lookup main except default routes",
                    "4000: not from all fwmark 0xca6c lookup 51820",
                    "4000: not from all fwmark 0xca6c lookup 51820",
                ]
            );
        });
    }
}

//! Reads the policy routing rules of all programs, to find rules that prevent packets with a
//! certain mark from reaching the routing table meant for that mark.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::channel::{Channel, Explain};
use super::{Family, Netlink, NetlinkError, TABLE_MAIN};

/// A policy routing rule of any program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedRule {
    /// The priority; rules with lower numbers are evaluated first.
    pub priority: u32,
    /// The family of the packets that the rule applies to.
    pub family: Family,
    /// The routing table that the rule looks up; `None` if the rule has another action, such as to
    /// reject packets.
    pub table: Option<u32>,
    /// The firewall mark that the rule matches and the mask of the compared bits, if any.
    pub fwmark: Option<(u32, u32)>,
    /// The network of source addresses that the rule matches, if any.
    pub from: Option<IpNet>,
    /// Whether the rule applies to the packets that do *not* match its selectors.
    pub inverted: bool,
    /// Whether the rule has selectors that this type lacks, such as a device, a user or a port.
    pub has_other_selectors: bool,
    /// Whether the rule ignores default routes in its table (`suppress_prefixlength`).
    pub suppresses_default_route: bool,
}

impl Netlink {
    /// Returns all rules of both families, in the order of evaluation.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn all_rules(&self) -> Result<Vec<ListedRule>, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut rules = Vec::new();
        for family in Family::ALL {
            rules.extend(channel.rules(family).await?.into_iter().map(|existing| existing.rule));
        }
        rules.sort_by_key(|rule| rule.priority);
        Ok(rules)
    }
}

/// A policy routing rule with the message in which the kernel reported it.
pub(super) struct KernelRule {
    pub(super) rule: ListedRule,
    /// The protocol (origin) of the rule.
    pub(super) protocol: RouteProtocol,
    pub(super) message: RuleMessage,
}

impl Channel {
    /// Returns all rules of one family.
    pub(super) async fn rules(&mut self, family: Family) -> Result<Vec<KernelRule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family.raw();
        let reply = self.dump(RouteNetlinkMessage::GetRule(message)).await;
        match reply.explain(Some(family), || format!("list the {family} rules")) {
            Err(error) if error.is_family_unavailable() => Ok(Vec::new()),
            reply => {
                let rules = reply?.into_iter().filter_map(KernelRule::from_message);
                // A kernel without IPv6 returns the rules of IPv4.
                Ok(rules.filter(|existing| existing.rule.family == family).collect())
            }
        }
    }
}

impl ListedRule {
    /// Returns whether the rule matches every packet whose mark has the value `mark` in the bits of
    /// `mask`, whatever the other bits of its mark are.
    #[must_use]
    pub fn matches_mark(&self, mark: u32, mask: u32) -> bool {
        if self.has_other_selectors || self.from.is_some() {
            return false;
        }
        match (self.fwmark, self.inverted) {
            (None, inverted) => !inverted,
            (Some((value, own_mask)), false) => own_mask & !mask == 0 && mark & own_mask == value,
            // If one of the known bits differs, the inverted rule matches.
            (Some((value, own_mask)), true) => (mark ^ value) & own_mask & mask != 0,
        }
    }

    /// Returns whether this rule's mark shares bits with `mask` and has the same values as `mark`
    /// in the shared bits, so that one packet can carry both marks.
    #[must_use]
    pub fn conflicts_with_mark(&self, mark: u32, mask: u32) -> bool {
        self.fwmark.is_some_and(|(value, own_mask)| {
            !self.inverted && own_mask & mask != 0 && (mark ^ value) & own_mask & mask == 0
        })
    }
}

impl KernelRule {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRule(message) = message else { return None };
        let header = &message.header;
        let mut rule = ListedRule {
            priority: 0,
            family: Family::of(header.family)?,
            table: Some(header.table.into()),
            fwmark: None,
            from: None,
            inverted: header.flags.contains(RuleFlags::Invert),
            // A rule that only jumps to another one does not decide anything itself.
            has_other_selectors: header.dst_len != 0
                || header.tos != 0
                || matches!(header.action, RuleAction::Goto | RuleAction::Nop),
            suppresses_default_route: false,
        };
        let mut protocol = RouteProtocol::Unspec;
        let (mut mark, mut mask) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = Some(*table),
                RuleAttribute::Protocol(origin) => protocol = *origin,
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = Some(*value),
                RuleAttribute::Source(address) => rule.from = IpNet::new(*address, header.src_len).ok(),
                // The kernel reports "suppress nothing" for every rule.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
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
        Some(Self { rule, protocol, message })
    }
}

/// Formats the rule as `ip rule` does.
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
    fn a_rule_matches_a_mark_whatever_the_other_bits_are() {
        for (fwmark, inverted, matches) in [
            (None, false, true),
            (None, true, false),
            // The rule of wg-quick.
            (Some((0xca6c, u32::MAX)), true, true),
            (Some((0xca6c, u32::MAX)), false, false),
            // The agent's mark, and half of its bits.
            (Some((MARK, MASK)), false, true),
            (Some((MARK, MASK)), true, false),
            (Some((0x4000_0000, 0xf000_0000)), false, true),
            // The result depends on bits outside of the agent's mask.
            (Some((MARK, u32::MAX)), false, false),
            (Some((0x1, 0xff)), true, false),
        ] {
            assert_eq!(rule(fwmark, inverted).matches_mark(MARK, MASK), matches, "{fwmark:x?} {inverted}");
        }
        assert!(!ListedRule { has_other_selectors: true, ..rule(None, false) }.matches_mark(MARK, MASK));
    }

    #[test]
    fn marks_conflict_when_one_packet_can_have_both() {
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
    fn rules_of_other_programs_are_listed_completely() {
        with_a_pair(async {
            ip("rule add not fwmark 0xca6c lookup 51820 pref 4000");
            ip("rule add lookup main suppress_prefixlength 0 pref 3999");
            ip("rule add fwmark 0x10/0xf0 from 10.0.0.0/8 iif left blackhole pref 3998");
            ip("-6 rule add not fwmark 0xca6c lookup 51820 pref 4000");
            let listed = Netlink::new().unwrap().all_rules().await.unwrap();
            let lines: Vec<String> =
                listed.iter().filter(|rule| rule.priority < 5000).map(ToString::to_string).collect();
            assert_eq!(
                lines,
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

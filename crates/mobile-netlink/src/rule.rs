//! Reads, adds and removes the policy routing rules of this project.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use nix::errno::Errno;

use super::channel::{CREATE, Channel, Explain};
use super::listed_rule::{KernelRule, ListedRule};
use super::{Family, Netlink, NetlinkError};

/// A policy routing rule of this project, which looks up a routing table.
///
/// The protocol (origin) of such a rule is always `kernel`, so that network managers do not remove
/// the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The priority; rules with lower numbers are evaluated first.
    pub priority: u32,
    /// The family of the packets that the rule applies to.
    pub family: Family,
    /// The firewall mark that packets must have and the mask of the compared bits, if any.
    pub fwmark: Option<(u32, u32)>,
    /// The source addresses that packets must match, if any.
    pub from: Option<IpNet>,
    /// The table that the rule looks up.
    pub table: u32,
}

impl Netlink {
    /// Returns all rules of both families that look up a table, in the order of evaluation.
    ///
    /// Rules of other programs may have selectors that a [`Rule`] lacks (a device, a user…);
    /// such selectors are not reported.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn rules(&self) -> Result<Vec<Rule>, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut rules = Vec::new();
        for family in Family::ALL {
            rules.extend(
                channel.rules(family).await?.iter().filter_map(|existing| existing.rule.simplified()),
            );
        }
        rules.sort_by_key(|rule| rule.priority);
        Ok(rules)
    }

    /// Adds a rule; fails if it exists already.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        self.0.lock().await.add_rule(rule).await
    }

    /// Adds a rule unless it exists; returns whether it was added.
    ///
    /// Replaces an equal rule whose protocol (origin) is not `kernel`.
    ///
    /// # Errors
    /// As [`add_rule`](Self::add_rule).
    pub async fn ensure_rule(&self, rule: &Rule) -> Result<bool, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut present = false;
        for existing in
            channel.rules(rule.family).await?.into_iter().filter(|existing| existing.rule.is(rule))
        {
            if existing.protocol == RouteProtocol::Kernel && !present {
                present = true;
            } else {
                // The kernel ignores the protocol when it compares rules, so remove the existing
                // one first.
                channel.del_rule(rule, &existing).await?;
            }
        }
        if !present {
            channel.add_rule(rule).await?;
        }
        Ok(!present)
    }

    /// Removes a rule; returns false if it does not exist.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_rule(&self, rule: &Rule) -> Result<bool, NetlinkError> {
        let mut channel = self.0.lock().await;
        let mut found = false;
        for existing in
            channel.rules(rule.family).await?.into_iter().filter(|existing| existing.rule.is(rule))
        {
            found |= channel.del_rule(rule, &existing).await?;
        }
        Ok(found)
    }
}

impl Channel {
    async fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let outcome = self.change(RouteNetlinkMessage::NewRule(rule.message()), CREATE).await;
        outcome.explain(Some(rule.family), || format!("add {rule}"))
    }

    /// Removes `rule`, exactly the one that the kernel reported as `existing`.
    ///
    /// The kernel removes the first rule that has all attributes of the request, so a request with
    /// fewer attributes could match a rule of another program.
    async fn del_rule(&mut self, rule: &Rule, existing: &KernelRule) -> Result<bool, NetlinkError> {
        match self.change(RouteNetlinkMessage::DelRule(existing.message.clone()), 0).await {
            Err(failure) if failure.is(Errno::ENOENT) => Ok(false),
            outcome => outcome.map(|()| true).explain(Some(rule.family), || format!("remove {rule}")),
        }
    }
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.family.raw();
        message.header.action = RuleAction::ToTable;
        let attributes = &mut message.attributes;
        // The header's field has eight bits; the attribute holds any table.
        attributes.push(RuleAttribute::Table(self.table));
        attributes.push(RuleAttribute::Priority(self.priority));
        // systemd-networkd and similar programs remove rules that they did not make, except those
        // of the kernel.
        attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
        if let Some((mark, mask)) = self.fwmark {
            attributes.push(RuleAttribute::FwMark(mark));
            attributes.push(RuleAttribute::FwMask(mask));
        }
        if let Some(from) = self.from.filter(|from| from.prefix_len() > 0) {
            message.header.src_len = from.prefix_len();
            attributes.push(RuleAttribute::Source(from.network()));
        }
        message
    }
}

impl ListedRule {
    /// Returns the rule with the selectors of a [`Rule`] only, or `None` if it looks up no table.
    fn simplified(&self) -> Option<Rule> {
        let Self { priority, family, fwmark, from, .. } = *self;
        self.table.map(|table| Rule { priority, family, fwmark, from, table })
    }

    /// Returns whether this is the rule `rule`, with no further selector.
    fn is(&self, rule: &Rule) -> bool {
        let is_simple = !self.inverted && !self.has_other_selectors && !self.suppresses_default_route;
        let from = rule.from.filter(|from| from.prefix_len() > 0).map(|from| from.trunc());
        is_simple && self.simplified() == Some(Rule { from, ..*rule })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} rule of priority {}", self.family, self.priority)?;
        if let Some((mark, mask)) = self.fwmark {
            write!(f, " for mark {mark:#x}/{mask:#x}")?;
        }
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        write!(f, " to table {}", self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair};
    use super::*;

    fn rules() -> [Rule; 4] {
        let marked = Rule {
            priority: 4900,
            family: Family::V4,
            fwmark: Some((0x4d00_0000, 0xff00_0000)),
            from: None,
            table: 7700,
        };
        let from = Rule { priority: 4901, fwmark: None, from: "10.77.0.2/32".parse().ok(), ..marked };
        let v6 = Family::V6;
        [
            marked,
            from,
            Rule { family: v6, ..marked },
            Rule { family: v6, from: "fd77::2/128".parse().ok(), ..from },
        ]
    }

    #[test]
    fn a_rule_is_added_once_with_protocol_kernel_and_removed_once() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let before = netlink.rules().await.unwrap();
            for rule in rules() {
                assert!(netlink.ensure_rule(&rule).await.unwrap());
                assert!(!netlink.ensure_rule(&rule).await.unwrap());
                let error = netlink.add_rule(&rule).await.unwrap_err().to_string();
                assert!(error.contains("File exists"), "{error}");
                assert!(netlink.rules().await.unwrap().contains(&rule));
            }
            let seen = ip("-d rule show");
            assert!(
                seen.contains("4900:\tfrom all fwmark 0x4d000000/0xff000000 lookup 7700 proto kernel"),
                "{seen}"
            );
            assert!(seen.contains("4901:\tfrom 10.77.0.2 lookup 7700 proto kernel"), "{seen}");
            let seen = ip("-6 -d rule show");
            assert!(
                seen.contains("4900:\tfrom all fwmark 0x4d000000/0xff000000 lookup 7700 proto kernel"),
                "{seen}"
            );
            assert!(seen.contains("4901:\tfrom fd77::2 lookup 7700 proto kernel"), "{seen}");
            for rule in rules() {
                assert!(netlink.del_rule(&rule).await.unwrap());
                assert!(!netlink.del_rule(&rule).await.unwrap());
            }
            assert_eq!(netlink.rules().await.unwrap(), before);
        });
    }

    #[test]
    fn a_rule_with_another_protocol_is_replaced() {
        with_a_pair(async {
            ip("rule add priority 4900 fwmark 0x4d000000/0xff000000 lookup 7700 protocol static");
            let netlink = Netlink::new().unwrap();
            assert!(netlink.ensure_rule(&rules()[0]).await.unwrap());
            let seen = ip("-d rule show priority 4900");
            assert_eq!(seen.lines().count(), 1, "{seen}");
            assert!(seen.contains("proto kernel"), "{seen}");
        });
    }

    #[test]
    fn a_rule_with_further_selectors_is_left_alone() {
        with_a_pair(async {
            ip("rule add priority 4900 fwmark 0x4d000000/0xff000000 iif left lookup 7700");
            ip("rule add priority 4900 not fwmark 0x4d000000/0xff000000 lookup 7700");
            let netlink = Netlink::new().unwrap();
            let rule = rules()[0];
            assert!(!netlink.del_rule(&rule).await.unwrap());
            assert!(netlink.ensure_rule(&rule).await.unwrap());
            assert!(netlink.del_rule(&rule).await.unwrap());
            assert_eq!(ip("rule show priority 4900").lines().count(), 2);
        });
    }
}

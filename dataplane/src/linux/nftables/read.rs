//! Reads the table back, and compares its structure with what was written.
//!
//! The kernel dumps every attribute it was given, and some more. So something stands as written when
//! each attribute of its encoding is in the dump with the same value.

use std::io;

use netlink_packet_netfilter::nftables::{ChainAttribute, RuleAttribute, SetElementList};

use super::{
    super::{decode, encode::NLM_F_DUMP},
    Lane,
    encode::{self, kind},
};
use crate::filter::{
    ForwardDrop, Snapshot,
    elements::{Elements, Key},
    table::{CHAINS, Chain, Family, SetName, Step, TABLE},
};

const NLA_F_NESTED: u16 = 0x8000;
const NF_ACCEPT: u32 = 1;
/// nfgenmsg.
const HEADER_LENGTH: usize = 4;

impl Lane {
    pub(super) fn snapshot(&mut self) -> io::Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        for family in Family::ALL {
            let mut there = false;
            self.dump(kind::GET_TABLE, family, &[], |attributes| {
                // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS.
                if string(attributes, 1) == Some(TABLE) {
                    there = true;
                    if number(attributes, 2).is_some_and(|flags| flags != 0) {
                        let name = family.name();
                        snapshot
                            .wrong
                            .push(format!("table {name} {TABLE} got flags"));
                    }
                }
            })?;
            match family {
                Family::Inet => snapshot.tables.inet = there,
                Family::Bridge => snapshot.tables.bridge = there,
            }
        }
        let tables = snapshot.tables;
        let standing = Family::ALL.into_iter().filter(|family| tables.has(*family));
        for family in standing {
            self.chains(family, &mut snapshot)?;
            self.rules(family, &mut snapshot)?;
            self.sets(family, &mut snapshot)?;
        }
        if snapshot.wrong.is_empty() {
            for set in SetName::ALL {
                if !tables.has(set.family()) {
                    continue;
                }
                snapshot.sets[set.index()] = self.elements(set)?;
            }
        }
        Ok(snapshot)
    }

    fn chains(&mut self, family: Family, snapshot: &mut Snapshot) -> io::Result<()> {
        let own: Vec<&Chain> = CHAINS
            .iter()
            .filter(|chain| chain.family == family)
            .collect();
        let mut missing: Vec<&str> = own.iter().map(|chain| chain.name).collect();
        self.dump(kind::GET_CHAIN, family, &[], |attributes| {
            // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY.
            if string(attributes, 1) != Some(TABLE) {
                return;
            }
            let name = string(attributes, 3).unwrap_or_default();
            let Some(chain) = own.iter().find(|chain| chain.name == name) else {
                snapshot.wrong.push(format!("chain {name} was added"));
                return;
            };
            missing.retain(|missing| *missing != name);
            let expected = encode::bytes::<ChainAttribute>(&encode::chain_attributes(chain));
            let hooked = value(attributes, 4).is_some();
            // What the kernel makes of a chain without one.
            let accepts = number(attributes, 5).is_none_or(|policy| policy == NF_ACCEPT);
            if !agree(&expected, attributes) || hooked != chain.hook.is_some() || !accepts {
                snapshot.wrong.push(format!("chain {name} was changed"));
            }
        })?;
        let gone = missing
            .iter()
            .map(|name| format!("chain {name} was deleted"));
        snapshot.wrong.extend(gone);
        Ok(())
    }

    fn rules(&mut self, family: Family, snapshot: &mut Snapshot) -> io::Result<()> {
        let request = encode::bytes(&[RuleAttribute::Table(TABLE.to_owned())]);
        // Rules of each chain that have been seen, as long as all were right.
        let own: Vec<&Chain> = CHAINS
            .iter()
            .filter(|chain| chain.family == family)
            .collect();
        let mut right: Vec<Option<usize>> = vec![Some(0); own.len()];
        self.dump(kind::GET_RULE, family, &request, |attributes| {
            // NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS.
            if string(attributes, 1) != Some(TABLE) {
                return;
            }
            let name = string(attributes, 2).unwrap_or_default();
            let Some(position) = own.iter().position(|chain| chain.name == name) else {
                return;
            };
            let Some(seen) = right[position] else { return };
            let there = value(attributes, 4).unwrap_or_default();
            let agrees = own[position]
                .rules
                .get(seen)
                .is_some_and(|rule| agree(&encode::bytes(&encode::expressions(rule)), there));
            right[position] = agrees.then_some(seen + 1);
        })?;
        for (chain, seen) in own.into_iter().zip(right) {
            if seen != Some(chain.rules.len()) {
                snapshot.wrong_rules.push(chain.name);
            }
        }
        Ok(())
    }

    fn sets(&mut self, family: Family, snapshot: &mut Snapshot) -> io::Result<()> {
        let request = encode::bytes(&[SetElementList::Table(TABLE.to_owned())]);
        let own = SetName::ALL
            .into_iter()
            .filter(|set| set.family() == family);
        let mut missing: Vec<&str> = own.clone().map(SetName::name).collect();
        self.dump(kind::GET_SET, family, &request, |attributes| {
            // NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS.
            if string(attributes, 1) != Some(TABLE) {
                return;
            }
            let name = string(attributes, 2).unwrap_or_default();
            let Some(set) = own.clone().find(|set| set.name() == name) else {
                snapshot.wrong.push(format!("set {name} was added"));
                return;
            };
            missing.retain(|missing| *missing != name);
            let flags = number(attributes, 3).unwrap_or(0);
            if !agree(&encode::bytes(&encode::set_attributes(set)), attributes)
                || flags != encode::set_flags(set).bits()
            {
                snapshot.wrong.push(format!("set {name} was changed"));
            }
        })?;
        let gone = missing.iter().map(|name| format!("set {name} was deleted"));
        snapshot.wrong.extend(gone);
        Ok(())
    }

    fn elements(&mut self, set: SetName) -> io::Result<Elements> {
        let request = encode::bytes(&[
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.name().to_owned()),
        ]);
        let mut elements = Elements::new();
        self.dump(kind::GET_ELEMENT, set.family(), &request, |attributes| {
            // NFTA_SET_ELEM_LIST_ELEMENTS.
            for (_, element) in decode::attributes(value(attributes, 3).unwrap_or_default()) {
                // NFTA_SET_ELEM_KEY, _DATA, _FLAGS, _KEY_END; each value in an NFTA_DATA_VALUE.
                let data = |kind| {
                    value(element, kind)
                        .and_then(|data| value(data, 1))
                        .unwrap_or_default()
                        .to_vec()
                };
                let key = Key {
                    first: data(1),
                    last: data(10),
                    end: number(element, 3).is_some_and(|flags| flags & 1 != 0),
                };
                elements.insert(key, data(2));
            }
        })?;
        Ok(elements)
    }

    /// Packets dropped, in the order of [`DROP_REASONS`](crate::filter::table::DROP_REASONS).
    pub(super) fn dropped(&mut self) -> io::Result<Vec<u64>> {
        let mut dropped = Vec::new();
        for name in ["source", "members"] {
            if let Some(chain) = CHAINS.iter().find(|chain| chain.name == name) {
                self.counters(chain, &mut dropped)?;
            }
        }
        Ok(dropped)
    }

    /// Packets counted by the rules of a chain.
    fn counters(&mut self, chain: &Chain, dropped: &mut Vec<u64>) -> io::Result<()> {
        let request = encode::bytes(&[
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.name.to_owned()),
        ]);
        let rules = chain.rules.iter();
        let counters: Vec<bool> = rules.map(|rule| rule.contains(&Step::Counter)).collect();
        let mut position = 0;
        self.dump(kind::GET_RULE, chain.family, &request, |attributes| {
            if string(attributes, 1) != Some(TABLE) || string(attributes, 2) != Some(chain.name) {
                return;
            }
            let counted = counters.get(position).copied().unwrap_or(false);
            position += 1;
            if !counted {
                return;
            }
            // NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFTA_COUNTER_PACKETS.
            let packets = decode::attributes(value(attributes, 4).unwrap_or_default())
                .filter(|(_, expression)| string(expression, 1) == Some("counter"))
                .find_map(|(_, expression)| value(value(expression, 2)?, 2)?.try_into().ok())
                .map_or(0, u64::from_be_bytes);
            dropped.push(packets);
        })
    }

    /// Chains of others at the forward hook with the policy to drop.
    pub(super) fn forward_drops(&mut self) -> io::Result<Vec<ForwardDrop>> {
        const NF_FORWARD: u32 = 2;
        const NF_DROP: u32 = 0;
        let mut drops = Vec::new();
        for (number, family) in [(1, "inet"), (2, "ip"), (10, "ip6")] {
            self.dump_of(kind::GET_CHAIN, number, &[], |attributes| {
                // NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY; NFTA_HOOK_HOOKNUM.
                let hook = value(attributes, 4).and_then(|hook| self::number(hook, 1));
                let policy = self::number(attributes, 5);
                let table = string(attributes, 1).unwrap_or_default();
                if hook == Some(NF_FORWARD) && policy == Some(NF_DROP) && table != TABLE {
                    drops.push(ForwardDrop {
                        family,
                        table: table.to_owned(),
                        chain: string(attributes, 3).unwrap_or_default().to_owned(),
                    });
                }
            })?;
        }
        Ok(drops)
    }

    /// Dumps objects of a family; `each` gets the attributes of one.
    fn dump(
        &mut self,
        kind: u16,
        family: Family,
        request: &[u8],
        each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.dump_of(kind, family.number(), request, each)
    }

    fn dump_of(
        &mut self,
        kind: u16,
        family: u8,
        request: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.encoder.clear();
        self.encoder
            .begin(kind, NLM_F_DUMP, sequence, &[family, 0, 0, 0]);
        self.encoder.append(request);
        self.encoder.end();
        let bytes = self.encoder.bytes();
        self.socket
            .dump(bytes, sequence, &mut self.receive, |message| {
                if message.payload.first() == Some(&family) {
                    each(message.payload.get(HEADER_LENGTH..).unwrap_or_default());
                }
            })
    }
}

pub(super) fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    decode::attributes(attributes)
        .find(|(other, _)| *other == kind)
        .map(|(_, value)| value)
}

pub(super) fn string(attributes: &[u8], kind: u16) -> Option<&str> {
    let text = std::str::from_utf8(value(attributes, kind)?).ok()?;
    Some(text.trim_end_matches('\0'))
}

pub(super) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    let bytes = value(attributes, kind)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Whether each attribute of `expected` is in `there` with the same value, those of one type in the
/// same order and number.
fn agree(expected: &[u8], there: &[u8]) -> bool {
    let mut seen: Vec<u16> = Vec::new();
    let mut rest = expected;
    while let Some((kind, nested, value, next)) = raw(rest) {
        rest = next;
        let before = seen.iter().filter(|other| **other == kind).count();
        seen.push(kind);
        let Some((_, other)) = decode::attributes(there)
            .filter(|(other, _)| *other == kind)
            .nth(before)
        else {
            return false;
        };
        let same = if nested {
            agree(value, other)
        } else {
            value == other
        };
        if !same {
            return false;
        }
    }
    decode::attributes(there)
        .filter(|(kind, _)| seen.contains(kind))
        .count()
        == seen.len()
}

/// Type, whether it is a nest, value, and what follows.
fn raw(bytes: &[u8]) -> Option<(u16, bool, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
    let value = bytes.get(4..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind & 0x3fff, kind & NLA_F_NESTED != 0, value, next))
}

#[cfg(test)]
mod tests {
    use super::agree;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn what_was_written_agrees_with_a_dump_that_says_more() {
        let expected = [attribute(1, b"a"), attribute(0x8002, &attribute(7, b"xyz"))].concat();
        let inner = [attribute(9, b"more"), attribute(7, b"xyz")].concat();
        let there = [attribute(5, b"?"), attribute(2, &inner), attribute(1, b"a")].concat();
        assert!(agree(&expected, &there));
        let other = [attribute(1, b"a"), attribute(2, &attribute(7, b"xyy"))].concat();
        assert!(!agree(&expected, &other));
        assert!(!agree(&expected, &attribute(1, b"a")));
    }

    #[test]
    fn members_of_a_list_are_compared_in_order_and_number() {
        let expected = [attribute(1, b"a"), attribute(1, b"b")].concat();
        assert!(agree(&expected, &expected));
        let swapped = [attribute(1, b"b"), attribute(1, b"a")].concat();
        assert!(!agree(&expected, &swapped));
        let longer = [expected.clone(), attribute(1, b"c")].concat();
        assert!(!agree(&expected, &longer));
        assert!(!agree(&longer, &expected));
    }
}

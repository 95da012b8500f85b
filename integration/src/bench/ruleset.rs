//! The agent's nftables tables, read by raw netlink: `nft` takes some milliseconds to list them, in
//! which they may be spoilt and right again.

use anyhow::Result;

use super::netlink::Socket;

/// NFNL_SUBSYS_NFTABLES, and NFT_MSG_GET*.
const GET_TABLE: u16 = 10 << 8 | 1;
const GET_CHAIN: u16 = 10 << 8 | 4;
const GET_RULE: u16 = 10 << 8 | 7;
const GET_SET: u16 = 10 << 8 | 10;
const GET_ELEMENT: u16 = 10 << 8 | 13;
/// NFPROTO_INET, NFPROTO_BRIDGE.
const FAMILIES: [u8; 2] = [1, 7];
const TABLE: &[u8] = b"agentd\0";
/// nfgenmsg.
const HEADER: usize = 4;

/// Type and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(4);
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn value(bytes: &[u8], kind: u16) -> &[u8] {
    attributes(bytes)
        .find(|(other, _)| *other == kind)
        .map(|(_, value)| value)
        .unwrap_or_default()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("names are short");
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Expressions of a rule, without what counters have counted.
fn expressions(rule: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // NFTA_RULE_EXPRESSIONS; NFTA_EXPR_NAME.
    for (_, expression) in attributes(value(rule, 4)) {
        let name = value(expression, 1);
        out.extend(match name {
            b"counter\0" => name,
            _ => expression,
        });
    }
    out
}

/// One entry for each table, chain, rule, set and element. An interrupted dump is an error.
pub fn read(socket: &mut Socket) -> Result<Vec<Vec<u8>>> {
    let mut seen = Vec::new();
    for family in FAMILIES {
        let request = [family, 0, 0, 0];
        let of_table = [&request[..], &attribute(1, TABLE)].concat();
        let mut note = |what: &str, parts: &[&[u8]]| {
            let mut entry = vec![family];
            entry.extend(what.as_bytes());
            for part in parts {
                entry.extend(*part);
                entry.push(b'|');
            }
            seen.push(entry);
        };
        let mut there = false;
        // NFTA_TABLE_NAME, NFTA_TABLE_FLAGS.
        socket.dump(GET_TABLE, &request, |payload| {
            let table = payload.get(HEADER..).unwrap_or_default();
            if payload.first() == Some(&family) && value(table, 1) == TABLE {
                there = true;
                note("table", &[value(table, 2)]);
            }
        })?;
        if !there {
            continue;
        }
        // NFTA_CHAIN_TABLE, _NAME, _HOOK, _POLICY.
        socket.dump(GET_CHAIN, &request, |payload| {
            let chain = payload.get(HEADER..).unwrap_or_default();
            if payload.first() == Some(&family) && value(chain, 1) == TABLE {
                note(
                    "chain",
                    &[value(chain, 3), value(chain, 4), value(chain, 5)],
                );
            }
        })?;
        let mut position = 0_u32;
        // NFTA_RULE_TABLE, _CHAIN.
        socket.dump(GET_RULE, &of_table, |payload| {
            let rule = payload.get(HEADER..).unwrap_or_default();
            if payload.first() == Some(&family) && value(rule, 1) == TABLE {
                position += 1;
                let position = position.to_be_bytes();
                note("rule", &[&position, value(rule, 2), &expressions(rule)]);
            }
        })?;
        let mut sets = Vec::new();
        // NFTA_SET_TABLE, _NAME, _FLAGS.
        socket.dump(GET_SET, &of_table, |payload| {
            let set = payload.get(HEADER..).unwrap_or_default();
            if payload.first() == Some(&family) && value(set, 1) == TABLE {
                note("set", &[value(set, 2), value(set, 3)]);
                sets.push(value(set, 2).to_vec());
            }
        })?;
        for set in sets {
            let request = [&of_table[..], &attribute(2, &set)].concat();
            // NFTA_SET_ELEM_LIST_ELEMENTS.
            socket.dump(GET_ELEMENT, &request, |payload| {
                let list = payload.get(HEADER..).unwrap_or_default();
                for (_, element) in attributes(value(list, 3)) {
                    note("element", &[&set, element]);
                }
            })?;
        }
    }
    seen.sort();
    Ok(seen)
}

//! Which blocks a node tries, and the transaction that claims one of them.
//!
//! Nobody lists the blocks of a pool to find a free one. A node tries blocks at positions that a
//! hash of its name and the attempt gives: a thousand nodes that start at once try different ones,
//! and one node tries the same ones after a restart. One transaction tries several: the first that
//! nobody has is taken. Only when some rounds of this find nothing, which says that the pool is
//! nearly full, windows of the pool are listed, by keys only and from a random place on.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    keys::{Keys, Owner, bounds, parse_block},
    ops::{Compare, KeyValue, Op, OpAnswer, Txn, TxnAnswer},
};
use crate::ipam::Wanted;

/// Blocks that one transaction tries.
pub const CANDIDATES: usize = 4;
/// Rounds of hashed candidates before the pool is searched.
pub const ROUNDS: u32 = 3;
/// Keys in one window of a search.
pub const WINDOW: i64 = 512;

/// FNV-1a, finished by a mixer: spread is all that is asked of it, and that it never changes.
pub fn hash(parts: &[&[u8]]) -> u64 {
    let mut value: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in *part {
            value = (value ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        value = (value ^ 0xff).wrapping_mul(0x0100_0000_01b3);
    }
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

/// How many blocks a pool has.
pub fn count(wanted: &Wanted) -> u128 {
    let bits = wanted.block_size.saturating_sub(wanted.cidr.prefix_len());
    1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
}

fn size(wanted: &Wanted) -> u128 {
    let bits = wanted.cidr.max_prefix_len() - wanted.block_size;
    1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)
}

/// The block at a position of the pool.
fn block_at(wanted: &Wanted, position: u128) -> Option<IpNet> {
    let (first, _) = bounds(&wanted.cidr);
    let number = first.checked_add(position.checked_mul(size(wanted))?)?;
    match wanted.cidr {
        IpNet::V4(_) => {
            let number = u32::try_from(number).ok()?;
            Some(Ipv4Net::new(number.into(), wanted.block_size).ok()?.into())
        }
        IpNet::V6(_) => Some(Ipv6Net::new(number.into(), wanted.block_size).ok()?.into()),
    }
}

/// It has addresses that may be given out.
fn is_useful(wanted: &Wanted, block: &IpNet) -> bool {
    if wanted.reserved.iter().any(|range| range.contains(block)) {
        return false;
    }
    let inside = wanted
        .reserved
        .iter()
        .filter(|range| block.contains(*range));
    let covered: u128 = inside
        .map(|range| {
            let (first, last) = bounds(range);
            last - first + 1
        })
        .sum();
    covered < size(wanted)
}

/// The candidates of a round. `skip`: blocks that are known to be taken.
pub fn hashed(
    wanted: &Wanted,
    node: &str,
    round: u32,
    skip: impl Fn(&IpNet) -> bool,
) -> Vec<IpNet> {
    let count = count(wanted);
    let pool = wanted.cidr.to_string();
    let mut found: Vec<IpNet> = Vec::with_capacity(CANDIDATES);
    let first = u64::from(round) * 8;
    // Twice as many as are needed: some may be held already, or be reserved.
    for attempt in first..first + 8 {
        let bytes = attempt.to_be_bytes();
        let low = hash(&[node.as_bytes(), pool.as_bytes(), &bytes]);
        let high = hash(&[&bytes, pool.as_bytes(), node.as_bytes()]);
        let position = (u128::from(high) << 64 | u128::from(low)) % count;
        if let Some(block) = block_at(wanted, position)
            && is_useful(wanted, &block)
            && !found.contains(&block)
            && !skip(&block)
        {
            found.push(block);
            if found.len() == CANDIDATES {
                break;
            }
        }
    }
    found
}

/// A search through the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Position where it began, and where the next window begins.
    start: u128,
    at: u128,
    /// It went over the end of the pool.
    wrapped: bool,
}

/// What a window of a search showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Blocks without a holder when the window was read.
    Free(Vec<IpNet>),
    /// None here; there is more to search.
    Nothing,
    /// None anywhere.
    Full,
}

impl Search {
    pub fn new(wanted: &Wanted, random: u64) -> Self {
        let start = u128::from(random) % count(wanted);
        Search {
            start,
            at: start,
            wrapped: false,
        }
    }

    /// Position after the last one of the present run.
    fn end(&self, wanted: &Wanted) -> u128 {
        if self.wrapped {
            self.start
        } else {
            count(wanted)
        }
    }

    /// The keys of the next window.
    pub fn window(&self, keys: &Keys, wanted: &Wanted) -> Option<Op> {
        let first = block_at(wanted, self.at)?;
        let last = block_at(wanted, self.end(wanted).checked_sub(1)?)?;
        let (from, to) = keys.starting_in(
            wanted.cidr.addr().is_ipv4(),
            bounds(&first).0,
            bounds(&last).1,
        );
        Some(Op::List {
            from,
            to,
            limit: WINDOW,
            keys_only: true,
        })
    }

    /// Reads a window. It stays where it is while there is something free in it.
    pub fn read(
        &mut self,
        wanted: &Wanted,
        keys: &[KeyValue],
        more: bool,
        random: u64,
        skip: impl Fn(&IpNet) -> bool,
    ) -> Found {
        let taken: Vec<(u128, u128)> = keys
            .iter()
            .filter_map(|key| Some(bounds(&parse_block(&key.key)?)))
            .collect();
        let (pool_first, _) = bounds(&wanted.cidr);
        let size = size(wanted);
        let end = match taken.last().filter(|_| more) {
            // What lies behind the last key of a cut window is not known.
            Some((_, last)) => (last.saturating_sub(pool_first) / size + 1).min(self.end(wanted)),
            None => self.end(wanted),
        };
        let mut free = Vec::new();
        let mut index = 0;
        let mut position = self.at;
        // More than one transaction can use, so that searchers at the same place do not collide.
        while position < end && free.len() < 64 {
            let Some(block) = block_at(wanted, position) else {
                break;
            };
            let (first, last) = bounds(&block);
            while taken.get(index).is_some_and(|(_, end)| *end < first) {
                index += 1;
            }
            let is_taken = taken.get(index).is_some_and(|(start, _)| *start <= last);
            if !is_taken {
                if let Some(range) = wanted.reserved.iter().find(|range| range.contains(&block)) {
                    // One reserved prefix may cover more blocks than could ever be counted.
                    position = (bounds(range).1.saturating_sub(pool_first)) / size + 1;
                    continue;
                }
                if is_useful(wanted, &block) && !skip(&block) {
                    free.push(block);
                }
            }
            position += 1;
        }
        if !free.is_empty() {
            let start =
                usize::try_from(random % u64::try_from(free.len()).unwrap_or(1)).unwrap_or(0);
            free.rotate_left(start);
            free.truncate(CANDIDATES);
            return Found::Free(free);
        }
        self.at = end;
        if self.at >= self.end(wanted) {
            if self.wrapped || self.start == 0 {
                return Found::Full;
            }
            self.wrapped = true;
            self.at = 0;
        }
        Found::Nothing
    }
}

/// Takes the first of the blocks that is free, if the node is still registered.
pub fn transaction(
    keys: &Keys,
    owner: &Owner,
    registered: i64,
    candidates: &[IpNet],
) -> Result<Txn, serde_json::Error> {
    let value = serde_json::to_string(owner)?;
    let mut next: Option<Txn> = None;
    for block in candidates.iter().rev() {
        let otherwise = match next.take() {
            Some(txn) => vec![Op::Txn(txn)],
            // Who has the last one, for a person.
            None => {
                let (first, last) = bounds(block);
                let is_ipv4 = block.addr().is_ipv4();
                let (from, to) = keys.starting_in(is_ipv4, first, last);
                let inside = Op::List {
                    from,
                    to,
                    limit: 1,
                    keys_only: false,
                };
                let around = keys.around(block).into_iter().map(Op::Get);
                around.chain([inside]).collect()
            }
        };
        next = Some(Txn {
            when: keys.free(block),
            then: vec![
                Op::put(keys.block(block), value.clone()),
                Op::put(keys.owned(&owner.node, block), value.clone()),
            ],
            otherwise,
        });
    }
    Ok(Txn {
        when: vec![Compare::Created(keys.node(&owner.node), registered)],
        then: next.map(Op::Txn).into_iter().collect(),
        otherwise: Vec::new(),
    })
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Which candidate.
    Taken(usize),
    /// All are held; the last one by this owner, if it can be said.
    NoneFree(Option<Owner>),
    /// The node is not registered as it was.
    NotRegistered,
}

pub fn outcome(answer: &TxnAnswer) -> Outcome {
    if !answer.succeeded {
        return Outcome::NotRegistered;
    }
    let mut index = 0;
    let mut at = answer;
    while let Some(OpAnswer::Txn(inner)) = at.answers.first() {
        if inner.succeeded {
            return Outcome::Taken(index);
        }
        index += 1;
        at = inner;
    }
    let holder = (0..at.answers.len())
        .flat_map(|index| at.keys(index))
        .find_map(|key| serde_json::from_str(&key.value).ok());
    Outcome::NoneFree(holder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(cidr: &str, block_size: u8) -> Wanted {
        Wanted {
            pool: "p".into(),
            cidr: cidr.parse().expect("a prefix"),
            block_size,
            reserved: Vec::new(),
            block: None,
        }
    }

    #[test]
    fn candidates_are_the_same_every_time_and_differ_between_nodes() {
        let wanted = wanted("10.0.0.0/12", 26);
        let one = hashed(&wanted, "node-1", 0, |_| false);
        assert_eq!(one.len(), CANDIDATES);
        assert_eq!(one, hashed(&wanted, "node-1", 0, |_| false));
        assert_ne!(one, hashed(&wanted, "node-2", 0, |_| false));
        assert_ne!(one, hashed(&wanted, "node-1", 1, |_| false));
        let mut firsts: Vec<IpNet> = (0..1000)
            .map(|node| hashed(&wanted, &format!("node-{node}"), 0, |_| false)[0])
            .collect();
        firsts.sort();
        firsts.dedup();
        // 1,000 of 16,384 places: about 30 pairs share one.
        assert!(firsts.len() > 930, "{}", firsts.len());
    }

    #[test]
    fn the_largest_pools_have_candidates_and_the_smallest_have_their_only_block() {
        for (cidr, size) in [("::/1", 128), ("fd00::/8", 122), ("10.0.0.0/26", 26)] {
            let wanted = wanted(cidr, size);
            let found = hashed(&wanted, "n", 0, |_| false);
            assert!(!found.is_empty());
            for block in found {
                assert!(wanted.cidr.contains(&block) && block.prefix_len() == size);
            }
        }
    }

    fn listed(blocks: &[IpNet]) -> Vec<KeyValue> {
        let keys = Keys::new("/f");
        let mut list: Vec<KeyValue> = blocks
            .iter()
            .map(|block| KeyValue {
                key: keys.block(block),
                value: String::new(),
                created: 1,
                modified: 1,
            })
            .collect();
        list.sort_by(|a, b| a.key.cmp(&b.key));
        list
    }

    #[test]
    fn a_search_from_any_place_finds_the_only_free_block_and_knows_when_there_is_none() {
        let mut wanted = wanted("10.0.0.0/22", 26);
        wanted.reserved = vec!["10.0.0.0/26".parse().expect("a prefix")];
        let all: Vec<IpNet> = (0..16).filter_map(|at| block_at(&wanted, at)).collect();
        for free in 0..=16 {
            for start in 0..16 {
                let held: Vec<IpNet> = (0..16).filter(|at| *at != free).map(|at| all[at]).collect();
                let mut search = Search::new(&wanted, start);
                let mut found = Found::Nothing;
                let mut windows = 0;
                while found == Found::Nothing {
                    windows += 1;
                    assert!(windows < 20);
                    // Windows of three keys.
                    let Some(Op::List { from, to, .. }) = search.window(&Keys::new("/f"), &wanted)
                    else {
                        panic!("a window");
                    };
                    let inside: Vec<KeyValue> = listed(&held)
                        .into_iter()
                        .filter(|key| (&from..&to).contains(&&key.key))
                        .collect();
                    let more = inside.len() > 3;
                    let cut: Vec<KeyValue> = inside.into_iter().take(3).collect();
                    found = search.read(&wanted, &cut, more, 0, |_| false);
                }
                let expected = match free {
                    // The first is reserved.
                    1..16 => Found::Free(vec![all[free]]),
                    _ => Found::Full,
                };
                assert_eq!(found, expected, "free {free}, from {start}");
            }
        }
    }
}

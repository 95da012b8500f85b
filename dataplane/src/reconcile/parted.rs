//! A hash map for very many small entries that grows a part at a time.
//!
//! A hash table doubles: just after that it is half empty, and while it does so the old one is there
//! beside the new one. Here the entries lie in parts of different sizes, from one to two, so that
//! each doubles at another moment. Room and entries are then always in the same proportion (about
//! 1.6 places for each entry, where one table has 1.15 to 2.3), the old one that stands beside the
//! new one is a small part of the whole, and no insertion waits for all entries to move.

use std::hash::BuildHasher as _;

use hashbrown::{HashTable, hash_table};

use super::table::Hash;

const PARTS: usize = 16;

/// Octets of hash that fall to each part: 256 in proportion to 2^(n/16).
const SHARES: [u8; PARTS] = [
    11, 12, 12, 13, 14, 14, 15, 15, 16, 17, 17, 18, 19, 20, 21, 22,
];

const PART_OF: [u8; 256] = {
    let mut parts = [0; 256];
    let (mut octet, mut part, mut left) = (0, 0, SHARES[0]);
    while octet < parts.len() {
        if left == 0 {
            part += 1;
            left = SHARES[part as usize];
        }
        parts[octet] = part;
        left -= 1;
        octet += 1;
    }
    parts
};

#[derive(Debug)]
pub(super) struct Parted<K, V> {
    parts: [HashTable<(K, V)>; PARTS],
    hasher: Hash,
}

impl<K: Copy + Eq + std::hash::Hash, V: Default> Parted<K, V> {
    pub(super) fn new() -> Self {
        Self {
            parts: [const { HashTable::new() }; PARTS],
            hasher: Hash::default(),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let found = self.parts[part_of(hash)].find(hash, |(other, _)| other == key);
        found.map(|(_, value)| value)
    }

    /// Changes the value of a key, which is made for that when there is none, and drops it when
    /// `keep` does not hold for it afterwards. Says by how many the entries became more.
    pub(super) fn update(
        &mut self,
        key: K,
        change: impl FnOnce(&mut V),
        keep: impl FnOnce(&V) -> bool,
    ) -> i32 {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(key);
        let part = &mut self.parts[part_of(hash)];
        let entry = part.entry(
            hash,
            |(other, _)| *other == key,
            |(other, _)| hasher.hash_one(other),
        );
        match entry {
            hash_table::Entry::Occupied(mut entry) => {
                let value = &mut entry.get_mut().1;
                change(value);
                if keep(value) {
                    return 0;
                }
                entry.remove();
                -1
            }
            hash_table::Entry::Vacant(entry) => {
                let mut value = V::default();
                change(&mut value);
                if !keep(&value) {
                    return 0;
                }
                entry.insert((key, value));
                1
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.parts.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut V)> {
        let entries = self.parts.iter_mut().flatten();
        entries.map(|(key, value)| (*key, value))
    }

    /// Drops what `keep` does not hold for, and gives back memory when little is left.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let hasher = &self.hasher;
        for part in &mut self.parts {
            part.retain(|(key, value)| keep(key, value));
            if part.len() * 4 < part.capacity() {
                part.shrink_to(part.len() * 2, |(key, _)| hasher.hash_one(key));
            }
        }
    }
}

/// The place inside a part comes from the lowest bits of the hash, the tag kept there from the
/// highest: this octet is of neither.
fn part_of(hash: u64) -> usize {
    usize::from(PART_OF[(hash >> 40 & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Zero is not kept.
    fn set(map: &mut Parted<u16, u32>, key: u16, value: u32) -> i32 {
        map.update(key, |old| *old = value, |new| *new != 0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_holds_what_a_plain_map_holds(
            changes in prop::collection::vec((0u16..600, 0u32..3), 0..1500),
            limit in 0u16..600,
        ) {
            let mut map = Parted::new();
            let mut plain = BTreeMap::new();
            for (key, value) in changes {
                let before = plain.len();
                match value {
                    0 => plain.remove(&key),
                    _ => plain.insert(key, value),
                };
                let more = set(&mut map, key, value);
                prop_assert_eq!(before.checked_add_signed(more as isize), Some(plain.len()));
                prop_assert_eq!(map.get(&key), plain.get(&key));
            }
            for (_, value) in map.iter_mut() {
                *value += 1;
            }
            plain.values_mut().for_each(|value| *value += 1);
            map.retain(|key, _| *key < limit);
            plain.retain(|key, _| *key < limit);
            let held: BTreeMap<u16, u32> = map.iter().copied().collect();
            prop_assert_eq!(&held, &plain);
            prop_assert_eq!(map.iter().count(), plain.len());
            for key in 0..600 {
                prop_assert_eq!(map.get(&key), plain.get(&key));
            }
        }
    }

    #[test]
    fn every_octet_of_hash_has_a_part() {
        for (part, share) in (0u8..).zip(SHARES) {
            let octets = PART_OF.iter().filter(|of| **of == part).count();
            assert_eq!(octets, usize::from(share));
        }
    }

    #[test]
    fn room_and_entries_are_in_the_same_proportion_however_many_there_are() {
        let mut map = Parted::new();
        let mut worst: f64 = 0.0;
        for key in 0..400_000u32 {
            map.update(key, |value| *value = 1u8, |_| true);
            if key >= 50_000 && key % 1000 == 0 {
                let room: usize = map.parts.iter().map(HashTable::capacity).sum();
                // One table has from 1 to 2.
                worst = worst.max(room as f64 / f64::from(key + 1));
            }
        }
        assert!(worst < 1.6, "{worst}");
        map.retain(|key, _| *key < 10);
        let room: usize = map.parts.iter().map(HashTable::capacity).sum();
        assert!(room < 1000, "{room}");
    }
}

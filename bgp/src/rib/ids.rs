//! A set of indices of an arena, from which they are taken one after the other: a bit for each.
//!
//! Indices wait by page. Pages take turns in the order in which they got their first index, and
//! what a page gets while it has its turn waits for the next one where it has been passed already:
//! an index that comes back again and again holds up no other.

use std::collections::VecDeque;

const WORDS: usize = 64;
/// Indices of a page.
const PAGE_BITS: u32 = 12;
const PAGE_MASK: u32 = (1 << PAGE_BITS) - 1;

#[derive(Debug)]
struct Page {
    words: [u64; WORDS],
    count: u32,
    /// Where the turn has come to.
    next: u32,
}

impl Page {
    /// The next index; `None` ends the turn.
    fn take(&mut self) -> Option<u32> {
        let mut passed = !(u64::MAX << (self.next & 63));
        while self.next >> PAGE_BITS == 0 {
            let word = &mut self.words[(self.next >> 6) as usize];
            let left = *word & !std::mem::take(&mut passed);
            if left != 0 {
                let bit = left.trailing_zeros();
                *word &= !(1 << bit);
                self.count -= 1;
                let index = self.next & !63 | bit;
                self.next = index + 1;
                return Some(index);
            }
            self.next = (self.next | 63) + 1;
        }
        self.next = 0;
        None
    }
}

#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Those without indices take no memory.
    pages: Vec<Option<Box<Page>>>,
    /// Pages with indices.
    turns: VecDeque<u32>,
}

impl Ids {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Whether it was not there before.
    pub(super) fn insert(&mut self, id: u32) -> bool {
        let number = id >> PAGE_BITS;
        let index = number as usize;
        if index >= self.pages.len() {
            self.pages.resize_with(index + 1, || None);
        }
        let page = self.pages[index].get_or_insert_with(|| {
            self.turns.push_back(number);
            Box::new(Page {
                words: [0; WORDS],
                count: 0,
                // A single index is found at once.
                next: id & PAGE_MASK,
            })
        });
        let word = &mut page.words[(id >> 6) as usize % WORDS];
        let bit = 1 << (id & 63);
        let fresh = *word & bit == 0;
        *word |= bit;
        page.count += u32::from(fresh);
        fresh
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        loop {
            let number = *self.turns.front()?;
            let place = &mut self.pages[number as usize];
            let page = place.as_mut().expect("a page with indices is there");
            let Some(index) = page.take() else {
                self.turns.rotate_left(1);
                continue;
            };
            if page.count == 0 {
                *place = None;
                self.turns.pop_front();
            }
            return Some(number << PAGE_BITS | index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_index_comes_out_once_for_each_time_it_went_in(
            steps in prop::collection::vec(prop::option::weighted(0.6, 0u32..20_000), 0..500),
        ) {
            let mut ids = Ids::default();
            let mut plain = BTreeSet::new();
            for step in steps {
                match step {
                    Some(id) => prop_assert_eq!(ids.insert(id), plain.insert(id)),
                    None => match ids.pop() {
                        Some(id) => prop_assert!(plain.remove(&id)),
                        None => prop_assert!(plain.is_empty()),
                    },
                }
            }
            while let Some(id) = ids.pop() {
                prop_assert!(plain.remove(&id));
            }
            prop_assert!(plain.is_empty());
            prop_assert!(ids.pages.iter().all(Option::is_none));
        }
    }

    #[test]
    fn an_index_that_comes_back_holds_up_no_other() {
        let mut ids = Ids::default();
        for id in [3, 7, 5000, 4999, 3 << 20] {
            assert!(ids.insert(id));
        }
        let mut taken = BTreeSet::new();
        for _ in 0..8 {
            let id = ids.pop().expect("one of them comes back");
            taken.insert(id);
            if id == 3 || id == 7 {
                ids.insert(id);
            }
        }
        assert_eq!(taken, [3, 7, 5000, 4999, 3 << 20].into());
    }
}

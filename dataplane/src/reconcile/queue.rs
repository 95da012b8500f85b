//! Prefixes that wait, each in as many octets as it has: 5 or 17 where an `IpNet` takes 18.

use std::collections::VecDeque;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

#[derive(Debug, Default)]
pub(super) struct Queue {
    v4: VecDeque<Ipv4Net>,
    v6: VecDeque<Ipv6Net>,
    /// Whose turn is next.
    v6_next: bool,
}

impl Queue {
    pub(super) fn push(&mut self, prefix: IpNet) {
        match prefix {
            IpNet::V4(net) => self.v4.push_back(net),
            IpNet::V6(net) => self.v6.push_back(net),
        }
    }

    /// The one that has waited longest, of both families in turn.
    pub(super) fn pop(&mut self) -> Option<IpNet> {
        self.v6_next = !self.v6_next;
        let (v4, v6) = (&mut self.v4, &mut self.v6);
        let mut v4 = || v4.pop_front().map(IpNet::V4);
        let mut v6 = || v6.pop_front().map(IpNet::V6);
        match self.v6_next {
            true => v4().or_else(v6),
            false => v6().or_else(v4),
        }
    }

    /// One in the order in which the kernel deletes routes best: it deletes IPv4 routes in order of
    /// address three times slower than shuffled, and IPv6 routes faster in order.
    pub(super) fn pop_to_delete(&mut self, rng: &mut fastrand::Rng) -> Option<IpNet> {
        if let Some(net) = self.v6.pop_back() {
            return Some(IpNet::V6(net));
        }
        if self.v4.is_empty() {
            return None;
        }
        let at = rng.usize(..self.v4.len());
        self.v4.swap_remove_back(at).map(IpNet::V4)
    }

    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        let v4 = self.v4.iter().copied().map(IpNet::V4);
        v4.chain(self.v6.iter().copied().map(IpNet::V6))
    }

    /// Gives back memory beyond what so many take.
    pub(super) fn shrink_to(&mut self, kept: usize) {
        if self.v4.capacity() > 4 * kept {
            self.v4.shrink_to(kept);
        }
        if self.v6.capacity() > 4 * kept {
            self.v6.shrink_to(kept);
        }
    }
}

impl Extend<IpNet> for Queue {
    fn extend<T: IntoIterator<Item = IpNet>>(&mut self, prefixes: T) {
        prefixes.into_iter().for_each(|prefix| self.push(prefix));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn prefixes(count: u16) -> Vec<IpNet> {
        let v4 = (0..count).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256));
        let v6 = (0..count).map(|n| format!("fd00:{n:x}::/32"));
        v4.chain(v6).map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_families_take_turns_and_each_keeps_its_order() {
        let mut queue = Queue::default();
        let all = prefixes(100);
        queue.extend(all.iter().copied());
        assert_eq!(queue.len(), 200);
        assert_eq!(queue.iter().collect::<Vec<_>>(), all);
        let popped: Vec<IpNet> = std::iter::from_fn(|| queue.pop()).collect();
        let expected = (0..100).flat_map(|n| [all[n], all[n + 100]]);
        assert_eq!(popped, expected.collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn what_is_to_be_deleted_comes_once_each() {
        let mut queue = Queue::default();
        let mut all = prefixes(100);
        queue.extend(all.iter().copied());
        let mut rng = fastrand::Rng::with_seed(1);
        let mut popped: Vec<IpNet> = std::iter::from_fn(|| queue.pop_to_delete(&mut rng)).collect();
        let ordered = |net: &&[IpNet]| net[0] < net[1];
        let v4 = &popped[100..];
        assert!(v4.windows(2).filter(ordered).count() < 80, "not shuffled");
        popped.sort();
        all.sort();
        assert_eq!(popped, all);
        queue.shrink_to(0);
        assert_eq!(queue.v4.capacity() + queue.v6.capacity(), 0);
    }
}

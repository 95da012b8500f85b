//! Addresses of all interfaces of the host's namespace, by interface and by address. Interfaces of
//! workloads come by the thousand and have the same few addresses: no question walks them all.

use std::{collections::BTreeSet, net::IpAddr};

use hashbrown::HashMap;

use super::table::Hash;
use crate::kernel::Address;

#[derive(Debug, Default)]
pub(super) struct Addresses {
    by_link: HashMap<u32, Vec<Address>, Hash>,
    places: BTreeSet<(IpAddr, u32)>,
}

impl Addresses {
    pub(super) fn clear(&mut self) {
        self.by_link.clear();
        self.places.clear();
    }

    /// Of one link.
    pub(super) fn of(&self, index: u32) -> &[Address] {
        self.by_link.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Indexes of the links that have an address.
    pub(super) fn links_with(&self, address: IpAddr) -> impl Iterator<Item = u32> + '_ {
        let range = (address, 0)..=(address, u32::MAX);
        self.places.range(range).map(|(_, index)| *index)
    }

    pub(super) fn put(&mut self, address: Address) {
        let of_link = self.by_link.entry(address.index).or_default();
        of_link.retain(|seen| seen.net != address.net);
        of_link.push(address);
        self.places.insert((address.net.addr(), address.index));
    }

    pub(super) fn remove(&mut self, address: &Address) {
        let index = address.index;
        let Some(of_link) = self.by_link.get_mut(&index) else {
            return;
        };
        of_link.retain(|seen| seen.net != address.net);
        // It may be there once more, with another length.
        let addr = address.net.addr();
        if !of_link.iter().any(|seen| seen.net.addr() == addr) {
            self.places.remove(&(addr, index));
        }
        if of_link.is_empty() {
            self.by_link.remove(&index);
        }
    }

    /// A link is gone.
    pub(super) fn forget(&mut self, index: u32) {
        for address in self.by_link.remove(&index).unwrap_or_default() {
            self.places.remove(&(address.net.addr(), index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(net: &str, index: u32) -> Address {
        Address {
            index,
            net: net.parse().expect("an address with a length"),
            nodad: false,
        }
    }

    #[test]
    fn an_address_with_two_lengths_is_there_until_both_are_gone() {
        let mut addresses = Addresses::default();
        addresses.put(address("10.0.0.1/24", 1));
        addresses.put(address("10.0.0.1/32", 1));
        addresses.put(address("10.0.0.1/32", 2));
        let with = |addresses: &Addresses| -> Vec<u32> {
            let one = "10.0.0.1".parse().expect("an address");
            addresses.links_with(one).collect()
        };
        assert_eq!(with(&addresses), [1, 2]);
        addresses.remove(&address("10.0.0.1/24", 1));
        assert_eq!(with(&addresses), [1, 2]);
        addresses.remove(&address("10.0.0.1/32", 1));
        assert_eq!(with(&addresses), [2]);
        addresses.forget(2);
        assert!(with(&addresses).is_empty());
        assert!(addresses.of(2).is_empty());
    }
}

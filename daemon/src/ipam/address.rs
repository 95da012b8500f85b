//! Addresses as numbers, both families alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub(super) fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of that number, of the family of `like`.
pub(super) fn from_number(number: u128, like: &IpNet) -> IpAddr {
    match like {
        IpNet::V4(_) => {
            let bits = u32::try_from(number).expect("numbers of IPv4 addresses have 32 bits");
            IpAddr::V4(Ipv4Addr::from_bits(bits))
        }
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// First and last address.
pub(super) fn bounds(prefix: &IpNet) -> (u128, u128) {
    (to_number(prefix.network()), to_number(prefix.broadcast()))
}

/// How many addresses it has, less one where that would not fit (`::/0`).
pub(super) fn count(prefix: &IpNet) -> u128 {
    let bits = prefix.max_prefix_len() - prefix.prefix_len();
    1u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX)
}

/// The prefix of that length at `base`.
pub(super) fn prefix(base: u128, length: u8, like: &IpNet) -> IpNet {
    IpNet::new(from_number(base, like), length).expect("the length fits the family")
}

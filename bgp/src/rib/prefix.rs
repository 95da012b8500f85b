//! Prefixes in the compact form that tables are keyed by.

use std::{
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{types::Family, wire::WirePrefix};

/// A prefix of one family; ordered like `IpNet`.
pub(super) trait Prefix: Copy + Eq + Ord + Hash + Debug {
    type Net: WirePrefix;
    const FAMILY: Family;
    const MAX_LENGTH: u8;

    fn new(net: Self::Net) -> Self;
    fn net(self) -> Self::Net;
    fn from_ip_net(net: &IpNet) -> Option<Self>;
    fn from_address(address: IpAddr) -> Option<Self>;
    fn ip_net(self) -> IpNet;
    fn length(self) -> u8;
    /// The prefix of this length that covers it; itself when it is not longer.
    fn truncate(self, length: u8) -> Self;
    /// The prefixes of this length inside, at most `limit` of them.
    fn inside(self, length: u8, limit: u64) -> impl Iterator<Item = Self>;

    fn covers(self, other: Self) -> bool {
        self.length() <= other.length() && other.truncate(self.length()) == self
    }
}

/// Packed: 5 octets where 8 would be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, packed)]
pub(super) struct V4 {
    bits: u32,
    length: u8,
}

/// Packed: 17 octets where 32 would be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, packed)]
pub(super) struct V6 {
    bits: u128,
    length: u8,
}

impl Prefix for V4 {
    type Net = Ipv4Net;
    const FAMILY: Family = Family::Ipv4Unicast;
    const MAX_LENGTH: u8 = 32;

    fn new(net: Ipv4Net) -> Self {
        Self {
            bits: net.addr().to_bits(),
            length: net.prefix_len(),
        }
        .truncate(net.prefix_len())
    }

    fn net(self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::from_bits(self.bits), self.length)
    }

    fn from_ip_net(net: &IpNet) -> Option<Self> {
        match net {
            IpNet::V4(net) => Some(Self::new(*net)),
            IpNet::V6(_) => None,
        }
    }

    fn from_address(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(Self {
                bits: address.to_bits(),
                length: 32,
            }),
            IpAddr::V6(_) => None,
        }
    }

    fn ip_net(self) -> IpNet {
        IpNet::V4(self.net())
    }

    fn length(self) -> u8 {
        self.length
    }

    fn truncate(self, length: u8) -> Self {
        let length = length.min(self.length);
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        Self {
            bits: self.bits & mask,
            length,
        }
    }

    fn inside(self, length: u8, limit: u64) -> impl Iterator<Item = Self> {
        let count = 1u64 << length.saturating_sub(self.length).min(63);
        let step = 32 - u32::from(length);
        (0..count.min(limit)).map(move |index| {
            let offset = u32::try_from(index)
                .unwrap_or(0)
                .checked_shl(step)
                .unwrap_or(0);
            Self {
                bits: self.bits | offset,
                length,
            }
        })
    }
}

impl Prefix for V6 {
    type Net = Ipv6Net;
    const FAMILY: Family = Family::Ipv6Unicast;
    const MAX_LENGTH: u8 = 128;

    fn new(net: Ipv6Net) -> Self {
        Self {
            bits: net.addr().to_bits(),
            length: net.prefix_len(),
        }
        .truncate(net.prefix_len())
    }

    fn net(self) -> Ipv6Net {
        Ipv6Net::new_assert(Ipv6Addr::from_bits(self.bits), self.length)
    }

    fn from_ip_net(net: &IpNet) -> Option<Self> {
        match net {
            IpNet::V6(net) => Some(Self::new(*net)),
            IpNet::V4(_) => None,
        }
    }

    fn from_address(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V6(address) => Some(Self {
                bits: address.to_bits(),
                length: 128,
            }),
            IpAddr::V4(_) => None,
        }
    }

    fn ip_net(self) -> IpNet {
        IpNet::V6(self.net())
    }

    fn length(self) -> u8 {
        self.length
    }

    fn truncate(self, length: u8) -> Self {
        let length = length.min(self.length);
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self {
            bits: self.bits & mask,
            length,
        }
    }

    fn inside(self, length: u8, limit: u64) -> impl Iterator<Item = Self> {
        let count = 1u64 << length.saturating_sub(self.length).min(63);
        let step = 128 - u32::from(length);
        (0..count.min(limit)).map(move |index| {
            let offset = u128::from(index).checked_shl(step).unwrap_or(0);
            Self {
                bits: self.bits | offset,
                length,
            }
        })
    }
}

//! Names and values of everything in the store.
//!
//! ```text
//!   PREFIX/registry/nodes/NAME              who the node is: a record, without a lease
//!   PREFIX/registry/live/NAME               the node is alive: with a lease, and nothing hangs on it
//!   PREFIX/blocks/4/0af40040/026            who holds the block 10.244.0.64/26
//!   PREFIX/owned/NAME/4/0af40040/026        the same by node: always written and deleted together
//! ```
//!
//! First addresses are written in hexadecimal digits of full width, so that the order of the keys
//! is the order of the addresses, and one range has all blocks inside a prefix.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ops::{Compare, Key};

/// Shortest prefix of a block, per family: what can contain another block.
const SHORTEST: [u8; 2] = [20, 116];

/// Makes keys for one fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// Who holds a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub node: String,
    /// Of the installation: a node that lost its state is another one.
    pub identity: String,
    /// Names the request that claimed the block.
    pub claim: String,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub identity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asn: Option<u32>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Of the agent, for a person.
    #[serde(default)]
    pub version: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Keys {
            prefix: prefix.to_owned(),
        }
    }

    pub fn node(&self, name: &str) -> Key {
        format!("{}/registry/nodes/{name}", self.prefix)
    }

    pub fn live(&self, name: &str) -> Key {
        format!("{}/registry/live/{name}", self.prefix)
    }

    /// From the first key of the registry to behind the last.
    pub fn registry(&self) -> (Key, Key) {
        range(format!("{}/registry", self.prefix))
    }

    /// A node of the registry, and whether the key says that it is alive.
    pub fn parse_registry<'k>(&self, key: &'k str) -> Option<(bool, &'k str)> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix("/registry/")?;
        match rest.split_once('/')? {
            ("nodes", name) => Some((false, name)),
            ("live", name) => Some((true, name)),
            _ => None,
        }
    }

    pub fn block(&self, block: &IpNet) -> Key {
        format!("{}/blocks/{}", self.prefix, path(block))
    }

    pub fn owned(&self, name: &str, block: &IpNet) -> Key {
        format!("{}/owned/{name}/{}", self.prefix, path(block))
    }

    pub fn all_owned_by(&self, name: &str) -> (Key, Key) {
        range(format!("{}/owned/{name}", self.prefix))
    }

    pub fn all_owned(&self) -> (Key, Key) {
        range(format!("{}/owned", self.prefix))
    }

    /// Name of the node in a key of `owned`.
    pub fn owner_name<'k>(&self, key: &'k str) -> Option<&'k str> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix("/owned/")?;
        Some(rest.split_once('/')?.0)
    }

    /// Keys of all blocks whose first address lies in the range of numbers, of the family of
    /// `block`.
    pub fn starting_in(&self, is_ipv4: bool, first: u128, last: u128) -> (Key, Key) {
        let base = |number| format!("{}/blocks/{}", self.prefix, place(is_ipv4, number));
        (format!("{}/", base(first)), format!("{}0", base(last)))
    }

    /// Conditions under which nobody holds the block, a part of it, or what contains it.
    pub fn free(&self, block: &IpNet) -> Vec<Compare> {
        let (first, last) = bounds(block);
        let is_ipv4 = block.addr().is_ipv4();
        let (from, to) = self.starting_in(is_ipv4, first, last);
        let mut compares = vec![Compare::NoneIn(from, to)];
        let shortest = SHORTEST[usize::from(!is_ipv4)];
        for length in shortest..block.prefix_len() {
            if let Ok(around) = IpNet::new(block.addr(), length) {
                compares.push(Compare::Absent(self.block(&around.trunc())));
            }
        }
        compares
    }

    /// Keys under which a block that contains this one may be held.
    pub fn around(&self, block: &IpNet) -> Vec<Key> {
        let shortest = SHORTEST[usize::from(!block.addr().is_ipv4())];
        (shortest..=block.prefix_len())
            .filter_map(|length| IpNet::new(block.addr(), length).ok())
            .map(|around| self.block(&around.trunc()))
            .collect()
    }
}

/// All keys below a path, without the path itself: "/" is directly before "0".
fn range(path: String) -> (Key, Key) {
    (format!("{path}/"), format!("{path}0"))
}

fn path(block: &IpNet) -> String {
    let (first, _) = bounds(block);
    let place = place(block.addr().is_ipv4(), first);
    format!("{place}/{:03}", block.prefix_len())
}

fn place(is_ipv4: bool, number: u128) -> String {
    if is_ipv4 {
        format!("4/{number:08x}")
    } else {
        format!("6/{number:032x}")
    }
}

/// The block that a key of `blocks` or `owned` names.
pub fn parse_block(key: &str) -> Option<IpNet> {
    let mut parts = key.rsplit('/');
    let length: u8 = parts.next()?.parse().ok()?;
    let number = u128::from_str_radix(parts.next()?, 16).ok()?;
    match parts.next()? {
        "4" => {
            let number = u32::try_from(number).ok()?;
            Some(Ipv4Net::new(number.into(), length).ok()?.into())
        }
        "6" => Some(Ipv6Net::new(number.into(), length).ok()?.into()),
        _ => None,
    }
}

/// First and last address, as numbers.
pub fn bounds(block: &IpNet) -> (u128, u128) {
    match block {
        IpNet::V4(net) => (
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => (u128::from(net.network()), u128::from(net.broadcast())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn keys_name_their_blocks_and_are_in_the_order_of_addresses() {
        let keys = Keys::new("/f");
        for text in [
            "10.244.0.64/26",
            "0.0.0.0/20",
            "fd00::40/122",
            "10.1.2.3/32",
        ] {
            let block = net(text);
            assert_eq!(parse_block(&keys.block(&block)), Some(block));
            assert_eq!(parse_block(&keys.owned("a.b-c", &block)), Some(block));
        }
        assert_eq!(
            keys.block(&net("10.244.0.64/26")),
            "/f/blocks/4/0af40040/026"
        );
        assert!(keys.block(&net("9.0.0.0/26")) < keys.block(&net("10.0.0.0/26")));
        assert_eq!(
            keys.owner_name("/f/owned/a.b-c/4/0a000000/026"),
            Some("a.b-c")
        );
        let (from, to) = keys.all_owned_by("a");
        assert!(!(from..to).contains(&keys.owned("ab", &net("10.0.0.0/26"))));
    }

    #[test]
    fn a_block_is_free_only_without_parts_and_without_what_contains_it() {
        let keys = Keys::new("/f");
        let compares = keys.free(&net("10.0.1.0/24"));
        let covers = |text: &str| {
            let key = keys.block(&net(text));
            compares.iter().any(|compare| match compare {
                Compare::Absent(absent) => *absent == key,
                Compare::NoneIn(from, to) => (from..to).contains(&&key),
                _ => false,
            })
        };
        for overlapping in [
            "10.0.1.0/24",
            "10.0.1.0/32",
            "10.0.1.255/32",
            "10.0.0.0/20",
            "10.0.0.0/23",
            "10.0.1.64/26",
        ] {
            assert!(covers(overlapping), "{overlapping}");
        }
        for other in ["10.0.0.0/24", "10.0.2.0/24", "10.0.0.255/32", "10.0.2.0/23"] {
            assert!(!covers(other), "{other}");
        }
    }
}

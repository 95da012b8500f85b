//! Elements of sets, as the kernel stores them, from what is wanted.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::table::SetName;
use crate::{
    desired::{Access, PublishedPort},
    kernel::INTERFACE_PREFIX,
};

/// An element without its data. Ordered, so that dumps and wishes can be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub first: Vec<u8>,
    /// Last key of a [`KeyRanges`](super::table::Kind::KeyRanges) element; empty otherwise.
    pub last: Vec<u8>,
    /// It ends the range before it ([`Ranges`](super::table::Kind::Ranges)).
    pub end: bool,
}

/// Key and data; sets have empty data.
pub type Elements = BTreeMap<Key, Vec<u8>>;

fn exact(first: Vec<u8>) -> Key {
    Key {
        first,
        last: Vec::new(),
        end: false,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A field of a concatenation: padded to a word.
fn word(bytes: &[u8]) -> [u8; 4] {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    word
}

/// The kernel's names have at most 15 bytes; longer ones, which no interface has, are cut.
pub fn interface(name: &str) -> Key {
    exact(interface_bytes(name))
}

fn interface_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(15);
    bytes.resize(16, 0);
    bytes
}

/// Elements of a set of ranges for these prefixes of one family.
pub fn ranges(prefixes: impl IntoIterator<Item = IpNet>) -> Elements {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match prefix {
            IpNet::V4(prefix) => v4.push(prefix.trunc()),
            IpNet::V6(prefix) => v6.push(prefix.trunc()),
        }
    }
    let mut spans: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
    for prefix in Ipv4Net::aggregate(&v4) {
        let behind = u32::from(prefix.broadcast()).checked_add(1);
        spans.push((
            prefix.network().octets().to_vec(),
            behind.map(|behind| Ipv4Addr::from(behind).octets().to_vec()),
        ));
    }
    for prefix in Ipv6Net::aggregate(&v6) {
        let behind = u128::from(prefix.broadcast()).checked_add(1);
        spans.push((
            prefix.network().octets().to_vec(),
            behind.map(|behind| Ipv6Addr::from(behind).octets().to_vec()),
        ));
    }
    spans.sort();
    let mut elements = Elements::new();
    let mut open: Option<Vec<u8>> = None;
    for (first, behind) in spans {
        // Adjacent prefixes that are no common prefix are one range all the same.
        if open.as_ref() == Some(&first) {
            elements.remove(&Key {
                first,
                last: Vec::new(),
                end: true,
            });
        } else {
            elements.insert(exact(first), Vec::new());
        }
        if let Some(behind) = &behind {
            elements.insert(
                Key {
                    first: behind.clone(),
                    last: Vec::new(),
                    end: true,
                },
                Vec::new(),
            );
        }
        open = behind;
    }
    elements
}

/// Where a workload's packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// By an interface of its own; none when it is empty.
    Own(&'a str),
    /// By a bridge, through a port with this MAC address behind it.
    Port {
        bridge: &'a str,
        port: &'a str,
        mac: [u8; 6],
    },
}

/// What a workload with these addresses needs.
pub fn of_workload(
    entry: Entry<'_>,
    addresses: &[IpAddr],
    access: &Access,
) -> Vec<(SetName, Key, Vec<u8>)> {
    let mut elements = Vec::new();
    let host_interface = match entry {
        Entry::Own(name) => {
            if !name.starts_with(INTERFACE_PREFIX) && !name.is_empty() {
                elements.push((SetName::Interfaces, interface(name), Vec::new()));
            }
            name
        }
        Entry::Port { bridge, port, mac } => {
            of_member(port, mac, addresses, access, &mut elements);
            bridge
        }
    };
    for address in addresses {
        let mut hairpin = false;
        for port in &access.ports {
            if let Some((set, key, data)) = port_element(port, *address) {
                elements.push((set, key, data));
                hairpin = true;
            }
        }
        if hairpin {
            let set = match address {
                IpAddr::V4(_) => SetName::Hairpin4,
                IpAddr::V6(_) => SetName::Hairpin6,
            };
            let mut key = octets(*address);
            key.extend(octets(*address));
            elements.push((set, exact(key), Vec::new()));
        }
    }
    for prefix in IpNet::aggregate(&access.allowed) {
        let set = match prefix {
            IpNet::V4(_) => SetName::Allowed4,
            IpNet::V6(_) => SetName::Allowed6,
        };
        let key = by_interface(host_interface, prefix);
        elements.push((set, key, Vec::new()));
    }
    elements
}

fn by_interface(name: &str, prefix: IpNet) -> Key {
    let mut first = interface_bytes(name);
    let mut last = first.clone();
    first.extend(octets(prefix.network()));
    last.extend(octets(prefix.broadcast()));
    Key {
        first,
        last,
        end: false,
    }
}

/// What a workload on a port of a bridge may call its own.
fn of_member(
    port: &str,
    mac: [u8; 6],
    addresses: &[IpAddr],
    access: &Access,
    elements: &mut Vec<(SetName, Key, Vec<u8>)>,
) {
    let mut key = interface_bytes(port);
    key.extend(mac);
    key.extend([0; 2]);
    elements.push((SetName::MemberMac, exact(key), Vec::new()));
    let own = addresses.iter().map(|address| IpNet::from(*address));
    let own = own.chain([IpNet::from(IpAddr::V6(link_local(mac)))]);
    let all: Vec<IpNet> = own.chain(access.allowed.iter().copied()).collect();
    for prefix in IpNet::aggregate(&all) {
        let set = match prefix {
            IpNet::V4(_) => SetName::Member4,
            IpNet::V6(_) => SetName::Member6,
        };
        elements.push((set, by_interface(port, prefix), Vec::new()));
    }
}

/// The link-local address that belongs to a MAC address (RFC 4291 appendix A).
pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair(a ^ 2, b),
        pair(c, 0xff),
        pair(0xfe, d),
        pair(e, f),
    )
}

/// `None`: not for that family.
fn port_element(port: &PublishedPort, address: IpAddr) -> Option<(SetName, Key, Vec<u8>)> {
    let mut key = match port.host_address {
        Some(host) if host.is_ipv4() != address.is_ipv4() => return None,
        Some(host) => octets(host),
        None => Vec::new(),
    };
    key.extend(word(&[port.protocol.number()]));
    key.extend(word(&port.host_port.to_be_bytes()));
    let mut data = octets(address);
    data.extend(word(&port.container_port.to_be_bytes()));
    let set = match (address, port.host_address) {
        (IpAddr::V4(_), Some(_)) => SetName::Ports4,
        (IpAddr::V4(_), None) => SetName::AnyPorts4,
        (IpAddr::V6(_), Some(_)) => SetName::Ports6,
        (IpAddr::V6(_), None) => SetName::AnyPorts6,
    };
    Some((set, exact(key), data))
}

//! The names and values with which a workload stands in the kernel. Users and tests rely on them.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::{
    desired::Kind,
    kernel::{
        ALIAS_PREFIX, BRIDGE_ALIAS_PREFIX, GATEWAY_V4, GATEWAY_V6, HOST_MAC, INTERFACE_PREFIX,
        Link, LinkChange, LinkKind,
    },
};

/// `agt` and the first 11 hexadecimal digits of SHA-256 of the workload's id.
pub fn host_interface(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let mut name = String::with_capacity(15);
    name.push_str(INTERFACE_PREFIX);
    for byte in digest.iter().take(6) {
        for digit in [byte >> 4, byte & 0xf] {
            name.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    name.truncate(INTERFACE_PREFIX.len() + 11);
    name
}

/// MAC address of the workload's own end: unicast, locally administered, and always the same for
/// one id, so that neighbours' caches stay right when a link is made again.
pub fn workload_mac(id: &str) -> [u8; 6] {
    let digest = Sha256::digest(id.as_bytes());
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(digest.iter().skip(6)) {
        *to = *from;
    }
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

/// MAC address of the host's end of a bridged workload. Ports of one bridge must differ, and one
/// that was made but not marked yet must be recognised.
pub(super) fn port_mac(id: &str) -> [u8; 6] {
    let [_, _, c, d, e, f] = workload_mac(id);
    [HOST_MAC[0], HOST_MAC[1], c, d, e, f]
}

/// MAC address of a bridge: unicast, locally administered, always the same for one name.
pub(super) fn bridge_mac(name: &str) -> [u8; 6] {
    workload_mac(&format!("{BRIDGE_KEY}{name}"))
}

/// The key of a bridge's state begins with this, which no workload's id can.
pub(super) const BRIDGE_KEY: &str = "bridge ";

pub(super) fn alias(key: &str) -> String {
    match key.strip_prefix(BRIDGE_KEY) {
        Some(name) => format!("{BRIDGE_ALIAS_PREFIX}{name}"),
        None => format!("{ALIAS_PREFIX}{key}"),
    }
}

/// Whether a link of the host's namespace carries our marks. One that has none but the name and the
/// MAC address is one at which we died between making it and naming it. A tap device may have any
/// name: its alias is the mark.
pub(super) fn is_own_link(link: &Link) -> bool {
    let derived = |name: &str| {
        name.len() == INTERFACE_PREFIX.len() + 11 && name.starts_with(INTERFACE_PREFIX)
    };
    match (&link.alias, &link.kind) {
        (Some(alias), LinkKind::Bridge) => {
            alias.strip_prefix(BRIDGE_ALIAS_PREFIX) == Some(link.name.as_str())
        }
        (None, LinkKind::Bridge) => link.mac == Some(bridge_mac(&link.name)),
        (Some(alias), kind) => alias
            .strip_prefix(ALIAS_PREFIX)
            .is_some_and(|id| *kind == LinkKind::Tap || host_interface(id) == link.name),
        (None, LinkKind::Veth) => {
            let ours = |mac: [u8; 6]| mac[..2] == HOST_MAC[..2];
            derived(&link.name) && link.mac.is_some_and(ours)
        }
        (None, _) => false,
    }
}

/// Whether a link of that name may be taken for this workload's, or this bridge's.
pub(super) fn is_link_of(link: &Link, key: &str) -> bool {
    is_own_link(link) && link.alias.as_deref().is_none_or(|seen| seen == alias(key))
}

pub(super) fn names(sysctls: Vec<(String, &'static str)>) -> Vec<String> {
    sysctls.into_iter().map(|(path, _)| path).collect()
}

/// Whether a seen address is the wanted one. A link-local address is, whatever the length of its
/// prefix: earlier versions used another one.
pub(super) fn is_address(seen: IpNet, wanted: IpNet) -> bool {
    let link_local = matches!(wanted, IpNet::V6(wanted) if wanted.addr().is_unicast_link_local());
    seen == wanted || link_local && seen.addr() == wanted.addr()
}

/// `address/32` or `address/128`.
pub(super) fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

pub(super) fn gateway(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
    }
}

pub(super) const GLOBAL_SYSCTLS: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// Something that is not as it should be, in words, and what sort of thing it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct What {
    pub(super) kind: Kind,
    pub(super) text: String,
}

pub(super) fn what(kind: Kind, text: impl Into<String>) -> What {
    What {
        kind,
        text: text.into(),
    }
}

pub(super) fn in_words(list: &[What]) -> String {
    let texts: Vec<&str> = list.iter().map(|what| what.text.as_str()).collect();
    texts.join(", ")
}

/// As `ip` writes it.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// What is changed at a link, and what it was before; empty when nothing is.
pub(super) fn link_changes(change: &LinkChange, seen: &Link) -> String {
    let parts = [
        change.up.map(|_| "down".to_owned()),
        change.mtu.map(|_| format!("MTU was {}", seen.mtu)),
        change.mac.map(|_| match seen.mac {
            Some(mac) => format!("MAC address was {}", mac_text(mac)),
            None => "no MAC address".to_owned(),
        }),
        change.alias.as_ref().map(|_| match &seen.alias {
            Some(alias) => format!("alias was {alias}"),
            None => "no alias".to_owned(),
        }),
        change.master.map(|_| match seen.master {
            Some(master) => format!("bridge was that of index {master}"),
            None => "on no bridge".to_owned(),
        }),
        change
            .name
            .as_ref()
            .map(|_| format!("name was {}", seen.name)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(", ")
}

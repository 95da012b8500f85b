//! The names and values with which a workload stands in the kernel. Users and tests rely on them.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::{
    desired::Workload,
    kernel::{ALIAS_PREFIX, GATEWAY_V4, GATEWAY_V6, HOST_MAC, INTERFACE_PREFIX, Link, LinkKind},
};

/// `agt` and the first 11 hexadecimal digits of SHA-256 of the workload's id.
pub fn host_interface(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let mut name = String::with_capacity(15);
    name.push_str(INTERFACE_PREFIX);
    for byte in digest.iter().take(6) {
        name.push_str(&format!("{byte:02x}"));
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

pub(super) fn alias(id: &str) -> String {
    format!("{ALIAS_PREFIX}{id}")
}

/// Whether a link of the host's namespace carries our marks. One that has none but the name and the
/// MAC address is one at which we died between making it and naming it.
pub(super) fn is_own_link(link: &Link) -> bool {
    link.name.starts_with(INTERFACE_PREFIX)
        && match &link.alias {
            Some(alias) => alias
                .strip_prefix(ALIAS_PREFIX)
                .is_some_and(|id| host_interface(id) == link.name),
            None => {
                link.kind == LinkKind::Veth
                    && link.mac == Some(HOST_MAC)
                    && link.name.len() == INTERFACE_PREFIX.len() + 11
            }
        }
}

/// Whether a link of that name may be taken for this workload's.
pub(super) fn is_link_of(link: &Link, id: &str) -> bool {
    is_own_link(link)
        && link
            .alias
            .as_deref()
            .is_none_or(|alias| alias.strip_prefix(ALIAS_PREFIX) == Some(id))
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

/// Sysctls of the host's end, in the order in which they are to be written.
pub(super) fn host_sysctls(interface: &str) -> Vec<(String, &'static str)> {
    [
        ("ipv4/conf", "proxy_arp", "1"),
        ("ipv4/neigh", "proxy_delay", "0"),
        ("ipv4/conf", "forwarding", "1"),
        ("ipv4/conf", "route_localnet", "0"),
        ("ipv4/conf", "rp_filter", "1"),
        ("ipv6/conf", "disable_ipv6", "0"),
        ("ipv6/conf", "accept_dad", "0"),
        ("ipv6/conf", "accept_ra", "0"),
        ("ipv6/conf", "forwarding", "1"),
        ("ipv6/conf", "proxy_ndp", "1"),
    ]
    .into_iter()
    .map(|(group, key, value)| (format!("net/{group}/{interface}/{key}"), value))
    .collect()
}

/// Sysctls of the workload's end. IPv6 is switched on only for those who have an IPv6 address.
pub(super) fn inside_sysctls(workload: &Workload, interface: &str) -> Vec<(String, &'static str)> {
    if !workload.addresses.iter().any(IpAddr::is_ipv6) {
        return Vec::new();
    }
    [
        ("disable_ipv6", "0"),
        ("accept_dad", "0"),
        ("accept_ra", "0"),
    ]
    .into_iter()
    .map(|(key, value)| (format!("net/ipv6/conf/{interface}/{key}"), value))
    .collect()
}

//! Which link both ends of a connection are on.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::if_nametoindex,
    sys::socket::SockaddrStorage,
};

use crate::speaker::Link;

/// The link on which our end has its address and the peer is directly reached; `None` when there is
/// a router in between, or none can tell.
pub(super) fn find(local: SocketAddr, remote: SocketAddr) -> Option<Link> {
    if local.ip().is_loopback() {
        return None;
    }
    let addresses: Vec<InterfaceAddress> = getifaddrs().ok()?.collect();
    let scope = match (local, remote) {
        (SocketAddr::V6(local), SocketAddr::V6(remote)) => local.scope_id().max(remote.scope_id()),
        _ => 0,
    };
    let name = addresses
        .iter()
        .filter(|address| scope == 0 || index_of(address) == scope)
        .find(|address| {
            net_of(address).is_some_and(|net| {
                net.addr() == local.ip() && net.contains(&remote.ip())
                    // A session with ourselves is over no link.
                    && remote.ip() != local.ip()
            })
        })?
        .interface_name
        .clone();
    let mut link = Link {
        interface: if_nametoindex(name.as_str()).ok()?,
        ipv4: None,
        ipv6: None,
        link_local: None,
    };
    let on_link = addresses
        .iter()
        .filter(|address| address.interface_name == name)
        .filter_map(net_of);
    for net in on_link {
        match net.addr() {
            IpAddr::V4(address) => _ = link.ipv4.get_or_insert(address),
            IpAddr::V6(address) if address.is_unicast_link_local() => {
                link.link_local.get_or_insert(address);
            }
            IpAddr::V6(address) => _ = link.ipv6.get_or_insert(address),
        }
    }
    // Of several, the one that the session is between.
    match local.ip() {
        IpAddr::V4(address) => link.ipv4 = Some(address),
        IpAddr::V6(address) if address.is_unicast_link_local() => link.link_local = Some(address),
        IpAddr::V6(address) => link.ipv6 = Some(address),
    }
    Some(link)
}

fn index_of(address: &InterfaceAddress) -> u32 {
    if_nametoindex(address.interface_name.as_str()).unwrap_or(0)
}

/// Address and prefix length.
fn net_of(address: &InterfaceAddress) -> Option<IpNet> {
    let ip = |storage: &SockaddrStorage| match (storage.as_sockaddr_in(), storage.as_sockaddr_in6())
    {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    };
    let own = ip(address.address.as_ref()?)?;
    let mask = ip(address.netmask.as_ref()?)?;
    IpNet::with_netmask(own, mask).ok()
}

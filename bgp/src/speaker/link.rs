//! The link that both ends of a connection are on, and what it says about our own next hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{attributes::NextHop, rib::PeerKind, types::Family};

/// The link of a directly connected peer, with our addresses on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index of the interface.
    pub interface: u32,
    pub ipv4: Option<Ipv4Addr>,
    /// Not link-local.
    pub ipv6: Option<Ipv6Addr>,
    pub link_local: Option<Ipv6Addr>,
}

/// Our own address as next hop, by family: `elsewhere` is what the configuration names, `local` our
/// address of the session, `link` the link that the peer is on too.
pub(super) fn next_hop_self(
    elsewhere: [Option<IpAddr>; 2],
    local: Option<IpAddr>,
    link: Option<Link>,
    kind: PeerKind,
    extended_next_hop: bool,
) -> [Option<NextHop>; 2] {
    let mut own: [Option<NextHop>; 2] = elsewhere.map(|address| address.map(Into::into));
    let Some(local) = local else { return own };
    let link_local = link.and_then(|link| link.link_local);
    // RFC 2545 §3: the link-local address goes along when both are on one link.
    let with_link_local = |address: Ipv6Addr| NextHop {
        link_local,
        ..NextHop::from(IpAddr::V6(address))
    };
    match local {
        IpAddr::V4(_) => {
            own[Family::Ipv4Unicast.index()] = Some(local.into());
            // The peer reaches what is on its link, which need not be so for the node's address.
            let index = Family::Ipv6Unicast.index();
            if let Some(address) = link.and_then(|link| link.ipv6)
                && (kind == PeerKind::External || own[index].is_none())
            {
                own[index] = Some(with_link_local(address));
            }
        }
        IpAddr::V6(address) => {
            let next_hop = if address.is_unicast_link_local() {
                match link.and_then(|link| link.ipv6) {
                    Some(global) => NextHop {
                        link_local: Some(address),
                        ..NextHop::from(IpAddr::V6(global))
                    },
                    // Alone: 16 octets, as peers without a global address understand it.
                    None => NextHop::from(local),
                }
            } else {
                with_link_local(address)
            };
            own[Family::Ipv6Unicast.index()] = Some(next_hop);
            let index = Family::Ipv4Unicast.index();
            if extended_next_hop {
                // RFC 8950: the way that the session has proved.
                own[index] = Some(next_hop);
            } else if let Some(address) = link.and_then(|link| link.ipv4)
                && (kind == PeerKind::External || own[index].is_none())
            {
                own[index] = Some(IpAddr::V4(address).into());
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link() -> Link {
        Link {
            interface: 7,
            ipv4: Some("192.0.2.1".parse().unwrap()),
            ipv6: Some("2001:db8::1".parse().unwrap()),
            link_local: Some("fe80::1".parse().unwrap()),
        }
    }

    /// What is sent as next hop of IPv4 and of IPv6 prefixes.
    fn check(
        local: &str,
        link: Option<Link>,
        kind: PeerKind,
        extended_next_hop: bool,
        expected: [&str; 2],
    ) {
        let elsewhere = [Some(ip("203.0.113.1")), Some(ip("2001:db8:ffff::1"))];
        let own = next_hop_self(elsewhere, Some(ip(local)), link, kind, extended_next_hop);
        let shown = own.map(|next_hop| next_hop.unwrap().to_string());
        assert_eq!(shown, expected, "{local} {link:?} {kind:?}");
    }

    #[test]
    fn the_other_family_of_a_direct_external_peer_has_the_address_on_the_link() {
        let node = ["192.0.2.1", "2001:db8:ffff::1"];
        let direct = ["192.0.2.1", "2001:db8::1 (fe80::1)"];
        let external = PeerKind::External;
        check("192.0.2.1", Some(link()), external, false, direct);
        check("192.0.2.1", None, external, false, node);
        check("192.0.2.1", Some(link()), PeerKind::Internal, false, node);
        let no_global = Link {
            ipv6: None,
            ..link()
        };
        check("192.0.2.1", Some(no_global), external, false, node);
        check("2001:db8::1", Some(link()), external, false, direct);
        let internal = ["203.0.113.1", "2001:db8::1 (fe80::1)"];
        check(
            "2001:db8::1",
            Some(link()),
            PeerKind::Internal,
            false,
            internal,
        );
        check(
            "2001:db8::1",
            None,
            external,
            false,
            ["203.0.113.1", "2001:db8::1"],
        );
    }

    #[test]
    fn ipv4_prefixes_have_the_ipv6_next_hop_of_the_session_where_that_was_negotiated() {
        let both = ["2001:db8::1 (fe80::1)"; 2];
        for kind in [PeerKind::External, PeerKind::Internal] {
            check("2001:db8::1", Some(link()), kind, true, both);
            check("2001:db8::1", None, kind, true, ["2001:db8::1"; 2]);
            check("fe80::1", Some(link()), kind, true, both);
        }
        let alone = Link {
            ipv6: None,
            ..link()
        };
        check(
            "fe80::1",
            Some(alone),
            PeerKind::External,
            true,
            ["fe80::1"; 2],
        );
        // Over IPv4 nothing changes.
        let direct = ["192.0.2.1", "2001:db8::1 (fe80::1)"];
        check("192.0.2.1", Some(link()), PeerKind::External, true, direct);
    }
}

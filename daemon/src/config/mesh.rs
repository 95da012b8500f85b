//! `bgp.mesh`: the registered nodes as peers.

use std::net::Ipv4Addr;

use bgp::{
    speaker::config::RemoteAs,
    types::{Asn, Family},
};

use super::{
    Node, Peer, Store,
    bgp::Inherited,
    document::{Found, Section},
    sections::defaults,
};

/// Whether there is a full mesh with the registered nodes.
pub(super) fn read(section: &mut Section<'_, '_, '_>, store: Store, node: Option<&Node>) -> bool {
    let Some(Found { value: true, span }) = section.boolean("mesh") else {
        return false;
    };
    if store != Store::Etcd {
        let reason = "needs ipam.store = \"etcd\", where nodes are registered";
        section.error("mesh", Some(span), reason);
    } else if node.is_some_and(|node| node.address.is_none() && node.address6.is_none()) {
        let reason = "needs node.address or node.address6, where the others reach this node";
        section.error("mesh", Some(span), reason);
    }
    true
}

/// What each peer of the mesh is; the registry gives name and address.
pub(super) fn peer(asn: u32, inherited: &Inherited) -> Peer {
    let own = inherited.clone();
    Peer {
        name: String::new(),
        address: Ipv4Addr::UNSPECIFIED.into(),
        port: defaults::BGP_PORT,
        asn: RemoteAs::Exactly(Asn(asn)),
        local_address: None,
        passive: false,
        route_reflector_client: false,
        password: None,
        ttl_security: None,
        multihop: None,
        families: Family::ALL.to_vec(),
        add_path_receive: false,
        add_path_send: 0,
        extended_next_hop: None,
        max_prefixes: None,
        max_prefixes_warning: None,
        max_prefixes_restart: None,
        local_as: None,
        allow_own_as: 0,
        next_hop_self: false,
        remove_private_as: false,
        import: own.import,
        export: own.export,
        hold_time: own.hold_time,
        connect_retry_time: own.connect_retry_time,
        idle_hold_time: own.idle_hold_time,
        idle_hold_time_max: own.idle_hold_time_max,
        role: None,
        blackhole: false,
        graceful_restart: own.graceful_restart,
        long_lived: own.long_lived,
    }
}

//! Operations and values that tests of the driver share.

#![allow(dead_code, clippy::unwrap_used)]

use std::{net::IpAddr, time::Duration};

use dataplane::{
    desired::Netns,
    kernel::{
        Address, Change, CreateVeth, Gateway, Neighbour, Op, OpResult, PROTOCOL_AGENTD,
        PROTOCOL_AGENTD_BGP, Place, Query, Route, Snapshot, Target,
    },
    linux::{ChangeEvent, Changes, Kernel},
};
use ipnet::IpNet;

use super::ip;

pub const HOST_INDEX: u32 = 1_000_001;

pub const PEER_INDEX: u32 = 2;

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn veth(name: &str, index: u32, netns: &Netns) -> CreateVeth {
    CreateVeth {
        name: name.to_owned(),
        index,
        alias: format!("agentd:{name}"),
        mac: [0xee; 6],
        mtu: 1420,
        peer_netns: netns.clone(),
        peer_name: "eth0".to_owned(),
        peer_index: PEER_INDEX,
        master: None,
        deaf: false,
        peer_mac: [2, 0, 0, 0, 0, 7],
    }
}

pub fn route(prefix: &str, target: Target) -> Route {
    Route {
        prefix: net(prefix),
        table: 254,
        metric: if prefix.contains(':') { 1024 } else { 0 },
        protocol: PROTOCOL_AGENTD,
        target,
    }
}

pub fn sysctl(place: &Place, path: &str, value: &str) -> Op {
    Op::WriteSysctl {
        place: place.clone(),
        path: path.to_owned(),
        value: value.to_owned(),
    }
}

/// All that a workload needs, in the order of a plan.
pub fn attach(netns: &Netns) -> Vec<Op> {
    let inside = Place::Netns(netns.clone());
    let host = Place::Host;
    let neighbour = |place: &Place, index, text, mac| Op::ReplaceNeighbour {
        place: place.clone(),
        neighbour: Neighbour {
            index,
            address: address(text),
            mac,
            permanent: true,
        },
    };
    let add_address = |place: &Place, index, text| Op::AddAddress {
        place: place.clone(),
        address: Address {
            index,
            net: net(text),
            nodad: text.contains(':'),
        },
    };
    let add_route = |place: &Place, route| Op::AddRoute {
        place: place.clone(),
        route,
    };
    let via = |prefix: &str, gateway: &str| {
        route(
            prefix,
            Target::Gateways(vec![Gateway {
                address: Some(address(gateway)),
                index: PEER_INDEX,
                onlink: false,
                weight: 1,
            }]),
        )
    };
    let peer_mac = [2, 0, 0, 0, 0, 7];
    vec![
        Op::CreateVeth(Box::new(veth("agt0", HOST_INDEX, netns))),
        sysctl(&host, "net/ipv4/conf/agt0/proxy_arp", "1"),
        sysctl(&host, "net/ipv4/conf/agt0/forwarding", "1"),
        sysctl(&host, "net/ipv4/conf/agt0/rp_filter", "1"),
        sysctl(&host, "net/ipv4/neigh/agt0/proxy_delay", "0"),
        sysctl(&host, "net/ipv6/conf/agt0/accept_dad", "0"),
        sysctl(&host, "net/ipv6/conf/agt0/proxy_ndp", "1"),
        add_address(&host, HOST_INDEX, "fe80::ecee:eeff:feee:eeee/64"),
        neighbour(&host, HOST_INDEX, "10.244.1.5", peer_mac),
        add_route(
            &host,
            route("10.244.1.5/32", Target::Link { index: HOST_INDEX }),
        ),
        add_route(
            &host,
            route("fd00:1::5/128", Target::Link { index: HOST_INDEX }),
        ),
        sysctl(&inside, "net/ipv6/conf/eth0/accept_ra", "0"),
        add_address(&inside, PEER_INDEX, "10.244.1.5/32"),
        add_address(&inside, PEER_INDEX, "fd00:1::5/128"),
        neighbour(&inside, PEER_INDEX, "169.254.1.1", [0xee; 6]),
        add_route(
            &inside,
            route("169.254.1.1/32", Target::Link { index: PEER_INDEX }),
        ),
        add_route(&inside, via("0.0.0.0/0", "169.254.1.1")),
        add_route(&inside, via("::/0", "fe80::ecee:eeff:feee:eeee")),
    ]
}

pub fn all_ok(results: &[OpResult]) {
    for (index, result) in results.iter().enumerate() {
        assert!(result.is_ok(), "operation {index}: {result:?}");
    }
}

pub fn errno(result: &OpResult) -> i32 {
    result.as_ref().err().map_or(0, |error| error.errno)
}

pub async fn place(kernel: &Kernel, place: Place) -> Snapshot {
    kernel
        .query(Query::Place {
            place,
            sysctls: Vec::new(),
        })
        .await
        .unwrap()
}

/// A link of the host that can carry a gateway, without a workload.
pub fn underlay() -> u32 {
    ip("link add under0 index 77 type veth peer name under1");
    ip("link set under0 up");
    ip("link set under1 up");
    ip("address add 192.168.7.1/24 dev under0");
    ip("address add fd00:7::1/64 dev under0 nodad");
    77
}

pub fn gateway(text: &str, index: u32) -> Gateway {
    Gateway {
        address: Some(address(text)),
        index,
        onlink: false,
        weight: 1,
    }
}

pub fn learned(prefix: IpNet, id: u32) -> Route {
    Route {
        prefix,
        table: 254,
        metric: 0,
        protocol: PROTOCOL_AGENTD_BGP,
        target: Target::NextHop { id },
    }
}

/// Everything heard until `last` is heard.
pub async fn heard_until(
    changes: &mut Changes,
    last: impl Fn(&Place, &Change) -> bool,
) -> Vec<(Place, Change)> {
    let mut heard = Vec::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        match tokio::time::timeout_at(deadline, changes.next()).await {
            Ok(Some(ChangeEvent::Change(place, change))) => {
                let end = last(&place, &change);
                heard.push((place, change));
                if end {
                    return heard;
                }
            }
            Ok(Some(ChangeEvent::Overrun)) => {}
            Ok(None) | Err(_) => panic!("heard only {heard:#?}"),
        }
    }
}

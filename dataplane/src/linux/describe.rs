//! Operations in words, for errors.

use crate::kernel::{NextHop, NextHopKind, Op, Place, Query, Route, Target};

pub(super) fn describe(op: &Op) -> String {
    match op {
        Op::CreateVeth(veth) => format!(
            "create veth {} with {} in {}",
            veth.name,
            veth.peer_name,
            veth.peer_netns.path.display()
        ),
        Op::CreateTunnel(tunnel) => format!("create tunnel device {}", tunnel.name),
        Op::ReplaceFdb(entry) => format!(
            "send frames of interface {} to {}",
            entry.index, entry.remote
        ),
        Op::DeleteFdb(entry) => format!(
            "stop sending frames of interface {} to {}",
            entry.index, entry.remote
        ),
        Op::CreateTap(tap) => format!("create tap device {}", tap.name),
        Op::CreateBridge(bridge) => format!("create bridge {}", bridge.name),
        Op::SetLink { place, link } => format!("change interface {}{}", link.index, at(place)),
        Op::DeleteLinks(links) => match links.as_slice() {
            [only] => format!("delete interface {only}"),
            several => format!("delete {} interfaces", several.len()),
        },
        Op::AddAddress { place, address } => format!(
            "add address {} to interface {}{}",
            address.net,
            address.index,
            at(place)
        ),
        Op::DeleteAddress { place, address } => format!(
            "delete address {} from interface {}{}",
            address.net,
            address.index,
            at(place)
        ),
        Op::AddRoute { place, route } => format!("add route {}{}", in_words(route), at(place)),
        Op::ReplaceRoute { place, route } => {
            format!("replace route {}{}", in_words(route), at(place))
        }
        Op::DeleteRoute { place, route } => {
            format!("delete route {}{}", in_words(route), at(place))
        }
        Op::ReplaceNextHop(next_hop) => format!("set nexthop {}", next_hop_in_words(next_hop)),
        Op::DeleteNextHop { id } => format!("delete nexthop {id}"),
        Op::ReplaceNeighbour { place, neighbour } => format!(
            "set neighbour {} of interface {}{}",
            neighbour.address,
            neighbour.index,
            at(place)
        ),
        Op::DeleteNeighbour { place, neighbour } => format!(
            "delete neighbour {} of interface {}{}",
            neighbour.address,
            neighbour.index,
            at(place)
        ),
        Op::WriteSysctl { place, path, value } => format!("set {path} to {value}{}", at(place)),
    }
}

pub(super) fn describe_query(query: &Query) -> String {
    match query {
        Query::Place { place, .. } => format!("read the network state{}", at(place)),
        Query::Inside { netns, .. } => {
            format!("read the network state in {}", netns.path.display())
        }
        Query::Link { place, index, .. } => format!("read interface {index}{}", at(place)),
        Query::Routes(prefixes) => format!("read {} routes", prefixes.len()),
    }
}

fn at(place: &Place) -> String {
    match place {
        Place::Host => String::new(),
        Place::Netns(netns) => format!(" in {}", netns.path.display()),
    }
}

fn in_words(route: &Route) -> String {
    match &route.target {
        Target::Blackhole => format!("blackhole {}", route.prefix),
        Target::Reject => format!("unreachable {}", route.prefix),
        Target::Link { index } => format!("{} on interface {index}", route.prefix),
        Target::NextHop { id } => format!("{} by nexthop {id}", route.prefix),
        Target::Gateways(gateways) => {
            let mut text = route.prefix.to_string();
            for gateway in gateways {
                match gateway.address {
                    Some(address) => {
                        text += &format!(" via {address} on interface {}", gateway.index);
                    }
                    None => text += &format!(" on interface {}", gateway.index),
                }
            }
            text
        }
    }
}

fn next_hop_in_words(next_hop: &NextHop) -> String {
    match &next_hop.kind {
        NextHopKind::Blackhole => format!("{} blackhole", next_hop.id),
        NextHopKind::Gateway(gateway) => match gateway.address {
            Some(address) => format!(
                "{} via {address} on interface {}",
                next_hop.id, gateway.index
            ),
            None => format!("{} on interface {}", next_hop.id, gateway.index),
        },
        NextHopKind::Group(members) => {
            let list: Vec<String> = members.iter().map(|(id, _)| id.to_string()).collect();
            format!("{} to the group {}", next_hop.id, list.join(", "))
        }
    }
}

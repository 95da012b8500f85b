//! Links of the kernel in memory: made, changed, deleted, with what goes along.

use std::collections::BTreeSet;

use super::{FakeKernel, FakeNamespace, Where, error, place_of};
use crate::kernel::{
    Change, CreateBridge, CreateTap, CreateTunnel, CreateVeth, Link, LinkChange, LinkKind,
    NextHopKind, Op, OpResult, Place, Route, Target, Tunnel,
};

fn taken(space: &FakeNamespace, index: u32, name: &str) -> bool {
    space.links.contains_key(&index) || space.links.values().any(|link| link.name == name)
}

/// Links that a batch could not make: what it wants done with them is not tried.
#[derive(Debug, Default)]
pub struct Missing {
    indexes: BTreeSet<(Where, u32)>,
    names: BTreeSet<(Where, String)>,
}

impl Missing {
    pub(super) fn note(&mut self, op: &Op) {
        let mut note = |at: Where, index: u32, name: &str| {
            self.indexes.insert((at, index));
            self.names.insert((at, name.to_owned()));
        };
        match op {
            Op::CreateVeth(veth) => {
                note(None, veth.index, &veth.name);
                let inside = place_of(&Place::Netns(veth.peer_netns.clone()));
                note(inside, veth.peer_index, &veth.peer_name);
                note(inside, 1, "lo");
            }
            Op::CreateTap(tap) => note(None, tap.index, &tap.name),
            Op::CreateBridge(bridge) => note(None, bridge.index, &bridge.name),
            _ => {}
        }
    }

    pub(super) fn concerns(&self, op: &Op) -> bool {
        let has = |place: &Place, index: u32| self.indexes.contains(&(place_of(place), index));
        match op {
            Op::SetLink { place, link } => has(place, link.index),
            Op::AddAddress { place, address } => has(place, address.index),
            Op::ReplaceNeighbour { place, neighbour } => has(place, neighbour.index),
            Op::AddRoute { place, route } | Op::ReplaceRoute { place, route } => {
                match &route.target {
                    Target::Link { index } => has(place, *index),
                    Target::Gateways(hops) => hops.iter().any(|hop| has(place, hop.index)),
                    _ => false,
                }
            }
            Op::WriteSysctl { place, path, .. } => path
                .split('/')
                .nth(3)
                .is_some_and(|name| self.names.contains(&(place_of(place), name.to_owned()))),
            _ => false,
        }
    }
}

impl FakeKernel {
    pub(super) fn create_veth(&mut self, create: &CreateVeth, loud: bool) -> OpResult {
        let inside = place_of(&Place::Netns(create.peer_netns.clone()));
        if taken(self.space(inside)?, create.peer_index, &create.peer_name)
            || taken(&self.host, create.index, &create.name)
        {
            return Err(error(libc::EEXIST, "create veth"));
        }
        self.check_master(create.master)?;
        let host = Link {
            index: create.index,
            name: create.name.clone(),
            kind: LinkKind::Veth,
            alias: Some(create.alias.clone()),
            mac: Some(create.mac),
            mtu: create.mtu,
            up: true,
            running: true,
            peer_index: Some(create.peer_index),
            master: create.master,
            tunnel: None,
        };
        let peer = Link {
            index: create.peer_index,
            name: create.peer_name.clone(),
            alias: None,
            mac: Some(create.peer_mac),
            peer_index: Some(create.index),
            master: None,
            ..host.clone()
        };
        add_sysctls(&mut self.host, &create.name);
        let space = self.space(inside)?;
        add_sysctls(space, &create.peer_name);
        space.links.insert(peer.index, peer.clone());
        self.host.links.insert(host.index, host.clone());
        let (one, other) = ((None, host.index), (inside, peer.index));
        self.peers.insert(one, other);
        self.peers.insert(other, one);
        self.tell(loud, None, Change::Link(host));
        self.tell(loud, inside, Change::Link(peer));
        Ok(())
    }

    /// A link of the host without another end.
    fn create_single(&mut self, link: Link, loud: bool) -> OpResult {
        if taken(&self.host, link.index, &link.name) {
            return Err(error(libc::EEXIST, "create link"));
        }
        add_sysctls(&mut self.host, &link.name);
        self.host.links.insert(link.index, link.clone());
        self.tell(loud, None, Change::Link(link));
        Ok(())
    }

    pub(super) fn create_tap(&mut self, create: &CreateTap, loud: bool) -> OpResult {
        let link = Link {
            index: create.index,
            name: create.name.clone(),
            kind: LinkKind::Tap,
            alias: Some(create.alias.clone()),
            mac: Some(create.mac),
            mtu: create.mtu,
            up: true,
            running: false,
            peer_index: None,
            master: None,
            tunnel: None,
        };
        self.create_single(link, loud)
    }

    pub(super) fn create_bridge(&mut self, create: &CreateBridge, loud: bool) -> OpResult {
        let link = Link {
            index: create.index,
            name: create.name.clone(),
            kind: LinkKind::Bridge,
            alias: Some(create.alias.clone()),
            mac: Some(create.mac),
            mtu: create.mtu,
            up: true,
            running: false,
            peer_index: None,
            master: None,
            tunnel: None,
        };
        self.create_single(link, loud)
    }

    pub(super) fn create_tunnel(&mut self, create: &CreateTunnel, loud: bool) -> OpResult {
        let kind = match create.tunnel {
            Tunnel::Ipip { .. } => "ipip",
            Tunnel::Vxlan { .. } => "vxlan",
        };
        if self.unknown_kinds.contains(kind) {
            return Err(error(libc::EOPNOTSUPP, "create tunnel: unknown kind"));
        }
        let taken = |link: &Link| {
            link.index == create.index
                || link.name == create.name
                || link.tunnel == Some(create.tunnel)
        };
        if self.host.links.values().any(taken) {
            return Err(error(libc::EEXIST, "create tunnel"));
        }
        let link = Link {
            index: create.index,
            name: create.name.clone(),
            kind: LinkKind::Other(kind.to_owned()),
            alias: Some(create.alias.clone()),
            mac: create.mac,
            mtu: create.mtu,
            up: true,
            running: true,
            peer_index: None,
            master: None,
            tunnel: Some(create.tunnel),
        };
        add_sysctls(&mut self.host, &create.name);
        self.host.links.insert(link.index, link.clone());
        self.tell(loud, None, Change::Link(link));
        Ok(())
    }

    fn check_master(&self, master: Option<u32>) -> OpResult {
        match master {
            Some(index) if index != 0 => match self.host.links.get(&index) {
                Some(link) if link.kind == LinkKind::Bridge => Ok(()),
                Some(_) => Err(error(libc::EOPNOTSUPP, "set master")),
                None => Err(error(libc::EINVAL, "set master")),
            },
            _ => Ok(()),
        }
    }

    pub(super) fn set_link(&mut self, at: Where, change: &LinkChange, loud: bool) -> OpResult {
        self.check_master(change.master)?;
        let space = self.space(at)?;
        if let Some(name) = &change.name
            && space.links.values().any(|link| link.name == *name)
        {
            return Err(error(libc::EEXIST, "rename link"));
        }
        let Some(link) = space.links.get_mut(&change.index) else {
            return Err(error(libc::ENODEV, "set link"));
        };
        let was_up = link.up;
        if let Some(up) = change.up {
            link.up = up;
            link.running = up;
        }
        if let Some(mtu) = change.mtu {
            link.mtu = mtu;
        }
        if let Some(mac) = change.mac {
            link.mac = Some(mac);
        }
        if let Some(alias) = &change.alias {
            link.alias = Some(alias.clone());
        }
        if let Some(master) = change.master {
            link.master = Some(master).filter(|master| *master != 0);
        }
        if let Some(name) = &change.name {
            let before = std::mem::replace(&mut link.name, name.clone());
            let (from, to) = (format!("/{before}/"), format!("/{name}/"));
            space.sysctls = std::mem::take(&mut space.sysctls)
                .into_iter()
                .map(|(path, value)| (path.replace(&from, &to), value))
                .collect();
        }
        let Some(link) = space.links.get(&change.index).cloned() else {
            return Ok(());
        };
        self.tell(loud, at, Change::Link(link.clone()));
        if was_up && !link.up {
            self.flush(at, link.index, false);
        }
        Ok(())
    }

    /// Loss and return of the carrier.
    pub fn set_carrier(&mut self, index: u32, running: bool) {
        if let Some(link) = self.host.links.get_mut(&index) {
            link.running = running;
            let link = link.clone();
            self.tell(true, None, Change::Link(link));
            if !running {
                self.flush_next_hops(index);
            }
        }
    }

    /// What a link that goes down takes along; silently, as far as it is IPv4 or nexthop objects.
    fn flush(&mut self, at: Where, index: u32, all: bool) {
        if at.is_none() {
            self.flush_next_hops(index);
        }
        let Ok(space) = self.space(at) else {
            return;
        };
        let through = |route: &Route| match &route.target {
            Target::Link { index: of } => *of == index,
            Target::Gateways(hops) => hops.iter().any(|hop| hop.index == index),
            _ => false,
        };
        let gone: Vec<Route> = space
            .routes
            .values()
            .filter(|route| through(route))
            .cloned()
            .collect();
        space.routes.retain(|_, route| !through(route));
        space.neighbours.retain(|(of, _), _| *of != index);
        if all {
            space.fdb.retain(|(of, _), _| *of != index);
        }
        space
            .addresses
            .retain(|(of, net), _| *of != index || (!all && net.addr().is_ipv4()));
        for route in gone {
            if route.prefix.addr().is_ipv6() {
                self.tell(true, at, Change::RouteDeleted(route));
            }
        }
    }

    pub(super) fn flush_next_hops(&mut self, index: u32) {
        let gone: Vec<u32> = self
            .host
            .next_hops
            .values()
            .filter(
                |object| matches!(&object.kind, NextHopKind::Gateway(hop) if hop.index == index),
            )
            .map(|object| object.id)
            .collect();
        for id in gone {
            self.drop_next_hop(id);
        }
    }

    pub(super) fn delete_link(&mut self, at: Where, index: u32, loud: bool) {
        let Ok(space) = self.space(at) else {
            return;
        };
        let Some(link) = space.links.remove(&index) else {
            return;
        };
        let part = format!("/{}/", link.name);
        space.sysctls.retain(|path, _| !path.contains(&part));
        self.flush(at, index, true);
        self.tell(loud, at, Change::LinkDeleted { index });
        self.release_ports(index, at);
        if let Some((other, other_index)) = self.peers.remove(&(at, index)) {
            self.peers.remove(&(other, other_index));
            self.delete_link(other, other_index, loud);
        }
    }

    /// The ports of a bridge that is gone; heard, whoever deleted it.
    fn release_ports(&mut self, index: u32, at: Where) {
        if at.is_some() {
            return;
        }
        let ports: Vec<Link> = self
            .host
            .links
            .values_mut()
            .filter(|link| link.master == Some(index))
            .map(|link| {
                link.master = None;
                link.clone()
            })
            .collect();
        for link in ports {
            self.tell(true, None, Change::Link(link));
        }
    }
}

fn add_sysctls(space: &mut FakeNamespace, interface: &str) {
    let forwards = |global: &str| space.sysctls.get(global).map(String::as_str) == Some("1");
    let forwarding = [
        ("ipv4/conf", forwards("net/ipv4/ip_forward")),
        ("ipv6/conf", forwards("net/ipv6/conf/all/forwarding")),
    ];
    for (group, keys) in [
        (
            "ipv4/conf",
            &["proxy_arp", "forwarding", "route_localnet", "rp_filter"][..],
        ),
        ("ipv4/neigh", &["proxy_delay"][..]),
        (
            "ipv6/conf",
            &[
                "disable_ipv6",
                "accept_dad",
                "accept_ra",
                "forwarding",
                "proxy_ndp",
            ][..],
        ),
    ] {
        for key in keys {
            let default = match *key {
                "proxy_delay" => "80",
                "accept_dad" | "accept_ra" => "1",
                "forwarding" if forwarding.contains(&(group, true)) => "1",
                _ => "0",
            };
            let path = format!("net/{group}/{interface}/{key}");
            space.sysctls.insert(path, default.to_owned());
        }
    }
}

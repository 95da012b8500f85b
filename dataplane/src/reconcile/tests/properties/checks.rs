//! What must hold once everything has come to rest.

use super::*;

impl Chaos {
    /// A next hop of the route cannot be reached by the tunnel of its pool.
    fn is_impossible(&self, route: &LearnedRoute) -> bool {
        let Some(Object::Tunnels(tunnels)) = self.wanted.get(&ObjectId::Tunnels) else {
            return false;
        };
        let ipip = tunnels.pools.iter().any(|pool| {
            pool.encapsulation == Encapsulation::Ipip && pool.cidr.contains(&route.prefix)
        });
        ipip && route.next_hops.iter().any(|hop| hop.address.is_ipv6())
    }

    /// Devices stand, are right, and no others; on them is what the gateways in use need.
    fn check_tunnels(&self, tunnels: &Tunnels) {
        let host = &self.world.kernel.host;
        let uses = |kind| tunnels.pools.iter().any(|pool| pool.encapsulation == kind);
        for (name, wanted, mtu) in [
            ("agentd.ipip", uses(Encapsulation::Ipip), 1480),
            ("agentd.vxlan", uses(Encapsulation::Vxlan), 1450),
            ("agentd.vxlan6", uses(Encapsulation::Vxlan), 1430),
        ] {
            let link = host.links.values().find(|link| link.name == name);
            let status = self.world.reconciler.status();
            assert_eq!(link.is_some(), wanted, "{name}: {status:?}");
            let Some(link) = link else { continue };
            assert!(link.up && link.mtu == mtu, "{link:?}");
            if name == "agentd.ipip" {
                continue;
            }
            let objects = host.next_hops.values();
            let gateways = objects.filter_map(|object| match &object.kind {
                NextHopKind::Gateway(gateway) if gateway.index == link.index => gateway.address,
                _ => None,
            });
            for gateway in gateways {
                let neighbour = host.neighbours.get(&(link.index, gateway));
                let mac = neighbour.filter(|one| one.permanent).map(|one| one.mac);
                let entry = mac.and_then(|mac| host.fdb.get(&(link.index, mac)));
                assert!(entry.is_some(), "{gateway} on {name}: {neighbour:?}");
            }
        }
    }

    pub(super) fn check(&self) {
        let kernel = &self.world.kernel;
        let status = self.world.reconciler.status();
        let mut own: BTreeMap<IpNet, &Route> = BTreeMap::new();
        for route in kernel.host.routes.values() {
            if is_own(route.protocol) {
                assert_eq!(route.metric, own_metric(&route.prefix));
                own.insert(route.prefix, route);
            }
        }
        let mut links = 0;
        let read = |space: &FakeNamespace| Snapshot {
            links: space.links.values().cloned().collect(),
            addresses: space.addresses.values().copied().collect(),
            marked_addresses: space.marked_addresses(),
            routes: space.routes.values().cloned().collect(),
            next_hops: Vec::new(),
            neighbours: space.neighbours.values().copied().collect(),
            fdb: Vec::new(),
            sysctls: (space.sysctls.iter())
                .map(|(path, value)| (path.clone(), Some(value.clone())))
                .collect(),
        };
        let claims = |address: &IpAddr| {
            let all = self.wanted.values();
            all.filter(|o| matches!(o, Object::Workload(w) if w.addresses.contains(address)))
                .count()
        };
        for (id, object) in &self.wanted {
            match object {
                Object::Tunnels(tunnels) => self.check_tunnels(tunnels),
                Object::Blackhole(prefix) => {
                    let route = own.remove(prefix);
                    let target = route.map(|route| &route.target);
                    assert_eq!(target, Some(&Target::Blackhole), "{id:?} {status:?}");
                }
                Object::Route(route) => {
                    let blackhole = ObjectId::Blackhole(route.prefix);
                    if self.wanted.contains_key(&blackhole) {
                        continue;
                    }
                    let seen = own.remove(&route.prefix);
                    if self.is_impossible(route) {
                        continue;
                    }
                    if route.next_hops.is_empty() {
                        let dropped = (PROTOCOL_AGENTD_BGP, &Target::Blackhole);
                        let seen = seen.map(|route| (route.protocol, &route.target));
                        assert_eq!(seen, Some(dropped), "{id:?} {status:?}");
                        continue;
                    }
                    let Some(Target::NextHop { id: object }) = seen.map(|route| &route.target)
                    else {
                        let state = self.world.reconciler.object(id);
                        let hops = self.world.reconciler.next_hops();
                        let hops_seen = &kernel.host.next_hops;
                        panic!(
                            "{id:?} has {seen:?}, {state:?}\n{hops:?}\n{hops_seen:?}\n{status:?}"
                        );
                    };
                    let members = match &kernel.host.next_hops[object].kind {
                        NextHopKind::Group(members) => members.len(),
                        _ => 1,
                    };
                    assert_eq!(members, route.next_hops.len(), "{id:?}");
                }
                Object::Bridge(bridge) => {
                    links += 1;
                    let spec = Spec::Bridge(bridge.clone());
                    let seen = kernel.host.links.values();
                    let link = seen.clone().find(|link| *link.name == *bridge.name);
                    let link = link.unwrap_or_else(|| panic!("no bridge: {status:?}"));
                    let want = Want {
                        spec: &spec,
                        mtu: 1500,
                        index: link.index,
                        peer_index: 0,
                        bridge: None,
                        master: None,
                        link_local: false,
                    };
                    let difference = want.difference(&read(&kernel.host), &Snapshot::default());
                    assert_eq!(difference, Default::default(), "{id:?}");
                }
                Object::Workload(workload) => {
                    // Two that want one interface name in one namespace cannot both have it.
                    let rivals = self.wanted.values().filter(|o| {
                        matches!(o, Object::Workload(w)
                            if w.netns().is_some() && w.netns() == workload.netns())
                    });
                    if rivals.count() > 1 || workload.addresses.iter().any(|a| claims(a) > 1) {
                        links += usize::from(
                            kernel
                                .host
                                .links
                                .values()
                                .any(|link| link.name == host_interface(&workload.id)),
                        );
                        for address in &workload.addresses {
                            own.remove(&single(*address));
                        }
                        continue;
                    }
                    let spec = Spec::Workload(workload.clone());
                    let all = || kernel.host.links.values();
                    let link = spec.host_name().map(|name| {
                        links += 1;
                        let link = all().find(|link| link.name == name);
                        link.unwrap_or_else(|| {
                            let state = self.world.reconciler.object(id);
                            panic!("{id:?} has no link: {status:?} {state:?}")
                        })
                    });
                    let bridge = match bridge() {
                        Object::Bridge(bridge) => bridge,
                        _ => unreachable!("it is a bridge"),
                    };
                    let bridge = spec.bridge().map(|_| &*bridge);
                    let master = bridge.and_then(|bridge| {
                        let link = all().find(|link| *link.name == *bridge.name);
                        link.map(|link| link.index)
                    });
                    let want = Want {
                        spec: &spec,
                        mtu: 1500,
                        index: link.map_or(0, |link| link.index),
                        peer_index: link.and_then(|link| link.peer_index).unwrap_or(0),
                        bridge,
                        master,
                        link_local: !self.world.reconciler.has_ipv6,
                    };
                    let inside = workload.netns().map(|netns| {
                        let space = (netns.device, netns.inode);
                        read(&kernel.namespaces[&space])
                    });
                    let inside = inside.unwrap_or_default();
                    let difference = want.difference(&read(&kernel.host), &inside);
                    assert_eq!(difference, Default::default(), "{id:?}");
                    let Some(link) = link.filter(|_| !spec.routed().is_empty()) else {
                        continue;
                    };
                    for address in &workload.addresses {
                        let route = own.remove(&single(*address));
                        let index = LINK | link.index;
                        let code = route.map(crate::reconcile::table::code_of);
                        assert_eq!(code, Some(index), "{id:?} {address}");
                    }
                }
            }
        }
        assert_eq!(own, BTreeMap::new(), "stale routes");
        let seen = kernel.host.links.values().filter(|link| is_own_link(link));
        assert_eq!(seen.count(), links, "stale links");
        let unused = kernel.host.next_hops.keys().find(|id| {
            let used = |route: &Route| route.target == Target::NextHop { id: **id };
            let member = |object: &NextHop| match &object.kind {
                NextHopKind::Group(members) => members.iter().any(|(of, _)| of == *id),
                _ => false,
            };
            !kernel.host.routes.values().any(used) && !kernel.host.next_hops.values().any(member)
        });
        let shadowed = self.wanted.keys().any(|id| {
            matches!(id, ObjectId::Route(p) if self.wanted.contains_key(&ObjectId::Blackhole(*p)))
        });
        assert!(
            unused.is_none() || shadowed,
            "unused nexthop object {unused:?}"
        );
    }
}

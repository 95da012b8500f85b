use super::*;
use crate::kernel::{Address, GATEWAY_V4, GATEWAY_V6, HOST_MAC, LinkChange, Neighbour};

fn one() -> World {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let mut world = World::new(kernel);
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    world
}

fn index_of(world: &World, id: &str) -> u32 {
    let name = host_interface(id);
    let links = &world.kernel.host.links;
    links.values().find(|link| link.name == name).unwrap().index
}

#[test]
fn a_workload_gets_exactly_the_values_that_users_rely_on() {
    let mut world = one();
    let events = world.take_events();
    let programmed = events.iter().find_map(|event| match event {
        Event::Programmed { id, detail } if *id == workload_id("a") => Some(detail.clone()),
        _ => None,
    });
    let detail = programmed.unwrap();
    // SHA-256("a") = ca978112ca1bbdcafac231b39a23dc4d...
    assert_eq!(detail.host_interface, "agtca978112ca1");
    assert_eq!(detail.mtu, 1500);
    let host = &world.kernel.host;
    let link = &host.links[&detail.host_ifindex];
    assert_eq!(link.alias.as_deref(), Some("agentd:a"));
    assert_eq!(link.mac, Some(HOST_MAC));
    assert_eq!(host.sysctls["net/ipv4/ip_forward"], "1");
    assert_eq!(host.sysctls["net/ipv6/conf/all/forwarding"], "1");
    for (key, value) in [
        ("ipv4/conf/agtca978112ca1/proxy_arp", "1"),
        ("ipv4/neigh/agtca978112ca1/proxy_delay", "0"),
        ("ipv4/conf/agtca978112ca1/forwarding", "1"),
        ("ipv4/conf/agtca978112ca1/route_localnet", "0"),
        ("ipv4/conf/agtca978112ca1/rp_filter", "1"),
        ("ipv6/conf/agtca978112ca1/disable_ipv6", "0"),
        ("ipv6/conf/agtca978112ca1/accept_dad", "0"),
        ("ipv6/conf/agtca978112ca1/accept_ra", "0"),
        ("ipv6/conf/agtca978112ca1/forwarding", "1"),
        ("ipv6/conf/agtca978112ca1/proxy_ndp", "1"),
    ] {
        assert_eq!(host.sysctls[&format!("net/{key}")], value, "{key}");
    }
    assert!(!host.addresses.keys().any(|(index, _)| *index == link.index));
    let target = Target::Link { index: link.index };
    for prefix in ["10.0.0.5/32", "fd00::5/128"] {
        let route = world.route(prefix).unwrap();
        assert_eq!((&route.target, route.protocol), (&target, 70), "{prefix}");
    }
    let inside = &world.kernel.namespaces[&(4, 100)];
    let peer = inside.links[&link.peer_index.unwrap()].clone();
    assert_eq!(peer.name, "eth0");
    assert!(inside.links[&1].up);
    let mac = peer.mac.unwrap();
    assert_eq!(mac[0] & 3, 2, "unicast, locally administered");
    assert_eq!(host.neighbours[&(link.index, ip("10.0.0.5"))].mac, mac);
    assert_eq!(host.neighbours[&(link.index, ip("fd00::5"))].mac, mac);
    assert!(inside.addresses[&(peer.index, net("fd00::5/128"))].nodad);
    assert!(
        inside
            .addresses
            .contains_key(&(peer.index, net("10.0.0.5/32")))
    );
    for gateway in [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)] {
        let neighbour = inside.neighbours[&(peer.index, gateway)];
        assert_eq!((neighbour.mac, neighbour.permanent), (HOST_MAC, true));
    }
    assert_eq!(inside.sysctls["net/ipv6/conf/eth0/disable_ipv6"], "0");
    let targets: Vec<(IpNet, &Target)> = inside
        .routes
        .values()
        .map(|route| (route.prefix, &route.target))
        .collect();
    let via = |gateway: IpAddr| {
        Target::Gateways(vec![Gateway {
            address: Some(gateway),
            index: peer.index,
            onlink: false,
            weight: 1,
        }])
    };
    assert_eq!(
        targets,
        [
            (net("0.0.0.0/0"), &via(GATEWAY_V4.into())),
            (net("169.254.1.1/32"), &Target::Link { index: peer.index }),
            (net("::/0"), &via(GATEWAY_V6.into())),
        ]
    );
}

/// A link of a workload has an address only where the node has none that the workload could answer to.
#[test]
fn links_of_workloads_get_an_ipv6_address_when_the_node_has_none() {
    let mut world = World::new(kernel());
    world.sync();
    for (id, space, address) in [("a", 100, "fd00::5"), ("b", 101, "10.0.0.6")] {
        world.kernel.add_namespace(space);
        world.set(workload(id, space, &[address]));
    }
    let on_links = |world: &World| -> Vec<IpNet> {
        let addresses = world.kernel.host.addresses.keys();
        let on_links = addresses.filter(|(index, _)| *index != UNDERLAY);
        on_links.map(|(_, net)| *net).collect()
    };
    assert_eq!(on_links(&world), []);
    let own = Address {
        index: UNDERLAY,
        net: net("fd00:1::10/64"),
        nodad: false,
    };
    world.edit(Op::DeleteAddress {
        place: Place::Host,
        address: own,
    });
    // Only the one that has an IPv6 address itself.
    let link_local = net("fe80::ecee:eeff:feee:eeee/128");
    assert_eq!(on_links(&world), [link_local]);
    world.edit(Op::AddAddress {
        place: Place::Host,
        address: own,
    });
    // It does no harm.
    assert_eq!(on_links(&world), [link_local]);
    let world = world.restart();
    assert_eq!(on_links(&world), [link_local]);
    assert_eq!(world.kernel.writes, 0);
}

#[test]
fn to_add_a_workload_nothing_is_listed_that_belongs_to_others() {
    let mut world = World::new(kernel());
    world.kernel.add_namespace(100);
    world.queries.clear();
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    let listed = |query: &Query| matches!(query, Query::Place { .. });
    assert!(!world.queries.iter().any(listed), "{:#?}", world.queries);
    let read = world.queries.len();
    assert_eq!(
        read, 3,
        "both ends and the routes, once: {:#?}",
        world.queries
    );
}

#[test]
fn routes_to_a_workload_come_after_everything_inside_it() {
    let world = one();
    let ops: Vec<&Op> = world.batches.iter().flatten().collect();
    let route = ops.iter().position(|op| {
        matches!(op, Op::AddRoute { place: Place::Host, route } if route.prefix == net("10.0.0.5/32"))
    });
    let inside = ops.iter().rposition(|op| {
        matches!(
            op,
            Op::AddAddress {
                place: Place::Netns(_),
                ..
            } | Op::AddRoute {
                place: Place::Netns(_),
                ..
            } | Op::ReplaceNeighbour {
                place: Place::Netns(_),
                ..
            } | Op::CreateVeth(_)
        )
    });
    assert!(route.unwrap() > inside.unwrap());
}

#[test]
fn a_restart_with_unchanged_state_writes_nothing() {
    let mut world = one();
    world.set(Object::Blackhole(net("10.0.0.0/26")));
    world.set(learned("10.1.0.0/26", &["192.168.1.11"]));
    world.set(learned("10.2.0.0/26", &["192.168.1.11", "192.168.1.12"]));
    let before = world.kernel.host.clone();
    let mut world = world.restart();
    assert_eq!(world.take_events().first(), Some(&Event::Started));
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    world.set(Object::Blackhole(net("10.0.0.0/26")));
    world.set(learned("10.1.0.0/26", &["192.168.1.11"]));
    world.set(learned("10.2.0.0/26", &["192.168.1.11", "192.168.1.12"]));
    world.sync();
    world.pass(Duration::from_secs(5));
    assert_eq!(world.batches, Vec::<Vec<Op>>::new());
    assert_eq!(world.kernel.host, before);
    let programmed = |event: &&Event| matches!(event, Event::Programmed { .. });
    assert_eq!(world.events.iter().filter(programmed).count(), 2);
    let swept = |event: &&Event| matches!(event, Event::Swept { deleted: 0, .. });
    assert_eq!(world.events.iter().filter(swept).count(), 3);
}

#[test]
fn stale_objects_are_deleted_only_when_their_source_is_in_sync() {
    let mut world = one();
    world.set(Object::Blackhole(net("10.0.0.0/26")));
    world.set(learned("10.1.0.0/26", &["192.168.1.11"]));
    let clean = kernel().host;
    let mut world = world.restart();
    world.pass(Duration::from_secs(2));
    assert!(world.batches.is_empty());
    world.reconciler.source_synced(world.now, Source::Bgp);
    world.run();
    assert!(world.route("10.1.0.0/26").is_none());
    assert!(world.kernel.host.next_hops.is_empty());
    assert!(world.route("10.0.0.0/26").is_some());
    assert!(world.route("10.0.0.5/32").is_some());
    world.sync();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.kernel.host.links, clean.links);
    assert_eq!(world.kernel.host.routes, clean.routes);
    assert_eq!(world.reconciler.status().swept, 6);
}

#[test]
fn a_removed_workload_is_told_when_its_routes_are_gone_and_its_link_is_reaped_later() {
    let mut world = one();
    world.take_events();
    world.remove(workload_id("a"));
    assert_eq!(
        world.take_events(),
        [Event::Removed {
            id: workload_id("a")
        }]
    );
    assert!(world.route("10.0.0.5/32").is_none());
    assert_eq!(world.kernel.host.links.len(), 3);
    world.pass(Duration::from_millis(60));
    assert_eq!(world.kernel.host.links.len(), 2);
}

#[test]
fn links_are_reaped_in_one_operation() {
    let mut kernel = kernel();
    let mut world = {
        for space in 0..30 {
            kernel.add_namespace(space);
        }
        World::new(kernel)
    };
    for number in 0..30u64 {
        let address = format!("10.0.0.{number}");
        let object = workload(&format!("w{number}"), number, &[&address]);
        world.reconciler.set(world.now, object);
    }
    world.run();
    world.pass(Duration::from_secs(2));
    world.batches.clear();
    for number in 0..30 {
        let id = workload_id(&format!("w{number}"));
        world.reconciler.remove(world.now, id);
    }
    world.run();
    assert_eq!(world.batches.len(), 1, "all routes in one batch");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.batches.len(), 2);
    assert!(matches!(world.batches[1].as_slice(), [Op::DeleteLinks(links)] if links.len() == 30));
}

#[test]
fn while_workloads_are_added_links_are_reaped_a_few_at_a_time() {
    let mut kernel = kernel();
    for space in 0..300 {
        kernel.add_namespace(space);
    }
    let mut world = World::new(kernel);
    let add = |world: &mut World, number: u64| {
        let [_, .., high, low] = number.to_be_bytes();
        let address = format!("10.0.{high}.{low}");
        let object = workload(&format!("w{number}"), number, &[&address]);
        world.reconciler.set(world.now, object);
    };
    for number in 0..200 {
        add(&mut world, number);
    }
    world.run();
    for number in 0..200 {
        let id = workload_id(&format!("w{number}"));
        world.reconciler.remove(world.now, id);
    }
    for number in 200..300 {
        world.batches.clear();
        add(&mut world, number);
        world.run();
        world.pass(Duration::from_millis(10));
        let reaped: Vec<usize> = world
            .batches
            .iter()
            .flatten()
            .filter_map(|op| match op {
                Op::DeleteLinks(links) => Some(links.len()),
                _ => None,
            })
            .collect();
        assert!(reaped.len() <= 1, "no rest between groups: {reaped:?}");
        assert!(reaped.iter().all(|links| *links <= 32), "{reaped:?}");
        let ObjectStatus::Programmed(_) = world.status_of(&format!("w{number}")) else {
            panic!("an add waits for links to be deleted");
        };
    }
    assert_eq!(world.reconciler.status().links_to_reap, 0);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.kernel.host.links.len(), 2 + 100);
}

#[test]
fn the_same_id_can_come_back_while_its_old_link_waits() {
    let mut world = one();
    world.kernel.add_namespace(101);
    let old = index_of(&world, "a");
    world.remove(workload_id("a"));
    world.set(workload("a", 101, &["10.0.0.6"]));
    assert!(matches!(world.status_of("a"), ObjectStatus::Programmed(_)));
    assert_ne!(index_of(&world, "a"), old);
    assert!(world.route("10.0.0.5/32").is_none());
    assert!(world.route("10.0.0.6/32").is_some());
    world.pass(Duration::from_secs(1));
    assert!(world.route("10.0.0.6/32").is_some());
}

/// The agent dies after the removal of a workload is recorded and before its link is deleted. The
/// addresses of the link are those of nobody.
#[test]
fn the_link_of_an_earlier_workload_of_that_id_is_made_anew_and_not_given_more_addresses() {
    for addresses in [&["10.0.0.6", "fd00::6"][..], &["10.0.0.5", "fd00::6"]] {
        let mut world = one().restart();
        world.set(workload("a", 100, addresses));
        assert!(matches!(world.status_of("a"), ObjectStatus::Programmed(_)));
        let index = index_of(&world, "a");
        let inside = &world.kernel.namespaces[&(4, 100)];
        let found: Vec<_> = inside
            .addresses
            .keys()
            .filter(|(link, _)| *link == index + 1)
            .map(|(_, net)| net.addr())
            .collect();
        let wanted: Vec<_> = addresses.iter().map(|address| ip(address)).collect();
        assert_eq!(found, wanted);
        world.sync();
        world.pass(Duration::from_secs(1));
        assert_eq!(index_of(&world, "a"), index);
    }
}

#[test]
fn an_address_that_somebody_adds_inside_survives_a_restart_and_one_that_is_missing_comes_back() {
    let mut world = one();
    let (index, place) = (index_of(&world, "a"), Place::Netns(netns(100)));
    let address = |text: &str| Address {
        index: index + 1,
        net: net(text),
        nodad: false,
    };
    let more = address("172.16.0.1/24");
    world.edit(Op::AddAddress {
        place: place.clone(),
        address: more,
    });
    let mut world = world.restart();
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    assert_eq!(index_of(&world, "a"), index);
    // Half made: nothing of another workload is there.
    let inside = world.kernel.namespaces.get_mut(&(4, 100)).unwrap();
    assert!(inside.addresses.contains_key(&(index + 1, more.net)));
    inside.addresses.retain(|(link, _), _| *link != index + 1);
    let mut world = world.restart();
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    assert_eq!(index_of(&world, "a"), index);
    assert!(matches!(world.status_of("a"), ObjectStatus::Programmed(_)));
}

#[test]
fn an_add_right_behind_a_delete_is_told_both() {
    let mut world = one();
    world.take_events();
    world.reconciler.remove(world.now, workload_id("a"));
    world
        .reconciler
        .set(world.now, workload("a", 100, &["10.0.0.7"]));
    world.run();
    let events = world.take_events();
    assert!(matches!(
        events.as_slice(),
        [Event::Removed { .. }, Event::Programmed { .. }]
    ));
    assert!(world.route("10.0.0.7/32").is_some());
}

#[test]
fn an_interface_name_that_is_taken_inside_fails_and_leaves_nothing() {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let space = kernel.namespaces.get_mut(&(4, 100)).unwrap();
    space.links.insert(2, plain_link(2, "eth0"));
    let before = space.clone();
    let mut world = World::new(kernel);
    let host = world.kernel.host.clone();
    world.set(workload("a", 100, &["10.0.0.5"]));
    assert!(world.events.iter().any(|event| matches!(event,
        Event::Failed { error, .. } if error.kind == FailureKind::InterfaceInUse)));
    world.remove(workload_id("a"));
    assert!(matches!(world.events.last(), Some(Event::Removed { .. })));
    assert_eq!(world.kernel.namespaces[&(4, 100)], before);
    assert_eq!(world.kernel.host.links, host.links);
}

#[test]
fn a_namespace_that_is_gone_is_told_as_such() {
    let mut world = World::new(kernel());
    world.set(workload("a", 5, &["10.0.0.5"]));
    assert!(world.events.iter().any(|event| matches!(event,
        Event::Failed { error, .. } if error.kind == FailureKind::NamespaceGone)));
    // It may appear later.
    world.kernel.add_namespace(5);
    world.pass(Duration::from_secs(1));
    assert!(matches!(world.status_of("a"), ObjectStatus::Programmed(_)));
    world.kernel.delete_namespace(5);
    world.reconciler.handle_overrun(world.now);
    world.run();
    let ObjectStatus::Failed(failure) = world.status_of("a") else {
        panic!("{:?}", world.status_of("a"));
    };
    assert_eq!(failure.kind, FailureKind::NamespaceGone);
}

#[test]
fn a_failed_add_that_is_taken_back_leaves_nothing() {
    let fault_free = one().kernel.writes - World::new(kernel()).kernel.writes;
    assert!(fault_free > 10, "{fault_free}");
    for fault in 0..fault_free {
        let mut kernel = kernel();
        kernel.add_namespace(100);
        let mut world = World::new(kernel);
        let host = world.kernel.host.clone();
        for _ in 0..fault {
            world.kernel.faults.push_back(None);
        }
        for _ in 0..60 {
            world.kernel.faults.push_back(Some(libc::ENOMEM));
        }
        world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
        assert!(
            world
                .events
                .iter()
                .any(|event| matches!(event, Event::Failed { .. })),
            "fault {fault}"
        );
        world.kernel.faults.clear();
        world.remove(workload_id("a"));
        assert!(matches!(world.events.last(), Some(Event::Removed { .. })));
        assert_eq!(world.kernel.host.links, host.links, "fault {fault}");
        assert_eq!(world.kernel.host.routes, host.routes, "fault {fault}");
        assert_eq!(world.kernel.host.addresses, host.addresses);
    }
}

#[test]
fn a_foreign_link_with_our_name_is_a_conflict_until_it_goes() {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let foreign = plain_link(50, &host_interface("a"));
    kernel.host.links.insert(50, foreign.clone());
    let mut world = World::new(kernel);
    world.set(workload("a", 100, &["10.0.0.5"]));
    assert_eq!(world.reconciler.status().conflicts.len(), 1);
    assert_eq!(world.kernel.host.links[&50], foreign);
    world.edit(Op::DeleteLinks(vec![50]));
    assert!(matches!(world.status_of("a"), ObjectStatus::Programmed(_)));
    assert_eq!(world.reconciler.status().conflicts.len(), 0);
}

#[test]
fn a_foreign_route_on_our_key_is_a_conflict_until_it_goes() {
    let mut world = World::new(kernel());
    world.kernel.add_namespace(100);
    let places = [("10.0.0.5/32", true), ("10.9.0.0/26", false)];
    for (prefix, _) in places {
        let route = foreign_link(prefix);
        let place = Place::Host;
        // Nobody tells of it: the write itself must find out.
        world.kernel.edit(&Op::AddRoute { place, route }).unwrap();
        world.kernel.changes.clear();
    }
    world.set(workload("a", 100, &["10.0.0.5"]));
    world.set(Object::Blackhole(net("10.9.0.0/26")));
    assert_eq!(world.reconciler.status().conflicts.len(), 2);
    for (prefix, _) in places {
        assert_eq!(world.route(prefix), Some(&foreign_link(prefix)));
    }
    for (prefix, _) in places {
        let route = foreign_link(prefix);
        let place = Place::Host;
        world.edit(Op::DeleteRoute { place, route });
    }
    assert_eq!(world.reconciler.status().conflicts, Vec::<String>::new());
    for (prefix, _) in places {
        assert_eq!(world.route(prefix).unwrap().protocol, 70);
    }
}

#[test]
fn indexes_that_are_taken_are_avoided() {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let mut world = World::new(kernel);
    for _ in 0..2 {
        world.kernel.faults.push_back(Some(libc::EEXIST));
    }
    world.kernel.faults.push_back(Some(libc::EBUSY));
    // Spare the two global sysctls, which were written at the start.
    world.set(workload("a", 100, &["10.0.0.5"]));
    assert!(matches!(world.status_of("a"), ObjectStatus::Programmed(_)));
}

/// Every way in which somebody can break a workload, and the word by which the repair is told.
#[test]
fn whatever_is_broken_is_put_back_and_told() {
    let index = index_of(&one(), "a");
    let peer = index + 1;
    let host = || Place::Host;
    let inside = || Place::Netns(netns(100));
    let link = |index| LinkChange {
        index,
        ..LinkChange::default()
    };
    let address = |index, text: &str| Address {
        index,
        net: net(text),
        nodad: true,
    };
    let neighbour = |index, text: &str| Neighbour {
        index,
        address: ip(text),
        mac: [0; 6],
        permanent: true,
    };
    let route = |index, prefix: &str, metric| Route {
        prefix: net(prefix),
        table: 254,
        metric,
        protocol: 70,
        target: Target::Link { index },
    };
    let edits = [
        (
            "route 10.0.0.5/32",
            Op::DeleteRoute {
                place: host(),
                route: route(index, "10.0.0.5/32", 0),
            },
        ),
        (
            "route fd00::5/128",
            Op::DeleteRoute {
                place: host(),
                route: route(index, "fd00::5/128", 1024),
            },
        ),
        (
            "route 10.0.0.5/32",
            Op::ReplaceRoute {
                place: host(),
                route: route(UNDERLAY, "10.0.0.5/32", 0),
            },
        ),
        (
            "down",
            Op::SetLink {
                place: host(),
                link: LinkChange {
                    up: Some(false),
                    ..link(index)
                },
            },
        ),
        (
            "MTU",
            Op::SetLink {
                place: host(),
                link: LinkChange {
                    mtu: Some(1300),
                    ..link(index)
                },
            },
        ),
        (
            "MAC",
            Op::SetLink {
                place: host(),
                link: LinkChange {
                    mac: Some([2; 6]),
                    ..link(index)
                },
            },
        ),
        (
            "alias",
            Op::SetLink {
                place: host(),
                link: LinkChange {
                    alias: Some("x".into()),
                    ..link(index)
                },
            },
        ),
        (
            "neighbour 10.0.0.5",
            Op::DeleteNeighbour {
                place: host(),
                neighbour: neighbour(index, "10.0.0.5"),
            },
        ),
        (
            "neighbour fd00::5",
            Op::ReplaceNeighbour {
                place: host(),
                neighbour: neighbour(index, "fd00::5"),
            },
        ),
        (
            "proxy_arp",
            Op::WriteSysctl {
                place: host(),
                path: format!("net/ipv4/conf/{}/proxy_arp", host_interface("a")),
                value: "0".into(),
            },
        ),
        ("link", Op::DeleteLinks(vec![index])),
        (
            "lo inside",
            Op::SetLink {
                place: inside(),
                link: LinkChange {
                    up: Some(false),
                    ..link(1)
                },
            },
        ),
        (
            "link inside (MTU was 1300)",
            Op::SetLink {
                place: inside(),
                link: LinkChange {
                    mtu: Some(1300),
                    ..link(peer)
                },
            },
        ),
        (
            "link inside (down)",
            Op::SetLink {
                place: inside(),
                link: LinkChange {
                    up: Some(false),
                    ..link(peer)
                },
            },
        ),
        (
            "address 10.0.0.5/32 inside",
            Op::DeleteAddress {
                place: inside(),
                address: address(peer, "10.0.0.5/32"),
            },
        ),
        (
            "neighbour 169.254.1.1 inside",
            Op::ReplaceNeighbour {
                place: inside(),
                neighbour: neighbour(peer, "169.254.1.1"),
            },
        ),
        (
            "route ::/0 inside",
            Op::DeleteRoute {
                place: inside(),
                route: route(peer, "::/0", 1024),
            },
        ),
        (
            "route 169.254.1.1/32 inside",
            Op::DeleteRoute {
                place: inside(),
                route: route(peer, "169.254.1.1/32", 0),
            },
        ),
    ];
    for (word, edit) in edits {
        let mut world = one();
        assert_eq!(index_of(&world, "a"), index);
        let mut before = (world.kernel.host.clone(), world.kernel.namespaces.clone());
        world.take_events();
        world.edit(edit.clone());
        let told = world
            .events
            .iter()
            .any(|event| matches!(event, Event::Repaired { what, .. } if what.contains(word)));
        assert!(told, "{edit:?}: {:?}", world.events);
        assert!(world.reconciler.status().repairs > 0);
        if !matches!(edit, Op::DeleteLinks(_)) {
            let after = (world.kernel.host.clone(), world.kernel.namespaces.clone());
            assert_eq!(after, before, "{edit:?}");
        }
        // And it stays so: nothing is planned any more.
        before = (world.kernel.host.clone(), world.kernel.namespaces.clone());
        world.batches.clear();
        world.reconciler.handle_overrun(world.now);
        world.run();
        assert_eq!(world.batches, Vec::<Vec<Op>>::new(), "{edit:?}");
        let after = (world.kernel.host.clone(), world.kernel.namespaces.clone());
        assert_eq!(after, before);
    }
}

#[test]
fn what_is_not_ours_inside_a_namespace_is_left_alone() {
    let mut world = one();
    let place = Place::Netns(netns(100));
    let peer = index_of(&world, "a") + 1;
    let address = Address {
        index: peer,
        net: net("172.16.0.1/24"),
        nodad: false,
    };
    world.edit(Op::AddAddress { place, address });
    world.reconciler.handle_overrun(world.now);
    world.run();
    let inside = &world.kernel.namespaces[&(4, 100)];
    assert!(inside.addresses.contains_key(&(peer, address.net)));
}

#[test]
fn workloads_follow_the_mtu_of_the_underlay() {
    let mut world = one();
    world.take_events();
    let link = LinkChange {
        index: UNDERLAY,
        mtu: Some(9000),
        ..LinkChange::default()
    };
    let place = Place::Host;
    world.edit(Op::SetLink { place, link });
    let index = index_of(&world, "a");
    assert_eq!(world.kernel.host.links[&index].mtu, 9000);
    let inside = &world.kernel.namespaces[&(4, 100)];
    assert_eq!(inside.links[&(index + 1)].mtu, 9000);
    let events = world.take_events();
    assert_eq!(events[0], Event::Mtu(9000));
    assert!(matches!(&events[1], Event::Programmed { detail, .. } if detail.mtu == 9000));
}

#[test]
fn one_bad_object_does_not_hold_up_others() {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let mut world = World::new(kernel);
    world
        .reconciler
        .set(world.now, workload("bad", 9, &["10.0.0.9"]));
    world
        .reconciler
        .set(world.now, workload("good", 100, &["10.0.0.5"]));
    world.run();
    assert!(matches!(
        world.status_of("good"),
        ObjectStatus::Programmed(_)
    ));
    assert_eq!(world.reconciler.status().failing, 1);
    // Waits grow to half a minute, so ten minutes hold few attempts.
    let before = world.kernel.writes;
    world.pass(Duration::from_secs(600));
    assert!(world.kernel.writes - before < 40);
    assert_eq!(
        world
            .events
            .iter()
            .filter(|e| matches!(e, Event::Failed { .. }))
            .count(),
        1
    );
}

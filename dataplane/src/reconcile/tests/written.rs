//! Kernel parameters that somebody wrote, and of which netlink does not tell.

use super::*;
use crate::desired::Bridge;

fn world() -> World {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    kernel.add_namespace(101);
    let mut world = World::new(kernel);
    world.set(Object::Bridge(Arc::new(Bridge {
        name: "apps0".into(),
        gateways: vec![net("172.30.0.1/24"), net("fd00:172::1/64")],
        mtu: None,
    })));
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    world.set(Object::Workload(Arc::new(Workload {
        id: "b".into(),
        attachment: Attachment::Bridged {
            inside: Inside {
                netns: netns(101),
                interface: "eth0".to_owned(),
            },
            bridge: "apps0".into(),
        },
        addresses: vec![ip("172.30.0.5"), ip("fd00:172::5")],
        mtu: None,
        access: Default::default(),
    })));
    world.sync();
    world.take_events();
    world.queries.clear();
    world
}

/// What the kernel has, and what is heard of it, after somebody wrote it there.
fn write(world: &mut World, place: Place, path: &str, value: &str) {
    let op = Op::WriteSysctl {
        place,
        path: path.to_owned(),
        value: value.to_owned(),
    };
    world.kernel.edit(&op).unwrap();
    world.kernel.changes.clear();
    hear(world, path, value);
}

fn hear(world: &mut World, path: &str, value: &str) {
    let change = Change::Sysctl {
        path: path.to_owned(),
        value: Some(value.to_owned()),
    };
    world
        .reconciler
        .handle_change(world.now, Place::Host, change);
    world.run();
}

fn repairs(world: &World, path: &str) -> usize {
    let text = format!("sysctl {path} (was ");
    let told =
        |event: &&Event| matches!(event, Event::Repaired { what, .. } if what.contains(&text));
    world.events.iter().filter(told).count()
}

#[test]
fn what_only_its_file_tells_is_repaired_and_named() {
    let host = host_interface("a");
    for (place, path, value) in [
        (Place::Host, format!("net/ipv6/conf/{host}/accept_ra"), "2"),
        (Place::Host, format!("net/ipv6/conf/{host}/accept_dad"), "1"),
        (
            Place::Host,
            format!("net/ipv4/conf/{host}/route_localnet"),
            "1",
        ),
        (
            Place::Host,
            format!("net/ipv4/neigh/{host}/proxy_delay"),
            "80",
        ),
        (Place::Host, "net/ipv6/conf/apps0/accept_ra".to_owned(), "1"),
        (
            Place::Netns(netns(101)),
            "net/ipv6/conf/eth0/accept_dad".to_owned(),
            "1",
        ),
    ] {
        let mut world = world();
        let before = (world.kernel.host.clone(), world.kernel.namespaces.clone());
        write(&mut world, place, &path, value);
        let after = (world.kernel.host.clone(), world.kernel.namespaces.clone());
        assert_eq!(before, after, "{path}");
        assert_eq!(repairs(&world, &path), 1, "{path}: {:?}", world.events);
    }
}

#[test]
fn what_is_not_ours_or_is_right_has_nothing_read() {
    let host = host_interface("a");
    let mut world = world();
    for (path, value) in [
        // As wanted: written here, or by another namespace's owner.
        (format!("net/ipv6/conf/{host}/accept_ra"), "0"),
        ("net/ipv6/conf/eth0/accept_dad".to_owned(), "0"),
        // Not wanted in any way.
        (format!("net/ipv6/conf/{host}/hop_limit"), "3"),
        ("net/ipv6/conf/lo/accept_ra".to_owned(), "2"),
        ("net/ipv6/conf/default/accept_ra".to_owned(), "2"),
        ("net/core/somaxconn".to_owned(), "9"),
        ("net/ipv4/conf".to_owned(), "9"),
        // Told by other notifications.
        (format!("net/ipv4/conf/{host}/rp_filter"), "0"),
        ("net/ipv6/conf/eth0/disable_ipv6".to_owned(), "1"),
    ] {
        hear(&mut world, &path, value);
        assert!(world.queries.is_empty(), "{path}: {:?}", world.queries);
    }
}

#[test]
fn the_same_name_in_another_namespace_costs_a_look_and_no_more() {
    let mut world = world();
    hear(&mut world, "net/ipv6/conf/eth0/accept_ra", "2");
    // Of the workload on a bridge; the routed one wants nothing of it.
    assert_eq!(world.queries.len(), 2, "{:?}", world.queries);
    assert!(world.events.is_empty(), "{:?}", world.events);
}

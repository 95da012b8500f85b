//! What one workload costs does not depend on how many there are.

use super::*;
use crate::kernel::{Address, Change};

fn world_of(count: u16) -> World {
    let mut world = World::new(kernel());
    world.sync();
    world.set(learned("10.200.0.0/24", &["192.168.1.20"]));
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let address = format!("10.1.{high}.{low}");
        world.kernel.add_namespace(1000 + u64::from(number));
        let object = workload(&format!("w{number}"), 1000 + u64::from(number), &[&address]);
        world.reconciler.set(world.now, object);
    }
    world.run();
    world.pass(Duration::from_secs(2));
    world
}

/// Things of all workloads that were looked at one by one while one came and went, with what the
/// kernel tells of its link after the fact.
fn walked_for_one(world: &mut World) -> usize {
    let before = world.reconciler.walked.get();
    world.kernel.add_namespace(7);
    world.set(workload("one", 7, &["10.9.9.9"]));
    let name = host_interface("one");
    let mut links = world.kernel.host.links.values();
    let link = links.find(|link| link.name == name).unwrap().clone();
    let index = link.index;
    let hear = |world: &mut World, change: Change| {
        world
            .reconciler
            .handle_change(world.now, Place::Host, change);
        world.run();
    };
    hear(world, Change::Link(link));
    world.remove(workload_id("one"));
    let address = Address {
        index,
        net: net("fe80::1/64"),
        nodad: true,
    };
    hear(world, Change::AddressDeleted(address));
    world.pass(Duration::from_secs(2));
    assert!(!world.kernel.host.links.contains_key(&index));
    hear(world, Change::LinkDeleted { index });
    assert!(world.reconciler.table.to_link(index).is_empty());
    world.reconciler.walked.get() - before
}

#[test]
fn an_add_and_a_delete_look_at_no_other_workload() {
    let few = walked_for_one(&mut world_of(3));
    let many = walked_for_one(&mut world_of(60));
    assert_eq!((few, many), (0, 0));
}

#[test]
fn links_of_workloads_are_told_apart_from_the_node_s_own() {
    let mut world = world_of(5);
    // Its loopback interface is one.
    let others: Vec<u32> = world.reconciler.others.iter().copied().collect();
    assert_eq!(others, [1, UNDERLAY]);
    let link = crate::fake::plain_link(77, "eth1");
    let change = Change::Link(link.clone());
    world
        .reconciler
        .handle_change(world.now, Place::Host, change);
    let address = Address {
        index: 77,
        net: net("203.0.113.7/24"),
        nodad: false,
    };
    let change = Change::Address(address);
    world
        .reconciler
        .handle_change(world.now, Place::Host, change);
    world.take_events();
    world.run();
    let told = |world: &mut World| {
        let mut events = world.take_events().into_iter();
        events.find_map(|event| match event {
            Event::NodeAddresses(list) => Some(list.contains(&ip("203.0.113.7"))),
            _ => None,
        })
    };
    assert_eq!(told(&mut world), Some(true));
    let change = Change::LinkDeleted { index: 77 };
    world
        .reconciler
        .handle_change(world.now, Place::Host, change);
    world.run();
    assert_eq!(told(&mut world), Some(false));
}

#[test]
fn the_underlay_s_mtu_is_followed_when_its_link_tells_another_one() {
    let mut world = world_of(2);
    let mut link = world.kernel.host.links[&UNDERLAY].clone();
    link.mtu = 1400;
    world.kernel.host.links.insert(UNDERLAY, link.clone());
    world.take_events();
    let change = Change::Link(link);
    world
        .reconciler
        .handle_change(world.now, Place::Host, change);
    world.run();
    assert!(world.take_events().contains(&Event::Mtu(1400)));
    assert_eq!(world.reconciler.status().mtu, 1400);
}

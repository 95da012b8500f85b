//! Bridges: the addresses that they have, and those that they had.

use std::collections::BTreeSet;

use super::*;
use crate::{desired::Bridge, kernel::Address};

fn bridge(gateways: &[&str]) -> Object {
    Object::Bridge(Arc::new(Bridge {
        name: "br0".into(),
        gateways: gateways.iter().map(|gateway| net(gateway)).collect(),
        mtu: None,
    }))
}

fn index(world: &World) -> u32 {
    let mut links = world.kernel.host.links.values();
    links.find(|link| link.name == "br0").unwrap().index
}

fn addresses(world: &World) -> BTreeSet<String> {
    let own = index(world);
    let keys = world.kernel.host.addresses.keys();
    keys.filter(|(index, _)| *index == own)
        .map(|(_, net)| net.to_string())
        .collect()
}

fn texts(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_gateway_that_a_bridge_had_before_goes_and_a_foreign_address_stays() {
    let mut world = World::new(kernel());
    world.set(bridge(&["172.31.0.1/24", "fd00:31::1/64"]));
    world.sync();
    let foreign = Address {
        index: index(&world),
        net: net("172.31.9.1/24"),
        nodad: false,
    };
    world.edit(Op::AddAddress {
        place: Place::Host,
        address: foreign,
    });
    let mut world = world.restart();
    world.set(bridge(&["172.31.0.1/24", "fd00:31::1/64"]));
    world.sync();
    assert_eq!(world.kernel.writes, 0);
    let all = ["172.31.0.1/24", "172.31.9.1/24", "fd00:31::1/64"];
    assert_eq!(addresses(&world), texts(&all));

    let mut world = world.restart();
    let before = index(&world);
    world.set(bridge(&["172.31.0.2/24"]));
    world.sync();
    assert_eq!(index(&world), before, "the bridge is the same one");
    assert_eq!(
        addresses(&world),
        texts(&["172.31.0.2/24", "172.31.9.1/24"])
    );
    // As new as it is, it was not the first to go: the kernel would have taken it along.
    let ops: Vec<&Op> = world.batches.iter().flatten().collect();
    let place = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(|op| wanted(op)).unwrap();
    let added = place(&|op| matches!(op, Op::AddAddress { .. }));
    let deleted = place(&|op| matches!(op, Op::DeleteAddress { .. }));
    assert!(deleted < added, "{ops:?}");
    assert_eq!(world.reconciler.status().failing, 0);
}

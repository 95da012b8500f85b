//! Workloads that are not routed veths: what they hold, what they show, and what they stand in the
//! way of.

use dataplane::{
    desired::{Protocol, PublishedPort},
    linux::listeners::Listener,
};

use super::{
    Error, WaitFor, WorkloadState,
    world::{World, attached, bridged, id, spec},
};
use crate::node::{
    WorkloadSpec,
    access::AccessSpec,
    attachment::{Attachment, Mac, Tap},
};

fn shared(with: &str) -> Attachment {
    Attachment::Shared { with: id(with) }
}

fn texts(world: &World, name: &str) -> Vec<String> {
    let view = world.node.workload(&id(name)).unwrap();
    view.addresses
        .iter()
        .map(|a| a.address.to_string())
        .collect()
}

#[test]
fn a_workload_that_shares_shows_what_the_other_has_and_holds_it() {
    let mut world = World::new();
    let owner = world.add("owner", spec(), WaitFor::Programmed);
    let early = world.add("early", attached(shared("owner")), WaitFor::Programmed);
    assert!(
        matches!(world.add_error(early), Error::NotShareable { why, .. } if why.contains("being added"))
    );
    world.settle();
    world.added(owner);
    let caller = world.add("guest", attached(shared("owner")), WaitFor::Programmed);
    world.settle();
    let view = world.added(caller).workload.clone();
    assert_eq!(view.state, WorkloadState::Programmed);
    assert_eq!(view.host_interface, "agt0");
    assert_eq!(texts(&world, "guest"), texts(&world, "owner"));
    assert!(
        world.wanted("guest").is_none(),
        "nothing to do in the kernel"
    );

    let refused = world.delete("owner", None);
    assert_eq!(
        world.delete_error(refused),
        &Error::HasSharers {
            id: id("owner"),
            by: vec![id("guest")],
        }
    );
    world.kernel_breaks("owner", dataplane::desired::FailureKind::Kernel);
    let view = world.node.workload(&id("guest")).unwrap();
    assert_eq!(view.state, WorkloadState::Failed);
    assert!(
        view.reason.starts_with("workload owner: "),
        "{}",
        view.reason
    );
    world.settle();

    world.crash(usize::MAX);
    world.settle();
    assert_eq!(texts(&world, "guest"), texts(&world, "owner"));
    world.delete("guest", None);
    world.settle();
    world.delete("owner", None);
    world.settle();
    assert!(world.node.workloads().is_empty());
    world.check_quiet();
}

#[test]
fn only_a_namespace_that_stands_can_be_shared() {
    let mut world = World::new();
    world
        .node
        .set_own_addresses(vec!["192.168.1.1".parse().unwrap()]);
    for (name, attachment) in [
        ("host", Attachment::Host),
        ("vm", Attachment::Tap(Tap::default())),
    ] {
        world.add(name, attached(attachment), WaitFor::Programmed);
    }
    world.add("owner", spec(), WaitFor::Programmed);
    world.settle();
    world.add("guest", attached(shared("owner")), WaitFor::Programmed);
    world.settle();
    for (with, why) in [
        ("host", "use HOST"),
        ("vm", "has none"),
        ("guest", "share with that one"),
    ] {
        let caller = world.add("more", attached(shared(with)), WaitFor::Programmed);
        let error = world.add_error(caller).to_string();
        assert!(error.contains(why), "{error}");
    }
    let caller = world.add("more", attached(shared("nobody")), WaitFor::Programmed);
    assert_eq!(
        world.add_error(caller),
        &Error::WorkloadNotFound(id("nobody"))
    );
    world.check_quiet();
}

#[test]
fn a_workload_of_the_host_has_the_addresses_of_the_node() {
    let mut world = World::new();
    let before = world.disk.clone();
    world
        .node
        .set_own_addresses(vec!["192.168.1.1".parse().unwrap()]);
    let caller = world.add("a", attached(Attachment::Host), WaitFor::Programmed);
    assert!(world.answer(caller).is_none(), "not durable yet");
    world.settle();
    let added = world.added(caller);
    assert!(added.created);
    assert_eq!(added.workload.state, WorkloadState::Programmed);
    assert_eq!(added.workload.gateways, [None]);
    let generation = added.workload.generation;
    let again = world.add("a", attached(Attachment::Host), WaitFor::Programmed);
    assert_eq!(world.added(again).workload.generation, generation);
    assert!(!world.added(again).created);
    world
        .node
        .set_own_addresses(vec!["192.168.1.2".parse().unwrap()]);
    assert_eq!(texts(&world, "a"), ["192.168.1.2"]);
    world.crash(usize::MAX);
    world.settle();
    let view = world.node.workload(&id("a")).unwrap();
    assert_eq!(
        (view.state, view.generation),
        (WorkloadState::Programmed, generation)
    );
    world.delete("a", None);
    world.settle();
    assert!(world.disk.workloads.is_empty());
    assert_eq!(world.disk.blocks, before.blocks);
    world.check_quiet();
}

#[test]
fn a_namespace_has_one_workload() {
    let mut world = World::new();
    let first = in_namespace("a");
    world.add("a", first.clone(), WaitFor::Programmed);
    world.settle();
    let Attachment::Routed(inside) = first.attachment else {
        panic!("{first:?}");
    };
    let loopback = attached(Attachment::None(inside.namespace.clone()));
    let caller = world.add("b", loopback.clone(), WaitFor::Programmed);
    assert!(
        matches!(world.add_error(caller), Error::NamespaceAttached { by, .. } if *by == id("a"))
    );
    world.delete("a", None);
    let caller = world.add("b", loopback.clone(), WaitFor::Programmed);
    assert!(matches!(
        world.add_error(caller),
        Error::NamespaceAttached { .. }
    ));
    world.settle();
    let caller = world.add("b", loopback, WaitFor::Programmed);
    world.settle();
    let view = &world.added(caller).workload;
    assert!(view.addresses.is_empty());
    assert_eq!(view.state, WorkloadState::Programmed);
    world.check_quiet();
}

fn in_namespace(name: &str) -> crate::node::WorkloadSpec {
    super::world::in_own_namespace(name, spec())
}

#[test]
fn tap_names_are_given_once_and_guests_get_addresses_of_the_pools() {
    let mut world = World::new();
    let tap = |name: &str, mac: u8| {
        attached(Attachment::Tap(Tap {
            name: Some(Tap::name(name).unwrap()),
            mac: Some(Mac::new([2, 0, 0, 0, 0, mac]).unwrap()),
            ..Tap::default()
        }))
    };
    let caller = world.add("a", tap("vm0", 1), WaitFor::Programmed);
    world.settle();
    assert_eq!(world.added(caller).workload.addresses.len(), 2);
    let caller = world.add("a", tap("vm0", 2), WaitFor::Programmed);
    assert!(matches!(world.add_error(caller), Error::OtherSpec { field, .. } if field == "mac"));
    for taken in ["vm0", "apps0"] {
        let caller = world.add("b", tap(taken, 2), WaitFor::Programmed);
        assert!(
            matches!(world.add_error(caller), Error::TapInUse { .. }),
            "{taken}"
        );
    }
    world.delete("a", None);
    world.settle();
    let caller = world.add("b", tap("vm0", 2), WaitFor::Programmed);
    world.settle();
    world.added(caller);
    world.check_quiet();
}

#[test]
fn bridged_workloads_have_addresses_of_the_bridge_that_nobody_else_knows() {
    let mut world = World::new();
    let originated = world.originated.clone();
    let caller = world.add("a", bridged("a", "apps0"), WaitFor::Programmed);
    world.settle();
    let view = world.added(caller).workload.clone();
    assert_eq!(view.state, WorkloadState::Programmed);
    assert_eq!(
        texts(&world, "a"),
        ["172.30.0.2"],
        "neither network nor gateway"
    );
    assert_eq!(view.gateways, [Some("172.30.0.1".parse().unwrap())]);
    assert_eq!(world.originated, originated);

    let unknown = world.add("b", bridged("b", "nope"), WaitFor::Programmed);
    assert!(
        matches!(world.add_error(unknown), Error::BridgeNotFound { configured, .. } if configured == "apps0")
    );
    let mut pooled = spec();
    pooled.pools = vec!["bridge:apps0:ipv4".to_owned()];
    let refused = world.add("c", pooled, WaitFor::Programmed);
    assert!(matches!(
        world.add_error(refused),
        Error::PoolNotFound { .. }
    ));

    world.crash(usize::MAX);
    world.settle();
    assert_eq!(texts(&world, "a"), ["172.30.0.2"]);
    // 172.30.0.3 to .6 are left.
    for number in 3..=6 {
        let name = format!("w{number}");
        let caller = world.add(&name, bridged(&name, "apps0"), WaitFor::Programmed);
        world.settle();
        world.added(caller);
    }
    let full = world.add("x", bridged("x", "apps0"), WaitFor::Programmed);
    assert!(matches!(world.add_error(full), Error::PoolExhausted { .. }));
    world.delete("a", None);
    world.settle();
    let cooling = world.add("x", bridged("x", "apps0"), WaitFor::Programmed);
    assert!(matches!(
        world.add_error(cooling),
        Error::PoolExhausted { .. }
    ));
    world.check_quiet();
}

#[test]
fn who_listens_on_a_port_counts_for_a_new_workload_and_never_for_one_that_has_it() {
    let mut world = World::new();
    let port = PublishedPort {
        protocol: Protocol::Tcp,
        host_address: None,
        host_port: 8080,
        container_port: 80,
    };
    let web = || WorkloadSpec {
        access: AccessSpec::new(vec![port], Vec::new()).unwrap(),
        ..spec()
    };
    let listener = Listener {
        protocol: Protocol::Tcp,
        address: "0.0.0.0".parse().unwrap(),
        port: 8080,
        both: false,
        uid: 33,
        inode: 7,
    };
    let before = world.disk.clone();
    let refused = world.add_beside("web", web(), vec![listener], WaitFor::Programmed);
    let error = world.add_error(refused).to_string();
    assert!(
        error.contains("8080:80/tcp") && error.contains("uid 33"),
        "{error}"
    );
    world.settle();
    assert!(world.node.workloads().is_empty());
    assert!(world.disk.workloads.is_empty());
    assert_eq!(world.disk.blocks, before.blocks);
    assert_eq!(world.disk.generation, before.generation);

    let caller = world.add("web", web(), WaitFor::Programmed);
    world.settle();
    world.added(caller);
    for _ in 0..2 {
        let again = world.add_beside("web", web(), vec![listener], WaitFor::Programmed);
        world.settle();
        assert!(!world.added(again).created);
        world.crash(usize::MAX);
        world.settle();
    }
    world.check_quiet();
}

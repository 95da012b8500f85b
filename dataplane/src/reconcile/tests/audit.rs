//! What no notification tells is found by looking: after lost notifications at once, else by the
//! audit.

use super::*;

/// Somebody's doing of which nothing is heard.
fn silently(world: &mut World, op: &Op) {
    world.kernel.edit(op).unwrap();
    world.kernel.changes.clear();
    world.take_events();
}

fn one() -> World {
    let mut kernel = kernel();
    kernel.add_namespace(100);
    let mut world = World::new(kernel);
    world.set(Object::Blackhole(net("10.0.0.0/26")));
    world.set(workload("a", 100, &["10.0.0.5", "fd00::5"]));
    world.set(learned("10.1.0.0/26", &["192.168.1.11"]));
    world.sync();
    world
}

fn told(world: &World, word: &str) -> bool {
    let told = |event: &Event| matches!(event, Event::Repaired { what, .. } if what.contains(word));
    world.events.iter().any(told)
}

#[test]
fn routes_that_vanish_while_notifications_are_lost_come_back() {
    for prefix in ["10.0.0.0/26", "10.1.0.0/26", "10.0.0.5/32", "fd00::5/128"] {
        let mut world = one();
        // Whatever was read one by one before.
        world.reconciler.handle_overrun(world.now);
        world.run();
        let routes = world.kernel.host.routes.values();
        let route = routes.clone().find(|route| route.prefix == net(prefix));
        let op = Op::DeleteRoute {
            place: Place::Host,
            route: route.unwrap().clone(),
        };
        let before = world.kernel.host.clone();
        silently(&mut world, &op);
        world.reconciler.handle_overrun(world.now);
        world.run();
        assert_eq!(world.kernel.host, before, "{prefix}");
        assert!(told(&world, prefix), "{:?}", world.events);
    }
}

#[test]
fn what_is_never_told_is_found_by_the_audit_inside_namespaces_too() {
    let inside = Place::Netns(netns(100));
    let on_host = format!("net/ipv6/conf/{}/accept_ra", host_interface("a"));
    for (place, path) in [
        (Place::Host, on_host.as_str()),
        (inside, "net/ipv6/conf/eth0/disable_ipv6"),
    ] {
        let mut world = one();
        let op = Op::WriteSysctl {
            place,
            path: path.to_owned(),
            value: "1".to_owned(),
        };
        silently(&mut world, &op);
        world.pass(Duration::from_secs(60));
        assert!(!told(&world, path), "nobody has looked");
        world.pass(Duration::from_secs(400));
        let status = world.reconciler.status();
        assert!(told(&world, path), "{path}: {:?} {status:?}", world.events);
    }
}

//! The comparison of what everybody says: nothing to tell of a healthy node, and each thing that
//! is wrong is found.

use dataplane::{
    desired::{Attachment as Wanted, Object, ObjectId},
    kernel::{
        Address, GATEWAY_V4, GATEWAY_V6, Gateway, HOST_MAC, Link, LinkKind, Neighbour,
        PROTOCOL_AGENTD, PROTOCOL_AGENTD_BGP, Route, Snapshot, Target,
    },
    reconcile::host_interface,
};
use ipnet::IpNet;

use super::world::{World, bridged, id, net, spec};
use crate::node::{
    WaitFor,
    check::{Kind, Sources, check},
};

fn link(index: u32, name: &str, alias: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: LinkKind::Veth,
        alias: Some(alias.to_owned()),
        mac: Some(HOST_MAC),
        mtu: 1500,
        up: true,
        running: true,
        peer_index: Some(2),
        master: None,
        tunnel: None,
    }
}

fn route(prefix: IpNet, protocol: u8, target: Target) -> Route {
    Route {
        prefix,
        table: 254,
        metric: 0,
        protocol,
        target,
    }
}

/// What the kernel shows of an object that was programmed well.
pub(super) fn show(sources: &mut Sources, index: u32, object: &ObjectId, wanted: Option<&Object>) {
    match (object, wanted) {
        (ObjectId::Blackhole(cidr), _) => {
            let blackhole = route(*cidr, PROTOCOL_AGENTD, Target::Blackhole);
            sources.kernel.routes.push(blackhole);
        }
        (ObjectId::Bridge(name), _) => {
            let mut bridge = link(1, name, &format!("agentd-bridge:{name}"));
            bridge.kind = LinkKind::Bridge;
            sources.kernel.links.push(bridge);
        }
        (ObjectId::Workload(name), Some(Object::Workload(workload))) => {
            let mut host = link(index, &host_interface(name), &format!("agentd:{name}"));
            let mut inside = Snapshot::default();
            inside.links.push(link(2, "eth0", ""));
            match &workload.attachment {
                Wanted::Bridged { .. } => host.master = Some(1),
                Wanted::Tap(tap) => {
                    host.kind = LinkKind::Tap;
                    if let Some(name) = &tap.name {
                        host.name.clone_from(name);
                    }
                }
                Wanted::Routed(_) => {}
                Wanted::Loopback(_) => return,
            }
            for address in &workload.addresses {
                let gateway = match address.is_ipv4() {
                    true => GATEWAY_V4.into(),
                    false => GATEWAY_V6.into(),
                };
                inside.addresses.push(Address {
                    index: 2,
                    net: IpNet::from(*address),
                    nodad: true,
                });
                inside.neighbours.push(Neighbour {
                    index: 2,
                    address: gateway,
                    mac: HOST_MAC,
                    permanent: true,
                });
                let default = match address.is_ipv4() {
                    true => net("0.0.0.0/0"),
                    false => net("::/0"),
                };
                let hop = Gateway {
                    address: Some(gateway),
                    index: 2,
                    onlink: false,
                    weight: 1,
                };
                let target = Target::Gateways(vec![hop]);
                inside.routes.push(route(default, PROTOCOL_AGENTD, target));
                if let Wanted::Tap(tap) = &workload.attachment
                    && let Some(mac) = tap.mac
                {
                    sources.kernel.neighbours.push(Neighbour {
                        index,
                        address: *address,
                        mac,
                        permanent: true,
                    });
                }
                if !matches!(workload.attachment, Wanted::Bridged { .. }) {
                    let target = Target::Link { index };
                    let host = route(IpNet::from(*address), PROTOCOL_AGENTD, target);
                    sources.kernel.routes.push(host);
                }
            }
            sources.kernel.links.push(host);
            sources.inside.insert(id(name), Ok(inside));
        }
        _ => {}
    }
}

/// Two routed workloads, one on a bridge, and a cooling address.
fn healthy() -> Sources {
    let mut world = World::new();
    world.add("a", spec(), WaitFor::Programmed);
    world.add("b", spec(), WaitFor::Programmed);
    world.add("c", bridged("c", "apps0"), WaitFor::Programmed);
    world.add("gone", spec(), WaitFor::Programmed);
    world.settle();
    world.delete("gone", None);
    world.settle();
    world.node.handle_first_sync();
    let sources = world.sources();
    assert!(check(&sources).problems.is_empty());
    sources
}

#[derive(Clone, Copy, Debug)]
struct Address4(std::net::IpAddr);

fn address_of(sources: &Sources, name: &str) -> Address4 {
    let record = sources.records.workloads.iter().find(|r| r.id == id(name));
    let addresses = &record.expect("it has a record").addresses;
    let four = addresses.iter().find(|a| a.address.is_ipv4());
    Address4(four.expect("an IPv4 address").address)
}

/// Breaks a healthy node and expects a problem of this kind that names these words.
fn finds(kind: Kind, words: &[&str], harm: impl FnOnce(&mut Sources)) {
    let mut sources = healthy();
    harm(&mut sources);
    let report = check(&sources);
    let found = report.problems.iter().any(|problem| {
        let text = format!("{} {}", problem.subject, problem.text);
        problem.kind == kind && words.iter().all(|word| text.contains(word))
    });
    assert!(
        found,
        "no {kind:?} with {words:?} in {:#?}",
        report.problems
    );
}

#[test]
fn a_healthy_node_has_no_problem_and_everything_is_counted() {
    let report = check(&healthy());
    assert_eq!(report.workloads, 3);
    assert_eq!(
        report.addresses, 5,
        "two routed ones of both families, and one on a bridge"
    );
    assert!(report.blocks >= 3);
}

#[test]
fn records_that_differ_from_what_the_agent_works_with_are_found() {
    finds(Kind::Record, &["a", "no record"], |s| {
        s.records.workloads.retain(|record| record.id != id("a"));
    });
    finds(Kind::Record, &["a", "does not know"], |s| {
        s.node
            .workloads
            .retain(|workload| workload.view.id != id("a"));
    });
    finds(Kind::Record, &["a", "generation"], |s| {
        s.records.workloads[0].generation += 1;
    });
    finds(Kind::Record, &["counter"], |s| s.records.generation = 1);
    finds(Kind::Record, &["a", "other addresses"], |s| {
        s.records.workloads[0].addresses.pop();
    });
    finds(Kind::Record, &["block", "not held"], |s| {
        s.node.ipam.blocks.remove(0);
    });
    finds(Kind::Record, &["block", "no record"], |s| {
        s.records.blocks.remove(0);
    });
    finds(Kind::Record, &["cools down"], |s| s.records.cooling.clear());
}

#[test]
fn an_address_with_two_owners_or_outside_of_all_blocks_is_found() {
    finds(Kind::AddressTwice, &["a", "b"], |s| {
        let addresses = s.records.workloads[0].addresses.clone();
        s.records.workloads[1].addresses = addresses;
    });
    finds(Kind::AddressTwice, &["both have it"], |s| {
        let theirs = s.inside[&id("b")].clone();
        let other = s.node.workloads[1].view.addresses.clone();
        s.node.workloads[0].view.addresses = other;
        s.inside.insert(id("a"), theirs);
    });
    finds(Kind::AddressTwice, &["cools down"], |s| {
        s.node.ipam.cooling[0].address = address_of(s, "a").0;
    });
    finds(Kind::Block, &["no recorded block"], |s| {
        s.records.workloads[0].addresses[0].block = net("10.0.9.0/30");
    });
    finds(Kind::Block, &["both are held"], |s| {
        let mut inner = s.records.blocks[0].clone();
        inner.cidr = IpNet::new(inner.cidr.addr(), 32).expect("a host");
        s.records.blocks.push(inner);
    });
}

#[test]
fn bits_counts_and_owners_of_the_allocator_are_compared() {
    finds(Kind::Count, &["counted as in use"], |s| {
        s.node.ipam.blocks[0].used += 1;
    });
    finds(Kind::Count, &["counted as cooling"], |s| {
        s.node.ipam.blocks[0].cooling += 1;
    });
    finds(Kind::Count, &["free in the bitmap"], |s| {
        let address = address_of(s, "a").0;
        for block in &mut s.node.ipam.blocks {
            block.taken.retain(|taken| *taken != address);
        }
    });
    finds(Kind::Count, &["bits are set"], |s| {
        let block = &mut s.node.ipam.blocks[0];
        let all: Vec<_> = block.cidr.hosts().collect();
        block.taken = all;
        block.reserved = 0;
    });
    finds(Kind::Count, &["leaked"], |s| {
        let free = "10.0.0.15".parse().expect("an address");
        s.node.ipam.holders.push((free, id("ghost")));
    });
    finds(Kind::Count, &["gives it to nobody"], |s| {
        s.node.ipam.holders.clear()
    });
}

#[test]
fn what_the_kernel_lacks_of_a_workload_or_a_block_is_found() {
    let name = host_interface("a");
    finds(Kind::Kernel, &["a", "no link"], |s| {
        s.kernel.links.retain(|link| link.name != name);
    });
    finds(Kind::Kernel, &["a", "down"], |s| {
        let link = s.kernel.links.iter_mut().find(|link| link.name == name);
        link.expect("its link").up = false;
    });
    finds(Kind::Kernel, &["a", "no route"], |s| {
        let address = IpNet::from(address_of(s, "a").0);
        s.kernel.routes.retain(|route| route.prefix != address);
    });
    finds(Kind::Kernel, &["a", "leads elsewhere"], |s| {
        let address = IpNet::from(address_of(s, "a").0);
        let route = s.kernel.routes.iter_mut().find(|r| r.prefix == address);
        route.expect("its route").target = Target::Link { index: 1 };
    });
    finds(Kind::Kernel, &["c", "no port of apps0"], |s| {
        for link in &mut s.kernel.links {
            link.master = None;
        }
    });
    finds(Kind::Kernel, &["no blackhole"], |s| {
        s.kernel
            .routes
            .retain(|route| route.target != Target::Blackhole);
    });
    finds(Kind::Kernel, &["a", "refuses"], |s| {
        s.node.workloads[0].failure = Some("no".to_owned());
    });
}

#[test]
fn what_a_namespace_lacks_is_found() {
    fn inside(s: &mut Sources) -> &mut Snapshot {
        let snapshot = s.inside.get_mut(&id("a")).expect("it has a namespace");
        snapshot.as_mut().expect("it could be read")
    }
    finds(Kind::Kernel, &["a", "no interface"], |s| {
        inside(s).links.clear()
    });
    finds(Kind::Kernel, &["a", "has not"], |s| {
        inside(s).addresses.clear()
    });
    finds(Kind::Kernel, &["a", "neighbour"], |s| {
        inside(s).neighbours.clear()
    });
    finds(Kind::Kernel, &["a", "default route"], |s| {
        inside(s).routes.clear()
    });
    finds(Kind::Kernel, &["a", "ENOENT"], |s| {
        s.inside.insert(id("a"), Err("ENOENT".to_owned()));
    });
}

#[test]
fn what_carries_our_marks_and_is_of_nobody_is_found() {
    let ghost = host_interface("ghost");
    finds(Kind::Leak, &[&ghost, "no workload"], |s| {
        s.kernel.links.push(link(99, &ghost, "agentd:ghost"));
    });
    finds(Kind::Leak, &[&ghost, "not completed"], |s| {
        let mut bare = link(99, &ghost, "");
        bare.alias = None;
        s.kernel.links.push(bare);
    });
    finds(Kind::Leak, &["br9"], |s| {
        s.kernel.links.push(link(99, "br9", "agentd-bridge:br9"));
    });
    finds(Kind::Leak, &["10.0.0.99/32"], |s| {
        let lost = route(
            net("10.0.0.99/32"),
            PROTOCOL_AGENTD,
            Target::Link { index: 10 },
        );
        s.kernel.routes.push(lost);
    });
    finds(Kind::Leak, &["10.0.9.0/30"], |s| {
        let lost = route(net("10.0.9.0/30"), PROTOCOL_AGENTD, Target::Blackhole);
        s.kernel.routes.push(lost);
    });
    finds(Kind::Leak, &["learned route"], |s| {
        let block = s.node.ipam.blocks[0].cidr;
        let lost = route(block, PROTOCOL_AGENTD_BGP, Target::NextHop { id: 5 });
        s.kernel.routes.push(lost);
    });
    // What has none of our marks is nobody's business.
    let mut sources = healthy();
    sources.kernel.links.push(link(99, "agtfff", "somebody's"));
    let foreign = route(net("10.0.0.99/32"), 4, Target::Link { index: 99 });
    sources.kernel.routes.push(foreign);
    assert!(check(&sources).problems.is_empty());
}

#[test]
fn what_bgp_has_too_little_or_too_much_of_is_found() {
    finds(Kind::Bgp, &["not originated"], |s| {
        s.bgp.as_mut().expect("a speaker").originated.clear();
    });
    finds(Kind::Bgp, &["10.9.0.0/26", "no block"], |s| {
        let bgp = s.bgp.as_mut().expect("a speaker");
        bgp.originated.push(net("10.9.0.0/26"));
    });
    finds(Kind::Bgp, &["tor", "no usable route"], |s| {
        let block = s.node.ipam.blocks[0].cidr;
        let bgp = s.bgp.as_mut().expect("a speaker");
        bgp.missing
            .push(("tor".to_owned(), block, "no usable route".to_owned()));
    });
    finds(Kind::DuplicateClaim, &["192.0.2.7", "rr"], |s| {
        let block = s.node.ipam.blocks[0].cidr;
        let claim = bgp::speaker::status::ForeignClaim {
            block,
            prefix: block,
            peer: "rr".to_owned(),
            originator: Some([192, 0, 2, 7].into()),
            origin_as: None,
        };
        s.bgp.as_mut().expect("a speaker").claims.push(claim);
    });
    // Without a speaker nothing is to be announced.
    let mut sources = healthy();
    sources.bgp = None;
    assert!(check(&sources).problems.is_empty());
}

#[test]
fn what_only_one_look_has_seen_is_not_told() {
    let healthy = healthy();
    let mut passing = healthy.clone();
    passing.node.ipam.blocks[0].used += 1;
    let mut lasting = healthy.clone();
    lasting.records.generation = 1;
    let (first, mut second) = (check(&passing), check(&lasting));
    assert!(!first.problems.is_empty() && !second.problems.is_empty());
    second.confirm(&first);
    assert!(second.problems.is_empty());
    let mut third = check(&lasting);
    third.confirm(&check(&lasting));
    assert!(!third.problems.is_empty());
}

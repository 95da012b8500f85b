//! What the Linux driver hears, on the host and in workloads' namespaces.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Workload, ip, on_a_host, ops::*, run};
use dataplane::{
    kernel::{
        Change, NextHop, NextHopKind, Op, PROTOCOL_AGENTD, PROTOCOL_AGENTD_BGP, Place, Route,
        Target,
    },
    linux::{ChangeEvent, Kernel, Writes},
};
use ipnet::IpNet;

#[test]
fn own_changes_are_not_heard_and_those_of_others_are_everywhere() {
    on_a_host(|| async {
        let index = underlay();
        let workload = Workload::new();
        let netns = workload.netns();
        let (kernel, mut changes) = Kernel::open().unwrap();
        let mut ops = attach(&netns);
        ops.push(Op::ReplaceNextHop(NextHop {
            id: 5,
            protocol: PROTOCOL_AGENTD_BGP,
            kind: NextHopKind::Gateway(gateway("192.168.7.2", index)),
            resilient: None,
        }));
        all_ok(&kernel.apply(ops).await);
        ip("route add 10.5.0.0/16 via 192.168.7.9");
        let heard = heard_until(&mut changes, |place, change| {
            *place == Place::Host
                && matches!(change, Change::Route(route) if route.prefix == net("10.5.0.0/16"))
        })
        .await;
        // Effects that the kernel does not attribute may be heard; objects that were written not.
        let own: Vec<_> = heard
            .iter()
            .filter(|(_, change)| match change {
                Change::Route(route) => route.protocol == PROTOCOL_AGENTD,
                Change::Neighbour(_) | Change::NextHop(_) => true,
                _ => false,
            })
            .collect();
        assert!(own.is_empty(), "{own:#?}");

        ip("route delete 10.244.1.5/32");
        ip("nexthop delete id 5");
        workload.ip("neighbour delete 169.254.1.1 dev eth0");
        workload.ip("route delete default");
        workload.ip("address delete 10.244.1.5/32 dev eth0");
        let inside = Place::Netns(netns.clone());
        let heard = heard_until(&mut changes, |place, change| {
            *place == inside
                && matches!(change, Change::AddressDeleted(address)
                    if address.net == net("10.244.1.5/32"))
        })
        .await;
        let has = |wanted: &dyn Fn(&Place, &Change) -> bool| {
            assert!(
                heard.iter().any(|(place, change)| wanted(place, change)),
                "{heard:#?}"
            );
        };
        has(&|place, change| {
            *place == Place::Host
                && *change
                    == Change::RouteDeleted(route(
                        "10.244.1.5/32",
                        Target::Link { index: HOST_INDEX },
                    ))
        });
        has(&|_, change| *change == Change::NextHopDeleted { id: 5 });
        has(&|place, change| {
            *place == inside
                && matches!(change, Change::RouteDeleted(route) if route.prefix.prefix_len() == 0)
        });

        has(&|place, change| {
            *place == inside
                && matches!(change, Change::NeighbourDeleted(entry)
                    if entry.address == address("169.254.1.1"))
        });

        ip("link set agt0 mtu 1300");
        common::run(
            "ip",
            &format!(
                "netns exec {} sysctl -qw net.ipv4.conf.eth0.rp_filter=2",
                workload.path().file_name().unwrap().to_str().unwrap()
            ),
        );
        let heard = heard_until(&mut changes, |place, change| {
            *place == inside && matches!(change, Change::Netconf { index: PEER_INDEX })
        })
        .await;
        assert!(heard.iter().any(|(place, change)| *place == Place::Host
            && matches!(change, Change::Link(link) if link.mtu == 1300)));
    });
}

#[test]
fn a_restarted_driver_hears_a_workload_once_it_has_read_it() {
    on_a_host(|| async {
        let workload = Workload::new();
        let netns = workload.netns();
        let (kernel, changes) = Kernel::open().unwrap();
        all_ok(&kernel.apply(attach(&netns)).await);
        drop((kernel, changes));

        let (kernel, mut changes) = Kernel::open().unwrap();
        let inside = Place::Netns(netns);
        place(&kernel, inside.clone()).await;
        workload.ip("link set eth0 mtu 1200");
        heard_until(&mut changes, |place, change| {
            *place == inside && matches!(change, Change::Link(link) if link.mtu == 1200)
        })
        .await;
    });
}

#[test]
fn routes_that_go_with_a_nexthop_object_are_not_told_one_by_one() {
    on_a_host(|| async {
        let index = underlay();
        let (kernel, mut changes) = Kernel::open().unwrap();
        let mut ops = vec![Op::ReplaceNextHop(NextHop {
            id: 7,
            protocol: PROTOCOL_AGENTD_BGP,
            kind: NextHopKind::Gateway(gateway("fd00:7::2", index)),
            resilient: None,
        })];
        ops.extend((1..=500).map(|number| Op::AddRoute {
            place: Place::Host,
            route: Route {
                metric: 1024,
                protocol: PROTOCOL_AGENTD_BGP,
                ..route(
                    &format!("fd00:9:{number:x}::/64"),
                    Target::NextHop { id: 7 },
                )
            },
        }));
        all_ok(&kernel.apply(ops).await);
        let gone = |change: &Change| matches!(change, Change::RouteDeleted(route) if route.protocol == PROTOCOL_AGENTD_BGP);
        // What somebody else takes away is told.
        ip("-6 route delete fd00:9:1::/64");
        heard_until(&mut changes, |_, change| gone(change)).await;
        all_ok(&kernel.apply(vec![Op::DeleteNextHop { id: 7 }]).await);
        ip("route add 10.5.0.0/16 via 192.168.7.9");
        let heard = heard_until(
            &mut changes,
            |_, change| matches!(change, Change::Route(route) if route.prefix == net("10.5.0.0/16")),
        )
        .await;
        let told = heard.iter().filter(|(_, change)| gone(change)).count();
        assert_eq!(told, 0);
    });
}

#[test]
fn lost_notifications_are_told() {
    on_a_host(|| async {
        underlay();
        let (kernel, mut changes) = Kernel::open().unwrap();
        // More than the buffer holds, by somebody else, and nobody reads.
        let (other, _) = Kernel::open().unwrap();
        let ops = (0..80_000_u32)
            .map(|number| {
                let bits = u32::from_be_bytes([20, 0, 0, 0]) + (number << 8);
                let prefix = IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), 24).unwrap();
                Op::AddRoute {
                    place: Place::Host,
                    route: Route {
                        prefix,
                        ..route("0.0.0.0/0", Target::Blackhole)
                    },
                }
            })
            .collect();
        all_ok(&other.apply(ops).await);
        let mut overrun = false;
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(200), changes.next()).await
        {
            overrun |= event == Some(ChangeEvent::Overrun);
        }
        assert!(overrun);
        // It goes on hearing.
        ip("link add later0 type veth peer name later1");
        heard_until(
            &mut changes,
            |_, change| matches!(change, Change::Link(link) if link.name == "later0"),
        )
        .await;
        drop(kernel);
    });
}

#[test]
fn a_namespace_without_a_link_of_ours_is_read() {
    on_a_host(|| async {
        let workload = Workload::new();
        workload.ip("link add eth0 type veth peer name other");
        let (kernel, mut changes) = Kernel::open().unwrap();
        let inside = Place::Netns(workload.netns());
        let snapshot = place(&kernel, inside.clone()).await;
        assert_eq!(snapshot.links.len(), 3);
        // It has a number from now on.
        workload.ip("link set eth0 mtu 1234");
        heard_until(&mut changes, |place, change| {
            *place == inside && matches!(change, Change::Link(link) if link.mtu == 1234)
        })
        .await;
    });
}

#[test]
fn parameters_that_others_write_are_heard_by_name_and_value_and_own_writes_are_not() {
    on_a_host(|| async {
        ip("link add agtone type veth peer name agttwo");
        let mut writes = Writes::open().unwrap();
        // This process writes as the agent does.
        std::fs::write("/proc/sys/net/ipv6/conf/agtone/accept_ra", "0").unwrap();
        run("sysctl", "-qw net.ipv6.conf.agtone.accept_ra=2");
        let workload = Workload::new();
        workload.ip("link set lo up");
        let name = workload.netns().path;
        let name = name.file_name().unwrap().to_str().unwrap().to_owned();
        ip(&format!(
            "netns exec {name} sysctl -qw net.ipv6.conf.lo.accept_dad=1"
        ));
        let mut heard = Vec::new();
        let patience = tokio::time::Instant::now() + Duration::from_secs(20);
        // Other tests of this machine write, too.
        while heard.len() < 2 {
            let event = tokio::time::timeout_at(patience, writes.next()).await;
            let Ok(Some(ChangeEvent::Change(Place::Host, Change::Sysctl { path, value }))) = event
            else {
                panic!("{event:?} after {heard:?}");
            };
            if path.contains("agtone") || (path.ends_with("lo/accept_dad") && heard.len() == 1) {
                heard.push((path, value.unwrap()));
            }
        }
        let expected = [
            ("net/ipv6/conf/agtone/accept_ra".to_owned(), "2".to_owned()),
            ("net/ipv6/conf/lo/accept_dad".to_owned(), "1".to_owned()),
        ];
        assert_eq!(heard, expected);
    });
}

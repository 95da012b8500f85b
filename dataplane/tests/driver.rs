//! The Linux driver against the kernel: what it writes and reads.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Workload, ip, on_a_host, ops::*};
use dataplane::{
    desired::Netns,
    kernel::{
        Address, CreateVeth, Gateway, LinkKind, NextHop, NextHopKind, Op, PROTOCOL_AGENTD_BGP,
        Place, Query, Route, Target,
    },
    linux::Kernel,
};
use ipnet::IpNet;

#[test]
fn a_workload_is_made_in_place_with_all_its_values() {
    on_a_host(|| async {
        let workload = Workload::new();
        let netns = workload.netns();
        let (kernel, _changes) = Kernel::open().unwrap();
        all_ok(&kernel.apply(attach(&netns)).await);

        let link = ip("-d link show agt0");
        assert!(link.contains("1000001: agt0@if2:"), "{link}");
        assert!(link.contains("mtu 1420"), "{link}");
        assert!(link.contains("ee:ee:ee:ee:ee:ee"), "{link}");
        assert!(link.contains("alias agentd:agt0"), "{link}");
        assert!(link.contains("addrgenmode none"), "{link}");
        assert_eq!(
            ip("route show").trim(),
            "10.244.1.5 dev agt0 proto 70 scope link"
        );
        let inside = workload.ip("route show");
        assert_eq!(
            inside.lines().map(str::trim).collect::<Vec<_>>(),
            [
                "default via 169.254.1.1 dev eth0 proto 70",
                "169.254.1.1 dev eth0 proto 70 scope link"
            ]
        );
        assert_eq!(workload.read("/proc/sys/net/ipv6/conf/eth0/accept_ra"), "0");
        for (file, value) in [
            ("ipv4/conf/agt0/proxy_arp", "1"),
            ("ipv4/conf/agt0/forwarding", "1"),
            ("ipv4/conf/agt0/rp_filter", "1"),
            ("ipv4/neigh/agt0/proxy_delay", "0"),
            ("ipv6/conf/agt0/accept_dad", "0"),
            ("ipv6/conf/agt0/proxy_ndp", "1"),
        ] {
            let read = common::run("cat", &format!("/proc/sys/net/{file}"));
            assert_eq!(read.trim(), value, "{file}");
        }

        let answer = kernel
            .query(Query::Link {
                place: Place::Host,
                index: HOST_INDEX,
                neighbours: vec![address("10.244.1.5"), address("10.9.9.9")],
                sysctls: vec![
                    "net/ipv4/conf/agt0/rp_filter".to_owned(),
                    "net/ipv4/conf/agt0/no_such".to_owned(),
                ],
            })
            .await
            .unwrap();
        assert_eq!(answer.links.len(), 1);
        let link = &answer.links[0];
        assert_eq!(
            (link.name.as_str(), link.mtu, link.up),
            ("agt0", 1420, true)
        );
        assert_eq!(link.kind, LinkKind::Veth);
        assert_eq!(link.alias.as_deref(), Some("agentd:agt0"));
        assert_eq!(link.peer_index, Some(PEER_INDEX));
        assert!(link.running);
        assert_eq!(
            answer.addresses,
            [Address {
                index: HOST_INDEX,
                net: net("fe80::ecee:eeff:feee:eeee/64"),
                nodad: true
            }]
        );
        // Linux 5.18 and later keep the mark.
        assert_eq!(answer.marked_addresses, answer.addresses);
        assert_eq!(answer.neighbours.len(), 1);
        assert_eq!(answer.neighbours[0].mac, [2, 0, 0, 0, 0, 7]);
        assert_eq!(
            answer.sysctls,
            [
                (
                    "net/ipv4/conf/agt0/rp_filter".to_owned(),
                    Some("1".to_owned())
                ),
                ("net/ipv4/conf/agt0/no_such".to_owned(), None)
            ]
        );

        ip("address add 192.0.2.1/24 dev agt0");
        let host = place(&kernel, Place::Host).await;
        assert_eq!(host.marked_addresses, answer.addresses);
        assert!(
            host.addresses
                .iter()
                .any(|one| one.net == net("192.0.2.1/24"))
        );

        let inside = place(&kernel, Place::Netns(netns)).await;
        assert_eq!(inside.marked_addresses, []);
        let eth0 = inside
            .links
            .iter()
            .find(|link| link.name == "eth0")
            .unwrap();
        assert_eq!((eth0.index, eth0.mtu, eth0.up), (PEER_INDEX, 1420, true));
        assert_eq!(eth0.mac, Some([2, 0, 0, 0, 0, 7]));
        assert!(
            inside
                .routes
                .contains(&route("169.254.1.1/32", Target::Link { index: PEER_INDEX }))
        );
        assert_eq!(inside.neighbours.len(), 1);
    });
}

#[test]
fn each_of_ten_thousand_routes_has_its_own_result() {
    on_a_host(|| async {
        let index = underlay();
        let (kernel, _changes) = Kernel::open().unwrap();
        let mut ops = vec![Op::ReplaceNextHop(NextHop {
            id: 5,
            protocol: PROTOCOL_AGENTD_BGP,
            kind: NextHopKind::Gateway(gateway("192.168.7.2", index)),
            resilient: None,
        })];
        let prefixes: Vec<IpNet> = (0..10_000_u32)
            .map(|number| {
                let bits = u32::from_be_bytes([20, 0, 0, 0]) + (number << 8);
                IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), 24).unwrap()
            })
            .collect();
        ops.extend(prefixes.iter().map(|prefix| Op::AddRoute {
            place: Place::Host,
            route: learned(*prefix, 5),
        }));
        // There is no such object.
        ops[5_000] = Op::AddRoute {
            place: Place::Host,
            route: learned(net("30.0.0.0/8"), 999),
        };
        // This one stands already.
        ops[7_000] = ops[6_999].clone();
        let results = kernel.apply(ops).await;
        assert_eq!(results.len(), 10_001);
        let failed: Vec<(usize, i32)> = results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.is_err())
            .map(|(index, result)| (index, errno(result)))
            .collect();
        assert_eq!(failed, [(5_000, libc::EINVAL), (7_000, libc::EEXIST)]);
        let text = &results[5_000].as_ref().unwrap_err().text;
        assert!(
            text.contains("30.0.0.0/8") && text.contains("999"),
            "{text}"
        );
        assert!(
            text.to_lowercase().contains("nexthop id does not exist"),
            "the kernel's own words are told: {text}"
        );

        let snapshot = place(&kernel, Place::Host).await;
        let ours = snapshot
            .routes
            .iter()
            .filter(|route| route.protocol == PROTOCOL_AGENTD_BGP)
            .count();
        assert_eq!(ours, 9_998);
        assert!(snapshot.routes.contains(&learned(prefixes[1], 5)));
        assert_eq!(snapshot.next_hops.len(), 1);

        let deletes: Vec<Op> = prefixes
            .iter()
            .map(|prefix| Op::DeleteRoute {
                place: Place::Host,
                route: learned(*prefix, 5),
            })
            .collect();
        let results = kernel.apply(deletes).await;
        let failed: Vec<(usize, i32)> = results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.is_err())
            .map(|(index, result)| (index, errno(result)))
            .collect();
        assert_eq!(
            failed,
            [(4_999, libc::ESRCH), (6_999, libc::ESRCH)],
            "shuffling keeps results at their operations"
        );
    });
}

#[test]
fn a_route_of_another_protocol_is_not_deleted() {
    on_a_host(|| async {
        underlay();
        ip("route add 10.3.0.0/16 via 192.168.7.9");
        ip("-6 route add fd00:3::/64 via fd00:7::9 metric 7");
        let (kernel, _changes) = Kernel::open().unwrap();
        let delete = |prefix, metric| Op::DeleteRoute {
            place: Place::Host,
            route: Route {
                metric,
                ..learned(net(prefix), 1)
            },
        };
        let results = kernel
            .apply(vec![
                delete("10.3.0.0/16", 0),
                delete("fd00:3::/64", 7),
                delete("fd00:3::/64", 0),
            ])
            .await;
        assert!(results.iter().all(|result| errno(result) == libc::ESRCH));
        let add = kernel
            .apply(vec![Op::AddRoute {
                place: Place::Host,
                route: route("10.3.0.0/16", Target::Blackhole),
            }])
            .await;
        assert_eq!(errno(&add[0]), libc::EEXIST);
        assert!(ip("route show 10.3.0.0/16").contains("via 192.168.7.9"));
    });
}

#[test]
fn routes_are_read_back_by_exact_prefix() {
    on_a_host(|| async {
        let index = underlay();
        let (kernel, _changes) = Kernel::open().unwrap();
        let mut made = vec![
            route("10.244.1.0/26", Target::Blackhole),
            route("10.244.1.0/32", Target::Link { index }),
            route("10.244.1.63/32", Target::Link { index }),
            route("10.244.2.0/24", Target::Link { index }),
            route("fd00:1::/122", Target::Blackhole),
            route("fd00:1::/128", Target::Link { index }),
            // A block whose every address is a workload's: only a dump shows its route.
            route("10.244.9.0/31", Target::Link { index }),
            route("10.244.9.0/32", Target::Link { index }),
            route("10.244.9.1/32", Target::Link { index }),
        ];
        let ops = made
            .iter()
            .map(|route| Op::AddRoute {
                place: Place::Host,
                route: route.clone(),
            })
            .collect();
        all_ok(&kernel.apply(ops).await);
        let mut asked: Vec<IpNet> = made.iter().map(|route| route.prefix).collect();
        asked.push(net("10.244.1.1/32"));
        asked.push(net("10.244.7.0/24"));
        asked.push(net("fd00:2::/64"));
        let mut routes = kernel.query(Query::Routes(asked)).await.unwrap().routes;
        routes.sort_by_key(|route| route.prefix);
        made.sort_by_key(|route| route.prefix);
        assert_eq!(routes, made);
        // Looking changes nothing.
        assert_eq!(ip("route show proto 70").lines().count(), 7);
        assert_eq!(ip("-6 route show proto 70").lines().count(), 2);
    });
}

#[test]
fn links_are_deleted_together_and_foreign_ones_stay() {
    on_a_host(|| async {
        let workloads: Vec<Workload> = (0..12).map(|_| Workload::new()).collect();
        ip("link add foreign0 type veth peer name foreign1");
        ip("link set foreign0 group 4711");
        let (kernel, _changes) = Kernel::open().unwrap();
        let mut ops = Vec::new();
        let mut indexes = Vec::new();
        for (number, workload) in (0_u32..).zip(&workloads) {
            let index = HOST_INDEX + number;
            indexes.push(index);
            ops.push(Op::CreateVeth(Box::new(veth(
                &format!("agt{number}"),
                index,
                &workload.netns(),
            ))));
        }
        all_ok(&kernel.apply(ops).await);
        assert_eq!(ip("-br link show").matches("agt").count(), 12);
        // One is gone already, and one never was.
        ip("link delete agt3");
        indexes.push(4_000_000);
        let start = std::time::Instant::now();
        all_ok(&kernel.apply(vec![Op::DeleteLinks(indexes)]).await);
        let took = start.elapsed();
        assert_eq!(ip("-br link show").matches("agt").count(), 0);
        assert!(ip("-br link show").contains("foreign0"));
        assert!(!workloads[5].ip("-br link show").contains("eth0"));
        // One by one it is 20 ms each.
        assert!(took < Duration::from_millis(150), "{took:?}");
    });
}

#[test]
fn to_delete_links_the_others_are_listed_once_only() {
    on_a_host(|| async {
        let workloads: Vec<Workload> = (0..6).map(|_| Workload::new()).collect();
        let (kernel, _changes) = Kernel::open().unwrap();
        let ops = (0_u32..).zip(&workloads).map(|(number, workload)| {
            let name = format!("agt{number}");
            Op::CreateVeth(Box::new(veth(
                &name,
                HOST_INDEX + number,
                &workload.netns(),
            )))
        });
        all_ok(&kernel.apply(ops.collect()).await);
        for number in 0..20 {
            ip(&format!(
                "link add foreign{number} type veth peer name other{number}"
            ));
        }
        let mut cost = Vec::new();
        for pair in 0..3 {
            let first = HOST_INDEX + 2 * pair;
            let before = kernel.counts().answers;
            all_ok(
                &kernel
                    .apply(vec![Op::DeleteLinks(vec![first, first + 1])])
                    .await,
            );
            cost.push(kernel.counts().answers - before);
        }
        assert_eq!(ip("-br link show").matches("agt").count(), 0);
        assert_eq!(ip("-br link show").matches("foreign").count(), 40);
        assert!(cost[0] > 40 && cost[1] < 10 && cost[2] < 10, "{cost:?}");
    });
}

#[test]
fn a_namespace_that_is_gone_or_replaced_is_told_apart() {
    on_a_host(|| async {
        let workload = Workload::new();
        let mut netns = workload.netns();
        let (kernel, _changes) = Kernel::open().unwrap();
        netns.inode += 1;
        let create = |netns: &Netns| Op::CreateVeth(Box::new(veth("agt0", HOST_INDEX, netns)));
        let results = kernel.apply(attach(&netns)).await;
        assert_eq!(errno(&results[0]), libc::ESTALE);
        assert!(
            results[7..]
                .iter()
                .all(|result| matches!(errno(result), libc::ECANCELED | libc::ESTALE)),
            "what follows is not tried: {results:?}"
        );
        let query = |netns: &Netns| Query::Place {
            place: Place::Netns(netns.clone()),
            sysctls: Vec::new(),
        };
        let refused = kernel.query(query(&netns)).await.unwrap_err();
        assert_eq!(refused.errno, libc::ESTALE);

        netns.path = "/run/netns/linux-no-such".into();
        let results = kernel.apply(vec![create(&netns)]).await;
        assert_eq!(errno(&results[0]), libc::ENOENT);
        let text = &results[0].as_ref().unwrap_err().text;
        assert!(text.contains("/run/netns/linux-no-such"), "{text}");
        assert_eq!(
            kernel.query(query(&netns)).await.unwrap_err().errno,
            libc::ENOENT
        );
        assert_eq!(ip("-br link show").lines().count(), 1, "nothing is left");
    });
}

#[test]
fn a_link_that_cannot_be_made_leaves_nothing_and_touches_nothing() {
    on_a_host(|| async {
        let (first, second) = (Workload::new(), Workload::new());
        let (kernel, _changes) = Kernel::open().unwrap();
        all_ok(&kernel.apply(attach(&first.netns())).await);
        ip("link set agt0 alias kept");
        // The index is taken; then the name inside is.
        let mut ops = attach(&second.netns());
        if let Op::CreateVeth(veth) = &mut ops[0] {
            veth.name = "agt1".to_owned();
        }
        ops.push(Op::CreateVeth(Box::new(CreateVeth {
            peer_index: 9,
            ..veth("agt2", HOST_INDEX + 2, &first.netns())
        })));
        let results = kernel.apply(ops).await;
        assert!(
            matches!(errno(&results[0]), libc::EEXIST | libc::EBUSY),
            "{:?}",
            results[0]
        );
        assert_eq!(errno(&results[8]), libc::ECANCELED);
        assert_eq!(errno(results.last().unwrap()), libc::EEXIST);
        assert!(ip("link show agt0").contains("alias kept"));
        assert_eq!(ip("-br link show").matches("agt").count(), 1);
        assert!(!second.ip("-br link show").contains("eth0"));
    });
}

#[test]
fn nothing_keeps_a_deleted_namespace_alive() {
    on_a_host(|| async {
        let workload = Workload::new();
        let netns = workload.netns();
        let (kernel, _changes) = Kernel::open().unwrap();
        all_ok(&kernel.apply(attach(&netns)).await);
        place(&kernel, Place::Netns(netns)).await;
        drop(workload);
        // The host's end goes with its peer.
        common::eventually("the namespace is freed", || {
            let links = ip("-br link show");
            if links.contains("agt0") {
                Err(links)
            } else {
                Ok(())
            }
        })
        .await;
    });
}

#[test]
fn nexthop_groups_and_gateways_of_both_families_are_read_as_written() {
    on_a_host(|| async {
        let index = underlay();
        let (kernel, _changes) = Kernel::open().unwrap();
        let object = |id, kind| NextHop {
            id,
            protocol: PROTOCOL_AGENTD_BGP,
            kind,
            resilient: None,
        };
        let hops = vec![
            object(1, NextHopKind::Gateway(gateway("192.168.7.2", index))),
            object(
                2,
                NextHopKind::Gateway(Gateway {
                    onlink: true,
                    ..gateway("10.99.0.1", index)
                }),
            ),
            object(3, NextHopKind::Gateway(gateway("fd00:7::2", index))),
            object(4, NextHopKind::Blackhole),
            object(9, NextHopKind::Group(vec![(1, 1), (2, 3)])),
        ];
        let v6 = Route {
            metric: 1024,
            ..learned(net("fd00:9::/64"), 3)
        };
        let plain = route(
            "10.7.0.0/16",
            Target::Gateways(vec![
                gateway("192.168.7.3", index),
                Gateway {
                    weight: 4,
                    ..gateway("192.168.7.4", index)
                },
            ]),
        );
        let via6 = route(
            "10.8.0.0/16",
            Target::Gateways(vec![gateway("fd00:7::8", index)]),
        );
        let metric = Route {
            metric: 77,
            ..route("10.8.0.0/16", Target::Blackhole)
        };
        let routes = [learned(net("10.6.0.0/16"), 9), v6, plain, via6, metric];
        let mut ops: Vec<Op> = hops.iter().cloned().map(Op::ReplaceNextHop).collect();
        ops.extend(routes.iter().cloned().map(|route| Op::ReplaceRoute {
            place: Place::Host,
            route,
        }));
        all_ok(&kernel.apply(ops).await);
        let snapshot = place(&kernel, Place::Host).await;
        assert_eq!(snapshot.next_hops, hops);
        for route in routes {
            assert!(snapshot.routes.contains(&route), "{route:?}");
        }
        all_ok(&kernel.apply(vec![Op::DeleteNextHop { id: 3 }]).await);
        assert!(!ip("-6 route show").contains("fd00:9::/64"));
    });
}

#[test]
fn the_newest_namespace_has_the_lowest_number() {
    on_a_host(|| async {
        let numbers = || -> Vec<i64> {
            let list = ip("netns list-id");
            let number = |line: &str| line.split_whitespace().nth(1)?.parse().ok();
            list.lines().filter_map(number).collect()
        };
        let mut seen: Vec<i64> = Vec::new();
        let workloads: Vec<Workload> = (0..4).map(|_| Workload::new()).collect();
        for (number, workload) in workloads.iter().enumerate() {
            // A driver that starts afresh goes on below those of the last one.
            let (kernel, _changes) = Kernel::open().unwrap();
            let index = HOST_INDEX + 2 * u32::try_from(number).unwrap();
            let name = format!("agt{number}");
            let create = Op::CreateVeth(Box::new(veth(&name, index, &workload.netns())));
            all_ok(&kernel.apply(vec![create]).await);
            let new: Vec<i64> = numbers()
                .into_iter()
                .filter(|number| !seen.contains(number))
                .collect();
            assert_eq!(new.len(), 1, "{new:?}, after {seen:?}");
            assert!(
                seen.iter().all(|before| *before > new[0]),
                "{new:?} {seen:?}"
            );
            seen.extend(new);
        }
    });
}

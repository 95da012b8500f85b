//! Tunnel devices, forwarding entries and resilient groups against the kernel.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{eventually, ip, on_a_host, ops::*, run};
use dataplane::{
    desired::{Encapsulation, LearnedRoute, Object, PoolTunnel, Scope, Source, Tunnels},
    kernel::{
        Change, CreateTunnel, FdbEntry, NextHop, NextHopKind, Op, PROTOCOL_AGENTD_BGP, Place,
        Resilient, Tunnel,
    },
    linux::Kernel,
    reconcile::Config,
    runtime,
};

const INDEX: u32 = 1_000_077;

fn vxlan(name: &str, index: u32, local: &str) -> CreateTunnel {
    CreateTunnel {
        name: name.to_owned(),
        index,
        alias: "agentd:tunnel".to_owned(),
        mac: Some([0x0e, 0xa6, 1, 2, 3, 4]),
        mtu: 1450,
        tunnel: Tunnel::Vxlan {
            vni: 4096,
            port: 4789,
            local: address(local),
            learning: false,
        },
    }
}

#[test]
fn vxlan_devices_of_both_families_are_made_as_told_and_read_back() {
    on_a_host(|| async {
        let (kernel, _changes) = Kernel::open().unwrap();
        underlay();
        let wanted = [
            vxlan("agentd.vxlan", INDEX, "192.168.7.1"),
            vxlan("agentd.vxlan6", INDEX + 1, "fd00:7::1"),
        ];
        let entries =
            [(INDEX, "192.168.7.2"), (INDEX + 1, "fd00:7::2")].map(|(index, remote)| FdbEntry {
                index,
                mac: [2, 0, 0, 0, 0, 9],
                remote: address(remote),
            });
        let mut ops: Vec<Op> = wanted
            .iter()
            .map(|create| Op::CreateTunnel(Box::new(create.clone())))
            .collect();
        ops.push(sysctl(
            &Place::Host,
            "net/ipv4/conf/agentd.vxlan/rp_filter",
            "2",
        ));
        ops.extend(entries.map(Op::ReplaceFdb));
        all_ok(&kernel.apply(ops).await);
        let seen = place(&kernel, Place::Host).await;
        for create in &wanted {
            let link = seen
                .links
                .iter()
                .find(|link| link.name == create.name)
                .unwrap();
            assert_eq!(link.tunnel, Some(create.tunnel));
            assert_eq!(
                (link.index, link.mtu, link.mac),
                (create.index, 1450, create.mac)
            );
            assert_eq!(link.alias.as_deref(), Some("agentd:tunnel"));
            assert!(link.up && link.running);
        }
        assert_eq!(seen.fdb, entries);
        assert_eq!(
            run("cat", "/proc/sys/net/ipv4/conf/agentd.vxlan/rp_filter").trim(),
            "2"
        );
        // No address of its own making.
        assert_eq!(ip("-6 -o address show dev agentd.vxlan"), "");
        // The key of an entry is its MAC address.
        let moved = FdbEntry {
            remote: address("192.168.7.3"),
            ..entries[0]
        };
        all_ok(&kernel.apply(vec![Op::ReplaceFdb(moved)]).await);
        assert_eq!(place(&kernel, Place::Host).await.fdb, [moved, entries[1]]);
        let ops = vec![Op::DeleteFdb(moved), Op::DeleteFdb(moved)];
        let results = kernel.apply(ops).await;
        assert_eq!((errno(&results[0]), errno(&results[1])), (0, libc::ENOENT));
        let again = kernel
            .apply(vec![
                Op::CreateTunnel(Box::new(vxlan("agentd.vxlan", 99, "192.168.7.1"))),
                Op::ReplaceFdb(FdbEntry { index: 99, ..moved }),
            ])
            .await;
        assert_eq!(errno(&again[0]), libc::EEXIST);
        assert_eq!(errno(&again[1]), libc::ECANCELED);
    });
}

#[test]
fn entries_that_others_change_are_heard_and_learned_ones_are_not() {
    on_a_host(|| async {
        let (kernel, mut changes) = Kernel::open().unwrap();
        underlay();
        let create = vxlan("agentd.vxlan", INDEX, "192.168.7.1");
        all_ok(&kernel.apply(vec![Op::CreateTunnel(Box::new(create))]).await);
        run(
            "bridge",
            "fdb append 02:00:00:00:00:07 dev agentd.vxlan dst 192.168.7.7 dynamic",
        );
        run(
            "bridge",
            "fdb append 02:00:00:00:00:09 dev agentd.vxlan dst 192.168.7.9 permanent",
        );
        run(
            "bridge",
            "fdb del 02:00:00:00:00:07 dev agentd.vxlan dst 192.168.7.7",
        );
        run(
            "bridge",
            "fdb del 02:00:00:00:00:09 dev agentd.vxlan dst 192.168.7.9",
        );
        let entry = FdbEntry {
            index: INDEX,
            mac: [2, 0, 0, 0, 0, 9],
            remote: address("192.168.7.9"),
        };
        let heard = heard_until(&mut changes, |_, change| {
            *change == Change::FdbDeleted(entry)
        })
        .await;
        let entries: Vec<&Change> = heard
            .iter()
            .map(|(_, change)| change)
            .filter(|change| matches!(change, Change::Fdb(_) | Change::FdbDeleted(_)))
            .collect();
        assert_eq!(entries, [&Change::Fdb(entry), &Change::FdbDeleted(entry)]);
    });
}

#[test]
fn resilient_groups_are_written_and_read_back() {
    on_a_host(|| async {
        let (kernel, _changes) = Kernel::open().unwrap();
        let index = underlay();
        let object = |id, kind, resilient| NextHop {
            id,
            protocol: PROTOCOL_AGENTD_BGP,
            kind,
            resilient,
        };
        let resilient = Some(Resilient {
            buckets: 64,
            idle_timer: Duration::from_millis(1500),
            unbalanced_timer: Duration::from_secs(60),
        });
        let hops = vec![
            object(1, NextHopKind::Gateway(gateway("192.168.7.2", index)), None),
            object(2, NextHopKind::Gateway(gateway("192.168.7.3", index)), None),
            object(3, NextHopKind::Group(vec![(1, 1), (2, 1)]), resilient),
        ];
        all_ok(
            &kernel
                .apply(hops.iter().cloned().map(Op::ReplaceNextHop).collect())
                .await,
        );
        assert_eq!(place(&kernel, Place::Host).await.next_hops, hops);
        // Losing a member is the kernel's own affair.
        all_ok(&kernel.apply(vec![Op::DeleteNextHop { id: 2 }]).await);
        let left = place(&kernel, Place::Host).await.next_hops;
        assert_eq!(
            left[1],
            object(3, NextHopKind::Group(vec![(1, 1)]), resilient)
        );
    });
}

#[test]
fn a_running_dataplane_keeps_a_tunnel_true() {
    on_a_host(|| async {
        underlay();
        let config = Config {
            underlay: vec![address("192.168.7.1")],
            ..Config::default()
        };
        let (handle, mut events, task) = runtime::spawn(config).unwrap();
        tokio::spawn(async move { while events.next().await.is_some() {} });
        let tunnels = Tunnels {
            local: Some("192.168.7.1".parse().unwrap()),
            local6: None,
            vni: 4096,
            port: 4789,
            accept: Vec::new(),
            pools: vec![PoolTunnel {
                cidr: net("10.1.0.0/16"),
                encapsulation: Encapsulation::Vxlan,
                scope: Scope::Always,
            }],
        };
        let route = LearnedRoute {
            prefix: net("10.1.2.0/26"),
            next_hops: [address("192.168.7.2").into()].into(),
        };
        let objects = vec![Object::Tunnels(Box::new(tunnels)), Object::Route(route)];
        handle.set(objects).await.unwrap();
        for source in [Source::Block, Source::Workload, Source::Bgp] {
            handle.source_synced(source).await.unwrap();
        }
        let stands = || -> Result<(), String> {
            let route = ip("route show 10.1.2.0/26");
            let entry = run("bridge", "fdb show dev agentd.vxlan");
            let neighbour = ip("neighbour show dev agentd.vxlan nud permanent");
            let filter = run("cat", "/proc/sys/net/ipv4/conf/agentd.vxlan/rp_filter");
            let right = route.contains("via 192.168.7.2 dev agentd.vxlan proto 71 onlink")
                && entry.trim() == "0e:a6:c0:a8:07:02 dst 192.168.7.2 self permanent"
                && neighbour.trim() == "192.168.7.2 lladdr 0e:a6:c0:a8:07:02 PERMANENT"
                && filter.trim() == "2";
            right
                .then_some(())
                .ok_or_else(|| format!("{route}{entry}{neighbour}{filter}"))
        };
        let link = || {
            let known = std::path::Path::new("/proc/sys/net/ipv4/conf/agentd.vxlan");
            known.exists().then_some(()).ok_or("no device".to_owned())
        };
        eventually("the device", link).await;
        eventually("the route", stands).await;
        for edit in [
            "bridge fdb del 0e:a6:c0:a8:07:02 dev agentd.vxlan dst 192.168.7.2",
            "bridge fdb replace 0e:a6:c0:a8:07:02 dev agentd.vxlan dst 192.168.7.99 permanent",
            "ip neighbour delete 192.168.7.2 dev agentd.vxlan",
            "ip neighbour replace 192.168.7.2 lladdr 02:00:00:00:00:01 dev agentd.vxlan nud permanent",
            "ip link set agentd.vxlan down",
            "ip route delete 10.1.2.0/26",
            "sysctl -q -w net.ipv4.conf.agentd/vxlan.rp_filter=1",
            "ip link delete agentd.vxlan",
        ] {
            let (program, arguments) = edit.split_once(' ').unwrap();
            let before = handle.status().await.unwrap().repairs;
            run(program, arguments);
            let known = std::path::Path::new("/proc/sys/net/ipv4/conf/agentd.vxlan");
            eventually(edit, || {
                if known.exists() {
                    stands()
                } else {
                    Err("no device".to_owned())
                }
            })
            .await;
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while handle.status().await.unwrap().repairs == before {
                assert!(std::time::Instant::now() < deadline, "{edit}: not counted");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        handle.shutdown().await;
        task.await.unwrap();
    });
}

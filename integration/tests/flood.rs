//! Make before break, seen by packets: while routes, next hops, blocks and MTUs change, not one
//! packet of a flood between two workloads is lost, hits a blackhole or finds no route.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::lab::config::{Peer, Pool};
use integration::lab::flood::Flood;
use integration::lab::raw_message as raw;
use integration::lab::raw_peer::{Identity, RawPeer};
use integration::lab::two_nodes::{ASN, TwoNodes};
use integration::lab::workload::Workload;
use integration::lab::{self, Lab, PATIENCE};

/// A neighbour of node-a that says where node-b's block is, and changes its mind.
const FICKLE: Ipv4Addr = Ipv4Addr::new(192, 168, 26, 77);
/// Addresses of node-b.
const HOPS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(192, 168, 26, 12),
    Ipv4Addr::new(192, 168, 26, 13),
];

/// Workloads on both nodes, and node-a with the fickle neighbour.
fn scene(lab: &Lab) -> Result<(TwoNodes, Workload, Workload)> {
    let mut nodes = TwoNodes::prepare(lab)?;
    lab.address(nodes.reflector.namespace(), "br0", &format!("{FICKLE}/24"))?;
    lab.address(nodes.b.namespace(), "eth0", &format!("{}/24", HOPS[1]))?;
    let mut fickle = Peer::new("fickle", &FICKLE.to_string(), ASN);
    fickle.extra = "passive = true\nhold_time = \"90s\"\ngraceful_restart = false".into();
    let config = nodes.a.config_mut();
    config.peers.push(fickle);
    // Small blocks, so that there are soon several.
    config.pools = vec![
        Pool::new("default", "10.244.0.0/16", 29),
        Pool::new("default6", "fd10:244::/64", 122),
    ];
    nodes.a.start()?;
    nodes.b.start()?;
    nodes.reflector.wait_established("node_a")?;
    nodes.reflector.wait_established("node_b")?;
    let on_a = nodes.a.workload("a1")?;
    let on_b = nodes.b.workload("b1")?;
    lab.wait_for("the way there and back", PATIENCE, || {
        lab::ping::ping_all(&on_a.namespace, on_b.ipv4()?, 1)?;
        lab::ping::ping_all(&on_a.namespace, on_b.ipv6()?, 1)
    })?;
    Ok((nodes, on_a, on_b))
}

fn attributes(hop: Ipv4Addr) -> Vec<u8> {
    [
        raw::origin(0),
        raw::as_path(&[]),
        raw::next_hop(hop),
        // Above what comes by the reflector.
        raw::local_pref(200),
    ]
    .concat()
}

#[test]
fn no_packet_is_lost_while_routes_next_hops_blocks_and_mtus_change() {
    lab::run(|lab| {
        let (nodes, on_a, on_b) = scene(lab)?;
        let node = nodes.a.namespace().clone();
        let remote = on_b
            .answer
            .addresses
            .iter()
            .find(|address| address.address.contains('.'))
            .context("IPv4")?
            .block
            .clone();
        let floods = [
            Flood::start(&on_a.namespace, &on_b.namespace, on_b.ipv4()?)?,
            Flood::start(&on_b.namespace, &on_a.namespace, on_a.ipv4()?)?,
            Flood::start(&on_a.namespace, &on_b.namespace, on_b.ipv6()?)?,
        ];

        // Which packets were sent in which part, so that a loss names its cause.
        let mut parts: Vec<(u64, String)> = Vec::new();
        let mut part = |name: String| parts.push((floods[0].sent(), name));

        // The next hop of the learned route changes, goes away, and comes back.
        let mut identity = Identity::new(FICKLE, ASN);
        identity.families = vec![1];
        identity.hold_time = 90;
        let speaker = SocketAddr::from(([192, 168, 26, 11], 179));
        let mut peer = nodes
            .reflector
            .namespace()
            .enter(|| RawPeer::establish(&identity, speaker))??;
        let nlri = raw::nlri(&remote);
        for round in 0..60usize {
            let hop = HOPS[round % 2];
            part(format!("round {round}: {hop}"));
            peer.send(&raw::update(&[], &attributes(hop), &nlri))?;
            std::thread::sleep(Duration::from_millis(10));
            if round % 3 == 2 {
                part(format!("round {round}: withdrawn"));
                peer.send(&raw::update(&nlri, &[], &[]))?;
                std::thread::sleep(Duration::from_millis(10));
            }
            if round % 10 == 9 {
                peer.drain()?;
            }
        }
        // As fast as it goes, too.
        part("many changes at once".into());
        for round in 0..300usize {
            peer.send(&raw::update(&[], &attributes(HOPS[round % 2]), &nlri))?;
        }
        lab.wait_for("the last next hop", PATIENCE, || {
            let route = node.show(&format!("ip route show {remote}"))?;
            ensure!(route.contains(&HOPS[1].to_string()), "{route}");
            Ok(())
        })?;
        // The session ends: the reflector's path is used again.
        part("the session ends".into());
        peer.close();
        lab.wait_for("the reflector's next hop", PATIENCE, || {
            let route = node.show(&format!("ip route show {remote}"))?;
            ensure!(route.contains(&HOPS[0].to_string()), "{route}");
            Ok(())
        })?;

        // Blocks are claimed, filled and given back beside the one in use.
        part("blocks come".into());
        let blocks = nodes.a.client().blocks()?.len();
        let others = (0..20)
            .map(|number| nodes.a.workload(&format!("other{number}")))
            .collect::<Result<Vec<_>>>()?;
        ensure!(
            nodes.a.client().blocks()?.len() >= blocks + 2,
            "no further blocks"
        );
        part("blocks go".into());
        for other in &others {
            nodes.a.client().delete(&other.id)?;
        }

        // The underlay gets smaller and larger; workloads follow.
        for mtu in [1400, 1300, 1500] {
            part(format!("MTU {mtu}"));
            node.ip(["link", "set", "eth0", "mtu", &mtu.to_string()])?;
            lab.wait_for("the workload's MTU", PATIENCE, || {
                let link = on_a.namespace.show("ip link show eth0")?;
                ensure!(link.contains(&format!("mtu {mtu} ")), "{link}");
                Ok(())
            })?;
        }

        // A restart, and one by the kernel's hand.
        part("killed and started".into());
        nodes.a.kill()?;
        nodes.a.start()?;
        nodes.reflector.wait_established("node_a")?;
        part("ended and started".into());
        ensure!(nodes.a.terminate()?.success());
        nodes.a.start()?;
        nodes.reflector.wait_established("node_a")?;
        std::thread::sleep(Duration::from_millis(300));

        // Packets that found no route or a blackhole are counted by the kernel, too.
        let counters = node.show("nstat -asz")?;
        let counters: Vec<&str> = counters
            .lines()
            .filter(|line| {
                ["NoRoutes", "Discards", "AddrErrors", "DestUnreachs"]
                    .iter()
                    .any(|name| line.contains(name))
            })
            .filter(|line| line.split_whitespace().nth(1) != Some("0"))
            .collect();
        for (name, flood) in ["to node-b", "to node-a", "IPv6"].into_iter().zip(floods) {
            let report = flood.finish()?;
            println!("{name}: {report:?}");
            let first = report.missing.first().copied().unwrap_or_default();
            let cause = parts.iter().rfind(|(sent, _)| *sent <= first);
            ensure!(
                report.sent > 1000 && report.received == report.sent && report.refused == 0,
                "{name}: {report:?}, first in {cause:?}, {counters:#?}"
            );
        }
        Ok(())
    });
}

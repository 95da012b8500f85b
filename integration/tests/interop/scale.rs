//! Large tables, large messages, and several paths for a prefix.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::lab::config::Peer;
use integration::lab::raw_message as raw;
use integration::lab::raw_peer::{Identity, RawPeer};
use integration::lab::router::{AddPath, Kind, Neighbor};
use ipnet::{IpNet, Ipv4Net};

use crate::world::{NETWORK, PEER, Plan, World, net, v4};

interop!(add_path_in: super::add_path_in; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP has no second path for a prefix to send, as it passes nothing on.");
interop!(extended_messages: super::extended_messages; bird frr exabgp;
    no gobgp: "GoBGP 3 and OpenBGPD 7 have no extended messages.";
    no openbgpd: "GoBGP 3 and OpenBGPD 7 have no extended messages.");
interop!(large_in: super::large_in; bird exabgp;
    no frr: "Not part of the automatic run yet.";
    no gobgp: "Not part of the automatic run yet.";
    no openbgpd: "Not part of the automatic run yet.");
interop!(large_out: super::large_out; bird frr gobgp openbgpd exabgp);

const OTHER_AS: u32 = 64999;
/// How long a large table may take.
const LONG: Duration = Duration::from_secs(50);
const LARGE: u32 = 100_000;

/// A session as the third station, from a namespace of its own.
fn third(world: &World, identity: &Identity, to: Ipv4Addr) -> Result<RawPeer> {
    let station = world.station("third", 3)?;
    let remote = (IpAddr::V4(to), 179).into();
    station.enter(|| RawPeer::establish(identity, remote))?
}

/// The router announces a network of its own and the same one of a neighbor.
fn add_path_in(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.for_peers("add_path = \"receive\"");
    plan.router.neighbors[0].add_path = AddPath::Send;
    plan.router.neighbors.push(Neighbor {
        hold_time: 180,
        passive: true,
        ..Neighbor::new(v4(2).into(), v4(3).into(), OTHER_AS)
    });
    let world = plan.start()?;
    let mut third = third(&world, &Identity::new(v4(3), OTHER_AS), v4(2))?;
    let attributes = [
        raw::origin(0),
        raw::as_path(&[OTHER_AS]),
        raw::next_hop(v4(3)),
    ]
    .concat();
    third.send(&raw::update(&[], &attributes, &raw::nlri(NETWORK)))?;
    let paths = |count: usize| {
        world.wait(&format!("{count} paths"), || {
            let routes = world.adj_rib_in(PEER, NETWORK)?;
            ensure!(routes.len() == count, "{routes:?}");
            Ok(())
        })
    };
    paths(2)?;
    third.send(&raw::update(&raw::nlri(NETWORK), &[], &[]))?;
    paths(1)?;
    world.in_kernel(NETWORK, 2)
}

/// A route with 1,500 communities, 6,000 octets, comes from elsewhere and goes to the router.
fn extended_messages(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.agent.peers[0].extra += "export = \"all\"\n";
    let mut other = Peer::new("third", &v4(3).to_string(), OTHER_AS);
    other.extra = "passive = true\n".into();
    plan.agent.peers.push(other);
    let world = plan.launch()?;
    let mut identity = Identity::new(v4(3), OTHER_AS);
    identity.capabilities.push(raw::capability(6, &[]));
    let mut third = third(&world, &identity, v4(1))?;
    let communities: Vec<u32> = (0..1500).map(|value| (OTHER_AS << 16) + value).collect();
    let attributes = [
        raw::origin(0),
        raw::as_path(&[OTHER_AS]),
        raw::next_hop(v4(3)),
        raw::communities(&communities),
    ]
    .concat();
    let prefix = "10.63.0.0/24";
    third.send(&raw::update(&[], &attributes, &raw::nlri(prefix)))?;
    world.wait("the route with many communities at the router", || {
        let path = world.path(prefix)?;
        // BIRD shows only the first ones.
        let least = if world.kind == Kind::Bird { 0 } else { 1500 };
        let count = path.communities.len();
        ensure!((least..=1500).contains(&count), "{count}");
        Ok(())
    })
}

fn table() -> Vec<IpNet> {
    (0..LARGE)
        .map(|index| {
            let address = Ipv4Addr::from(0x1400_0000 + (index << 8));
            IpNet::V4(Ipv4Net::new(address, 24).expect("24 is a length"))
        })
        .collect()
}

/// Waits until the node has everything, in its kernel too.
fn wait_large(world: &World) -> Result<()> {
    let wanted = u64::from(LARGE) + 1;
    world.wait_within(LONG, "the large table in the Adj-RIB-In", || {
        let families = world.peer(PEER)?.families;
        let received: u64 = families.iter().map(|family| family.received).sum();
        // GoBGP sends our own block back.
        ensure!((wanted..=wanted + 1).contains(&received), "{received}");
        Ok(())
    })?;
    world.wait_within(LONG, "the large table in the kernel", || {
        let count = world.kernel()?.lines().count() as u64;
        ensure!(count == wanted, "{count}");
        Ok(())
    })?;
    world.in_kernel("20.0.0.0/24", 2)?;
    world.in_kernel("21.134.159.0/24", 2)
}

fn large_in(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.router.networks = table();
    plan.router.networks.push(net(NETWORK));
    let mut world = plan.launch()?;
    wait_large(&world)?;
    // All of it is taken back.
    world.router.kill();
    world.router.config().networks = vec![net(NETWORK)];
    world.router.start()?;
    world.wait_sessions()?;
    world.wait_within(LONG, "the large table has left the kernel", || {
        let count = world.kernel()?.lines().count();
        ensure!(count == 1, "{count}");
        Ok(())
    })
}

/// A third station announces the table to the node, which passes it on.
fn large_out(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.agent.peers[0].extra += "export = \"all\"\n";
    let mut other = Peer::new("third", &v4(3).to_string(), OTHER_AS);
    other.extra = "passive = true\nhold_time = \"180s\"\n".into();
    plan.agent.peers.push(other);
    let world = plan.launch()?;
    let mut third = third(&world, &Identity::new(v4(3), OTHER_AS), v4(1))?;
    let attributes = [
        raw::origin(0),
        raw::as_path(&[OTHER_AS]),
        raw::next_hop(v4(3)),
    ]
    .concat();
    for nets in table().chunks(900) {
        let nlri: Vec<u8> = nets.iter().flat_map(|net| raw::net_nlri(*net)).collect();
        third.send(&raw::update(&[], &attributes, &nlri))?;
    }
    // And the node's block.
    let wanted = LARGE as usize + 1;
    world.wait_within(LONG, "the large table at the router", || {
        let count = world.router.received(v4(1).into())?;
        ensure!(count == wanted, "{count}");
        Ok(())
    })?;
    if world.kind == Kind::Exabgp {
        // Its events of so many withdrawals would take long to read.
        return Ok(());
    }
    third.close();
    world.wait_within(LONG, "the large table is taken back", || {
        let count = world.router.received(v4(1).into())?;
        ensure!(count == 1, "{count}");
        Ok(())
    })
}

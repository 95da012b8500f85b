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
interop!(add_path_out: super::add_path_out; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP has no table in which two paths could stand.");
interop!(large_in: super::large_in; bird frr gobgp openbgpd exabgp);
interop!(large_out: super::large_out; bird frr gobgp openbgpd exabgp);

const OTHER_AS: u32 = 64999;
/// How long a large table may take.
const LONG: Duration = Duration::from_secs(50);
const LARGE: u32 = 100_000;

/// A session as the third station, from a namespace of its own.
fn third(world: &World, identity: &Identity, to: Ipv4Addr) -> Result<RawPeer> {
    further(world, "third", 3, identity, to)
}

fn further(
    world: &World,
    name: &str,
    number: u8,
    identity: &Identity,
    to: Ipv4Addr,
) -> Result<RawPeer> {
    let station = world.station(name, number)?;
    let remote = (IpAddr::V4(to), 179).into();
    station.enter(|| RawPeer::establish(identity, remote))?
}

/// What a further station says of its routes.
fn own_attributes(asn: u32, number: u8) -> Vec<u8> {
    [
        raw::origin(0),
        raw::as_path(&[asn]),
        raw::next_hop(v4(number)),
    ]
    .concat()
}

/// Two further stations announce one prefix to the node, which passes both paths on.
fn add_path_out(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.agent.peers[0].extra += "export = \"all\"\nadd_path = \"send\"\n";
    plan.router.neighbors[0].add_path = AddPath::Receive;
    for (name, number) in [("third", 3), ("fourth", 4)] {
        let asn = OTHER_AS + u32::from(number);
        let mut other = Peer::new(name, &v4(number).to_string(), asn);
        other.extra = "passive = true\nhold_time = \"180s\"\n".into();
        plan.agent.peers.push(other);
    }
    let world = plan.launch()?;
    let prefix = "10.61.0.0/24";
    let mut stations = Vec::new();
    for (name, number) in [("third", 3), ("fourth", 4)] {
        let asn = OTHER_AS + u32::from(number);
        let identity = Identity::new(v4(number), asn);
        let mut station = further(&world, name, number, &identity, v4(1))?;
        let attributes = own_attributes(asn, number);
        station.send(&raw::update(&[], &attributes, &raw::nlri(prefix)))?;
        stations.push(station);
    }
    let paths = |count: usize| {
        world.wait(&format!("{count} paths at the router"), || {
            let paths = world.router.paths(net(prefix))?;
            ensure!(paths.len() == count, "{paths:?}");
            Ok(paths)
        })
    };
    let both = paths(2)?;
    ensure!(both[0].as_path != both[1].as_path, "{both:?}");
    stations[0].send(&raw::update(&raw::nlri(prefix), &[], &[]))?;
    let left = paths(1)?;
    ensure!(left[0].as_path.contains("65003"), "{left:?}");
    stations[1].send(&raw::update(&raw::nlri(prefix), &[], &[]))?;
    paths(0).map(drop)
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
    let attributes = own_attributes(OTHER_AS, 3);
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
    })
}

fn large_in(plan: Plan) -> Result<()> {
    match plan.kind {
        Kind::Bird | Kind::Exabgp => own_table(plan),
        // Their configurations take such a table late or not at all.
        Kind::Frr | Kind::Gobgp | Kind::Openbgpd => passed_table(plan),
    }
}

/// The router passes on what a third station announces to it.
fn passed_table(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.router.networks = vec![net(NETWORK)];
    plan.router.neighbors.push(Neighbor {
        hold_time: 180,
        passive: true,
        ..Neighbor::new(v4(2).into(), v4(3).into(), OTHER_AS)
    });
    let mut world = plan.launch()?;
    let mut third = third(&world, &Identity::new(v4(3), OTHER_AS), v4(2))?;
    announce_table(&mut third, OTHER_AS, 3)?;
    wait_large(&world)?;
    third.close();
    wait_taken_back(&mut world)
}

fn announce_table(station: &mut RawPeer, asn: u32, number: u8) -> Result<()> {
    let attributes = own_attributes(asn, number);
    for nets in table().chunks(900) {
        let nlri: Vec<u8> = nets.iter().flat_map(|net| raw::net_nlri(*net)).collect();
        station.send(&raw::update(&[], &attributes, &nlri))?;
    }
    Ok(())
}

fn wait_taken_back(world: &mut World) -> Result<()> {
    world.wait_within(LONG, "the large table has left the kernel", || {
        let count = world.kernel()?.lines().count();
        ensure!(count == 1, "{count}");
        Ok(())
    })
}

fn own_table(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.router.networks = table();
    plan.router.networks.push(net(NETWORK));
    let mut world = plan.launch()?;
    wait_large(&world)?;
    world.in_kernel("20.0.0.0/24", 2)?;
    world.in_kernel("21.134.159.0/24", 2)?;
    // All of it is taken back.
    world.router.kill();
    world.router.config().networks = vec![net(NETWORK)];
    world.router.start()?;
    world.wait_sessions()?;
    wait_taken_back(&mut world)
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
    announce_table(&mut third, OTHER_AS, 3)?;
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

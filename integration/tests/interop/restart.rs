//! Graceful restart (RFC 4724): either side is killed and comes back, and nothing is forgotten.

use std::net::IpAddr;

use agentd_proto::v1;
use anyhow::{Result, ensure};
use integration::lab::monitor::KernelMonitor;
use integration::lab::raw_peer::{Identity, RawPeer};
use integration::lab::router::Neighbor;

use crate::world::{BLOCK, BLOCK6, NETWORK, NETWORK6, Plan, World, net, v4, v6};

interop!(restart_peer: super::restart_peer; bird frr gobgp exabgp;
    no openbgpd: "OpenBGPD announces no restart of its own: it only helps others to restart.");
interop!(restart_agent: super::restart_agent; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP has no table in which routes could stay.");

fn graceful(plan: &mut Plan) {
    plan.for_peers("graceful_restart = { restart_time = \"60s\" }");
    for neighbor in &mut plan.router.neighbors {
        neighbor.graceful_restart = Some(60);
    }
}

fn wait_down(world: &World) -> Result<()> {
    world.wait("the node sees the end of the sessions", || {
        for peer in world.agent.client().peers()? {
            ensure!(peer.state() != v1::PeerState::Established, "{}", peer.name);
        }
        Ok(())
    })
}

fn wait_end_of_rib(world: &World) -> Result<()> {
    world.wait("End-of-RIB", || {
        for peer in world.agent.client().peers()? {
            let families = peer.families.iter().filter(|family| family.negotiated);
            for family in families {
                ensure!(family.end_of_rib_received, "{}: {family:?}", peer.name);
            }
        }
        Ok(())
    })
}

fn restart_peer(mut plan: Plan) -> Result<()> {
    graceful(&mut plan);
    let mut world = plan.start()?;
    world.wait_learned()?;
    wait_end_of_rib(&world)?;
    let monitor = KernelMonitor::start(&world.lab, world.agent.namespace(), &["route", "nexthop"])?;
    world.router.kill();
    wait_down(&world)?;
    world.in_kernel(NETWORK, 2)?;
    world.in_kernel(NETWORK6, 2)?;
    world.router.start()?;
    world.wait_sessions()?;
    wait_end_of_rib(&world)?;
    world.wait_learned()?;
    let changes = monitor.changes();
    let lost: Vec<_> = changes
        .iter()
        .filter(|line| line.starts_with("Deleted") && line.contains("proto 71"))
        .collect();
    ensure!(lost.is_empty(), "{lost:?}");

    // What it does not announce again leaves with its End-of-RIB.
    world.router.kill();
    wait_down(&world)?;
    world.router.config().networks = vec![net(NETWORK)];
    world.router.start()?;
    world.wait_sessions()?;
    world.wait("what is gone leaves the kernel", || {
        ensure!(!world.kernel()?.contains(NETWORK6), "still there");
        Ok(())
    })?;
    world.in_kernel(NETWORK, 2)
}

/// A session with the router from a third station, to see what it tells others.
fn observer(world: &World) -> Result<RawPeer> {
    let station = world.station("observer", 3)?;
    let identity = Identity::new(v4(3), 64999);
    let remote = (IpAddr::V4(v4(2)), 179).into();
    station.enter(|| RawPeer::establish(&identity, remote))?
}

fn restart_agent(mut plan: Plan) -> Result<()> {
    graceful(&mut plan);
    plan.router.neighbors.push(Neighbor {
        hold_time: 180,
        passive: true,
        ..Neighbor::new(v4(2).into(), v4(3).into(), 64999)
    });
    let mut world = plan.start()?;
    world.wait_announced()?;
    let mut observer = observer(&world)?;
    observer.until("the node's block from the router", |peer| {
        peer.table.has(BLOCK)
    })?;
    for _ in 0..2 {
        world.agent.kill()?;
        world.wait("the router sees the end of the sessions", || {
            for node in [IpAddr::V4(v4(1)), v6(1).into()] {
                ensure!(!world.router.is_established(node)?, "{node} is up");
            }
            Ok(())
        })?;
        world.path(BLOCK)?;
        world.path(BLOCK6)?;
        world.agent.start()?;
        world.wait_sessions()?;
        world.wait("fresh routes at the router", || {
            for block in [BLOCK, BLOCK6] {
                let path = world.path(block)?;
                ensure!(!path.stale, "{path:?}");
            }
            Ok(())
        })?;
    }
    observer.drain()?;
    ensure!(observer.table.has(BLOCK), "withdrawn");
    ensure!(
        observer.table.withdrawn == 0,
        "{} withdrawals",
        observer.table.withdrawn
    );
    Ok(())
}

//! How sessions come up: both sides dial at once, sessions flap.

use std::time::Duration;

use agentd_proto::v1;
use anyhow::{Context as _, Result, ensure};
use integration::lab::netns::Netns;
use integration::lab::router::Kind;
use nix::sys::signal::Signal;

use crate::world::{NETWORK, PEER, Plan, World, v4};

interop!(simultaneous_open: super::simultaneous_open; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP does not listen for a neighbor that it dials.");
interop!(storm: super::storm; bird frr gobgp openbgpd exabgp);

/// How often the connections collide. GoBGP dials only every ten seconds.
fn rounds(kind: Kind) -> u64 {
    if kind == Kind::Gobgp { 2 } else { 4 }
}

/// Drops what opens a connection, in both directions, until [`reopen`].
fn close_door(namespace: &Netns) -> Result<()> {
    let rule = "table inet door { chain in { type filter hook input priority 0; tcp dport 179 tcp \
                flags & (syn|ack) == syn drop; }; chain out { type filter hook output priority 0; \
                tcp dport 179 tcp flags & (syn|ack) == syn drop; }; }";
    namespace.output(["nft", rule]).map(drop)
}

fn reopen(namespace: &Netns) -> Result<()> {
    namespace.show("nft delete table inet door").map(drop)
}

fn is_dialling(namespace: &Netns) -> Result<()> {
    let text = namespace.show("ss -Htn state syn-sent ( dport = :179 )")?;
    ensure!(!text.is_empty(), "{} does not dial", namespace.name());
    Ok(())
}

/// Both dial while nothing gets through; both are stopped; both connections are made by the
/// kernels; both go on, and each finds one connection it dialled and one it accepted.
fn collide(world: &World) -> Result<()> {
    let node = world.agent.namespace();
    close_door(&world.outside)?;
    if world.kind == Kind::Gobgp {
        // After a reset it would not dial for half a minute.
        world.router.kill();
        world.router.start()?;
    } else {
        world.router.reset(v4(1).into())?;
    }
    let dialling = world.wait("both dial", || {
        is_dialling(node)?;
        is_dialling(&world.outside)
    });
    let agent = world.agent.process()?;
    agent.signal(Signal::SIGSTOP)?;
    world.router.freeze(true)?;
    reopen(&world.outside)?;
    // A dial may have been given up just before it was stopped; then there is no collision in this
    // round, and the session must come up all the same.
    let both = dialling.and_then(|()| {
        world.wait_within(Duration::from_secs(4), "two connections", || {
            let count = World::connections(node)?;
            ensure!(count >= 2, "{count}");
            Ok(())
        })
    });
    agent.signal(Signal::SIGCONT)?;
    world.router.freeze(false)?;
    both
}

fn simultaneous_open(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.for_peers("graceful_restart = false");
    let rounds = rounds(plan.kind);
    let mut world = plan.start()?;
    let mut collisions = 0;
    for round in 1..=rounds {
        collisions += u32::from(collide(&world).is_ok());
        world.wait_sessions()?;
        world.wait("one connection is left", || {
            for namespace in [world.agent.namespace(), &world.outside] {
                let count = World::connections(namespace)?;
                ensure!(count == 1, "{count} in {}", namespace.name());
            }
            Ok(())
        })?;
        world.wait("the network in the kernel", || world.in_kernel(NETWORK, 2))?;
        let count = world
            .peer(PEER)?
            .counters
            .context("counters")?
            .established_count;
        // FRR takes down the one that was left, now and then ("No AFI/SAFI activated for peer").
        let most = if world.kind == Kind::Frr { 3 } else { 1 } * round + 1;
        ensure!(
            (round + 1..=most).contains(&count),
            "{count} sessions after {round} rounds"
        );
    }
    ensure!(collisions > 0, "no collision in {rounds} rounds");
    Ok(())
}

fn storm(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.for_peers("graceful_restart = false");
    let mut world = plan.start()?;
    for _ in 0..5 {
        world.router.reset(v4(1).into())?;
        world.wait("the session has ended", || {
            let peer = world.peer(PEER)?;
            let counters = peer.counters.context("counters")?;
            ensure!(
                peer.state() != v1::PeerState::Established || counters.dropped_count > 0,
                "it is up"
            );
            Ok(())
        })?;
    }
    // And processes that die and come back.
    for _ in 0..2 {
        world.router.kill();
        world.router.start()?;
    }
    world.wait_sessions()?;
    world.wait("the network in the kernel", || world.in_kernel(NETWORK, 2))?;
    // It is up to stay.
    let count = |world: &World| -> Result<u64> {
        Ok(world
            .peer(PEER)?
            .counters
            .context("counters")?
            .dropped_count)
    };
    let before = count(&world)?;
    world.wait("a keepalive after that", || {
        let counters = world.peer(PEER)?.counters.context("counters")?;
        ensure!(counters.messages_received > 3, "{counters:?}");
        Ok(())
    })?;
    ensure!(count(&world)? == before, "it has ended again");
    Ok(())
}

//! Route refresh (RFC 2918, RFC 7313).

use anyhow::{Context as _, Result, ensure};

use crate::world::{BLOCK, BLOCK6, PEER, PEER6, Plan, v4, v6};

interop!(refresh_asked: super::refresh_asked; bird frr openbgpd exabgp;
    no gobgp: "GoBGP keeps what it received, applies its policy to that, and never asks.");

interop!(refresh_sent: super::refresh_sent; bird frr gobgp;
    no openbgpd: "OpenBGPD counts the request and sends nothing that has not changed.";
    no exabgp: "ExaBGP ends the session instead: it cannot write the mark that begins an enhanced refresh (a TypeError).");

/// We ask; the peer sends its routes again, and the session stays.
fn refresh_sent(plan: Plan) -> Result<()> {
    let world = plan.start()?;
    let sessions = world.wait_settled()?;
    world.wait_learned()?;
    for peer in [PEER, PEER6] {
        let updates = || -> Result<u64> {
            let counters = world.peer(peer)?.counters.context("counters")?;
            Ok(counters.updates_received)
        };
        let before = updates()?;
        world
            .agent
            .agentctl(&["peer", "reset", peer, "--soft-in"])?;
        world.wait("the routes come again", || {
            let now = updates()?;
            ensure!(now > before, "{now} UPDATEs, as before");
            Ok(())
        })?;
    }
    world.same_sessions(&sessions)?;
    world.wait_learned()
}

fn refresh_asked(plan: Plan) -> Result<()> {
    let world = plan.start()?;
    let sessions = world.wait_settled()?;
    world.wait_announced()?;
    for (peer, node, block) in [(PEER, v4(1).into(), BLOCK), (PEER6, v6(1).into(), BLOCK6)] {
        let updates =
            || -> Result<u64> { Ok(world.peer(peer)?.counters.context("counters")?.updates_sent) };
        let before = updates()?;
        world.router.refresh(node)?;
        world.wait("the routes are sent again", || {
            let now = updates()?;
            ensure!(now > before, "{now} UPDATEs, as before");
            Ok(())
        })?;
        world.path(block)?;
    }
    world.same_sessions(&sessions)
}

//! Roles (RFC 9234).

use anyhow::{Result, ensure};

use crate::world::{PEER, Plan};

interop!(roles: super::roles; bird frr openbgpd;
    no gobgp: "GoBGP 3 and ExaBGP 4 have no roles.";
    no exabgp: "GoBGP 3 and ExaBGP 4 have no roles.");

/// The IPv4 session has roles that fit, the IPv6 session roles that do not.
fn roles(mut plan: Plan) -> Result<()> {
    plan.for_peers("role = \"customer\"");
    plan.router.neighbors[0].role = Some("provider");
    plan.router.neighbors[1].role = Some("customer");
    let world = plan.launch()?;
    world.wait("the session with roles that fit", || {
        let peer = world.peer(PEER)?;
        ensure!(
            peer.state() == agentd_proto::v1::PeerState::Established,
            "{}",
            peer.reason
        );
        Ok(())
    })?;
    world.wait("the block over the session with roles that fit", || {
        world.path(crate::world::BLOCK).map(drop)
    })?;
    world.wait("the refusal of the others, Role Mismatch", || {
        let peer = world.peer(crate::world::PEER6)?;
        let told = [
            &peer.last_notification_sent,
            &peer.last_notification_received,
        ];
        let mismatch = told
            .into_iter()
            .flatten()
            .any(|last| (last.code, last.subcode) == (2, 11));
        ensure!(mismatch, "{told:?}");
        Ok(())
    })
}

//! Sessions and what is carried over them.

use anyhow::{Context as _, Result, ensure};

use crate::world::{
    BLOCK, BLOCK6, NETWORK, NETWORK6, NODE_AS, PEER, PEER6, Plan, ROUTER_AS, net, v4, v6,
};

interop!(sessions: super::sessions; bird frr gobgp openbgpd exabgp);
interop!(one_session: super::one_session; bird frr gobgp exabgp;
    no openbgpd: "OpenBGPD announces its IPv6 networks with the next hop ::1 over an IPv4 session.");
interop!(four_octet_as: super::four_octet_as; bird frr gobgp openbgpd exabgp);
interop!(communities: super::communities; bird frr gobgp openbgpd exabgp);

fn sessions(plan: Plan) -> Result<()> {
    let mut world = plan.start()?;
    let sessions = world.wait_settled()?;
    world.wait_learned()?;
    world.wait_announced()?;
    for (block, node) in [(BLOCK, v4(1).into()), (BLOCK6, v6(1).into())] {
        let path = world.path(block)?;
        ensure!(path.from == Some(node), "{path:?}");
        ensure!(
            path.next_hops.is_empty() || path.next_hops.contains(&node),
            "{path:?}"
        );
        ensure!(path.as_path == NODE_AS.to_string(), "{path:?}");
    }
    // What comes and goes while the sessions are up.
    for prefix in ["10.61.0.0/16", "fd61::/48"] {
        world.router.announce(net(prefix))?;
        world.wait("a new network in the kernel", || world.in_kernel(prefix, 2))?;
        world.router.withdraw(net(prefix))?;
        world.wait("a withdrawn network leaves the kernel", || {
            ensure!(!world.kernel()?.contains(prefix), "still there");
            Ok(())
        })?;
    }
    world.in_kernel(NETWORK, 2)?;
    world.in_kernel(NETWORK6, 2)?;
    for peer in [PEER, PEER6] {
        let counters = world.peer(peer)?.counters.context("no counters")?;
        ensure!(counters.treat_as_withdraw == 0, "{counters:?}");
        ensure!(counters.attributes_discarded == 0, "{counters:?}");
    }
    world.same_sessions(&sessions)
}

fn one_session(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.agent.peers[0].extra = String::new();
    plan.router.neighbors[0].ipv6 = true;
    let world = plan.start()?;
    world.wait_learned()?;
    world.wait_announced()?;
    let path = world.path(BLOCK6)?;
    ensure!(
        path.next_hops.is_empty() || path.next_hops.contains(&v6(1).into()),
        "{path:?}"
    );
    Ok(())
}

fn four_octet_as(mut plan: Plan) -> Result<()> {
    let (node, router) = (4_200_000_001, 4_200_000_002);
    plan.agent.asn = node;
    plan.router.asn = router;
    for peer in &mut plan.agent.peers {
        peer.asn = router;
    }
    for neighbor in &mut plan.router.neighbors {
        neighbor.asn = node;
    }
    let world = plan.start()?;
    world.wait_learned()?;
    world.wait_announced()?;
    let path = world.path(BLOCK)?;
    ensure!(path.as_path == node.to_string(), "{path:?}");
    let routes = world.adj_rib_in(PEER, NETWORK)?;
    ensure!(
        routes
            .iter()
            .all(|route| route.as_path == router.to_string()),
        "{routes:?}"
    );
    Ok(())
}

fn communities(mut plan: Plan) -> Result<()> {
    plan.ipv4_only();
    plan.router.neighbors[0].colored = vec![net(NETWORK)];
    plan.agent.extra = "[[bgp.originate]]\nprefix = \"203.0.113.0/24\"\n\
                        communities = [\"64512:300\", \"64999:1\"]\n\
                        large_communities = [\"4200000001:1:300\"]\n"
        .into();
    let world = plan.start()?;
    world.wait("the router's communities", || {
        let routes = world.adj_rib_in(PEER, NETWORK)?;
        let route = routes.first().context("no route")?;
        for community in [format!("{ROUTER_AS}:7"), format!("{ROUTER_AS}:1:2")] {
            ensure!(route.communities.contains(&community), "{route:?}");
        }
        Ok(())
    })?;
    world.wait("the node's communities", || {
        let path = world.path("203.0.113.0/24")?;
        ensure!(path.communities == ["64512:300", "64999:1"], "{path:?}");
        ensure!(path.large_communities == ["4200000001:1:300"], "{path:?}");
        Ok(())
    })
}

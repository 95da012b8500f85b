//! Route reflection (RFC 4456), and ADD-PATH (RFC 7911).

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::config::{AgentConfig, Peer};
use integration::lab::router::{self, Neighbor, RouterConfig};
use integration::lab::two_nodes;

use crate::world::{BLOCK, BLOCK6, NETWORK, NETWORK6, NODE_AS, PEER6, Plan, net, v4, v6};

interop!(reflector: super::reflector; bird frr gobgp openbgpd exabgp);
interop!(reflector_client: super::reflector_client; bird frr gobgp openbgpd;
    no exabgp: "ExaBGP passes nothing on.");

/// The node reflects between the router and a second one of the same kind.
fn reflector(mut plan: Plan) -> Result<()> {
    plan.internal();
    plan.agent.bgp += &format!("cluster_id = \"{}\"\n", v4(1));
    plan.for_peers("route_reflector_client = true");
    for (name, address, family) in [
        ("second", v4(3).to_string(), "ipv4"),
        ("second-v6", v6(3).to_string(), "ipv6"),
    ] {
        let mut peer = Peer::new(name, &address, NODE_AS);
        peer.extra = format!("families = [\"{family}-unicast\"]\nroute_reflector_client = true\n");
        plan.agent.peers.push(peer);
    }
    let station = plan.station("second", 3)?;
    let config = RouterConfig {
        asn: NODE_AS,
        router_id: v4(3),
        address: v4(3),
        address6: v6(3),
        networks: vec![net("10.62.0.0/24"), net("fd62::/64")],
        neighbors: vec![
            Neighbor::new(v4(3).into(), v4(1).into(), NODE_AS),
            Neighbor::new(v6(3).into(), v6(1).into(), NODE_AS),
        ],
        kernel: false,
    };
    let second = router::new(plan.kind, &plan.lab, &station, "second", config)?;
    second.start()?;
    let world = plan.start()?;
    world.wait_learned()?;
    // Each client has what the other announces, marked with where it comes from.
    for (router, prefix, station) in [
        (&world.router, "10.62.0.0/24", 3),
        (&world.router, "fd62::/64", 3),
        (&second, NETWORK, 2),
        (&second, NETWORK6, 2),
    ] {
        world.wait("the other client's network", || {
            let paths = router.paths(net(prefix))?;
            let path = paths.first().with_context(|| format!("no {prefix}"))?;
            ensure!(path.originator == Some(v4(station)), "{path:?}");
            ensure!(path.cluster_list == [v4(1)], "{path:?}");
            ensure!(path.as_path.is_empty(), "{path:?}");
            Ok(())
        })?;
    }
    world.wait_announced()
}

/// The router reflects between the node and another one.
fn reflector_client(mut plan: Plan) -> Result<()> {
    plan.internal();
    for (local, address) in [(v4(2).into(), v4(3).into()), (v6(2).into(), v6(3).into())] {
        plan.router
            .neighbors
            .push(Neighbor::new(local, address, NODE_AS));
    }
    for neighbor in &mut plan.router.neighbors {
        neighbor.reflector_client = true;
    }
    let config = AgentConfig {
        name: "other".into(),
        address: v4(3).to_string(),
        address6: Some(v6(3).to_string()),
        peers: plan.agent.peers.clone(),
        bgp: plan.agent.bgp.clone(),
        ..two_nodes::node_config(2)
    };
    let station = plan.station("other", 3)?;
    let other = Agent::new(&plan.lab, &station, config)?;
    let world = plan.start()?;
    other.start()?;
    world.wait("the other node's blocks in the kernel", || {
        world.in_kernel("10.244.2.0/26", 3)?;
        world.in_kernel("fd10:244::2:0/122", 3)
    })?;
    world.wait_learned()?;
    world.wait("the node's blocks at the other", || {
        for block in [BLOCK, BLOCK6] {
            let text = other.namespace().output([
                "ip",
                "route",
                "get",
                block.split('/').next().unwrap_or(block),
            ])?;
            ensure!(text.contains("dev eth0"), "{text}");
        }
        Ok(())
    })?;
    let routes = world.adj_rib_in(PEER6, "fd10:244::2:0/122")?;
    let route = routes.first().context("no route")?;
    ensure!(route.originator_id == v4(3).to_string(), "{route:?}");
    ensure!(route.cluster_list == [v4(2).to_string()], "{route:?}");
    Ok(())
}

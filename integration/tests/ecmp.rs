//! Routes over two routers of which one is lost: forwarding heals with one kernel operation, however
//! many routes there are, and none of them is written again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::config::{AgentConfig, Peer};
use integration::lab::monitor::KernelMonitor;
use integration::lab::netns::Netns;
use integration::lab::raw_peer::{Identity, RawPeer};
use integration::lab::{self, Lab, PATIENCE, raw_message as raw, single};

const ROUTES: u32 = 2000;
const TOR: u32 = 64513;
const ROUTERS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(192, 168, 26, 21),
    Ipv4Addr::new(192, 168, 26, 22),
];
/// Inside the first of the routes; both routers answer for it.
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 128, 0, 1));

fn prefix(number: u32) -> String {
    format!("{}/26", Ipv4Addr::from(0x0a80_0000 + (number << 6)))
}

/// A node, and two routers, each in a namespace of its own, on the bridge of a third.
struct Scene {
    agent: Agent,
    routers: Vec<Netns>,
}

fn scene(lab: &Lab) -> Result<Scene> {
    let node = single::node_namespace(lab)?;
    let switch = lab.namespace("switch")?;
    switch.ip(["link", "add", "br0", "type", "bridge"])?;
    switch.ip(["link", "set", "br0", "up"])?;
    // The node's second interface leads to the routers; the first is not needed.
    node.ip(["link", "delete", "eth0"])?;
    lab.link((&switch, "node"), (&node, "eth0"))?;
    lab.address(&node, "eth0", "192.168.26.11/24")?;
    switch.ip(["link", "set", "node", "master", "br0"])?;
    let mut routers = Vec::new();
    for (number, address) in ROUTERS.iter().enumerate() {
        let router = lab.namespace(&format!("router{number}"))?;
        let port = format!("port{number}");
        lab.link((&switch, &port), (&router, "eth0"))?;
        switch.ip(["link", "set", &port, "master", "br0"])?;
        lab.address(&router, "eth0", &format!("{address}/24"))?;
        lab.address(&router, "lo", &format!("{BEHIND}/32"))?;
        routers.push(router);
    }
    let mut config = AgentConfig {
        address6: None,
        ..single::config()
    };
    config.pools.retain(|pool| !pool.cidr.contains(':'));
    config.claim.retain(|claim| !claim.contains(':'));
    for (number, address) in ROUTERS.iter().enumerate() {
        let mut peer = Peer::new(&format!("router{number}"), &address.to_string(), TOR);
        peer.extra =
            "passive = true\nhold_time = \"90s\"\nimport = \"all\"\ngraceful_restart = false"
                .into();
        config.peers.push(peer);
    }
    let agent = Agent::new(lab, &node, config)?;
    agent.start()?;
    Ok(Scene { agent, routers })
}

impl Scene {
    /// A session of a router that announces all routes.
    fn connect(&self, which: usize) -> Result<RawPeer> {
        let mut identity = Identity::new(ROUTERS[which], TOR);
        identity.families = vec![1];
        identity.hold_time = 90;
        let speaker = SocketAddr::from(([192, 168, 26, 11], 179));
        let mut peer = self.routers[which].enter(|| RawPeer::establish(&identity, speaker))??;
        let attributes = [
            raw::origin(0),
            raw::as_path(&[TOR]),
            raw::next_hop(ROUTERS[which]),
        ]
        .concat();
        for from in (0..ROUTES).step_by(500) {
            let numbers = from..ROUTES.min(from + 500);
            let nlri: Vec<u8> = numbers.flat_map(|n| raw::nlri(&prefix(n))).collect();
            peer.send(&raw::update(&[], &attributes, &nlri))?;
        }
        peer.send(&raw::update(&[], &[], &[]))?;
        Ok(peer)
    }

    /// What stands in the kernel: routes of agentd-bgp, and routers that the last of them leads to.
    fn routes(&self) -> Result<(usize, Vec<String>)> {
        let text = self.agent.namespace().ip_route("-4")?;
        let ours = text.lines().filter(|line| line.contains("agentd-bgp"));
        let last = self.agent.namespace().output([
            "ip",
            "-oneline",
            "route",
            "show",
            &prefix(ROUTES - 1),
        ])?;
        let hops = ROUTERS.iter().map(Ipv4Addr::to_string);
        let hops = hops.filter(|hop| last.contains(hop.as_str())).collect();
        Ok((ours.count(), hops))
    }

    fn wait_for_routers(&self, lab: &Lab, count: usize) -> Result<()> {
        lab.wait_for("all routes with their next hops", PATIENCE, || {
            let (routes, hops) = self.routes()?;
            let wanted = usize::try_from(ROUTES)?;
            ensure!(
                routes == wanted && hops.len() == count,
                "{routes} routes, {hops:?}"
            );
            let status = self.agent.client().status()?;
            let dataplane = status.dataplane.context("dataplane")?;
            ensure!(dataplane.pending == 0, "{} pending", dataplane.pending);
            Ok(())
        })
    }

    fn writes(&self) -> Result<u64> {
        let status = self.agent.client().status()?;
        Ok(status.dataplane.context("dataplane")?.writes)
    }
}

#[test]
fn the_loss_of_one_of_two_routers_is_one_kernel_operation() {
    lab::run(|lab| {
        let scene = scene(lab)?;
        let first = scene.connect(0)?;
        let second = scene.connect(1)?;
        scene.wait_for_routers(lab, 2)?;
        lab::ping::ping_all(scene.agent.namespace(), BEHIND, 3)?;
        let before = scene.writes()?;
        let monitor = KernelMonitor::start(lab, scene.agent.namespace(), &["route", "nexthop"])?;

        // The connection ends without a word.
        second.reset()?;
        scene.wait_for_routers(lab, 1)?;
        scene.agent.wait_peers(1)?;
        // What would be written route by route has had its time.
        std::thread::sleep(Duration::from_millis(300));
        ensure!(
            scene.writes()? - before == 1,
            "{} operations",
            scene.writes()? - before
        );
        let changes = monitor.changes();
        ensure!(changes.len() <= 3, "{changes:#?}");
        // The router itself is gone as well: all packets take the other way.
        scene.routers[1].ip(["link", "set", "eth0", "down"])?;
        lab::ping::ping_all(scene.agent.namespace(), BEHIND, 20)?;

        // A restart knows the group by its content.
        scene.agent.kill()?;
        scene.agent.start()?;
        drop(first);
        let first = scene.connect(0)?;
        scene.wait_for_routers(lab, 1)?;
        let changes = monitor.changes();
        ensure!(changes.len() <= 3, "{changes:#?}");

        // It comes back, and is used again.
        scene.routers[1].ip(["link", "set", "eth0", "up"])?;
        let second = scene.connect(1)?;
        scene.wait_for_routers(lab, 2)?;
        lab::ping::ping_all(scene.agent.namespace(), BEHIND, 20)?;
        // And is lost again.
        let before = scene.writes()?;
        second.reset()?;
        scene.wait_for_routers(lab, 1)?;
        ensure!(scene.writes()? - before == 1);
        drop(first);
        Ok(())
    });
}

//! Several paths of a prefix (RFC 7911) and next hops of the other family (RFC 8950, RFC 2545), with
//! real BIRDs, down to packets.

use anyhow::{Context as _, Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::bird::Bird;
use integration::lab::config::{AgentConfig, BirdConfig, BirdPeer, Peer};
use integration::lab::netns::Netns;
use integration::lab::raw_peer::{Identity, RawPeer};
use integration::lab::{self, Lab, PATIENCE, raw_message as raw, single, two_nodes};

const NODE: u32 = 64512;
const TOR: u32 = 64513;
/// Announced by both routers.
const SHARED: &str = "10.244.100.0/26";
/// Announced twice by the collector.
const TWICE: &str = "10.244.101.0/26";

/// A router on a link of its own, number `number`, beside the node.
fn linked(lab: &Lab, node: &Netns, name: &str, number: u8) -> Result<Netns> {
    let namespace = lab.namespace(name)?;
    let link = format!("eth{number}");
    lab.link((&namespace, "eth0"), (node, &link))?;
    lab.address(&namespace, "eth0", &format!("10.1.{number}.1/24"))?;
    lab.address(&namespace, "eth0", &format!("fd00:1:{number}::1/64"))?;
    lab.address(node, &link, &format!("10.1.{number}.2/24"))?;
    lab.address(node, &link, &format!("fd00:1:{number}::2/64"))?;
    Ok(namespace)
}

/// A BIRD on link `number` with one session to the node, over IPv4.
fn router(number: u8, asn: u32, channels: &str, extra: String) -> BirdConfig {
    BirdConfig {
        router_id: format!("10.1.{number}.1"),
        address: format!("10.1.{number}.1"),
        address6: format!("fd00:1:{number}::1"),
        asn,
        peers: vec![BirdPeer {
            name: "node".into(),
            address: format!("10.1.{number}.2"),
            asn: NODE,
            extra: channels.into(),
            families: Vec::new(),
        }],
        extra,
    }
}

fn announces(prefix: &str) -> String {
    format!("protocol static {{ ipv4; route {prefix} blackhole; }}")
}

/// Next hops of the paths of a prefix that BIRD has from the node.
fn paths_at(bird: &Bird, prefix: &str) -> Result<Vec<String>> {
    let text = bird.birdc(&format!("show route all protocol node for {prefix}"))?;
    let lines = text.lines().map(str::trim);
    let mut hops: Vec<_> = lines
        .filter_map(|line| line.strip_prefix("BGP.next_hop: "))
        .map(String::from)
        .collect();
    hops.sort();
    Ok(hops)
}

fn kernel_route(namespace: &Netns, prefix: &str) -> Result<String> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let text = namespace.output(["ip", "-oneline", family, "route", "show", prefix])?;
    ensure!(!text.trim().is_empty(), "no route to {prefix}");
    Ok(text)
}

#[test]
fn several_paths_of_a_prefix_go_both_ways_between_a_node_and_bird() {
    lab::run(|lab| {
        let node = single::node_namespace(lab)?;
        let names = ["tor1", "tor2", "collector"];
        let mut places = Vec::new();
        for (number, name) in (1u8..).zip(names) {
            places.push(linked(lab, &node, name, number)?);
        }
        let plain = "ipv4 { import all; export all; };";
        let one = router(1, TOR, plain, announces(SHARED));
        let one = Bird::start(lab, &places[0], "tor1", &one)?;
        let two = router(2, TOR, plain, announces(SHARED));
        let _two = Bird::start(lab, &places[1], "tor2", &two)?;
        // Internal, with two ways of its own to a prefix.
        let twice = format!(
            "protocol static {{ ipv4; route {TWICE} via 10.1.3.11; }}\n\
             protocol static {{ ipv4 {{ preference 150; }}; route {TWICE} via 10.1.3.12; }}"
        );
        let both = "ipv4 { import all; export where source = RTS_STATIC; gateway recursive; \
                    add paths on; };";
        let collector = router(3, NODE, both, twice);
        let collector = Bird::start(lab, &places[2], "collector", &collector)?;

        let mut config = single::config();
        for (number, asn) in [(1, TOR), (2, TOR), (3, NODE)] {
            let address = format!("10.1.{number}.1");
            let mut peer = Peer::new(names[number - 1], &address, asn);
            peer.extra = "families = [\"ipv4-unicast\"]\nexport = \"all\"".into();
            if number == 3 {
                peer.extra += "\nadd_path = { send = 4, receive = true }";
            }
            config.peers.push(peer);
        }
        let agent = Agent::new(lab, &node, config)?;
        agent.start()?;
        agent.wait_peers(3)?;

        lab.wait_for("both paths at the collector", PATIENCE, || {
            let hops = paths_at(&collector, SHARED)?;
            ensure!(hops == ["10.1.1.1", "10.1.2.1"], "{hops:?}");
            Ok(())
        })?;
        // A peer without ADD-PATH has one, from the other router.
        lab.wait_for("the collector's prefix at a router", PATIENCE, || {
            let hops = paths_at(&one, TWICE)?;
            ensure!(hops == ["10.1.1.2"], "{hops:?}");
            Ok(())
        })?;
        // BIRD may send them in two messages.
        lab.wait_for("both paths of the collector", PATIENCE, || {
            both_paths_are_taken(&agent)
        })?;

        // One goes: just that is taken back, the other stays what it was.
        let before = collector.updates_received("node")?;
        one.process().kill();
        lab.wait_for("the path of the second router alone", PATIENCE, || {
            let hops = paths_at(&collector, SHARED)?;
            ensure!(hops == ["10.1.2.1"], "{hops:?}");
            Ok(())
        })?;
        let updates = collector.updates_received("node")? - before;
        ensure!(updates == 1, "{updates} updates for one withdrawal");
        Ok(())
    });
}

/// What the collector has sent: two paths, told apart, and forwarded over both.
fn both_paths_are_taken(agent: &Agent) -> Result<()> {
    let routes = agent.client().routes(agentd_proto::v1::ListRoutesRequest {
        table: agentd_proto::v1::RouteTable::AdjRibIn.into(),
        peer: "collector".into(),
        ..Default::default()
    })?;
    let mut paths: Vec<_> = routes
        .iter()
        .filter(|route| route.prefix == TWICE)
        .collect();
    paths.sort_by_key(|route| route.path_id);
    ensure!(
        paths.len() == 2 && paths[0].path_id != paths[1].path_id,
        "{paths:?}"
    );
    let route = kernel_route(agent.namespace(), TWICE)?;
    for hop in ["10.1.3.11", "10.1.3.12"] {
        ensure!(route.contains(hop), "{route}");
    }
    let sent = agent.agentctl(&[
        "route",
        "list",
        "--table",
        "out",
        "--peer",
        "collector",
        SHARED,
    ])?;
    let lines = sent.lines().filter(|line| line.contains(SHARED));
    ensure!(lines.count() == 2, "{sent}");
    Ok(())
}

/// A node of the IPv6 underlay.
fn v6_node(lab: &Lab, bridge: &Netns, number: u8, port: &str) -> Result<Agent> {
    let (_, address6) = two_nodes::node_address(number);
    let mut peer = Peer::new("rr", "fd00:26::1", NODE);
    peer.extra = "families = [\"ipv4-unicast\"]".into();
    let config = AgentConfig {
        address: String::new(),
        peers: vec![peer],
        bgp: format!("router_id = \"192.0.2.{number}\"\nlisten = [\"[::]:179\"]"),
        ..two_nodes::node_config(number)
    };
    let namespace = lab.namespace(&config.name)?;
    lab.bridge_port((bridge, "br0"), port, (&namespace, "eth0"))?;
    lab.address(&namespace, "eth0", &format!("{address6}/64"))?;
    Agent::new(lab, &namespace, config)
}

#[test]
fn ipv4_workloads_reach_each_other_over_an_underlay_of_ipv6_alone() {
    // RFC 8950
    lab::run(|lab| {
        let rr = lab.namespace("rr")?;
        lab.bridge(&rr, "br0")?;
        lab.address(&rr, "br0", "fd00:26::1/64")?;
        let mut reflector = two_nodes::reflector_config();
        for (number, peer) in (1u8..).zip(&mut reflector.peers) {
            peer.address = two_nodes::node_address(number).1;
            peer.families = Vec::new();
            peer.extra = "rr client; ipv4 { import all; export all; gateway direct; \
                          extended next hop on; };"
                .into();
        }
        let reflector = Bird::start(lab, &rr, "bird", &reflector)?;
        let a = v6_node(lab, &rr, 1, "pa")?;
        let b = v6_node(lab, &rr, 2, "pb")?;
        for agent in [&a, &b] {
            agent.start()?;
            agent.wait_peers(1)?;
        }
        for (agent, other) in [(&a, 2u8), (&b, 1)] {
            let (_, address) = two_nodes::node_address(other);
            let prefix = format!("10.244.{other}.0/26");
            lab.wait_for("a route over IPv6", PATIENCE, || {
                let route = kernel_route(agent.namespace(), &prefix)?;
                let wanted = format!("via inet6 {address} dev eth0");
                ensure!(route.contains(&wanted), "{route}");
                Ok(())
            })?;
        }
        // 32 octets at the reflector: both addresses of the node.
        let text = reflector.birdc("show route all protocol node_a")?;
        ensure!(text.contains("BGP.next_hop: fd00:26::11 fe80::"), "{text}");

        let (one, two) = (a.workload("one")?, b.workload("two")?);
        for (from, to) in [(&one, &two), (&two, &one)] {
            let address = to.addresses().iter().copied().find(|a| a.is_ipv4());
            let address = address.context("an IPv4 address")?;
            lab::ping::ping_all(&from.namespace, address, 5)?;
        }
        Ok(())
    });
}

#[test]
fn ipv6_prefixes_over_an_ipv4_session_have_the_next_hop_of_the_link() {
    const FAR: &str = "fd10:244::100:0/122";
    lab::run(|lab| {
        let node = single::node_namespace(lab)?;
        let place = linked(lab, &node, "tor", 1)?;
        let channels = "ipv4 { import all; export all; }; ipv6 { import all; export all; };";
        let far = format!("protocol static {{ ipv6; route {FAR} blackhole; }}");
        let tor = Bird::start(lab, &place, "tor", &router(1, TOR, channels, far))?;
        // `address6` of the node is on another link: the router has no way there.
        let mut config = single::config();
        config.peers.push(Peer::new("tor", "10.1.1.1", TOR));
        let agent = Agent::new(lab, &node, config)?;
        agent.start()?;
        agent.wait_peers(1)?;
        lab.wait_for("the node's block, reachable", PATIENCE, || {
            let text = tor.birdc("show route protocol node table master6")?;
            ensure!(text.contains("via ") && text.contains(" on eth0"), "{text}");
            ensure!(!text.contains("unreachable"), "{text}");
            let all = tor.birdc("show route all protocol node table master6")?;
            ensure!(all.contains("BGP.next_hop: fd00:1:1::2 fe80::"), "{all}");
            Ok(())
        })?;
        lab.wait_for("the router's prefix in the kernel", PATIENCE, || {
            let route = kernel_route(&node, FAR)?;
            ensure!(route.contains("via fd00:1:1::1 dev eth1"), "{route}");
            Ok(())
        })?;
        // One hop, shown as one.
        let shown = agent.agentctl(&["route", "list", FAR])?;
        ensure!(shown.contains("fd00:1:1::1 (fe80::"), "{shown}");
        Ok(())
    });
}

#[test]
fn a_next_hop_that_is_link_local_in_both_halves_is_used_on_the_link_of_the_session() {
    // As FRR sends it where an interface has no global address.
    const FAR: &str = "fd10:244::100:0/122";
    lab::run(|lab| {
        let node = single::node_namespace(lab)?;
        let place = linked(lab, &node, "router", 1)?;
        let mut config = single::config();
        let mut peer = Peer::new("router", "10.1.1.1", TOR);
        peer.extra = "passive = true".into();
        config.peers.push(peer);
        let agent = Agent::new(lab, &node, config)?;
        agent.start()?;
        let session = place.enter(|| -> Result<RawPeer> {
            let identity = Identity::new("10.1.1.1".parse()?, TOR);
            let mut session = RawPeer::establish(&identity, "10.1.1.2:179".parse()?)?;
            let link_local = [&[0xfe, 0x80][..], &[0; 13], &[9]].concat();
            let attributes = [
                raw::origin(0),
                raw::as_path(&[TOR]),
                raw::mp_reach6(&[link_local.clone(), link_local].concat(), &raw::nlri(FAR)),
            ];
            session.send(&raw::update(&[], &attributes.concat(), &[]))?;
            Ok(session)
        })??;
        lab.wait_for("a route over the link", PATIENCE, || {
            let route = kernel_route(&node, FAR)?;
            ensure!(route.contains("via fe80::9 dev eth1"), "{route}");
            Ok(())
        })?;
        drop(session);
        Ok(())
    });
}

//! One agentd and one other router on a LAN, with a session for each family.
//!
//! ```text
//!   node 10.50.0.1, fd50::1        router 10.50.0.2, fd50::2        further ones 10.50.0.3 …
//!   agentd, AS 64512               the other daemon, AS 64513
//!      │ eth0                         │ eth0                           │ eth0
//!      └────────────────────────── lan (bridge) ───────────────────────┘
//! ```
//!
//! The node announces its blocks, the router two networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use agentd_proto::v1;
use anyhow::{Context as _, Result, ensure};
use integration::interop::{self, Outcome};
use integration::lab::agent::Agent;
use integration::lab::config::{AgentConfig, Peer};
use integration::lab::netns::Netns;
use integration::lab::router::{self, Kind, Neighbor, Path, Router, RouterConfig};
use integration::lab::{self, Lab, PATIENCE, two_nodes};
use ipnet::IpNet;

pub const NODE_AS: u32 = 64512;
pub const ROUTER_AS: u32 = 64513;
/// The node's blocks.
pub const BLOCK: &str = "10.244.1.0/26";
pub const BLOCK6: &str = "fd10:244::1:0/122";
/// The router's networks.
pub const NETWORK: &str = "10.60.0.0/24";
pub const NETWORK6: &str = "fd60::/64";
/// Names of the node's peers: one for each family of the transport.
pub const PEER: &str = "router";
pub const PEER6: &str = "router-v6";

/// The address of the station with this number on the LAN: 1 is the node, 2 the router.
pub fn v4(station: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 50, 0, station)
}

pub fn v6(station: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, station.into())
}

pub fn net(text: &str) -> IpNet {
    text.parse().expect("a constant")
}

fn kind_of(daemon: &str) -> Kind {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name().to_lowercase() == daemon)
        .unwrap_or_else(|| panic!("no daemon {daemon}"))
}

/// Runs a case and writes down that it passed.
pub fn run(capability: &str, daemon: &str, case: fn(Plan) -> Result<()>) {
    let kind = kind_of(daemon);
    interop::forget(capability, kind).expect("the directory of the results");
    lab::run(|lab| case(Plan::new(lab, kind)?));
    interop::record(capability, kind, Outcome::Passed).expect("the result is written");
}

pub fn not_supported(capability: &str, daemon: &str, reason: &'static str) {
    interop::record(capability, kind_of(daemon), Outcome::NotSupported(reason))
        .expect("the result is written");
}

/// What will be started. Cases alter the configurations before.
pub struct Plan {
    pub lab: Lab,
    pub kind: Kind,
    lan: Netns,
    pub agent: AgentConfig,
    pub router: RouterConfig,
}

/// Both at work.
pub struct World {
    pub lab: Lab,
    pub kind: Kind,
    lan: Netns,
    pub agent: Agent,
    pub router: Box<dyn Router>,
    /// The router's namespace.
    pub outside: Netns,
}

impl Plan {
    fn new(lab: &Lab, kind: Kind) -> Result<Self> {
        let lan = lab.namespace("lan")?;
        lab.bridge(&lan, "lan")?;
        let peer = |name: &str, address: IpAddr, family: &str| {
            let mut peer = Peer::new(name, &address.to_string(), ROUTER_AS);
            peer.extra = format!("families = [\"{family}-unicast\"]\n");
            peer
        };
        let neighbor = |local: IpAddr, address: IpAddr| Neighbor::new(local, address, NODE_AS);
        Ok(Self {
            lab: lab.clone(),
            kind,
            lan,
            agent: AgentConfig {
                name: "node".into(),
                address: v4(1).to_string(),
                address6: Some(v6(1).to_string()),
                peers: vec![
                    peer(PEER, v4(2).into(), "ipv4"),
                    peer(PEER6, v6(2).into(), "ipv6"),
                ],
                bgp: "import = \"all\"\nexport = \"blocks\"\n".into(),
                ..two_nodes::node_config(1)
            },
            router: RouterConfig {
                asn: ROUTER_AS,
                router_id: v4(2),
                address: v4(2),
                address6: v6(2),
                networks: vec![net(NETWORK), net(NETWORK6)],
                neighbors: vec![
                    neighbor(v4(2).into(), v4(1).into()),
                    neighbor(v6(2).into(), v6(1).into()),
                ],
                kernel: false,
            },
        })
    }

    /// Further lines for all peers of the node.
    pub fn for_peers(&mut self, lines: &str) {
        for peer in &mut self.agent.peers {
            peer.extra.push_str(lines);
            peer.extra.push('\n');
        }
    }

    /// Only the IPv4 session.
    pub fn ipv4_only(&mut self) {
        self.agent.peers.truncate(1);
        self.router.neighbors.truncate(1);
    }

    /// Makes both ends members of one AS.
    pub fn internal(&mut self) {
        self.router.asn = NODE_AS;
        for peer in &mut self.agent.peers {
            peer.asn = NODE_AS;
        }
    }

    /// A namespace on the LAN.
    pub fn station(&self, name: &str, number: u8) -> Result<Netns> {
        station(&self.lab, &self.lan, name, number)
    }

    /// Starts the router, then the node; waits for nothing else.
    pub fn launch(self) -> Result<World> {
        let outside = self.station("router", 2)?;
        let node = self.station("node", 1)?;
        let router = router::new(self.kind, &self.lab, &outside, "router", self.router)?;
        router.start()?;
        let agent = Agent::new(&self.lab, &node, self.agent)?;
        agent.start()?;
        Ok(World {
            lab: self.lab,
            kind: self.kind,
            lan: self.lan,
            agent,
            router,
            outside,
        })
    }

    /// Starts both and waits until all sessions are up.
    pub fn start(self) -> Result<World> {
        let mut world = self.launch()?;
        world.wait_sessions()?;
        Ok(world)
    }
}

fn station(lab: &Lab, lan: &Netns, name: &str, number: u8) -> Result<Netns> {
    let namespace = lab.namespace(name)?;
    lab.bridge_port((lan, "lan"), &format!("p{number}"), (&namespace, "eth0"))?;
    lab.address(&namespace, "eth0", &format!("{}/24", v4(number)))?;
    lab.address(&namespace, "eth0", &format!("{}/64", v6(number)))?;
    Ok(namespace)
}

impl World {
    pub fn station(&self, name: &str, number: u8) -> Result<Netns> {
        station(&self.lab, &self.lan, name, number)
    }

    /// What the agent says of a peer.
    pub fn peer(&self, name: &str) -> Result<v1::Peer> {
        let peers = self.agent.client().peers()?;
        peers
            .into_iter()
            .find(|peer| peer.name == name)
            .with_context(|| format!("no peer {name}"))
    }

    fn established(&self) -> Result<Vec<(String, u64)>> {
        let status = self.agent.client().status()?;
        let peers = self.agent.client().peers()?;
        ensure!(
            status.peers_established == peers.len() as u64,
            "{} are established",
            status.peers_established
        );
        Ok(peers
            .into_iter()
            .map(|peer| (peer.name, peer.counters.unwrap_or_default()))
            .map(|(name, counters)| (name, counters.established_count))
            .collect())
    }

    /// How often each session was established, once they stay: some routers end one right after the
    /// start, when both sides were just connecting.
    pub fn wait_settled(&self) -> Result<Vec<(String, u64)>> {
        self.wait("the sessions stay", || {
            let before = self.established()?;
            std::thread::sleep(Duration::from_secs(1));
            ensure!(self.established()? == before, "one was lost");
            Ok(before)
        })
    }

    /// Fails if a session was lost since.
    pub fn same_sessions(&self, before: &[(String, u64)]) -> Result<()> {
        let now = self.established()?;
        ensure!(now == before, "{before:?} before, {now:?} now");
        Ok(())
    }

    /// Waits until every session is up, seen from both ends.
    pub fn wait_sessions(&mut self) -> Result<()> {
        let neighbors: Vec<IpAddr> = self
            .router
            .config()
            .neighbors
            .iter()
            .map(|n| n.address)
            .collect();
        self.lab
            .wait_for("all sessions are established", PATIENCE, || {
                for peer in self.agent.client().peers()? {
                    ensure!(
                        peer.state() == v1::PeerState::Established,
                        "{}: {:?}, {}",
                        peer.name,
                        peer.state(),
                        peer.reason
                    );
                }
                for neighbor in neighbors
                    .iter()
                    .filter(|address| **address == v4(1) || **address == v6(1))
                {
                    ensure!(
                        self.router.is_established(*neighbor)?,
                        "{neighbor} at the router"
                    );
                }
                Ok(())
            })
    }

    pub fn wait<T>(&self, what: &str, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.lab.wait_for(what, PATIENCE, attempt)
    }

    /// Asks for a state that must come within a time of its own.
    pub fn wait_within<T>(
        &self,
        patience: Duration,
        what: &str,
        attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        self.lab.wait_for(what, patience, attempt)
    }

    /// The node's learned routes as the kernel has them, one line each.
    pub fn kernel(&self) -> Result<String> {
        let mut text = String::new();
        for family in ["-4", "-6"] {
            text += &self
                .agent
                .namespace()
                .output(["ip", "-oneline", family, "route", "show", "protocol", "71"])?;
        }
        Ok(text)
    }

    /// Whether the node's kernel has the prefix with a next hop at this station.
    pub fn in_kernel(&self, prefix: &str, station: u8) -> Result<()> {
        let text = self.kernel()?;
        let line = text
            .lines()
            .find(|line| line.split(' ').next() == Some(prefix))
            .with_context(|| format!("no {prefix} in:\n{text}"))?;
        let hop = if prefix.contains(':') {
            v6(station).to_string()
        } else {
            v4(station).to_string()
        };
        // An IPv6 next hop may also be the link-local address of the router.
        ensure!(
            line.contains(&format!("via {hop} ")) || line.contains("via fe80:"),
            "not via {hop}: {line}"
        );
        Ok(())
    }

    /// Waits until the kernel has the router's two networks.
    pub fn wait_learned(&self) -> Result<()> {
        self.wait("the router's networks in the node's kernel", || {
            self.in_kernel(NETWORK, 2)?;
            self.in_kernel(NETWORK6, 2)
        })
    }

    /// The one path of the router to a prefix.
    pub fn path(&self, prefix: &str) -> Result<Path> {
        let mut paths = self.router.paths(net(prefix))?;
        ensure!(
            paths.len() == 1,
            "{} paths to {prefix}: {paths:?}",
            paths.len()
        );
        Ok(paths.remove(0))
    }

    /// Waits until the router has the node's two blocks.
    pub fn wait_announced(&self) -> Result<()> {
        self.wait("the node's blocks at the router", || {
            self.path(BLOCK)?;
            self.path(BLOCK6).map(drop)
        })
    }

    /// What the node has received from a peer for a prefix, before policy.
    pub fn adj_rib_in(&self, peer: &str, prefix: &str) -> Result<Vec<v1::Route>> {
        let routes = self.agent.client().routes(v1::ListRoutesRequest {
            table: v1::RouteTable::AdjRibIn.into(),
            peer: peer.into(),
            prefix: prefix.into(),
        })?;
        Ok(routes
            .into_iter()
            .filter(|route| route.prefix == prefix)
            .collect())
    }

    /// Established TCP connections with port 179 at one end.
    pub fn connections(namespace: &Netns) -> Result<usize> {
        let text = namespace.show("ss -Htn state established ( sport = :179 or dport = :179 )")?;
        Ok(text.lines().count())
    }
}

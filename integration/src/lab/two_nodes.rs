//! The first topology: two agents with a BIRD between them as route reflector.
//!
//! ```text
//!      node-a 192.168.26.11          rr 192.168.26.1          node-b 192.168.26.12
//!      fd00:26::11                   fd00:26::1 (BIRD 2)      fd00:26::12
//!        │ eth0                        │ br0                    │ eth0
//!        └──────────── pa ─────────────┴────────── pb ──────────┘
//!      claims 10.244.1.0/24                                   claims 10.244.2.0/24
//!      and fd10:244::1:0/112                                  and fd10:244::2:0/112
//! ```
//!
//! All in AS 64512; the reflector lets next hops be, so traffic goes from node to node.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use super::agent::Agent;
use super::bird::Bird;
use super::config::{AgentConfig, BirdConfig, BirdPeer, Peer, Pool};
use super::{Lab, PATIENCE};

pub const ASN: u32 = 64512;
pub const REFLECTOR: &str = "192.168.26.1";

#[derive(Debug)]
pub struct TwoNodes {
    pub a: Agent,
    pub b: Agent,
    pub reflector: Bird,
    lab: Lab,
}

/// Addresses of the node with this number, 1 or 2.
pub fn node_address(number: u8) -> (String, String) {
    (
        format!("192.168.26.1{number}"),
        format!("fd00:26::1{number}"),
    )
}

/// The configuration of the node with this number, 1 or 2.
pub fn node_config(number: u8) -> AgentConfig {
    let (address, address6) = node_address(number);
    AgentConfig {
        name: if number == 1 { "node-a" } else { "node-b" }.to_owned(),
        address,
        address6: Some(address6),
        asn: ASN,
        pools: vec![
            Pool::new("default", "10.244.0.0/16", 26),
            Pool::new("default6", "fd10:244::/64", 122),
        ],
        claim: vec![
            format!("10.244.{number}.0/24"),
            format!("fd10:244::{number}:0/112"),
        ],
        cooldown: "130s".into(),
        ipam: String::new(),
        peers: vec![Peer::new("rr", REFLECTOR, ASN)],
        bgp: String::new(),
        extra: String::new(),
    }
}

/// The reflector's configuration.
pub fn reflector_config() -> BirdConfig {
    let client = |name: &str, number| BirdPeer {
        name: name.into(),
        address: node_address(number).0,
        asn: ASN,
        extra: "rr client;".into(),
        families: vec!["ipv4", "ipv6"],
    };
    BirdConfig {
        router_id: REFLECTOR.into(),
        address: REFLECTOR.into(),
        address6: "fd00:26::1".into(),
        asn: ASN,
        peers: vec![client("node_a", 1), client("node_b", 2)],
        extra: String::new(),
    }
}

impl TwoNodes {
    /// Makes the links and starts BIRD; the agents are configured and not started.
    pub fn prepare(lab: &Lab) -> Result<Self> {
        let rr = lab.namespace("rr")?;
        lab.bridge(&rr, "br0")?;
        lab.address(&rr, "br0", "192.168.26.1/24")?;
        lab.address(&rr, "br0", "fd00:26::1/64")?;
        let node = |number: u8, port: &str| -> Result<Agent> {
            let config = node_config(number);
            let namespace = lab.namespace(&config.name)?;
            lab.bridge_port((&rr, "br0"), port, (&namespace, "eth0"))?;
            let (address, address6) = node_address(number);
            lab.address(&namespace, "eth0", &format!("{address}/24"))?;
            lab.address(&namespace, "eth0", &format!("{address6}/64"))?;
            Agent::new(lab, &namespace, config)
        };
        let a = node(1, "pa")?;
        let b = node(2, "pb")?;
        let reflector = Bird::start(lab, &rr, "bird", &reflector_config())?;
        Ok(Self {
            a,
            b,
            reflector,
            lab: lab.clone(),
        })
    }

    /// Makes the topology and waits until both nodes know each other's blocks.
    pub fn start(lab: &Lab) -> Result<Self> {
        let nodes = Self::prepare(lab)?;
        nodes.a.start()?;
        nodes.b.start()?;
        nodes.wait_converged()?;
        Ok(nodes)
    }

    /// Waits until both sessions are up and each node has a route to the other's blocks.
    pub fn wait_converged(&self) -> Result<()> {
        for protocol in ["node_a", "node_b"] {
            self.reflector.wait_established(protocol)?;
        }
        for agent in [&self.a, &self.b] {
            let what = format!("{} has the other's blocks in its kernel", agent.name());
            self.lab.wait_for(&what, PATIENCE, || {
                for family in ["-4", "-6"] {
                    let routes = agent
                        .namespace()
                        .output(["ip", family, "route", "show", "protocol", "71"])?;
                    ensure!(
                        !routes.trim().is_empty(),
                        "no learned route for ip {family}"
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Pings from every workload of one list to every address of the other.
    pub fn ping_across(
        from: &[super::workload::Workload],
        to: &[super::workload::Workload],
        count: u32,
    ) -> Result<usize> {
        let mut pings = 0;
        for source in from {
            for address in to.iter().flat_map(|w| w.addresses()) {
                super::ping::ping_all(&source.namespace, address, count)?;
                pings += 1;
            }
        }
        Ok(pings)
    }

    /// The other node's address as a next hop.
    pub fn next_hop(number: u8, to: IpAddr) -> String {
        let (v4, v6) = node_address(number);
        if to.is_ipv4() { v4 } else { v6 }
    }
}

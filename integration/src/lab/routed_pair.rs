//! Two agents in different subnets with a router between them that knows nothing of pools.
//!
//! ```text
//!      node-a 192.168.26.11 ── 192.168.26.1  router  192.168.27.1 ── 192.168.27.12 node-b
//!             fd00:26::11      fd00:26::1            fd00:27::1      fd00:27::12
//! ```
//!
//! The agents speak BGP with each other. What is not in a tunnel gets no further than the router.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::agent::Agent;
use super::config::{AgentConfig, Peer, Pool};
use super::netns::Netns;
use super::{Lab, PATIENCE};

const ASN: u32 = 64512;

#[derive(Debug)]
pub struct RoutedPair {
    pub a: Agent,
    pub b: Agent,
    pub router: Netns,
    lab: Lab,
}

/// Subnet and host part of the node with this number, 1 or 2.
fn addresses(number: u8) -> (String, String) {
    let subnet = 25 + number;
    (
        format!("192.168.{subnet}.1{number}"),
        format!("fd00:{subnet}::1{number}"),
    )
}

fn config(number: u8, pool: &str, pool6: Option<&str>, extra: &str) -> AgentConfig {
    let (address, address6) = addresses(number);
    let other = addresses(3 - number).0;
    let mut pools = vec![Pool::new("default", "10.244.0.0/16", 26)];
    let mut claim = vec![format!("10.244.{number}.0/24")];
    pools[0].extra = pool.to_owned();
    if let Some(lines) = pool6 {
        let mut pool = Pool::new("default6", "fd10:244::/64", 122);
        pool.extra = lines.to_owned();
        pools.push(pool);
        claim.push(format!("fd10:244::{number}:0/112"));
    }
    AgentConfig {
        name: if number == 1 { "node-a" } else { "node-b" }.to_owned(),
        address,
        address6: Some(address6),
        asn: ASN,
        pools,
        claim,
        cooldown: "130s".into(),
        ipam: String::new(),
        peers: vec![Peer::new("other", &other, ASN)],
        bgp: String::new(),
        extra: extra.to_owned(),
    }
}

impl RoutedPair {
    /// Makes the links; the agents are configured and not started. `pool`, `pool6` and `extra` are
    /// lines of the pools' tables and of the file; without `pool6` there is no IPv6 pool.
    pub fn prepare(lab: &Lab, pool: &str, pool6: Option<&str>, extra: &str) -> Result<Self> {
        let router = lab.namespace("router")?;
        let node = |number: u8, port: &str| -> Result<Agent> {
            let config = config(number, pool, pool6, extra);
            let namespace = lab.namespace(&config.name)?;
            lab.link((&router, port), (&namespace, "eth0"))?;
            let subnet = 25 + number;
            let (address, address6) = addresses(number);
            let gateways = [format!("192.168.{subnet}.1"), format!("fd00:{subnet}::1")];
            for (own, length, gateway) in
                [(address, 24, &gateways[0]), (address6, 64, &gateways[1])]
            {
                lab.address(&router, port, &format!("{gateway}/{length}"))?;
                lab.address(&namespace, "eth0", &format!("{own}/{length}"))?;
                namespace.ip(["route", "add", "default", "via", gateway])?;
            }
            Agent::new(lab, &namespace, config)
        };
        let a = node(1, "ra")?;
        let b = node(2, "rb")?;
        router.enter(|| -> std::io::Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        Ok(Self {
            a,
            b,
            router,
            lab: lab.clone(),
        })
    }

    /// Makes the topology and waits until both nodes know each other's blocks.
    pub fn start(lab: &Lab, pool: &str, pool6: Option<&str>, extra: &str) -> Result<Self> {
        let pair = Self::prepare(lab, pool, pool6, extra)?;
        pair.a.start()?;
        pair.b.start()?;
        for agent in [&pair.a, &pair.b] {
            agent.wait_peers(1)?;
            pair.wait_route(agent, "-4", "10.244.")?;
            if pool6.is_some() {
                pair.wait_route(agent, "-6", "fd10:244:")?;
            }
        }
        Ok(pair)
    }

    /// Waits until the learned routes of a family contain a text.
    pub fn wait_route(&self, agent: &Agent, family: &str, text: &str) -> Result<()> {
        let what = format!("{} has a learned route with {text}", agent.name());
        self.lab.wait_for(&what, PATIENCE, || {
            let routes = agent
                .namespace()
                .output(["ip", family, "route", "show", "protocol", "71"])?;
            ensure!(routes.contains(text), "{routes}");
            Ok(())
        })
    }

    /// Gives pools these lines and has the agent read its file again.
    pub fn change_over(agent: &mut Agent, lines: &str) -> Result<()> {
        for pool in &mut agent.config_mut().pools {
            pool.extra = lines.to_owned();
        }
        agent.write_config()?;
        agent.process()?.signal(Signal::SIGHUP)
    }
}

//! A fleet: an etcd of one or three members and agents in a full mesh, all on one link.
//!
//! ```text
//!     etcd-1 192.168.27.1  etcd-2 .2  etcd-3 .3      node-1 192.168.27.11   node-2 .12  …
//!        └──────────┴─────────┴──────────── bridge ────────┴───────────────────┘
//! ```

use anyhow::{Result, ensure};

use super::agent::Agent;
use super::config::{AgentConfig, Pool};
use super::etcd::Etcd;
use super::netns::Netns;
use super::{Lab, PATIENCE};

pub const ASN: u32 = 64512;

#[derive(Debug)]
pub struct Fleet {
    pub etcd: Etcd,
    lab: Lab,
    switch: Netns,
}

impl Fleet {
    /// Starts etcd with so many members.
    pub fn start(lab: &Lab, members: u8, with_tls: bool) -> Result<Self> {
        let switch = lab.namespace("switch")?;
        lab.bridge(&switch, "br0")?;
        let mut places = Vec::new();
        for number in 1..=members {
            let address = format!("192.168.27.{number}");
            let namespace = place(lab, &switch, &format!("etcd-{number}"), &address)?;
            places.push((namespace, address));
        }
        let etcd = Etcd::new(lab, &places, with_tls)?;
        etcd.start()?;
        Ok(Self {
            etcd,
            lab: lab.clone(),
            switch,
        })
    }

    /// The configuration of a node: a pool with blocks of four addresses, and nobody but the mesh.
    pub fn config(&self, number: u8) -> AgentConfig {
        AgentConfig {
            name: format!("node-{number}"),
            address: format!("192.168.27.{}", 10 + number),
            address6: None,
            asn: ASN,
            pools: vec![Pool::new("default", "10.244.0.0/16", 30)],
            claim: Vec::new(),
            cooldown: "1s".into(),
            ipam: self.store("lease = \"5s\""),
            peers: Vec::new(),
            bgp: "mesh = true".to_owned(),
            extra: String::new(),
        }
    }

    /// Lines of `[ipam]` and its subsection.
    pub fn store(&self, more: &str) -> String {
        let tls = self.etcd.certificates().map_or_else(String::new, |files| {
            format!(
                "tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}\n",
                files.ca, files.cert, files.key
            )
        });
        format!(
            "store = \"etcd\"\n[ipam.etcd]\nendpoints = {:?}\n{tls}{more}\n",
            self.etcd.endpoints()
        )
    }

    /// An agent with this configuration, not started.
    pub fn agent(&self, number: u8, config: AgentConfig) -> Result<Agent> {
        let name = config.name.clone();
        let address = config.address.clone();
        let namespace = place(
            &self.lab,
            &self.switch,
            &format!("{name}-{number}"),
            &address,
        )?;
        Agent::new(&self.lab, &namespace, config)
    }

    /// Agents with the configuration of [`Fleet::config`], started and with sessions to each other.
    pub fn nodes(&self, count: u8) -> Result<Vec<Agent>> {
        let mut agents = Vec::new();
        for number in 1..=count {
            let agent = self.agent(number, self.config(number))?;
            agent.launch()?;
            agents.push(agent);
        }
        for agent in &agents {
            agent.wait_peers(u64::from(count) - 1)?;
        }
        Ok(agents)
    }

    /// Waits until the agent's status says that the store answers and knows the node, or does not.
    pub fn wait_store(&self, agent: &Agent, up: bool) -> Result<()> {
        let what = format!(
            "the store of {} is {}",
            agent.name(),
            if up { "up" } else { "away" }
        );
        self.lab.wait_for(&what, PATIENCE, || {
            let store = agent.client().status()?.fleet_store.unwrap_or_default();
            ensure!(store.up == up && (!up || store.registered), "{store:?}");
            Ok(())
        })
    }
}

fn place(lab: &Lab, switch: &Netns, name: &str, address: &str) -> Result<Netns> {
    let namespace = lab.namespace(name)?;
    // Names of interfaces are short.
    let port = format!("p{}", address.rsplit('.').next().unwrap_or_default());
    lab.bridge_port((switch, "br0"), &port, (&namespace, "eth0"))?;
    lab.address(&namespace, "eth0", &format!("{address}/24"))?;
    Ok(namespace)
}

/// Cuts a node off from etcd, and from nothing else.
pub fn cut(agent: &Agent) -> Result<()> {
    for number in 1..=3 {
        let address = format!("192.168.27.{number}/32");
        agent
            .namespace()
            .ip(["route", "add", "blackhole", &address])?;
    }
    Ok(())
}

/// Ends what [`cut`] did.
pub fn join(agent: &Agent) -> Result<()> {
    for number in 1..=3 {
        let address = format!("192.168.27.{number}/32");
        agent
            .namespace()
            .ip(["route", "del", "blackhole", &address])?;
    }
    Ok(())
}

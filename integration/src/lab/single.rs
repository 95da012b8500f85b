//! One agent without peers, on a link to a silent gateway.

use anyhow::Result;

use super::Lab;
use super::agent::Agent;
use super::config::AgentConfig;
use super::netns::Netns;
use super::two_nodes::{node_address, node_config};

/// The configuration of node-a without its peer.
pub fn config() -> AgentConfig {
    AgentConfig {
        peers: Vec::new(),
        ..node_config(1)
    }
}

/// A namespace with node-a's addresses on `eth0`, whose other end is in a namespace `gateway`.
pub fn node_namespace(lab: &Lab) -> Result<Netns> {
    let gateway = lab.namespace("gateway")?;
    let node = lab.namespace("node-a")?;
    lab.link((&gateway, "eth0"), (&node, "eth0"))?;
    let (address, address6) = node_address(1);
    lab.address(&node, "eth0", &format!("{address}/24"))?;
    lab.address(&node, "eth0", &format!("{address6}/64"))?;
    Ok(node)
}

/// The agent, not yet started.
pub fn prepare(lab: &Lab, config: AgentConfig) -> Result<Agent> {
    Agent::new(lab, &node_namespace(lab)?, config)
}

//! A workload: a namespace of its own that an agent connected.

use std::net::IpAddr;

use agentd_proto::v1;
use anyhow::{Context as _, Result};

use super::Lab;
use super::agent::Agent;
use super::netns::Netns;

#[derive(Clone, Debug)]
pub struct Workload {
    pub id: String,
    pub namespace: Netns,
    /// As the agent answered.
    pub answer: v1::Workload,
}

/// A request for a routed workload in this namespace, with everything else left to the agent.
pub fn request(id: &str, namespace: &Netns) -> v1::AddWorkloadRequest {
    v1::AddWorkloadRequest {
        id: id.to_owned(),
        namespace: Some(v1::add_workload_request::Namespace::Netns(
            namespace.path().to_string_lossy().into_owned(),
        )),
        ..Default::default()
    }
}

impl Workload {
    pub(super) fn add(lab: &Lab, agent: &Agent, id: &str) -> Result<Self> {
        let namespace = lab.namespace(&format!("w-{id}"))?;
        let answer = agent
            .client()
            .add(request(id, &namespace))
            .with_context(|| format!("{}: add workload {id}", agent.name()))?
            .workload
            .context("an answer without a workload")?;
        Ok(Self {
            id: id.to_owned(),
            namespace,
            answer,
        })
    }

    /// All its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.answer
            .addresses
            .iter()
            .filter_map(|a| a.address.parse().ok())
            .collect()
    }

    pub fn ipv4(&self) -> Result<IpAddr> {
        let mut addresses = self.addresses().into_iter();
        addresses.find(IpAddr::is_ipv4).context("no IPv4 address")
    }

    pub fn ipv6(&self) -> Result<IpAddr> {
        let mut addresses = self.addresses().into_iter();
        addresses.find(IpAddr::is_ipv6).context("no IPv6 address")
    }
}

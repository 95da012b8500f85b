//! How pools are reached on other nodes: from the configuration to the dataplane, and again whenever
//! the file is read anew.

use std::{net::IpAddr, sync::Arc};

use dataplane::desired::{Encapsulation, Object, PoolTunnel, Tunnels};
use ipnet::IpNet;

use crate::{
    api::Identity,
    config::{Config, Pool},
    peers::{Change, Effect},
};

/// What the dataplane is to want.
pub fn desired(config: &Config, identity: &Identity) -> Tunnels {
    Tunnels {
        local: identity.address,
        local6: identity.address6,
        vni: config.tunnel.vni,
        port: config.tunnel.port,
        accept: config.tunnel.accept.clone(),
        pools: config
            .pools
            .iter()
            .map(|pool| PoolTunnel {
                cidr: pool.cidr,
                encapsulation: pool.encapsulation,
                scope: pool.encapsulation_scope,
            })
            .collect(),
    }
}

/// Next hop of this node's IPv6 blocks. Without an IPv6 address it is the IPv4 one in IPv6 form, if a
/// pool is there that other nodes reach through a tunnel over IPv4.
pub fn next_hop6(identity: &Identity, pools: &[Pool]) -> Option<IpAddr> {
    let mapped = || {
        let tunnelled = pools.iter().any(|pool| {
            matches!(pool.cidr, IpNet::V6(_)) && pool.encapsulation == Encapsulation::Vxlan
        });
        let address = identity.address.filter(|_| tunnelled)?;
        Some(IpAddr::V6(address.to_ipv6_mapped()))
    };
    identity.address6.map(IpAddr::V6).or_else(mapped)
}

/// Applies changes of the file while the agent runs.
#[derive(Clone, Debug)]
pub struct Live {
    pub dataplane: dataplane::runtime::Handle,
    pub identity: Arc<Identity>,
}

impl Live {
    /// Pools that stay are reached as the new configuration says. What was applied is noted in
    /// `running`.
    pub async fn reload(&self, running: &mut Config, new: &Config) -> Vec<Change> {
        let mut changes = Vec::new();
        for pool in &mut running.pools {
            let same = |new: &&Pool| (&new.name, new.cidr) == (&pool.name, pool.cidr);
            let Some(wanted) = new.pools.iter().find(same) else {
                continue;
            };
            let mode = (wanted.encapsulation, wanted.encapsulation_scope);
            if mode != (pool.encapsulation, pool.encapsulation_scope) {
                (pool.encapsulation, pool.encapsulation_scope) = mode;
                changes.push(Change {
                    subject: format!("pool {}", pool.name),
                    effect: Effect::Live,
                    text: format!("encapsulation {}, {}", mode.0, mode.1),
                });
            }
        }
        if running.tunnel != new.tunnel {
            running.tunnel.clone_from(&new.tunnel);
            changes.push(Change {
                subject: "tunnel".to_owned(),
                effect: Effect::Live,
                text: String::new(),
            });
        }
        if !changes.is_empty() {
            let tunnels = desired(running, &self.identity);
            // When the dataplane has stopped, so does the agent.
            let _ = self
                .dataplane
                .set(vec![Object::Tunnels(Box::new(tunnels))])
                .await;
        }
        changes
    }
}

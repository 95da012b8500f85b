//! How pools are reached on other nodes: from the configuration to the dataplane, and again whenever
//! the file is read anew.

use std::{net::IpAddr, sync::Arc};

use dataplane::desired::{Encapsulation, Object, PoolTunnel, Tunnels};
use ipnet::IpNet;

use crate::{
    api::Identity,
    config::{Config, Pool},
    peers::{Change, Effect},
    runtime::setup,
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

/// Applies changes of the file, and of the node's addresses, while the agent runs.
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
            self.tell(running).await;
        }
        changes
    }

    async fn tell(&self, running: &Config) {
        let tunnels = desired(running, &self.identity);
        // When the dataplane has stopped, so does the agent.
        let _ = self
            .dataplane
            .set(vec![Object::Tunnels(Box::new(tunnels))])
            .await;
    }

    /// The node has these addresses now. Where its own follows from them and is another one,
    /// tunnels go out from that one from now on. Whether it is.
    pub async fn readdress(&mut self, running: &Config, all: &[IpAddr]) -> bool {
        let (source, source6) = setup::addresses(running);
        let v4 = all.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = all.iter().filter_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        let address = follow(self.identity.address, source, v4);
        let address6 = follow(self.identity.address6, source6, v6);
        if (address, address6) == (self.identity.address, self.identity.address6) {
            return false;
        }
        self.identity = Arc::new(Identity {
            address,
            address6,
            ..(*self.identity).clone()
        });
        self.tell(running).await;
        true
    }
}

/// The node's own address of one family. `source`: that of the configuration, or of the route to the
/// first peer. Without a route just now the address stays while the node has it, and one that is gone
/// is replaced by another. A family without an address has none until there is a route.
fn follow<A: Copy + PartialEq>(
    before: Option<A>,
    source: Option<A>,
    all: impl Iterator<Item = A> + Clone,
) -> Option<A> {
    let before = source.or(before)?;
    let there = source.is_some() || all.clone().any(|address| address == before);
    let other = all.clone().next().filter(|_| !there);
    other.or(Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_is_that_of_the_route_or_stays_while_the_node_has_it() {
        for (before, source, all, expected) in [
            (Some(1), Some(2), vec![1, 2], Some(2)),
            (Some(1), Some(1), vec![], Some(1)),
            (Some(1), None, vec![2, 1], Some(1)),
            (Some(1), None, vec![2, 3], Some(2)),
            (Some(1), None, vec![], Some(1)),
            (None, None, vec![1], None),
            (None, Some(1), vec![1], Some(1)),
        ] {
            let own = follow(before, source, all.iter().copied());
            assert_eq!(own, expected, "{before:?} {source:?} {all:?}");
        }
    }
}

//! Pools of a configuration that is read anew.
//!
//! The node decides: it takes the pools as a whole, or refuses because workloads would lose theirs,
//! and then the whole reload changes nothing. After it follow those who only want to know where the
//! pools are: the import policy of peers, tunnels, the filter table.

use dataplane::desired::Object;
use ipnet::IpNet;

use super::{Change, Effect, differences, task::Manager};
use crate::{
    config::{Config, ConfigErrors, Pool},
    runtime::setup,
    tunnels,
};

/// Whether they are one pool, however it has changed.
fn is_same(one: &Pool, other: &Pool) -> bool {
    (&one.name, one.cidr) == (&other.name, other.cidr)
}

impl Manager {
    /// Continues with the pools and the allocator's settings of `new`. Encapsulation of pools that
    /// stay is left to `tunnels`. The errors say why not; then nothing has changed.
    pub(super) async fn change_pools(&mut self, new: &Config) -> Result<Vec<Change>, ConfigErrors> {
        let Some(node) = &self.node else {
            return Ok(Vec::new());
        };
        let settings = new.ipam.clone();
        if let Err(error) = node.set_pools(new.pools.clone(), settings).await {
            return Err(ConfigErrors::of_file(&self.running.file, error.to_string()));
        }
        let changes = changes(&self.running, new);
        let before: Vec<IpNet> = self.running.pools.iter().map(|pool| pool.cidr).collect();
        let filter = setup::filter(&self.running);
        let mut pools = new.pools.clone();
        for pool in &mut pools {
            if let Some(old) = self.running.pools.iter().find(|old| is_same(old, pool)) {
                pool.encapsulation = old.encapsulation;
                pool.encapsulation_scope = old.encapsulation_scope;
            }
        }
        self.running.pools = pools;
        self.running.node.labels.clone_from(&new.node.labels);
        let ipam = &mut self.running.ipam;
        ipam.cooldown = new.ipam.cooldown;
        ipam.claim_ahead = new.ipam.claim_ahead;
        ipam.release_empty_after = new.ipam.release_empty_after;
        ipam.release_unnamed_after = new.ipam.release_unnamed_after;
        let after: Vec<IpNet> = self.running.pools.iter().map(|pool| pool.cidr).collect();
        self.set_import_pools(&after);
        // When the dataplane has stopped, so does the agent.
        if let Some(live) = &self.tunnels {
            if before != after {
                let tunnels = tunnels::desired(&self.running, &live.identity);
                let _ = live
                    .dataplane
                    .set(vec![Object::Tunnels(Box::new(tunnels))])
                    .await;
            }
            let wanted = setup::filter(&self.running);
            if wanted != filter {
                let _ = live.dataplane.set_filter(wanted).await;
            }
        }
        Ok(changes)
    }
}

fn changes(running: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut change = |subject: String, effect, text: String| {
        changes.push(Change {
            subject,
            effect,
            text,
        });
    };
    for old in &running.pools {
        if !new.pools.iter().any(|pool| is_same(pool, old)) {
            let text = format!("{}; blocks go when they are empty", old.cidr);
            change(format!("pool {}", old.name), Effect::Removed, text);
        }
    }
    for pool in &new.pools {
        let subject = format!("pool {}", pool.name);
        match running.pools.iter().find(|old| is_same(old, pool)) {
            None => change(subject, Effect::Added, pool.cidr.to_string()),
            Some(old) => {
                let names = differences::of_pools(old, pool);
                if !names.is_empty() {
                    change(subject, Effect::Live, names.join(", "));
                }
            }
        }
    }
    let names = differences::of_ipam(&running.ipam, &new.ipam);
    if !names.is_empty() {
        change("ipam".to_owned(), Effect::Live, names.join(", "));
    }
    changes
}

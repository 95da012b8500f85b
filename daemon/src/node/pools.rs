//! Pools while the node runs: what a reload changes, and what an operator says of one of them.
//!
//! | said by | what | kept |
//! |---|---|---|
//! | the configuration | which pools there are, and all their keys | in the file |
//! | an operator (API) | disabled or draining, on this node | in the store, until enabled again or the pool is removed |

use super::{
    Caller, Error, Node, Output, Pending, Reply,
    view::{PoolOverride, PoolUsers},
};
use crate::{
    config,
    ipam::{self, Now, Stranded},
    store::record::Record,
};

/// Workloads that a refusal names.
const NAMED: usize = 20;

impl Node {
    /// Continues with other pools and settings, or with the old ones and an error that names the
    /// workloads that stand against it.
    pub fn set_pools(
        &mut self,
        now: Now,
        pools: &[config::Pool],
        settings: &config::Ipam,
    ) -> Result<(), Error> {
        // The bridges of the running node, which need not be those of the new configuration.
        let of_bridges: Vec<config::Pool> = self
            .bridges
            .iter()
            .flat_map(config::Bridge::pools)
            .collect();
        for pool in pools {
            let apart = |bridge: &&config::Pool| {
                !bridge.cidr.contains(&pool.cidr) && !pool.cidr.contains(&bridge.cidr)
            };
            if let Some(bridge) = of_bridges.iter().find(|bridge| !apart(bridge)) {
                return Err(Error::Precondition {
                    reason: "POOL_OVERLAPS_BRIDGE",
                    text: format!(
                        "pool \"{}\" ({}) overlaps the subnet {} of a bridge that stands; bridges \
                         change with a restart of agentd",
                        pool.name, pool.cidr, bridge.cidr
                    ),
                });
            }
        }
        let all: Vec<config::Pool> = pools.iter().cloned().chain(of_bridges).collect();
        let records = self
            .ipam
            .set_pools(now, &all, settings)
            .map_err(|stranded| Error::Precondition {
                reason: "WORKLOADS_STRANDED",
                text: refusal(&stranded),
            })?;
        self.release_unnamed_after = settings.release_unnamed_after;
        if !records.is_empty() {
            self.persist(Pending::Cleanup(records.clone()), records);
        }
        self.follow_blocks();
        Ok(())
    }

    /// Durable when answered. `None`: as the configuration has it.
    pub fn handle_pool_state(
        &mut self,
        now: Now,
        caller: Caller,
        name: String,
        to: Option<PoolOverride>,
    ) {
        let known = self.ipam.pool_override(&name).map_err(|error| match error {
            ipam::Error::PoolUnknown { name, configured } => Error::PoolNotFound {
                name,
                configured: configured.join(", "),
            },
            other => Error::Precondition {
                reason: "POOL_STATE",
                text: other.to_string(),
            },
        });
        match known {
            Err(error) => self.reply_pool(caller, Err(error)),
            Ok(_) if to.is_none() && self.ipam.is_disabled_by_configuration(&name) => {
                let error = Error::Precondition {
                    reason: "POOL_DISABLED",
                    text: format!(
                        "pool \"{name}\" is disabled in the configuration; change that there, and \
                         reload"
                    ),
                };
                self.reply_pool(caller, Err(error));
            }
            Ok(before) if before == to => {
                let answer = self.pool_users(now, &name);
                self.reply_pool(caller, answer);
            }
            Ok(_) => {
                let record = Record::PoolOverride(name.clone(), to);
                self.persist(Pending::Pool(caller, name, to), vec![record]);
            }
        }
    }

    pub(super) fn pool_done(
        &mut self,
        now: Now,
        caller: Caller,
        name: &str,
        to: Option<PoolOverride>,
        result: Result<(), String>,
    ) {
        let answer = match result {
            // A reload may have removed it meanwhile: then there is nothing to change.
            Ok(()) => {
                self.ipam.override_pool(now, name, to);
                self.pool_users(now, name)
            }
            Err(text) => Err(Error::Store(text)),
        };
        self.reply_pool(caller, answer);
    }

    /// The pool, and who has addresses of it.
    fn pool_users(&mut self, now: Now, name: &str) -> Result<PoolUsers, Error> {
        let pools = self.ipam.pools(now);
        let Some(pool) = pools.iter().find(|pool| pool.name == name) else {
            let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            return Err(Error::PoolNotFound {
                name: name.to_owned(),
                configured: names.join(", "),
            });
        };
        Ok(PoolUsers {
            pool: pool.clone(),
            workloads: self.ipam.users(name),
        })
    }

    fn reply_pool(&mut self, caller: Caller, result: Result<PoolUsers, Error>) {
        self.outputs.push_back(Output::Reply {
            caller,
            reply: Reply::Pool(result.map(Box::new)),
        });
    }
}

/// Which pools cannot go, and why.
fn refusal(stranded: &[Stranded]) -> String {
    let lines = stranded.iter().map(|Stranded { pool, workloads }| {
        let named: Vec<String> = workloads
            .iter()
            .take(NAMED)
            .map(|(id, address)| format!("{id} ({address})"))
            .collect();
        let more = match workloads.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "pool \"{pool}\" cannot be removed or moved: {} workload(s) have addresses of it: {}{more}; \
             `agentctl pool drain {pool}` keeps new ones out until these are gone",
            workloads.len(),
            named.join(", ")
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

//! `agentd --migrate-store`: the blocks of this node are agreed on in the other store from now on.
//!
//! It runs while the agent is stopped, which holds nobody up: links, addresses and routes stay in
//! the kernel, and peers keep the routes for the time of graceful restart. It changes everything or
//! nothing, and can be repeated after a stop at any point.

use ipnet::IpNet;

use super::{
    admin::{self, keys_in},
    etcd::Etcd,
    keys::{Keys, NodeRecord, Owner, bounds, parse_block},
    local::{Kept, Local, LocalError},
    ops::{Compare, Failure, Op, Txn},
};
use crate::{
    config::{self, Config},
    store::{Recovered, Store, StoreError},
};

/// Conditions and operations of one transaction; etcd takes 128 of each.
const OPERATIONS: usize = 120;

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("{0}")]
    Etcd(#[from] Failure),
    #[error("nothing was changed: {}", .0.join("; "))]
    Refused(Vec<String>),
}

/// Makes the store of the configuration the one of this node. Returns what was done.
pub async fn run(config: &Config) -> Result<String, MigrateError> {
    // Also keeps an agent out while this runs.
    let (_store, _completions, recovered) = Store::open(&config.node.state_dir)?;
    let local = Local::load(&config.node.state_dir)?;
    let target = Kept::from(config.ipam.store);
    let mut local = local.unwrap_or_else(|| Local::new(Kept::Local));
    if local.store == target {
        return Ok(format!("the store of this node is {target} already"));
    }
    // Before anything is registered under the identity.
    local.save(&config.node.state_dir)?;
    let blocks = shared_blocks(&recovered);
    let note = match (config.ipam.store, &config.ipam.etcd) {
        (config::Store::Etcd, Some(etcd)) => to_etcd(config, etcd, &local, &blocks).await?,
        (config::Store::Etcd, None) => {
            return Err(MigrateError::Refused(vec![
                "ipam.etcd is missing".to_owned(),
            ]));
        }
        (config::Store::Local, etcd) => to_local(config, etcd.as_ref(), &blocks).await?,
    };
    local.store = target;
    local.save(&config.node.state_dir)?;
    Ok(format!(
        "{} blocks are kept in the store {target} now{note}",
        blocks.len()
    ))
}

/// Blocks that other nodes know of.
pub fn shared_blocks(recovered: &Recovered) -> Vec<IpNet> {
    recovered
        .blocks
        .iter()
        .filter(|block| config::Bridge::of_pool(&block.pool).is_none())
        .map(|block| block.cidr)
        .collect()
}

async fn to_etcd(
    config: &Config,
    settings: &config::Etcd,
    local: &Local,
    blocks: &[IpNet],
) -> Result<String, MigrateError> {
    let etcd = Etcd::new(settings.clone(), 0);
    let keys = Keys::new(&settings.prefix);
    let name = config.node.name.as_str();
    let registered = register(&etcd, &keys, config, local).await?;
    // Those of an earlier try.
    let mut own = Vec::new();
    for key in keys_in(&etcd, keys.all_owned_by(name), false).await? {
        let owner: Option<Owner> = serde_json::from_str(&key.value).ok();
        if owner.is_some_and(|owner| owner.identity == local.identity) {
            own.extend(parse_block(&key.key));
        }
    }
    let wanted: Vec<IpNet> = blocks
        .iter()
        .filter(|block| !own.contains(block))
        .copied()
        .collect();
    let mut collisions = Vec::new();
    for block in &wanted {
        if let Some(owner) = admin::owner(&etcd, &keys, *block).await? {
            collisions.push(format!("block {block} is held by node {}", owner.node));
        }
    }
    if !collisions.is_empty() {
        return Err(MigrateError::Refused(collisions));
    }
    let owner = Owner {
        node: name.to_owned(),
        identity: local.identity.clone(),
        claim: "migration".to_owned(),
    };
    let value = serde_json::to_string(&owner).expect("an owner has nothing that JSON lacks");
    let mut done: Vec<(IpNet, i64)> = Vec::new();
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let mut txn = Txn {
            when: vec![Compare::Created(keys.node(name), registered)],
            ..Txn::default()
        };
        let mut taken = 0;
        for block in rest {
            let free = keys.free(block);
            if txn.when.len() + free.len() > OPERATIONS || txn.then.len() + 2 > OPERATIONS {
                break;
            }
            txn.when.extend(free);
            txn.then.push(Op::put(keys.block(block), value.clone()));
            txn.then
                .push(Op::put(keys.owned(name, block), value.clone()));
            taken += 1;
        }
        let (chunk, left) = rest.split_at(taken);
        let answer = etcd.txn(txn).await?;
        if !answer.succeeded {
            undo(&etcd, &keys, name, &done).await?;
            let chunk: Vec<String> = chunk.iter().map(ToString::to_string).collect();
            return Err(MigrateError::Refused(vec![format!(
                "another node has claimed one of {} just now",
                chunk.join(", ")
            )]));
        }
        done.extend(chunk.iter().map(|block| (*block, answer.revision)));
        rest = left;
    }
    Ok(String::new())
}

async fn undo(etcd: &Etcd, keys: &Keys, name: &str, done: &[(IpNet, i64)]) -> Result<(), Failure> {
    for (block, revision) in done {
        let (key, owned) = (keys.block(block), keys.owned(name, block));
        let txn = Txn {
            when: vec![Compare::Modified(key.clone(), *revision)],
            then: vec![Op::Delete(key), Op::Delete(owned)],
            otherwise: Vec::new(),
        };
        etcd.txn(txn).await?;
    }
    Ok(())
}

/// The revision of the registration.
async fn register(
    etcd: &Etcd,
    keys: &Keys,
    config: &Config,
    local: &Local,
) -> Result<i64, MigrateError> {
    let name = config.node.name.as_str();
    let record = NodeRecord {
        identity: local.identity.clone(),
        address: config.node.address.map(Into::into),
        address6: config.node.address6.map(Into::into),
        asn: config.bgp.as_ref().map(|bgp| bgp.asn),
        labels: Default::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let value = serde_json::to_string(&record).expect("a record has nothing that JSON lacks");
    let key = keys.node(name);
    let txn = Txn {
        when: vec![Compare::Absent(key.clone())],
        then: vec![Op::put(key.clone(), value)],
        otherwise: vec![Op::Get(key)],
    };
    let answer = etcd.txn(txn).await?;
    if answer.succeeded {
        return Ok(answer.revision);
    }
    let there = answer.keys(0).first();
    let same = there.filter(|key| {
        serde_json::from_str::<NodeRecord>(&key.value)
            .is_ok_and(|there| there.identity == local.identity)
    });
    match same {
        Some(key) => Ok(key.created),
        None => Err(MigrateError::Refused(vec![format!(
            "another installation is registered under the name {name}"
        )])),
    }
}

async fn to_local(
    config: &Config,
    etcd: Option<&config::Etcd>,
    blocks: &[IpNet],
) -> Result<String, MigrateError> {
    let ranges: Vec<IpNet> = config
        .pools
        .iter()
        .flat_map(|pool| pool.claim.clone())
        .collect();
    let mut collisions: Vec<String> = blocks
        .iter()
        .filter(|block| !ranges.iter().any(|range| range.contains(*block)))
        .map(|block| format!("block {block} lies in no range of ipam.claim"))
        .collect();
    let Some(settings) = etcd else {
        return done_or_refused(collisions);
    };
    // Nobody else may hold a block of what is this node's from now on.
    let etcd = Etcd::new(settings.clone(), 0);
    let keys = Keys::new(&settings.prefix);
    for range in &ranges {
        let (first, last) = bounds(range);
        let range = keys.starting_in(range.addr().is_ipv4(), first, last);
        for key in keys_in(&etcd, range, false).await? {
            let owner: Option<Owner> = serde_json::from_str(&key.value).ok();
            if let (Some(owner), Some(block)) = (owner, parse_block(&key.key))
                && owner.node != config.node.name
            {
                let text = format!("block {block} of ipam.claim is held by node {}", owner.node);
                collisions.push(text);
            }
        }
    }
    done_or_refused(collisions)
}

fn done_or_refused(collisions: Vec<String>) -> Result<String, MigrateError> {
    if collisions.is_empty() {
        Ok("; etcd keeps them for this node, too, until it is removed there (agentctl node remove)".to_owned())
    } else {
        Err(MigrateError::Refused(collisions))
    }
}

//! What operators do with nodes: list them, and take one out of the fleet that does not come back.
//!
//! Taking out is done in an order in which a stop at any point can be repeated, and in which the
//! node itself may come back at any point: first the registration, which fences every claim of the
//! node that is still on its way, then the blocks, each only while the registration is gone.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    etcd::Etcd,
    keys::{Keys, NodeRecord, Owner, parse_block},
    ops::{Compare, Failure, KeyValue, Op, Txn},
};

/// Keys of one page.
const PAGE: i64 = 2_000;
/// Blocks that one transaction deletes; etcd takes 128 operations.
const CHUNK: usize = 50;

/// A node of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// `None`: it is not registered, but has blocks.
    pub record: Option<NodeRecord>,
    pub alive: bool,
    pub blocks: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("{0} is this node; remove it on another one when it is gone")]
    Itself(String),
    #[error("there is no node {0} in the store, and no block of it")]
    Unknown(String),
    #[error("node {0} is alive; stop its agent first, or wait until its lease is over")]
    Alive(String),
    #[error(
        "BGP still shows {} of node {name}: {}; whoever announces it uses it",
        if blocks.len() == 1 { "a block" } else { "blocks" },
        list(blocks)
    )]
    Shown { name: String, blocks: Vec<IpNet> },
    #[error("node {0} has come back meanwhile; what it had is its own")]
    CameBack(String),
    #[error("etcd does not answer: {0}")]
    Store(#[from] Failure),
}

fn list(blocks: &[IpNet]) -> String {
    let texts: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn read(then: Vec<Op>) -> Txn {
    Txn {
        when: Vec::new(),
        then,
        otherwise: Vec::new(),
    }
}

/// All keys of a range, page by page.
pub(super) async fn keys_in(
    etcd: &Etcd,
    (mut from, to): (String, String),
    keys_only: bool,
) -> Result<Vec<KeyValue>, Failure> {
    let mut found: Vec<KeyValue> = Vec::new();
    loop {
        let list = Op::List {
            from: from.clone(),
            to: to.clone(),
            limit: PAGE,
            keys_only,
        };
        let answer = etcd.txn(read(vec![list])).await?;
        found.extend_from_slice(answer.keys(0));
        match found.last() {
            Some(last) if answer.more(0) => from = format!("{}\0", last.key),
            _ => return Ok(found),
        }
    }
}

/// See [`Handle::owner`](super::Handle::owner).
pub(super) async fn owner(
    etcd: &Etcd,
    keys: &Keys,
    block: IpNet,
) -> Result<Option<Owner>, Failure> {
    let (first, last) = super::keys::bounds(&block);
    let (from, to) = keys.starting_in(block.addr().is_ipv4(), first, last);
    let inside = Op::List {
        from,
        to,
        limit: 1,
        keys_only: false,
    };
    let around = keys.around(&block).into_iter().map(Op::Get);
    let answer = etcd.txn(read(around.chain([inside]).collect())).await?;
    let found = (0..answer.answers.len()).flat_map(|index| answer.keys(index));
    Ok(found
        .filter_map(|key| serde_json::from_str(&key.value).ok())
        .next())
}

/// In order of name.
pub(super) async fn nodes(etcd: &Etcd, keys: &Keys) -> Result<Vec<Entry>, Failure> {
    let mut nodes: BTreeMap<String, Entry> = BTreeMap::new();
    let entry = |name: &str| Entry {
        name: name.to_owned(),
        record: None,
        alive: false,
        blocks: 0,
    };
    for key in keys_in(etcd, keys.registry(), false).await? {
        let Some((is_live, name)) = keys.parse_registry(&key.key) else {
            continue;
        };
        let node = nodes.entry(name.to_owned()).or_insert_with(|| entry(name));
        if is_live {
            node.alive = true;
        } else {
            node.record = serde_json::from_str(&key.value).ok();
        }
    }
    for key in keys_in(etcd, keys.all_owned(), true).await? {
        if let Some(name) = keys.owner_name(&key.key) {
            let node = nodes.entry(name.to_owned()).or_insert_with(|| entry(name));
            node.blocks += 1;
        }
    }
    Ok(nodes.into_values().collect())
}

/// Blocks of a node, each with the revision at which it was claimed.
async fn blocks_of(etcd: &Etcd, keys: &Keys, name: &str) -> Result<Vec<(IpNet, i64)>, Failure> {
    let found = keys_in(etcd, keys.all_owned_by(name), true).await?;
    Ok(found
        .iter()
        .filter_map(|key| Some((parse_block(&key.key)?, key.modified)))
        .collect())
}

/// See [`Handle::remove_node`](super::Handle::remove_node). Returns the blocks that are free now.
pub(super) async fn remove<F>(
    etcd: &Etcd,
    keys: &Keys,
    name: &str,
    is_shown: impl Fn(IpNet) -> F,
) -> Result<Vec<IpNet>, RemoveError>
where
    F: Future<Output = bool>,
{
    let (node, live) = (keys.node(name), keys.live(name));
    let answer = etcd
        .txn(read(vec![Op::Get(node.clone()), Op::Get(live.clone())]))
        .await?;
    let registered = answer.keys(0).first().map(|key| key.modified);
    if !answer.keys(1).is_empty() {
        return Err(RemoveError::Alive(name.to_owned()));
    }
    let blocks = blocks_of(etcd, keys, name).await?;
    if registered.is_none() && blocks.is_empty() {
        return Err(RemoveError::Unknown(name.to_owned()));
    }
    refuse_shown(name, &blocks, &is_shown).await?;
    if let Some(revision) = registered {
        let txn = Txn {
            when: vec![
                Compare::Modified(node.clone(), revision),
                Compare::Absent(live),
            ],
            then: vec![Op::Delete(node.clone())],
            otherwise: Vec::new(),
        };
        if !etcd.txn(txn).await?.succeeded {
            return Err(RemoveError::CameBack(name.to_owned()));
        }
    }
    // Once more: a claim may have come through until the registration was gone.
    let blocks = blocks_of(etcd, keys, name).await?;
    refuse_shown(name, &blocks, &is_shown).await?;
    for chunk in blocks.chunks(CHUNK) {
        let mut txn = Txn {
            when: vec![Compare::Absent(node.clone())],
            ..Txn::default()
        };
        for (block, revision) in chunk {
            let owned = keys.owned(name, block);
            txn.when.push(Compare::Modified(owned.clone(), *revision));
            txn.then.push(Op::Delete(owned));
            txn.then.push(Op::Delete(keys.block(block)));
        }
        if !etcd.txn(txn).await?.succeeded {
            return Err(RemoveError::CameBack(name.to_owned()));
        }
    }
    Ok(blocks.into_iter().map(|(block, _)| block).collect())
}

async fn refuse_shown<F>(
    name: &str,
    blocks: &[(IpNet, i64)],
    is_shown: &impl Fn(IpNet) -> F,
) -> Result<(), RemoveError>
where
    F: Future<Output = bool>,
{
    let mut shown = Vec::new();
    for (block, _) in blocks {
        if is_shown(*block).await {
            shown.push(*block);
        }
    }
    if shown.is_empty() {
        return Ok(());
    }
    Err(RemoveError::Shown {
        name: name.to_owned(),
        blocks: shown,
    })
}

//! What the core says: outputs, answers, and the names by which what comes back is known.

use std::sync::Arc;

use dataplane::desired::{Object, ObjectId, Source};
use ipnet::IpNet;

#[cfg(doc)]
use super::Node;
use super::{
    Drain, Error, claims,
    handle::Added,
    sync::{SyncEvent, SyncId},
    view::{PoolUsers, WatchEvent},
};
use crate::{ipam::Wanted, store::record::Record};

/// How far an add is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The kernel state was read back.
    Programmed,
    /// Besides, a peer has the blocks.
    Advertised,
}

/// Somebody who waits for an answer. Never used again within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

impl Caller {
    /// The node itself: answers to it are dropped.
    pub const NOBODY: Caller = Caller(u64::MAX);
}

/// Records on their way to the store. Never used again within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// The answer to a caller. Each caller gets exactly one, unless it is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Added(Result<Added, Error>),
    /// Whether there was something to delete.
    Deleted(Result<bool, Error>),
    /// To a drain or its end.
    Drain(Result<Drain, Error>),
    /// To a change of the state of a pool.
    Pool(Result<Box<PoolUsers>, Error>),
    /// The block is given back.
    BlockReleased(Result<(), Error>),
}

/// What the caller of the core has to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make these durable, together; answer with [`Node::handle_persisted`]. In order.
    Persist {
        token: Token,
        records: Vec<Record>,
    },
    /// Hand these to the dataplane. In order with `Remove` and `Synced`.
    Set(Vec<Object>),
    Remove(Vec<ObjectId>),
    Synced(Source),
    /// Tell the speaker; answer with [`Node::handle_originated`].
    Originate(IpNet),
    /// Tell the speaker: the block is announced with a higher LOCAL_PREF from now on.
    Prefer(IpNet),
    /// Tell the speaker; answer with [`Node::handle_withdrawn`].
    Withdraw(IpNet),
    /// Tell the speaker.
    Drain(bgp::rib::Drain),
    /// Claim a block with the fleet; answer with [`Node::handle_acquired`] and
    /// [`Node::handle_acquire_failed`].
    Acquire(Wanted),
    /// The fleet may have the block again: it is gone from here, durably.
    Return(IpNet),
    /// Once: the blocks of the earlier run are originated.
    OriginationsSynced,
    Reply {
        caller: Caller,
        reply: Reply,
    },
    /// Tell that client.
    Sync {
        id: SyncId,
        event: SyncEvent,
    },
    /// Tell every watcher.
    Publish(Arc<WatchEvent>),
    /// Tell the operator.
    Claim(claims::ClaimEvent),
}

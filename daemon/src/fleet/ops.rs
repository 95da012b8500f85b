//! What is asked of the store: transactions, in a language that etcd and the simulated store of the
//! tests both speak, and leases.

/// A key of the store.
pub type Key = String;

/// Applied as one: either `then` or `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All of them hold.
    pub when: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Absent(Key),
    /// No key from the first up to, and without, the second.
    NoneIn(Key, Key),
    /// The key was made at this revision, and not deleted since.
    Created(Key, i64),
    /// The key was changed last at this revision.
    Modified(Key, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Key,
        value: String,
        lease: Option<i64>,
    },
    Delete(Key),
    Get(Key),
    /// Keys from the first up to, and without, the second, in order.
    List {
        from: Key,
        to: Key,
        limit: i64,
        keys_only: bool,
    },
    Txn(Txn),
}

impl Op {
    pub fn put(key: Key, value: String) -> Op {
        Op::Put {
            key,
            value,
            lease: None,
        }
    }
}

/// A key as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Key,
    pub value: String,
    pub created: i64,
    pub modified: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnAnswer {
    pub succeeded: bool,
    /// Of the store, after the transaction.
    pub revision: i64,
    /// Of the operations that were done, in their order.
    pub answers: Vec<OpAnswer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpAnswer {
    /// A put or a deletion.
    Done,
    Keys {
        keys: Vec<KeyValue>,
        more: bool,
    },
    Txn(TxnAnswer),
}

impl TxnAnswer {
    /// What a get or a list found; every other answer has nothing.
    pub fn keys(&self, index: usize) -> &[KeyValue] {
        match self.answers.get(index) {
            Some(OpAnswer::Keys { keys, .. }) => keys,
            _ => &[],
        }
    }

    pub fn more(&self, index: usize) -> bool {
        matches!(
            self.answers.get(index),
            Some(OpAnswer::Keys { more: true, .. })
        )
    }
}

/// One thing asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Txn(Txn),
    /// A lease of so many seconds.
    Grant(i64),
    KeepAlive(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Txn(TxnAnswer),
    /// A lease, new or kept.
    Lease(i64),
    /// The lease is over.
    LeaseGone,
}

/// Why there is no answer. What was asked may have been done all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// Changes of watched keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Changes(Vec<Change>),
    /// The revision to start from is not kept any more.
    Compacted,
    Ended(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(KeyValue),
    Delete(Key),
}

//! The language between the core of the filter, its driver and those who drive it.

use std::{net::IpAddr, sync::Arc};

use super::{
    elements::{Elements, Key},
    table::{CHAINS, Family, SetName},
};
use crate::desired::Failure;

/// Elements of every set, by [`SetName::index`].
pub type Sets = [Elements; SetName::ALL.len()];

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// With all that is in it.
    DeleteTable(Family),
    CreateTable(Family),
    CreateSet(SetName),
    CreateChain(&'static str),
    /// All rules of a chain of [`CHAINS`].
    AddRules(&'static str),
    FlushChain(&'static str),
    FlushSet(SetName),
    /// An element that stands already is no error.
    AddElements(SetName, Vec<(Key, Vec<u8>)>),
    DeleteElements(SetName, Vec<Key>),
}

impl Op {
    /// The table it is about.
    pub fn family(&self) -> Family {
        match self {
            Op::DeleteTable(family) | Op::CreateTable(family) => *family,
            Op::CreateSet(set)
            | Op::FlushSet(set)
            | Op::AddElements(set, _)
            | Op::DeleteElements(set, _) => set.family(),
            Op::CreateChain(name) | Op::AddRules(name) | Op::FlushChain(name) => CHAINS
                .iter()
                .find(|chain| chain.name == *name)
                .map_or(Family::Inet, |chain| chain.family),
        }
    }
}

/// Which of the tables there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub inet: bool,
    pub bridge: bool,
}

impl Tables {
    pub fn has(self, family: Family) -> bool {
        match family {
            Family::Inet => self.inet,
            Family::Bridge => self.bridge,
        }
    }
}

/// The tables, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub tables: Tables,
    /// What of their structure is not as in [`table`](super::table), for a person; rules of chains
    /// apart. With anything here they are made anew.
    pub wrong: Vec<String>,
    /// Chains that are right but for their rules.
    pub wrong_rules: Vec<&'static str>,
    pub sets: Sets,
}

/// A chain of another program at the forward hook with the policy to drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardDrop {
    /// As `nft` names it: `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
}

impl std::fmt::Display for ForwardDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            family,
            table,
            chain,
        } = self;
        write!(f, "chain {family} {table} {chain}")
    }
}

/// Numbers outputs; each is answered by one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobId(pub(super) u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Answer with [`Filter::handle_snapshot`].
    Read(JobId),
    /// One transaction; answer with [`Filter::handle_committed`].
    Commit(JobId, Vec<Op>),
    /// Forget the connections of these addresses; answer with [`Filter::handle_flushed`]. One
    /// can be outstanding besides the others.
    Flush(JobId, Vec<IpAddr>),
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The table stands as wanted, for the first time or after a failure.
    Programmed,
    Repaired {
        what: String,
    },
    Failed(Failure),
    /// All elements of that workload stand.
    Standing(Arc<str>),
    StandingFailed(Arc<str>, Failure),
    /// Nothing of that workload is left, connections included.
    Gone(Arc<str>),
}

/// Counts, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub transactions: u64,
    pub failures: u64,
    pub repairs: u64,
    /// Wanted elements of all sets.
    pub elements: usize,
    pub ports: usize,
}

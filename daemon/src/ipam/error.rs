//! Why an address could not be had. Each error says with which value, and what would help.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::node::WorkloadId;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there is no pool \"{name}\"; configured are: {}", list(configured))]
    PoolUnknown {
        name: String,
        configured: Vec<String>,
    },
    #[error("pool \"{name}\" is disabled; workloads keep their addresses, new ones get none")]
    PoolDisabled { name: String },
    /// No pool was asked for, and there is none to take from.
    #[error(
        "there is no enabled pool in which this node has or may claim a block; add a pool, or \
         name a range of one in ipam.claim"
    )]
    NoPool,
    #[error("{0}")]
    Exhausted(Box<Exhausted>),
    #[error("{address} is in use by workload {holder}")]
    AddressTaken { address: IpAddr, holder: WorkloadId },
    /// Only the workload that had it last may have it back before.
    #[error(
        "{address} was used by workload {last} and is cooling down; free again in {}",
        seconds(*free_in)
    )]
    AddressCooling {
        address: IpAddr,
        last: WorkloadId,
        free_in: Duration,
    },
    #[error("{address} is reserved by the configuration of pool \"{pool}\"")]
    AddressReserved { address: IpAddr, pool: String },
    #[error("{address} lies in no pool; configured are: {}", list(pools))]
    AddressOutsidePools { address: IpAddr, pools: Vec<String> },
    /// A pool was asked for, and the address is of another.
    #[error("{address} does not lie in pool \"{pool}\" ({cidr})")]
    AddressOutsidePool {
        address: IpAddr,
        pool: String,
        cidr: IpNet,
    },
    #[error(
        "{address} lies in block {block} of pool \"{pool}\", which this node neither holds nor \
         may claim; its claim ranges there are: {}",
        list(claim)
    )]
    AddressOutsideClaim {
        address: IpAddr,
        pool: String,
        block: IpNet,
        claim: Vec<IpNet>,
    },
    #[error("{address} lies in block {block}, which is being given back; try again")]
    BlockReleasing { address: IpAddr, block: IpNet },
    /// The same family twice.
    #[error("{address} is a second address of its family; a workload has at most one of each")]
    FamilyTwice { address: IpAddr },
}

/// A pool in which this node has no free address and can claim no further block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub pool: String,
    /// Held, and how many this node may hold at most.
    pub blocks: u64,
    pub blocks_claimable: u128,
    /// In the held blocks.
    pub addresses: u64,
    pub used: u64,
    pub cooling: u64,
    pub reserved: u64,
    /// Until the first cooling address is free.
    pub next_free_in: Option<Duration>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exhausted {
            pool,
            blocks,
            addresses,
            used,
            cooling,
            reserved,
            ..
        } = self;
        write!(f, "pool \"{pool}\" has no free address on this node: ")?;
        if *blocks == 0 {
            write!(f, "it holds no block of it and may claim none")?;
        } else {
            write!(
                f,
                "{blocks} block(s) of {addresses} addresses, {used} in use, {cooling} cooling \
                 down, {reserved} reserved, and no further block to claim"
            )?;
        }
        match self.next_free_in {
            Some(next) => write!(
                f,
                "; the next is free in {}; a further range in ipam.claim, or deleting workloads, \
                 would help",
                seconds(next)
            ),
            None => f.write_str("; a further range in ipam.claim would help"),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64().ceil())
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

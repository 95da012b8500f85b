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
    #[error("pool \"{name}\" {why}; workloads keep their addresses, new ones get none")]
    PoolClosed { name: String, why: Closed },
    #[error(
        "pools \"{pool}\" and \"{other}\" are of one family; a workload has at most one address of \
         each"
    )]
    PoolsOfOneFamily { pool: String, other: String },
    /// No pool was asked for, and there is none to take from.
    #[error(
        "no pool has addresses for this workload on this node ({}); add a pool, or name a range of \
         one in ipam.claim",
        list(why)
    )]
    NoPool {
        /// Of each pool.
        why: Vec<String>,
    },
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
    #[error("{address} is kept unused by the configuration of pool \"{pool}\"")]
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
    #[error(
        "{address} lies in block {block}, which this node does not hold, and it holds {most} blocks \
         of pool \"{pool}\" already, the most it may (max_blocks)"
    )]
    BlockLimit {
        address: IpAddr,
        pool: String,
        block: IpNet,
        most: u32,
    },
    #[error("{address} lies in block {block}, which is being given back; try again")]
    BlockReleasing { address: IpAddr, block: IpNet },
    /// The pool is agreed on with other nodes, and one of them has the block.
    #[error("the address lies in block {block} of pool \"{pool}\", which node {node} holds")]
    BlockHeld {
        block: IpNet,
        pool: String,
        node: String,
    },
    /// A block is being claimed with the fleet. `why`: what keeps that from succeeding, if known.
    #[error("{}", waiting(pool, block.as_ref(), why.as_deref()))]
    Waiting {
        pool: String,
        block: Option<IpNet>,
        why: Option<String>,
    },
    /// The same family twice.
    #[error("{address} is a second address of its family; a workload has at most one of each")]
    FamilyTwice { address: IpAddr },
}

/// Why nothing new comes from a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// By the configuration.
    Disabled,
    DisabledByOperator,
    Draining,
    /// Its selector does not hold for this node.
    OtherNodes {
        selector: String,
    },
    /// The configuration does not have it any more.
    Removed,
    /// Until an older, larger block is gone.
    Covered,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Disabled => f.write_str("is disabled in the configuration"),
            Closed::DisabledByOperator => {
                f.write_str("is disabled (`agentctl pool enable` ends that)")
            }
            Closed::Draining => f.write_str("is being drained (`agentctl pool enable` ends that)"),
            Closed::OtherNodes { selector } => {
                write!(f, "is for other nodes: those with {selector}")
            }
            Closed::Removed => f.write_str("is removed from the configuration"),
            Closed::Covered => f.write_str("lies in a block of an earlier pool that is still held"),
        }
    }
}

/// A pool in which this node has no free address and can claim no further block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub pool: String,
    pub cidr: IpNet,
    pub block_size: u8,
    pub blocks: u64,
    /// Of these: being given back.
    pub blocks_leaving: u64,
    /// How many blocks the claim ranges have.
    pub in_claim: u128,
    /// How many this node may hold.
    pub max_blocks: Option<u32>,
    /// Where this node may claim.
    pub claim: Vec<IpNet>,
    /// In the held blocks.
    pub addresses: u64,
    pub used: u64,
    pub cooling: u64,
    pub reserved: u64,
    /// Its blocks are agreed on with other nodes.
    pub remote: bool,
    /// Until the first cooling address is free.
    pub next_free_in: Option<Duration>,
    /// Further pools that were tried and have none either.
    pub also: Vec<String>,
}

impl Exhausted {
    /// What would help, the simplest first.
    pub fn help(&self) -> Vec<String> {
        let mut help = Vec::new();
        if let Some(next) = self.next_free_in {
            help.push(format!(
                "waiting: {} cooling address(es), the next is free in {}",
                self.cooling,
                seconds(next)
            ));
        }
        if self.used > 0 {
            help.push("deleting workloads".to_owned());
        }
        match self.max_blocks {
            _ if self.remote
                && self
                    .max_blocks
                    .is_none_or(|most| self.blocks < u64::from(most)) =>
            {
                help.push("removing nodes that are gone (agentctl node list)".to_owned());
                help.push("a further pool".to_owned());
            }
            Some(most) if self.blocks >= u64::from(most) && self.in_claim > u128::from(most) => {
                help.push(format!("a larger max_blocks of the pool than {most}"));
            }
            _ => help.push("a further range of the pool in ipam.claim".to_owned()),
        }
        help
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exhausted {
            pool,
            cidr,
            block_size,
            blocks,
            addresses,
            used,
            cooling,
            reserved,
            remote,
            ..
        } = self;
        write!(
            f,
            "pool \"{pool}\" ({cidr}) has no free address on this node: "
        )?;
        if *blocks == 0 {
            write!(f, "it holds no block of it")?;
        } else {
            write!(
                f,
                "{blocks} block(s) of {addresses} addresses, {used} in use, {cooling} cooling \
                 down, {reserved} reserved"
            )?;
        }
        if self.blocks_leaving > 0 {
            write!(f, ", {} of them being given back", self.blocks_leaving)?;
        }
        match self.max_blocks {
            Some(most) if *blocks >= u64::from(most) => {
                write!(f, "; {most} blocks are the most it may hold (max_blocks)")?;
            }
            _ if *remote => {
                let all = self.in_claim;
                write!(
                    f,
                    "; nodes of the fleet hold each of the pool's {all} blocks"
                )?;
            }
            _ if self.claim.is_empty() => {
                f.write_str("; it may claim none: ipam.claim has no range of it")?
            }
            _ => write!(
                f,
                "; no further /{block_size} block is left in its claim range {}",
                list(&self.claim)
            )?,
        }
        if !self.also.is_empty() {
            write!(f, "; full, too: {}", list(&self.also))?;
        }
        write!(f, "; what would help: {}", self.help().join(", or "))
    }
}

fn waiting(pool: &str, block: Option<&IpNet>, why: Option<&str>) -> String {
    let what = match block {
        Some(block) => format!("block {block} of pool \"{pool}\" is not held by this node"),
        None => format!("pool \"{pool}\" has no free address on this node"),
    };
    match why {
        Some(why) => format!("{what}, and none can be claimed: {why}"),
        None => format!("{what}, and the claim of one is still under way; try again"),
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

//! Giving a block back because somebody says so.

use std::{fmt::Write as _, time::Duration};

use ipnet::IpNet;

use super::{Action, Ipam, Now};
use crate::node::{Error, WorkloadId, view::BlockState};

/// Why a block is not given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    NotHeld,
    /// Its subnet belongs to a bridge of the configuration.
    OfBridge(String),
    /// Its claim is not durable yet, or its blackhole does not stand yet.
    NotReady,
    /// In order of id.
    Used(Vec<WorkloadId>),
    /// So many addresses cool down, the last for so long.
    Cooling(usize, Duration),
}

/// Workloads that an error names.
const NAMED: usize = 50;

impl Refused {
    pub fn into_error(self, block: IpNet) -> Error {
        let precondition = |reason, text| Error::Precondition { reason, text };
        match self {
            Refused::NotHeld => Error::BlockNotFound(block),
            Refused::OfBridge(pool) => precondition(
                "BLOCK_OF_BRIDGE",
                format!("block {block} is of {pool}; it goes with the bridge"),
            ),
            Refused::NotReady => precondition(
                "BLOCK_NOT_READY",
                format!("block {block} is being claimed; try again in a moment"),
            ),
            Refused::Used(ids) => {
                let mut text = format!("block {block} is used by {} workloads: ", ids.len());
                let names: Vec<&str> = ids.iter().take(NAMED).map(WorkloadId::as_str).collect();
                text.push_str(&names.join(", "));
                if ids.len() > NAMED {
                    // Writing to a String cannot fail.
                    let _ = write!(text, " and {} more", ids.len() - NAMED);
                }
                text.push_str("; delete them first");
                precondition("BLOCK_IN_USE", text)
            }
            Refused::Cooling(count, left) => precondition(
                "BLOCK_COOLING",
                format!(
                    "{count} addresses of block {block} were in use a moment ago; try again in \
                     {} s",
                    left.as_secs() + 1
                ),
            ),
        }
    }
}

impl Ipam {
    /// Gives back a block that holds neither workloads nor cooling addresses, also the last of its
    /// pool. A block that is being given back already is no error.
    pub fn release_block(&mut self, now: Now, cidr: IpNet) -> Result<(), Refused> {
        self.expire(now);
        let (index, base) = self.block_place(cidr).ok_or(Refused::NotHeld)?;
        let pool = &self.pools[index];
        if pool.is_local() {
            return Err(Refused::OfBridge(pool.name.clone()));
        }
        let block = pool.block(base).expect("found just now");
        if block.state == BlockState::Releasing {
            return Ok(());
        }
        if block.used > 0 {
            let inside = self
                .holders
                .iter()
                .filter(|(address, _)| cidr.contains(*address));
            let mut ids: Vec<WorkloadId> = inside.map(|(_, id)| id.clone()).collect();
            ids.sort();
            return Err(Refused::Used(ids));
        }
        if block.cooling > 0 {
            let until = self
                .cooling
                .values()
                .filter(|entry| cidr.contains(&entry.address));
            let last = until.map(|entry| entry.until).max();
            let left = last.map_or(Duration::ZERO, |at| {
                at.saturating_duration_since(now.instant)
            });
            let count = usize::try_from(block.cooling).unwrap_or(usize::MAX);
            return Err(Refused::Cooling(count, left));
        }
        if block.state != BlockState::Active {
            return Err(Refused::NotReady);
        }
        self.pools[index].change(base, |block| block.state = BlockState::Releasing);
        self.actions.push_back(Action::Release(cidr));
        Ok(())
    }
}

//! Addresses that were in use until a moment ago. They are given out again after the cool-down,
//! the longest free first.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime},
};

use super::{Ipam, Now, offset_of};
use crate::{
    node::WorkloadId,
    store::record::{CoolingRecord, Record},
};

/// Stale cooling records deleted along with one change.
const STALE_RECORDS_PER_CHANGE: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cooling {
    pub(super) address: IpAddr,
    pub(super) pool: usize,
    pub(super) base: u128,
    /// It is the cool-down that keeps the address from being given out. Else the configuration
    /// reserves it by now, which may change again before the cool-down is over.
    pub(super) holds: bool,
    pub(super) until: Instant,
    pub(super) until_wall: SystemTime,
    pub(super) id: WorkloadId,
    pub(super) generation: u64,
}

impl Ipam {
    /// Free → cooling. An address that the configuration reserves by now stays reserved.
    pub(super) fn begin_cooling(&mut self, mut cooling: Cooling) {
        let address = cooling.address;
        cooling.holds = self.pools[cooling.pool].change(cooling.base, |block| {
            let was_free = block.take(offset_of(cooling.base, address));
            block.cooling += u32::from(was_free);
            was_free
        });
        if self.pools[cooling.pool].is_leaving() {
            self.look_at(cooling.until);
        }
        self.cooling_order.insert((cooling.until, address));
        self.cooling.insert(address, cooling);
    }

    /// Cooling → free.
    pub(super) fn end_cooling(&mut self, address: IpAddr) -> Option<Cooling> {
        let cooling = self.cooling.remove(&address)?;
        self.cooling_order.remove(&(cooling.until, address));
        if cooling.holds {
            self.pools[cooling.pool].change(cooling.base, |block| {
                block.cooling -= 1;
                block.clear(offset_of(cooling.base, address));
            });
        }
        Some(cooling)
    }

    /// Ends the cool-downs that are over.
    pub(super) fn expire(&mut self, now: Now) {
        while let Some((until, address)) = self.cooling_order.first().copied() {
            if until > now.instant {
                break;
            }
            self.end_cooling(address)
                .expect("both name the same addresses");
            self.stale_records.push(address);
        }
    }

    pub(super) fn drain_stale_records(&mut self, records: &mut Vec<Record>) {
        let count = self.stale_records.len().min(STALE_RECORDS_PER_CHANGE);
        let start = self.stale_records.len() - count;
        for address in self.stale_records.drain(start..) {
            // One that cools down again has a record that must stay.
            if !self.cooling.contains_key(&address) {
                records.push(Record::DeleteCooling(address));
            }
        }
    }
}

impl Cooling {
    pub(super) fn record(&self) -> CoolingRecord {
        CoolingRecord {
            address: self.address,
            until: self.until_wall,
            id: self.id.clone(),
            generation: self.generation,
        }
    }
}

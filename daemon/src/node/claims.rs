//! Own blocks that somebody else announces, too.
//!
//! Two nodes that hold one block is the worst that can happen to addresses: it takes a wrong
//! configuration (two nodes with one claim range), a state directory that was copied, or an
//! operator who reclaimed a block of a node that was not dead. BGP shows it. The side that does not
//! use the block gives it up; a side that does keeps it, uses it for no new workload, and says so
//! until it is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant, SystemTime},
};

use bgp::speaker::status::ForeignClaim;
use ipnet::IpNet;

use super::{Node, Output};
use crate::ipam::Now;

/// A contested block that is in use is looked at again after this time: it may be unused by then.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// For so long an unused block is kept when it is the other one's turn to give it up. Two nodes
/// that both do not use a block must not both leave it, and then meet at the next.
const PRECEDENCE: Duration = Duration::from_secs(5);

/// The claim of somebody else to a block of this node, or to a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateClaim {
    pub claim: ForeignClaim,
    pub since: SystemTime,
    /// The block is unused and is being given back.
    pub yields: bool,
}

/// What becomes of a contested block, for the log and for who counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimEvent {
    Began(DuplicateClaim),
    /// This node has given the block up.
    Yielded(IpNet),
    /// Nobody else announces the block any more, or this node does not.
    Ended(IpNet),
}

/// Of the claims of others.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    now: Vec<DuplicateClaim>,
    /// When each contested block became so.
    since: BTreeMap<IpNet, Instant>,
    look_at: Option<Instant>,
    /// In use and contested: announced with preference.
    preferred: BTreeSet<IpNet>,
    /// Who this node is in BGP.
    own: Option<(Ipv4Addr, u32)>,
}

impl Claims {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// The block is given back: if it is claimed again, it is as any other.
    pub(super) fn forget(&mut self, block: &IpNet) {
        self.preferred.remove(block);
    }

    /// Of two nodes that do not use the block the one that comes first keeps it.
    fn comes_first(&self, claim: &ForeignClaim) -> bool {
        let Some((router_id, asn)) = self.own else {
            return false;
        };
        match (claim.originator, claim.origin_as) {
            (Some(other), _) => router_id < other,
            (None, Some(other)) => asn < other.0,
            (None, None) => false,
        }
    }
}

impl Node {
    /// All claims of others there are now.
    pub fn handle_claims(&mut self, now: Now, claims: Vec<ForeignClaim>) {
        let mut before: BTreeMap<IpNet, SystemTime> = BTreeMap::new();
        for known in &self.claims.now {
            before.entry(known.claim.block).or_insert(known.since);
        }
        let mut current = Vec::new();
        for claim in claims {
            // It is told of what is originated; a block that is leaving is ours no more.
            if !self.blocks.contains_key(&claim.block) {
                continue;
            }
            let known = before.get(&claim.block).copied();
            current.push(DuplicateClaim {
                since: known.unwrap_or(now.wall),
                yields: false,
                claim,
            });
        }
        self.claims.now = current;
        self.yield_contested(now);
        let mut told = BTreeSet::new();
        for duplicate in &self.claims.now {
            let block = duplicate.claim.block;
            if !before.contains_key(&block) && told.insert(block) {
                let event = ClaimEvent::Began(duplicate.clone());
                self.outputs.push_back(Output::Claim(event));
            }
        }
        let contested = self.contested();
        for block in before.keys().filter(|block| !contested.contains(*block)) {
            let event = ClaimEvent::Ended(*block);
            self.outputs.push_back(Output::Claim(event));
        }
        self.follow_blocks();
    }

    fn contested(&self) -> BTreeSet<IpNet> {
        self.claims
            .now
            .iter()
            .map(|known| known.claim.block)
            .collect()
    }

    /// Gives up what is contested and unused.
    fn yield_contested(&mut self, now: Now) {
        let contested = self.contested();
        self.claims
            .since
            .retain(|block, _| contested.contains(block));
        for block in &contested {
            self.claims.since.entry(*block).or_insert(now.instant);
        }
        let due: BTreeSet<IpNet> = contested
            .iter()
            .filter(|block| {
                let mut of_block = self.claims.now.iter().filter(|c| c.claim.block == **block);
                of_block.any(|known| !self.claims.comes_first(&known.claim))
                    || self.claims.since[*block] + PRECEDENCE <= now.instant
            })
            .copied()
            .collect();
        for cidr in self.ipam.set_contested(now, &contested, &due) {
            for known in &mut self.claims.now {
                known.yields |= known.claim.block == cidr;
            }
            let event = ClaimEvent::Yielded(cidr);
            self.outputs.push_back(Output::Claim(event));
        }
        self.prefer_used(now, &contested);
        let waiting = self.claims.now.iter().any(|known| !known.yields);
        self.claims.look_at = waiting.then(|| now.instant + LOOK_AGAIN);
    }

    /// A contested block that is in use is preferred inside the AS: packets go to where workloads
    /// are, and a route reflector that passes on the best route only passes on this one, so that the
    /// other side learns of it. It stays so in this run: both sides taking turns would be worse.
    fn prefer_used(&mut self, now: Now, contested: &BTreeSet<IpNet>) {
        for block in self.blocks(now) {
            if contested.contains(&block.cidr)
                && block.used > 0
                && self.is_announced(&block.cidr)
                && self.claims.preferred.insert(block.cidr)
            {
                self.outputs.push_back(Output::Prefer(block.cidr));
            }
        }
    }

    /// Who this node is in BGP.
    pub fn set_bgp_identity(&mut self, router_id: Ipv4Addr, asn: u32) {
        self.claims.own = Some((router_id, asn));
    }

    pub(super) fn claims_timeout(&mut self, now: Now) {
        if self.claims.look_at.is_some_and(|at| at <= now.instant) {
            self.yield_contested(now);
        }
    }

    /// Those there are, in order of block.
    pub fn duplicate_claims(&self) -> &[DuplicateClaim] {
        &self.claims.now
    }
}

//! What becomes of a block: transitions of [`Stage`], and what peers have it.

use std::collections::BTreeMap;

use bgp::rib::RouteChange;
use dataplane::desired::{Failure, Object, ObjectId};
use ipnet::IpNet;

use super::{
    Block, Caller, Error, Node, Output, Pending, Phase, RETRY, Reply, Stage, Workload, WorkloadId,
};
use crate::{
    ipam::{Action, Now},
    store::record::Record,
};

/// A block of one address: its blackhole would stand where its workload's route belongs.
fn is_host(cidr: &IpNet) -> bool {
    cidr.prefix_len() == cidr.max_prefix_len()
}

impl Node {
    /// Carries out what the allocator wants done with blocks.
    pub(super) fn follow_blocks(&mut self) {
        while let Some(action) = self.ipam.poll_action() {
            match action {
                Action::Claim(record) => {
                    let cidr = record.cidr;
                    self.persist(Pending::Claim(cidr), vec![Record::PutBlock(record)]);
                }
                Action::Program(cidr) => self.program(cidr),
                Action::Local(cidr) => self.use_locally(cidr),
                Action::Release(cidr) => self.give_back(cidr),
                Action::Acquire(wanted) => self.outputs.push_back(Output::Acquire(wanted)),
                Action::Return(cidr) => self.outputs.push_back(Output::Return(cidr)),
            }
        }
    }

    /// A block of a bridge needs nothing but its record.
    fn use_locally(&mut self, cidr: IpNet) {
        let block = Block {
            stage: Stage::Active,
            advertised_to: 0,
            reason: String::new(),
            local: true,
        };
        self.blocks.insert(cidr, block);
        self.block_settled(cidr);
        for id in self.awaited_in(cidr) {
            self.check_complete(&id);
        }
    }

    fn program(&mut self, cidr: IpNet) {
        if self.blocks.contains_key(&cidr) {
            return;
        }
        let mut block = Block {
            stage: Stage::Blackhole,
            advertised_to: 0,
            reason: String::new(),
            local: false,
        };
        // It may have been learned until now; own routes and learned ones never share a prefix.
        self.outputs
            .push_back(Output::Remove(vec![ObjectId::Route(cidr)]));
        if is_host(&cidr) {
            block.stage = Stage::Originating;
            self.outputs.push_back(Output::Originate(cidr));
        } else {
            self.outputs
                .push_back(Output::Set(vec![Object::Blackhole(cidr)]));
        }
        self.blocks.insert(cidr, block);
    }

    pub(super) fn blackhole_programmed(&mut self, cidr: IpNet) {
        let Some(block) = self.blocks.get_mut(&cidr) else {
            return;
        };
        block.reason.clear();
        if block.stage == Stage::Blackhole {
            block.stage = Stage::Originating;
            self.outputs.push_back(Output::Originate(cidr));
        }
    }

    /// The blackhole cannot be made: nobody may count on the block.
    pub(super) fn blackhole_failed(&mut self, cidr: IpNet, failure: Failure) {
        let Some(block) = self.blocks.get_mut(&cidr) else {
            return;
        };
        block.reason.clone_from(&failure.text);
        if block.stage != Stage::Blackhole {
            return;
        }
        self.block_settled(cidr);
        for id in self.awaited_in(cidr) {
            let error = Error::BlockNotReady {
                block: cidr,
                text: format!("block {cidr} is not ready: {}", failure.text),
            };
            self.fail_add(&id, error);
        }
    }

    pub(super) fn originated(&mut self, now: Now, cidr: IpNet) {
        let Some(block) = self.blocks.get_mut(&cidr) else {
            return;
        };
        if block.stage != Stage::Originating {
            return;
        }
        block.stage = Stage::Active;
        self.ipam.block_active(now, cidr);
        self.block_settled(cidr);
        for id in self.awaited_in(cidr) {
            self.check_complete(&id);
        }
    }

    fn give_back(&mut self, cidr: IpNet) {
        let Some(block) = self.blocks.get_mut(&cidr) else {
            return;
        };
        if block.local {
            self.delete_block(cidr);
            return;
        }
        block.stage = Stage::Withdrawing;
        block.advertised_to = 0;
        self.outputs.push_back(Output::Withdraw(cidr));
    }

    /// The speaker has withdrawn the block: only now may its blackhole go.
    pub fn handle_withdrawn(&mut self, cidr: IpNet) {
        let Some(block) = self.blocks.get_mut(&cidr) else {
            return;
        };
        if block.stage != Stage::Withdrawing {
            return;
        }
        if is_host(&cidr) {
            self.delete_block(cidr);
        } else {
            block.stage = Stage::Removing;
            self.outputs
                .push_back(Output::Remove(vec![ObjectId::Blackhole(cidr)]));
        }
    }

    pub(super) fn blackhole_removed(&mut self, cidr: IpNet) {
        if self
            .blocks
            .get(&cidr)
            .is_some_and(|block| block.stage == Stage::Removing)
        {
            self.delete_block(cidr);
        }
    }

    fn delete_block(&mut self, cidr: IpNet) {
        if let Some(block) = self.blocks.get_mut(&cidr) {
            block.stage = Stage::Deleting;
        }
        self.persist(Pending::DropBlock(cidr), vec![Record::DeleteBlock(cidr)]);
    }

    pub(super) fn drop_block_done(&mut self, now: Now, cidr: IpNet, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.blocks.remove(&cidr);
                self.claims.forget(&cidr);
                let (inside, others) = std::mem::take(&mut self.held_back)
                    .into_iter()
                    .partition(|(prefix, _)| cidr.contains(prefix));
                self.held_back = others;
                let inside: BTreeMap<IpNet, RouteChange> = inside;
                let routes = inside.into_values().collect();
                self.handle_routes(routes);
                self.ipam.block_released(cidr);
                self.follow_blocks();
                self.answer_releasers(cidr, Ok(()));
            }
            Err(text) => {
                self.retries
                    .push((now.instant + RETRY, Pending::DropBlock(cidr)));
                self.answer_releasers(cidr, Err(Error::Store(text)));
            }
        }
    }

    /// An operator gives an empty block back.
    pub fn handle_release_block(&mut self, now: Now, caller: Caller, cidr: IpNet) {
        match self.ipam.release_block(now, cidr) {
            Ok(()) => {
                self.releasers.entry(cidr).or_default().push(caller);
                self.follow_blocks();
            }
            Err(refused) => {
                let error = refused.into_error(cidr);
                self.reply_released(caller, Err(error));
            }
        }
    }

    fn answer_releasers(&mut self, cidr: IpNet, result: Result<(), Error>) {
        for caller in self.releasers.remove(&cidr).unwrap_or_default() {
            self.reply_released(caller, result.clone());
        }
    }

    fn reply_released(&mut self, caller: Caller, result: Result<(), Error>) {
        self.outputs.push_back(Output::Reply {
            caller,
            reply: Reply::BlockReleased(result),
        });
    }

    /// The allocator holds the block.
    pub(super) fn holds(&mut self, now: Now, cidr: IpNet) -> bool {
        let found = self.ipam.lookup(now, cidr.addr()).block;
        found.is_some_and(|block| block.cidr == cidr)
    }

    /// Deletes the record of a block that is not held.
    pub(super) fn drop_orphan(&mut self, cidr: IpNet) {
        self.persist(Pending::Orphan(cidr), vec![Record::DeleteBlock(cidr)]);
        self.block_settled(cidr);
    }

    /// How many peers have each block. Blocks that are not named keep their number.
    pub fn handle_advertised(&mut self, counts: Vec<(IpNet, u32)>) {
        for (cidr, count) in counts {
            let Some(block) = self.blocks.get_mut(&cidr) else {
                continue;
            };
            if block.stage != Stage::Active || block.advertised_to == count {
                continue;
            }
            let changed = (block.advertised_to == 0) != (count == 0);
            block.advertised_to = count;
            if !changed {
                continue;
            }
            let users: Vec<WorkloadId> = self
                .workloads
                .iter()
                .filter(|(_, workload)| {
                    matches!(workload.phase, Phase::Standing) && workload.uses(cidr)
                })
                .map(|(id, _)| id.clone())
                .collect();
            for id in users {
                self.publish(&id);
                self.check_complete(&id);
            }
        }
    }

    /// Blocks that are originated.
    pub fn active_blocks(&self) -> Vec<IpNet> {
        self.blocks
            .iter()
            .filter(|(_, block)| block.stage == Stage::Active && !block.local)
            .map(|(cidr, _)| *cidr)
            .collect()
    }

    /// Somebody waits until a block is advertised.
    pub fn awaits_advertisement(&self) -> bool {
        self.awaited.iter().any(|id| {
            self.workloads
                .get(id)
                .is_some_and(|workload| matches!(workload.phase, Phase::Standing))
        })
    }

    /// The block needs not be waited for any more before the node counts as ready.
    pub(super) fn block_settled(&mut self, cidr: IpNet) {
        if self.unoriginated.remove(&cidr) {
            self.check_originations();
        }
    }

    pub(super) fn check_originations(&mut self) {
        if self.unoriginated.is_empty() && !self.originations_synced {
            self.originations_synced = true;
            self.outputs.push_back(Output::OriginationsSynced);
        }
    }

    /// The speaker originates the block.
    pub(super) fn is_announced(&self, cidr: &IpNet) -> bool {
        let block = self.blocks.get(cidr);
        block.is_some_and(|block| block.stage == Stage::Active && !block.local)
    }

    /// The prefix is an own block or lies in one. Own blocks do not overlap, so only the last one
    /// that is not behind the prefix can hold it.
    pub(super) fn is_own(&self, prefix: &IpNet) -> bool {
        self.blocks
            .range(..=*prefix)
            .next_back()
            .is_some_and(|(block, _)| block.contains(prefix))
    }

    pub(super) fn blocks_active(&self, workload: &Workload) -> bool {
        workload.addresses.iter().all(|assigned| {
            self.blocks
                .get(&assigned.block)
                .is_some_and(|block| block.stage == Stage::Active)
        })
    }

    pub(super) fn is_advertised(&self, workload: &Workload) -> bool {
        workload.spec.attachment.is_routed()
            && workload.addresses.iter().all(|assigned| {
                self.blocks
                    .get(&assigned.block)
                    .is_some_and(|block| block.stage == Stage::Active && block.advertised_to > 0)
            })
    }

    fn awaited_in(&self, cidr: IpNet) -> Vec<WorkloadId> {
        self.awaited
            .iter()
            .filter(|id| {
                self.workloads
                    .get(*id)
                    .is_some_and(|workload| workload.uses(cidr))
            })
            .cloned()
            .collect()
    }
}

impl Workload {
    fn uses(&self, cidr: IpNet) -> bool {
        self.addresses.iter().any(|assigned| assigned.block == cidr)
    }
}

//! What this node has and what the store says it has: made the same, in an order in which no crash
//! and no late request gives a block to two nodes.

use std::{collections::BTreeSet, time::Instant};

use ipnet::IpNet;

use super::*;

impl Core {
    /// Nothing of the block is left on this node, durably.
    pub fn give_back(&mut self, now: Instant, block: IpNet) {
        let revision = self.held.remove(&block).and_then(|held| held.revision);
        self.missing.remove(&block);
        if self.lost.remove(&block).is_none() {
            self.leaving.insert(block, (revision, now));
        }
        self.proceed(now);
    }

    pub(super) fn proceed_returns(&mut self, now: Instant) {
        let due: Vec<(IpNet, Option<i64>)> = self
            .leaving
            .iter()
            .filter(|(_, (_, at))| *at <= now)
            .map(|(block, (revision, _))| (*block, *revision))
            .collect();
        for (block, revision) in due {
            if !self.may_send(now) {
                return;
            }
            if self.is_busy(&Job::Return(block)) {
                continue;
            }
            let keys = &self.settings.keys;
            let (key, owned) = (keys.block(&block), keys.owned(&self.settings.node, &block));
            let request = match revision {
                Some(revision) => Request::Txn(Txn {
                    when: vec![
                        Compare::Modified(key.clone(), revision),
                        Compare::Modified(owned.clone(), revision),
                    ],
                    then: vec![Op::Delete(key), Op::Delete(owned)],
                    otherwise: Vec::new(),
                }),
                // Known by nothing but its name: first the revision.
                None => read(vec![Op::Get(key)]),
            };
            self.send(Job::Return(block), request);
        }
    }

    /// Claims again what this node uses and the store does not know.
    pub(super) fn proceed_missing(&mut self, now: Instant, registered: i64) {
        let due: Vec<IpNet> = self
            .missing
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(block, _)| *block)
            .collect();
        for block in due {
            if !self.may_send(now) {
                return;
            }
            if self.is_busy(&Job::Reclaim(block)) {
                continue;
            }
            let owner = self.owner("again".to_owned());
            if let Ok(txn) = claim::transaction(&self.settings.keys, &owner, registered, &[block]) {
                self.send(Job::Reclaim(block), Request::Txn(txn));
            }
        }
    }

    /// The claims that the store has under this node's name.
    pub(super) fn listed(&mut self, now: Instant, answer: &TxnAnswer) {
        let node = answer.keys(1).first();
        if node.map(|node| node.created) != self.registered {
            self.unregistered(now);
            return;
        }
        let nonces: BTreeSet<String> = self
            .claims
            .values()
            .filter_map(|claim| match &claim.phase {
                Phase::Claiming { nonce, .. }
                | Phase::Unsure { nonce, .. }
                | Phase::Reading { nonce, .. } => Some(nonce.clone()),
                _ => None,
            })
            .collect();
        let mut there = BTreeSet::new();
        self.status.foreign = 0;
        for key in answer.keys(0) {
            let (Some(block), Some(owner)) = (parse_block(&key.key), owner_of(key)) else {
                continue;
            };
            if owner.identity != self.settings.record.identity {
                self.status.foreign += 1;
                continue;
            }
            there.insert(block);
            if let Some(held) = self.held.get_mut(&block) {
                // Its claim may have been answered after this list was made.
                if held.revision.is_none_or(|revision| revision < key.modified) {
                    held.revision = Some(key.modified);
                }
                self.missing.remove(&block);
                self.lost.remove(&block);
            } else if let Some((revision, _)) = self.leaving.get_mut(&block) {
                *revision = Some(key.modified);
            } else if !nonces.contains(&owner.claim) {
                // Claimed by a request whose answer was lost, or before a crash.
                self.leaving.insert(block, (Some(key.modified), now));
            }
        }
        let revision = answer.revision;
        for (block, held) in &self.held {
            let old = held.revision.is_none_or(|claimed| claimed <= revision);
            if old && !there.contains(block) && !self.lost.contains_key(block) {
                self.missing.entry(*block).or_insert(now);
            }
        }
        // What another node had may be free by now.
        for block in self.lost.keys() {
            self.missing.entry(*block).or_insert(now);
        }
        self.listed = true;
    }

    pub(super) fn returned(&mut self, now: Instant, block: IpNet, answer: &TxnAnswer) {
        let Some((revision, at)) = self.leaving.get_mut(&block) else {
            return;
        };
        if revision.is_some() {
            // Deleted; or what is there now is of another claim, and not this one's to delete.
            self.leaving.remove(&block);
            self.status.returned += 1;
            return;
        }
        let mine = answer.keys(0).first().filter(|key| {
            owner_of(key).is_some_and(|owner| {
                owner.identity == self.settings.record.identity && owner.node == self.settings.node
            })
        });
        match mine {
            Some(key) => (*revision, *at) = (Some(key.modified), now),
            None => {
                self.leaving.remove(&block);
            }
        }
    }

    pub(super) fn claimed_again(&mut self, now: Instant, block: IpNet, answer: &TxnAnswer) {
        if !self.missing.contains_key(&block) {
            // Given back meanwhile; the claim is found by the next list.
            self.list_at = Some(now);
            return;
        }
        match claim::outcome(answer) {
            Outcome::Taken(_) => {
                self.missing.remove(&block);
                self.lost.remove(&block);
                if let Some(held) = self.held.get_mut(&block) {
                    held.revision = Some(answer.revision);
                }
            }
            Outcome::NoneFree(owner) => {
                self.missing.remove(&block);
                let owner = owner.unwrap_or(Owner {
                    node: "unknown".into(),
                    identity: String::new(),
                    claim: String::new(),
                });
                if owner.identity == self.settings.record.identity
                    && owner.node == self.settings.node
                {
                    // It was this node's after all: an answer was lost, or a part of it is.
                    self.list_at = Some(now + RETRY);
                } else if self.lost.insert(block, owner.node.clone()).is_none() {
                    self.outputs.push_back(Output::Lost {
                        block,
                        by: owner.node,
                    });
                }
            }
            Outcome::NotRegistered => self.unregistered(now),
        }
    }
}

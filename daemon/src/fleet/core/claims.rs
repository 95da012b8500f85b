//! Claims of the core: from a pool that wants a block to the block.
//!
//! ```text
//!   At ─► Claiming ─► taken
//!    ▲        │ all candidates taken: the next round, then a search
//!    │        │ no answer
//!    │        ▼
//!    │     Unsure ─► Reading ─► taken: it was this request that claimed it
//!    └─── Searching ◄──┴─ not there
//! ```

use std::{collections::BTreeSet, time::Instant};

use ipnet::IpNet;

use super::*;

impl Core {
    /// Claims a block, however long it takes.
    pub fn acquire(&mut self, now: Instant, wanted: Wanted) {
        let claim = Claim {
            wanted,
            round: 0,
            search: None,
            fruitless: 0,
            phase: Phase::At(now),
        };
        self.claims.insert(self.next_claim, claim);
        self.next_claim += 1;
        if let State::Down { text, .. } = &self.status.state {
            let text = text.clone();
            self.tell_waiting(&text);
        } else if let Some(text) = self.status.refused.clone() {
            self.tell_waiting(&text);
        }
        self.proceed(now);
    }

    pub(super) fn proceed_claims(&mut self, now: Instant, registered: i64) {
        for number in self.claims.keys().copied().collect::<Vec<_>>() {
            if !self.may_send(now) {
                return;
            }
            let Some(mut claim) = self.claims.remove(&number) else {
                continue;
            };
            let request = match claim.phase.clone() {
                Phase::At(at) if at <= now => self.next_try(&mut claim, None, registered),
                Phase::Unsure {
                    at,
                    candidates,
                    nonce,
                } if at <= now => {
                    let gets = candidates
                        .iter()
                        .map(|block| Op::Get(self.settings.keys.block(block)));
                    let request = read(gets.collect());
                    claim.phase = Phase::Reading { candidates, nonce };
                    Some(request)
                }
                _ => None,
            };
            self.claims.insert(number, claim);
            if let Some(request) = request {
                self.send(Job::Claim(number), request);
            }
        }
    }

    /// The next transaction or window of a claim. `free`: what a window showed.
    pub(super) fn next_try(
        &mut self,
        claim: &mut Claim,
        free: Option<Vec<IpNet>>,
        registered: i64,
    ) -> Option<Request> {
        let searched = free.is_some();
        let mut candidates = free.unwrap_or_default();
        if let Some(block) = claim.wanted.block {
            candidates = vec![block];
        }
        while candidates.is_empty() && claim.search.is_none() {
            if claim.round >= claim::ROUNDS {
                claim.search = Some(Search::new(&claim.wanted, self.random.u64(..)));
                break;
            }
            let known =
                |block: &IpNet| self.held.contains_key(block) || self.leaving.contains_key(block);
            candidates = claim::hashed(&claim.wanted, &self.settings.node, claim.round, known);
            claim.round += 1;
        }
        if candidates.is_empty() {
            let window = claim
                .search
                .as_ref()?
                .window(&self.settings.keys, &claim.wanted)?;
            claim.phase = Phase::Searching;
            return Some(read(vec![window]));
        }
        let nonce = format!("{:016x}", self.random.u64(..));
        let owner = self.owner(nonce.clone());
        let txn = claim::transaction(&self.settings.keys, &owner, registered, &candidates).ok()?;
        claim.phase = Phase::Claiming {
            candidates,
            nonce,
            searched,
        };
        Some(Request::Txn(txn))
    }

    pub(super) fn owner(&self, claim: String) -> Owner {
        Owner {
            node: self.settings.node.clone(),
            identity: self.settings.record.identity.clone(),
            claim,
        }
    }

    pub(super) fn claim_answered(&mut self, now: Instant, number: usize, answer: &TxnAnswer) {
        let Some(mut claim) = self.claims.remove(&number) else {
            return;
        };
        let mut request = None;
        match claim.phase.clone() {
            Phase::Claiming {
                candidates,
                searched,
                ..
            } => match claim::outcome(answer) {
                Outcome::Taken(index) => {
                    if let Some(block) = candidates.get(index) {
                        self.taken(&claim, *block, answer.revision);
                    }
                    return;
                }
                Outcome::NoneFree(holder) => {
                    self.status.retries += 1;
                    if claim.wanted.block.is_some() && !self.none_free(now, &mut claim, holder) {
                        return;
                    }
                    if claim.wanted.block.is_none() {
                        claim.phase = Phase::At(now);
                        if searched {
                            claim.fruitless += 1;
                        }
                    }
                }
                Outcome::NotRegistered => {
                    claim.phase = Phase::At(now);
                    self.unregistered(now);
                }
            },
            Phase::Reading { candidates, nonce } => {
                let mine = (0..candidates.len()).find_map(|index| {
                    let key = answer.keys(index).first()?;
                    (owner_of(key)?.claim == nonce).then_some((index, key.modified))
                });
                if let Some((index, revision)) = mine {
                    self.taken(&claim, candidates[index], revision);
                    return;
                }
                claim.phase = Phase::At(now);
            }
            Phase::Searching => request = self.searched(now, &mut claim, answer),
            phase @ (Phase::At(_) | Phase::Unsure { .. }) => claim.phase = phase,
        }
        self.claims.insert(number, claim);
        if let Some(request) = request {
            self.send(Job::Claim(number), request);
        }
    }

    /// False: the claim of a particular block is over.
    pub(super) fn none_free(
        &mut self,
        now: Instant,
        claim: &mut Claim,
        holder: Option<Owner>,
    ) -> bool {
        let mine = holder
            .as_ref()
            .is_some_and(|owner| owner.node == self.settings.node);
        if mine {
            // It is just being given back.
            claim.phase = Phase::At(now + 2 * RETRY);
            return true;
        }
        let node = holder.map_or("another node".to_owned(), |owner| owner.node);
        self.outputs.push_back(Output::AcquireFailed {
            pool: claim.wanted.pool.clone(),
            block: claim.wanted.block,
            why: Refusal::HeldBy(node),
        });
        false
    }

    /// The nodes hold a claim: what a window of the search showed leads to the next request.
    pub(super) fn searched(
        &mut self,
        now: Instant,
        claim: &mut Claim,
        answer: &TxnAnswer,
    ) -> Option<Request> {
        let registered = self.registered?;
        let random = self.random.u64(..);
        let known: BTreeSet<IpNet> = self
            .held
            .keys()
            .chain(self.leaving.keys())
            .copied()
            .collect();
        // Blocks that look free and never are overlap one that begins before the window.
        let stuck = claim.fruitless >= SAME_WINDOW;
        let search = claim.search.as_mut()?;
        let found = search.read(
            &claim.wanted,
            answer.keys(0),
            answer.more(0),
            random,
            |block| stuck || known.contains(block),
        );
        if stuck {
            claim.fruitless = 0;
        }
        match found {
            Found::Free(free) => self.next_try(claim, Some(free), registered),
            Found::Nothing => self.next_try(claim, None, registered),
            Found::Full => {
                claim.search = None;
                claim.round = 0;
                claim.phase = Phase::At(now + FULL.mul_f64(0.5 + self.random.f64()));
                self.outputs.push_back(Output::AcquireFailed {
                    pool: claim.wanted.pool.clone(),
                    block: None,
                    why: Refusal::Full,
                });
                None
            }
        }
    }

    pub(super) fn taken(&mut self, claim: &Claim, block: IpNet, revision: i64) {
        self.status.claims += 1;
        let pool = claim.wanted.pool.clone();
        self.held.insert(
            block,
            Held {
                pool: pool.clone(),
                revision: Some(revision),
            },
        );
        self.outputs.push_back(Output::Acquired { pool, block });
    }

    /// Tells who waits for a block what keeps it from coming.
    pub(super) fn tell_waiting(&mut self, text: &str) {
        for claim in self.claims.values() {
            self.outputs.push_back(Output::AcquireFailed {
                pool: claim.wanted.pool.clone(),
                block: claim.wanted.block,
                why: Refusal::Unreachable(text.to_owned()),
            });
        }
    }
}

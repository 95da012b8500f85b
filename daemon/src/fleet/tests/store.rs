//! A store that behaves as etcd does, as far as it is used.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::fleet::ops::{
    Answer, Change, Compare, KeyValue, Op, OpAnswer, Request, Txn, TxnAnswer, WatchEvent,
};

#[derive(Debug, Default)]
pub(super) struct SimStore {
    keys: BTreeMap<String, (KeyValue, Option<i64>)>,
    revision: i64,
    compacted: i64,
    history: Vec<(i64, Change)>,
    leases: BTreeMap<i64, Instant>,
    next_lease: i64,
}

impl SimStore {
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn value(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|(key, _)| key.value.clone())
    }

    pub(super) fn keys(&self, from: &str, to: &str) -> impl Iterator<Item = &String> {
        self.keys
            .range(from.to_owned()..to.to_owned())
            .map(|(key, _)| key)
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// As if nobody had kept them for long enough.
    pub(super) fn expire_leases(&mut self) {
        self.revision += 1;
        for lease in std::mem::take(&mut self.leases).into_keys() {
            let gone: Vec<String> = self
                .keys
                .iter()
                .filter(|(_, (_, held))| *held == Some(lease))
                .map(|(key, _)| key.clone())
                .collect();
            for key in gone {
                self.remove(&key);
            }
        }
    }

    pub(super) fn delete(&mut self, key: &str) {
        self.revision += 1;
        self.remove(key);
    }

    fn remove(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.history
                .push((self.revision, Change::Delete(key.to_owned())));
        }
    }

    pub(super) fn changes(&self, from: &str, to: &str, revision: i64) -> WatchEvent {
        if revision <= self.compacted {
            return WatchEvent::Compacted;
        }
        let changes = self.history.iter().filter(|(at, change)| {
            let key = match change {
                Change::Put(key) => &key.key,
                Change::Delete(key) => key,
            };
            *at >= revision && key.as_str() >= from && key.as_str() < to
        });
        WatchEvent::Changes(changes.map(|(_, change)| change.clone()).collect())
    }

    pub(super) fn apply(&mut self, now: Instant, request: Request) -> Answer {
        match request {
            Request::Grant(seconds) => {
                self.next_lease += 1;
                let seconds = u64::try_from(seconds).unwrap();
                self.leases
                    .insert(self.next_lease, now + Duration::from_secs(seconds));
                Answer::Lease(self.next_lease)
            }
            Request::KeepAlive(lease) if self.leases.contains_key(&lease) => Answer::Lease(lease),
            Request::KeepAlive(_) => Answer::LeaseGone,
            Request::Txn(txn) => {
                let before = self.revision;
                self.revision += 1;
                let mut changed = false;
                let mut answer = self.txn(&txn, &mut changed);
                if !changed {
                    self.revision = before;
                    answer.revision = before;
                }
                Answer::Txn(answer)
            }
        }
    }

    fn txn(&mut self, txn: &Txn, changed: &mut bool) -> TxnAnswer {
        let succeeded = txn.when.iter().all(|compare| match compare {
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::NoneIn(from, to) => self.keys(from, to).next().is_none(),
            Compare::Created(key, revision) => self
                .keys
                .get(key)
                .is_some_and(|(key, _)| key.created == *revision),
            Compare::Modified(key, revision) => self
                .keys
                .get(key)
                .is_some_and(|(key, _)| key.modified == *revision),
        });
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        assert!(ops.len() <= 128 && txn.when.len() <= 128, "as etcd has it");
        let answers = ops.iter().map(|op| self.op(op, changed)).collect();
        TxnAnswer {
            succeeded,
            revision: self.revision,
            answers,
        }
    }

    fn op(&mut self, op: &Op, changed: &mut bool) -> OpAnswer {
        match op {
            Op::Put { key, value, lease } => {
                *changed = true;
                let created = self
                    .keys
                    .get(key)
                    .map_or(self.revision, |(old, _)| old.created);
                let new = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    created,
                    modified: self.revision,
                };
                self.history.push((self.revision, Change::Put(new.clone())));
                self.keys.insert(key.clone(), (new, *lease));
                OpAnswer::Done
            }
            Op::Delete(key) => {
                *changed |= self.keys.contains_key(key);
                self.remove(key);
                OpAnswer::Done
            }
            Op::Get(key) => OpAnswer::Keys {
                keys: self
                    .keys
                    .get(key)
                    .map(|(key, _)| key.clone())
                    .into_iter()
                    .collect(),
                more: false,
            },
            Op::List {
                from,
                to,
                limit,
                keys_only,
            } => {
                let all = self
                    .keys
                    .range(from.clone()..to.clone())
                    .map(|(_, (key, _))| key);
                let limit = match usize::try_from(*limit).unwrap() {
                    0 => usize::MAX,
                    limit => limit,
                };
                let count = all.clone().count();
                let keys = all.take(limit).map(|key| KeyValue {
                    value: if *keys_only {
                        String::new()
                    } else {
                        key.value.clone()
                    },
                    ..key.clone()
                });
                OpAnswer::Keys {
                    keys: keys.collect(),
                    more: count > limit,
                }
            }
            Op::Txn(txn) => OpAnswer::Txn(self.txn(txn, changed)),
        }
    }
}

//! This node in the registry: under its name, once, with what it says of itself.

use std::time::Instant;

use super::*;

impl Core {
    pub(super) fn register(&mut self) {
        let key = self.settings.keys.node(&self.settings.node);
        let value = text(&self.settings.record);
        let txn = Txn {
            when: vec![Compare::Absent(key.clone())],
            then: vec![Op::put(key.clone(), value)],
            otherwise: vec![Op::Get(key)],
        };
        self.send(Job::Register, Request::Txn(txn));
    }

    pub(super) fn registered(&mut self, now: Instant, answer: &TxnAnswer) {
        if answer.succeeded {
            self.now_registered(now, answer.revision);
            return;
        }
        let key = answer.keys(0).first();
        let Some((key, there)) =
            key.and_then(|key| Some((key, serde_json::from_str::<NodeRecord>(&key.value).ok()?)))
        else {
            self.refused(
                now,
                "the registry has something under this node's name that cannot be read".to_owned(),
            );
            return;
        };
        if there.identity != self.settings.record.identity {
            let at = there
                .address
                .or(there.address6)
                .map(|address| format!(" at {address}"));
            let text = format!(
                "another installation{} is registered under the name {}; if that one is gone, or this \
                 node has lost its state, run \"agentctl node remove {}\" on another node",
                at.unwrap_or_default(),
                self.settings.node,
                self.settings.node
            );
            self.refused(now, text);
        } else if there == self.settings.record {
            self.now_registered(now, key.created);
        } else {
            let txn = Txn {
                when: vec![Compare::Modified(key.key.clone(), key.modified)],
                then: vec![Op::put(key.key.clone(), text(&self.settings.record))],
                otherwise: Vec::new(),
            };
            self.send(
                Job::Rewrite {
                    created: key.created,
                },
                Request::Txn(txn),
            );
        }
    }

    pub(super) fn refused(&mut self, now: Instant, text: String) {
        self.register_at = Some(now + RETRY_MAX);
        self.tell_waiting(&text);
        self.status.refused = Some(text);
    }

    pub(super) fn now_registered(&mut self, now: Instant, created: i64) {
        self.registered = Some(created);
        self.status.refused = None;
        self.lease = None;
        self.lease_at = now;
        self.list_at = Some(now);
        self.listed = false;
    }

    pub(super) fn unregistered(&mut self, now: Instant) {
        if self.registered.take().is_some() {
            self.register_at = Some(now);
            self.lease = None;
            self.listed = false;
        }
    }
}

fn text(record: &NodeRecord) -> String {
    serde_json::to_string(record).expect("a record has nothing that JSON lacks")
}

//! The fakes at work: the store, the kernel and the speaker do the next thing that waits, or fail at
//! it.

use dataplane::desired::{Detail, Event, Failure, FailureKind, ObjectId};

use super::{KernelWork, SpeakerWork, World, id};

impl World {
    /// The store answers the oldest submission.
    pub(in crate::node::tests) fn store_answers(&mut self, fails: bool) {
        let Some((token, records)) = self.store.pop_front() else {
            return;
        };
        let result = if fails {
            Err("no space left".to_owned())
        } else {
            self.disk.apply(&records);
            Ok(())
        };
        self.node.handle_persisted(self.now, token, result);
        self.drain();
    }

    /// The kernel does one of the things that wait; those of one object in their order.
    pub(in crate::node::tests) fn kernel_answers(
        &mut self,
        choice: usize,
        fails: Option<FailureKind>,
    ) {
        if self.kernel_work.is_empty() {
            return;
        }
        let chosen = choice % self.kernel_work.len();
        let object = |work: &KernelWork| match work {
            KernelWork::Set(id) | KernelWork::Remove(id) => Some(id.clone()),
            KernelWork::Synced(_) => None,
        };
        let wanted = object(&self.kernel_work[chosen]);
        let first = self
            .kernel_work
            .iter()
            .position(|work| object(work) == wanted)
            .expect("the chosen one at least");
        let event = match self.kernel_work.remove(first) {
            KernelWork::Set(id) => match (fails, self.desired.get(&id)) {
                (Some(kind), Some(_)) => {
                    // Retried by itself.
                    self.kernel_work.push(KernelWork::Set(id.clone()));
                    Event::Failed {
                        id,
                        error: Failure {
                            kind,
                            text: format!("{kind:?}"),
                            retry_in: None,
                        },
                    }
                }
                (None, Some(object)) => {
                    self.kernel.insert(id.clone(), Some(object.clone()));
                    Event::Programmed {
                        id,
                        detail: Detail {
                            host_interface: "agt0".to_owned(),
                            host_ifindex: 7,
                            mtu: 1500,
                        },
                    }
                }
                (_, None) => return,
            },
            KernelWork::Remove(id) => {
                if let ObjectId::Blackhole(cidr) = &id {
                    assert!(
                        !self.originated.contains(cidr),
                        "blackhole {cidr} removed while the block is originated"
                    );
                }
                self.kernel.remove(&id);
                if matches!(id, ObjectId::Route(_)) {
                    return;
                }
                Event::Removed { id }
            }
            KernelWork::Synced(source) => {
                let before = self.kernel.len();
                let desired = &self.desired;
                self.kernel
                    .retain(|id, _| id.source() != source || desired.contains_key(id));
                Event::Swept {
                    source,
                    deleted: before - self.kernel.len(),
                }
            }
        };
        self.node.handle_dataplane(self.now, event);
        self.drain();
    }

    /// The kernel reports a failure of something that stands.
    pub(in crate::node::tests) fn kernel_breaks(&mut self, name: &str, kind: FailureKind) {
        let object = ObjectId::Workload(id(name).shared());
        self.kernel_work.push(KernelWork::Set(object.clone()));
        let error = Failure {
            kind,
            text: format!("{kind:?}"),
            retry_in: None,
        };
        self.node
            .handle_dataplane(self.now, Event::Failed { id: object, error });
        self.drain();
    }

    pub(in crate::node::tests) fn speaker_answers(&mut self) {
        match self.speaker_work.pop_front() {
            Some(SpeakerWork::Originate(cidr)) => {
                assert!(
                    cidr.prefix_len() == cidr.max_prefix_len()
                        || self.kernel.contains_key(&ObjectId::Blackhole(cidr)),
                    "{cidr} originated without its blackhole"
                );
                self.originated.insert(cidr);
                self.node.handle_originated(self.now, cidr);
            }
            Some(SpeakerWork::Withdraw(cidr)) => {
                self.originated.remove(&cidr);
                self.node.handle_withdrawn(cidr);
            }
            None => {}
        }
        self.drain();
    }

    /// Every originated block is advertised to so many peers.
    pub(in crate::node::tests) fn advertise(&mut self, peers: u32) {
        let counts = self.originated.iter().map(|cidr| (*cidr, peers)).collect();
        self.node.handle_advertised(counts);
        self.drain();
    }
}

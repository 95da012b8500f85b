//! What callers ask: commands are handed to the node and answered when it says so, views at once.

use tokio::sync::mpsc;

use super::{Task, Waiter};
use crate::{
    ipam::Now,
    node::{
        Caller, Error,
        handle::{IN_FLIGHT, Request, SyncRequest, WATCH_QUEUE, Watcher},
        sync::{SyncEvent, SyncId},
    },
};

impl Task {
    fn caller(&mut self, waiter: Waiter) -> Caller {
        let caller = Caller(self.next_caller);
        self.next_caller += 1;
        self.callers.insert(caller, waiter);
        caller
    }

    pub(super) fn request(&mut self, request: Request, stopping: bool) {
        // Whoever asked and went away needs no answer; sends to it fail, and that is all.
        let refused = if stopping {
            Some(Error::Stopping)
        } else if self.callers.len() >= IN_FLIGHT {
            Some(Error::Busy { limit: IN_FLIGHT })
        } else {
            None
        };
        let now = Now::read();
        match request {
            Request::Add {
                id,
                spec,
                listening,
                wait,
                reply,
            } => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Add(reply));
                    self.node.handle_add(now, caller, id, spec, listening, wait);
                }
            },
            Request::Delete {
                id,
                generation,
                reply,
            } => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Delete(reply));
                    self.node.handle_delete(now, caller, id, generation);
                }
            },
            Request::Drain(timeout, reply) => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Drain(reply));
                    self.node.handle_drain(now, caller, timeout);
                }
            },
            Request::Undrain(reply) => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Drain(reply));
                    self.node.handle_undrain(caller);
                }
            },
            Request::SetPools {
                pools,
                settings,
                reply,
            } => {
                let _ = reply.send(self.node.set_pools(now, &pools, &settings));
            }
            Request::PoolState { name, to, reply } => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Pool(reply));
                    self.node.handle_pool_state(now, caller, name, to);
                }
            },
            Request::Sync(request) => self.sync_request(request, refused),
            Request::Get(id, reply) => {
                let _ = reply.send(self.node.workload(&id));
            }
            Request::List(reply) => {
                let _ = reply.send(self.node.workloads());
            }
            Request::Watch(reply) => {
                // Events of earlier inputs of this round are not in its channel yet, but what
                // they tell is in the snapshot already.
                self.deliver();
                let (watcher, watch) = Watcher::new(self.node.published(), self.node.cursor());
                if reply.send(watch).is_ok() {
                    self.watchers.push(watcher);
                }
            }
            Request::Pools(reply) => {
                let _ = reply.send(self.node.pools(now));
            }
            Request::Blocks(reply) => {
                let _ = reply.send(self.node.blocks(now));
            }
            Request::Address(address, reply) => {
                let _ = reply.send(self.node.address(now, address));
            }
            Request::Status(reply) => {
                let _ = reply.send(self.node.status());
            }
            Request::ReleaseBlock(cidr, reply) => match refused {
                Some(error) => {
                    let _ = reply.send(Err(error));
                }
                None => {
                    let caller = self.caller(Waiter::Release(reply));
                    self.node.handle_release_block(now, caller, cidr);
                }
            },
            Request::AddressUses(reply) => {
                let _ = reply.send(self.node.address_uses(now));
            }
            Request::Audit(reply) => {
                // What it has handed to the store already is to be in what is read.
                self.deliver();
                let _ = reply.send((self.node.audit(now), self.store.read()));
            }
        }
    }

    fn sync_request(&mut self, request: SyncRequest, refused: Option<Error>) {
        let now = Now::read();
        match request {
            SyncRequest::Begin {
                owner,
                grace,
                reply,
            } => {
                let begun = match refused {
                    Some(error) => Err(error),
                    None => self.node.handle_sync_begin(owner, grace),
                };
                let begun = begun.map(|id| {
                    let (sender, events) = mpsc::channel(WATCH_QUEUE);
                    self.syncs.insert(id, sender);
                    (id, events)
                });
                let _ = reply.send(begun);
            }
            SyncRequest::Name(sync, id, reply) => {
                let _ = reply.send(self.node.handle_sync_name(sync, &id));
            }
            SyncRequest::Delete {
                owner,
                id,
                generation,
                reply,
            } => {
                let refused = refused.or_else(|| self.node.refuse_other(&owner, &id));
                match refused {
                    Some(error) => {
                        let _ = reply.send(Err(error));
                    }
                    None => {
                        let caller = self.caller(Waiter::Delete(reply));
                        self.node.handle_delete(now, caller, id, generation);
                    }
                }
            }
            SyncRequest::Complete(sync, reply) => {
                let _ = reply.send(self.node.handle_sync_complete(now, sync));
            }
            SyncRequest::End(sync) => {
                self.syncs.remove(&sync);
                self.node.handle_sync_end(sync);
            }
        }
    }

    /// A client that is gone or too slow is ended.
    pub(super) fn tell_sync(&mut self, id: SyncId, event: SyncEvent) {
        let over = event == SyncEvent::Replaced;
        let told = self.syncs.get(&id).map(|sender| sender.try_send(event));
        if over || matches!(told, Some(Err(_))) {
            self.syncs.remove(&id);
            self.node.handle_sync_end(id);
        }
    }
}

//! A node with fakes for the store, the kernel, the speaker and the callers around it. The test
//! chooses what is answered next, and how; the world checks after each step what must hold always.

mod fakes;
mod samples;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bgp::speaker::status::ForeignClaim;
use dataplane::{
    desired::{Event, Object, ObjectId, Source},
    linux::listeners::Listener,
};
use ipnet::IpNet;

use crate::{
    config,
    ipam::Now,
    node::{
        Caller, Drain, Error, Node, Output, Reply, Token, WaitFor, WorkloadId, WorkloadSpec,
        check::{BgpSays, Sources, check},
        claims::ClaimEvent,
        handle::Added,
        sync::{SyncEvent, SyncId},
        view::{PoolOverride, WatchChange, WorkloadState},
    },
    store::{disk::Disk, record::Record},
};
use samples::{SETTINGS, bridges, pools};
pub(super) use samples::{attached, bridged, fixed, id, in_own_namespace, net, spec};

#[derive(Clone, Debug)]
enum KernelWork {
    Set(ObjectId),
    Remove(ObjectId),
    Synced(Source),
}

#[derive(Clone, Debug)]
enum SpeakerWork {
    Originate(IpNet),
    Withdraw(IpNet),
}

/// What a caller asked for.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Add(WorkloadId),
    Delete(WorkloadId),
    Drain,
    Pool,
    Release(IpNet),
}

pub(super) struct World {
    pub(super) node: Node,
    now: Now,
    pub(super) disk: Disk,
    store: VecDeque<(Token, Vec<Record>)>,
    desired: BTreeMap<ObjectId, Object>,
    kernel_work: Vec<KernelWork>,
    /// Objects that stand in the kernel.
    pub(super) kernel: BTreeMap<ObjectId, Option<Object>>,
    speaker_work: VecDeque<SpeakerWork>,
    pub(super) originated: BTreeSet<IpNet>,
    pub(super) originations_synced: bool,
    /// What the speaker was told last.
    pub(super) announces: bgp::rib::Drain,
    pub(super) preferred: BTreeSet<IpNet>,
    pub(super) claim_events: Vec<ClaimEvent>,
    next_caller: u64,
    open: BTreeMap<Caller, Asked>,
    /// Answers in their order.
    pub(super) answers: Vec<(Caller, Reply)>,
    /// Adds that were acknowledged, without those that somebody asked to delete since.
    pub(super) acknowledged: BTreeMap<WorkloadId, Added>,
    pub(super) pools: Vec<config::Pool>,
    /// What clients that state all their workloads were told.
    pub(super) synced: Vec<(SyncId, SyncEvent)>,
    /// What watchers know.
    pub(super) watched: BTreeMap<WorkloadId, u64>,
    cursor: u64,
}

impl World {
    /// A node without history, as far as it comes by itself.
    pub(super) fn new() -> Self {
        let mut world = Self::start(
            Now {
                instant: Instant::now(),
                wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            },
            Disk::default(),
            BTreeMap::new(),
            pools(),
        );
        world.settle();
        world
    }

    fn start(
        now: Now,
        disk: Disk,
        kernel: BTreeMap<ObjectId, Option<Object>>,
        pools: Vec<config::Pool>,
    ) -> Self {
        let (mut node, notices) =
            Node::recover(now, &pools, &bridges(), &SETTINGS, disk.recovered());
        assert!(notices.is_empty(), "{notices:?}");
        node.handle_dataplane(now, Event::Started);
        let watched = node
            .published()
            .into_iter()
            .map(|view| (view.id, view.generation))
            .collect();
        let mut world = Self {
            node,
            now,
            disk,
            store: VecDeque::new(),
            desired: BTreeMap::new(),
            kernel_work: Vec::new(),
            kernel,
            speaker_work: VecDeque::new(),
            originated: BTreeSet::new(),
            originations_synced: false,
            announces: bgp::rib::Drain::Off,
            preferred: BTreeSet::new(),
            claim_events: Vec::new(),
            next_caller: 0,
            open: BTreeMap::new(),
            answers: Vec::new(),
            acknowledged: BTreeMap::new(),
            pools,
            synced: Vec::new(),
            watched,
            cursor: 0,
        };
        world.drain();
        world
    }

    /// kill -9 and a new start. Of what was handed to the store, the first `written` submissions
    /// had reached the disk.
    pub(super) fn crash(&mut self, written: usize) {
        for (_, records) in self.store.iter().take(written) {
            self.disk.apply(records);
        }
        // What was acknowledged is on disk, whatever was on its way.
        for (id, added) in &self.acknowledged {
            let record = self
                .disk
                .workloads
                .get(id)
                .expect("acknowledged is durable");
            assert_eq!(record.generation, added.workload.generation);
            if added.workload.spec.attachment.desired().is_some() {
                assert_eq!(record.addresses, added.workload.addresses);
            }
        }
        let acknowledged = std::mem::take(&mut self.acknowledged);
        *self = Self::start(
            self.now,
            self.disk.clone(),
            std::mem::take(&mut self.kernel),
            self.pools.clone(),
        );
        for (id, added) in acknowledged {
            let view = self.node.workload(&id).expect("acknowledged survives");
            if view.spec.attachment.desired().is_some() {
                assert_eq!(view.addresses, added.workload.addresses);
            }
            self.acknowledged.insert(id, added);
        }
    }

    pub(super) fn add(&mut self, name: &str, spec: WorkloadSpec, wait: WaitFor) -> Caller {
        self.add_beside(name, spec, Vec::new(), wait)
    }

    /// While programs of the node listen on its ports.
    pub(super) fn add_beside(
        &mut self,
        name: &str,
        spec: WorkloadSpec,
        listening: Vec<Listener>,
        wait: WaitFor,
    ) -> Caller {
        let caller = self.caller(Asked::Add(id(name)));
        let spec = Box::new(in_own_namespace(name, spec));
        self.node
            .handle_add(self.now, caller, id(name), spec, listening, wait);
        self.drain();
        caller
    }

    pub(super) fn take_out(&mut self, timeout: Duration) -> Caller {
        let caller = self.caller(Asked::Drain);
        self.node.handle_drain(self.now, caller, timeout);
        self.drain();
        caller
    }

    pub(super) fn take_back_in(&mut self) -> Caller {
        let caller = self.caller(Asked::Drain);
        self.node.handle_undrain(caller);
        self.drain();
        caller
    }

    pub(super) fn pool_state(&mut self, name: &str, to: Option<PoolOverride>) -> Caller {
        let caller = self.caller(Asked::Pool);
        self.node
            .handle_pool_state(self.now, caller, name.to_owned(), to);
        self.drain();
        caller
    }

    /// As a reload does.
    pub(super) fn set_pools(&mut self, pools: Vec<config::Pool>) -> Result<(), Error> {
        let result = self.node.set_pools(self.now, &pools, &SETTINGS);
        if result.is_ok() {
            self.pools = pools;
            // It is due at once.
            self.node.handle_timeout(self.now);
        }
        self.drain();
        result
    }

    /// A client says something of all its workloads.
    pub(super) fn sync<T>(&mut self, say: impl FnOnce(&mut Node, Now) -> T) -> T {
        let result = say(&mut self.node, self.now);
        self.drain();
        result
    }

    pub(super) fn delete(&mut self, name: &str, generation: Option<u64>) -> Caller {
        let id = id(name);
        let caller = self.caller(Asked::Delete(id.clone()));
        if generation.is_none_or(|generation| {
            self.acknowledged
                .get(&id)
                .is_some_and(|added| added.workload.generation == generation)
        }) {
            self.acknowledged.remove(&id);
        }
        self.node.handle_delete(self.now, caller, id, generation);
        self.drain();
        caller
    }

    /// Others announce these own blocks: each with the router id of who does.
    pub(super) fn claims(&mut self, of: &[(&str, [u8; 4])]) {
        let claims = of.iter().map(|(block, originator)| ForeignClaim {
            block: net(block),
            prefix: net(block),
            peer: "rr".to_owned(),
            originator: Some((*originator).into()),
            origin_as: None,
        });
        self.node.handle_claims(self.now, claims.collect());
        self.drain();
    }

    pub(super) fn release(&mut self, cidr: &str) -> Caller {
        let caller = self.caller(Asked::Release(net(cidr)));
        self.node.handle_release_block(self.now, caller, net(cidr));
        self.drain();
        caller
    }

    fn caller(&mut self, asked: Asked) -> Caller {
        let caller = Caller(self.next_caller);
        self.next_caller += 1;
        self.open.insert(caller, asked);
        caller
    }

    pub(super) fn answer(&self, caller: Caller) -> Option<&Reply> {
        self.answers
            .iter()
            .find(|(other, _)| *other == caller)
            .map(|(_, reply)| reply)
    }

    pub(super) fn added(&self, caller: Caller) -> &Added {
        match self.answer(caller) {
            Some(Reply::Added(Ok(added))) => added,
            other => panic!("not added: {other:?}"),
        }
    }

    pub(super) fn add_error(&self, caller: Caller) -> &Error {
        match self.answer(caller) {
            Some(Reply::Added(Err(error))) => error,
            other => panic!("no error: {other:?}"),
        }
    }

    pub(super) fn delete_error(&self, caller: Caller) -> &Error {
        match self.answer(caller) {
            Some(Reply::Deleted(Err(error))) => error,
            other => panic!("no error: {other:?}"),
        }
    }

    pub(super) fn store_waits(&self) -> usize {
        self.store.len()
    }

    pub(super) fn kernel_waits(&self) -> usize {
        self.kernel_work.len()
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall += time;
        self.node.handle_timeout(self.now);
        self.drain();
    }

    /// Everything that waits is answered well, in order, until nothing waits.
    pub(super) fn settle(&mut self) {
        while !(self.store.is_empty()
            && self.kernel_work.is_empty()
            && self.speaker_work.is_empty())
        {
            self.store_answers(false);
            self.kernel_answers(0, None);
            self.speaker_answers();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Acquire(_) | Output::Return(_) => {}
                Output::Persist { token, records } => self.store.push_back((token, records)),
                Output::Set(objects) => {
                    for object in objects {
                        let id = object.id();
                        self.desired.insert(id.clone(), object);
                        self.kernel_work.push(KernelWork::Set(id));
                    }
                }
                Output::Remove(ids) => {
                    for id in ids {
                        self.desired.remove(&id);
                        self.kernel_work
                            .retain(|work| !matches!(work, KernelWork::Set(other) if *other == id));
                        self.kernel_work.push(KernelWork::Remove(id));
                    }
                }
                Output::Synced(source) => self.kernel_work.push(KernelWork::Synced(source)),
                Output::Originate(cidr) => {
                    self.speaker_work.push_back(SpeakerWork::Originate(cidr));
                }
                Output::Withdraw(cidr) => self.speaker_work.push_back(SpeakerWork::Withdraw(cidr)),
                Output::Drain(drain) => self.announces = drain,
                Output::Prefer(cidr) => drop(self.preferred.insert(cidr)),
                Output::Claim(event) => self.claim_events.push(event),
                Output::OriginationsSynced => {
                    assert!(!self.originations_synced, "synced twice");
                    self.originations_synced = true;
                }
                Output::Reply {
                    caller: Caller::NOBODY,
                    ..
                } => {}
                Output::Reply { caller, reply } => self.replied(caller, reply),
                Output::Sync { id, event } => self.synced.push((id, event)),
                Output::Publish(event) => {
                    assert_eq!(event.cursor, self.cursor + 1);
                    self.cursor = event.cursor;
                    match &event.change {
                        WatchChange::Upsert(view) => {
                            self.watched.insert(view.id.clone(), view.generation);
                        }
                        WatchChange::Delete { id, generation } => {
                            assert_eq!(self.watched.remove(id), Some(*generation));
                        }
                    }
                }
            }
        }
    }

    fn replied(&mut self, caller: Caller, reply: Reply) {
        let asked = self.open.remove(&caller).expect("answered exactly once");
        match (&asked, &reply) {
            (Asked::Add(id), Reply::Added(Ok(added))) => {
                let record = self.disk.workloads.get(id).expect("durable when answered");
                let attachment = &added.workload.spec.attachment;
                if attachment.desired().is_some() {
                    assert_eq!(record.addresses, added.workload.addresses);
                    assert!(
                        self.kernel.contains_key(&ObjectId::Workload(id.shared())),
                        "in the kernel when answered"
                    );
                }
                let routed = attachment.is_routed();
                for assigned in added.workload.addresses.iter().filter(|_| routed) {
                    assert!(self.originated.contains(&assigned.block));
                }
                self.acknowledged.insert(id.clone(), added.clone());
            }
            (Asked::Delete(id), Reply::Deleted(Ok(true))) => {
                let gone = ObjectId::Workload(id.shared());
                assert!(!self.disk.workloads.contains_key(id), "durably gone");
                assert!(!self.kernel.contains_key(&gone), "gone from the kernel");
            }
            (Asked::Add(_), Reply::Added(_)) | (Asked::Delete(_), Reply::Deleted(_)) => {}
            (Asked::Drain, Reply::Drain(Ok(drain))) => {
                assert_eq!(
                    self.disk.drained.is_some(),
                    *drain != Drain::Off,
                    "durable when answered"
                );
            }
            (Asked::Drain, Reply::Drain(Err(_))) | (Asked::Pool, Reply::Pool(_)) => {}
            (Asked::Release(cidr), Reply::BlockReleased(Ok(()))) => {
                assert!(!self.disk.blocks.contains_key(cidr), "durably gone");
                assert!(!self.originated.contains(cidr), "withdrawn");
                assert!(!self.kernel.contains_key(&ObjectId::Blackhole(*cidr)));
            }
            (Asked::Release(_), Reply::BlockReleased(Err(_))) => {}
            (asked, reply) => panic!("{asked:?} answered by {reply:?}"),
        }
        self.answers.push((caller, reply));
    }

    /// What must hold when nothing is on its way: everything tells the same story.
    pub(super) fn check_quiet(&mut self) {
        assert!(self.open.is_empty(), "unanswered: {:?}", self.open);
        let views = self.node.workloads();
        let ids: BTreeSet<_> = views.iter().map(|view| view.id.clone()).collect();
        let disk: BTreeSet<_> = self.disk.workloads.keys().cloned().collect();
        assert_eq!(ids, disk, "node and disk");
        let watched: BTreeSet<_> = self.watched.keys().cloned().collect();
        assert_eq!(ids, watched, "node and watchers");
        let in_kernel = views
            .iter()
            .filter(|view| view.spec.attachment.desired().is_some());
        let objects: BTreeSet<_> = in_kernel
            .map(|view| ObjectId::Workload(view.id.shared()))
            .chain(bridges().iter().map(|bridge| bridge.object().id()))
            .collect();
        let of = |map: Vec<&ObjectId>, source| {
            map.into_iter()
                .filter(|id| id.source() == source)
                .cloned()
                .collect::<BTreeSet<_>>()
        };
        let wanted = of(self.desired.keys().collect(), Source::Workload);
        assert_eq!(objects, wanted, "node and desired objects");
        let kernel = of(self.kernel.keys().collect(), Source::Workload);
        assert_eq!(objects, kernel, "node and kernel");
        let mut addresses = BTreeSet::new();
        let mut used = 0;
        for view in &views {
            assert!(
                matches!(
                    view.state,
                    WorkloadState::Programmed | WorkloadState::Advertised
                ),
                "{view:?}"
            );
            let record = &self.disk.workloads[&view.id];
            assert_eq!(record.generation, view.generation);
            if view.spec.attachment.desired().is_none() {
                assert!(record.addresses.is_empty(), "those of others");
                continue;
            }
            for assigned in &view.addresses {
                assert!(addresses.insert(assigned.address), "an address twice");
                assert!(self.disk.blocks.contains_key(&assigned.block));
                used += 1;
            }
            assert_eq!(record.addresses, view.addresses);
        }
        let now = self.now;
        let blocks = self.node.blocks(now);
        assert_eq!(blocks.iter().map(|block| block.used).sum::<u64>(), used);
        let cidrs: BTreeSet<_> = blocks.iter().map(|block| block.cidr).collect();
        assert_eq!(cidrs, self.disk.blocks.keys().copied().collect(), "blocks");
        let known: BTreeSet<_> = blocks
            .iter()
            .filter(|block| config::Bridge::of_pool(&block.pool).is_none())
            .map(|block| block.cidr)
            .collect();
        assert_eq!(known, self.originated, "blocks and originations");
        let blackholes: BTreeSet<_> = known.iter().map(|c| ObjectId::Blackhole(*c)).collect();
        assert_eq!(blackholes, of(self.kernel.keys().collect(), Source::Block));
        assert_eq!(blackholes, of(self.desired.keys().collect(), Source::Block));
        assert!(self.originations_synced);
        assert!(self.node.is_ready(), "{:?}", self.node.status());
        let report = check(&self.sources());
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        assert_eq!(report.workloads, views.len() as u64);
    }

    pub(super) fn wants(&self, object: &ObjectId) -> bool {
        self.desired.contains_key(object)
    }

    pub(super) fn wanted(&self, name: &str) -> Option<Arc<dataplane::desired::Workload>> {
        match self.desired.get(&ObjectId::Workload(id(name).shared())) {
            Some(Object::Workload(workload)) => Some(workload.clone()),
            _ => None,
        }
    }

    /// What everybody would say when asked; the kernel as if it had been programmed well.
    pub(super) fn sources(&mut self) -> Sources {
        let mut sources = Sources {
            node: self.node.audit(self.now),
            records: self.disk.recovered(),
            bgp: Some(BgpSays {
                originated: self.originated.iter().copied().collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (index, (object, wanted)) in (10u32..).zip(&self.kernel) {
            super::check::show(&mut sources, index, object, wanted.as_ref());
        }
        sources
    }
}

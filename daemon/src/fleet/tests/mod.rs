//! Many nodes and one simulated store, in virtual time: answers are lost, come late, are carried out
//! late; nodes crash at every step, are cut off, are removed by an operator and come back.
//!
//! After every step no two nodes use one block or overlapping ones. In the end, when the faults are
//! over, every node has what it asked for, and the store has exactly what the nodes have.
#![allow(clippy::unwrap_used)]

mod registry;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use fastrand::Rng;
use ipnet::IpNet;

use self::store::SimStore;
use super::{
    core::{Core, Id, Output, Settings},
    keys::{Keys, NodeRecord, Owner, parse_block},
    ops::{Answer, Failure, Request, WatchEvent},
};
use crate::ipam::{Refusal, Wanted};

const STEP: Duration = Duration::from_millis(10);

struct Node {
    name: String,
    identity: String,
    /// Blocks on disk, which is what counts after a crash.
    disk: BTreeSet<IpNet>,
    /// Acquired, and not on disk yet.
    fresh: Vec<IpNet>,
    /// Deleted from the disk, and the store not told yet.
    core: Core,
    /// Blocks it shall have in the end.
    wanted: usize,
    cut: bool,
    full: usize,
    runs: u64,
    told: Vec<String>,
}

struct Message {
    at: Instant,
    node: usize,
    run: u64,
    id: Id,
    kind: Kind,
}

enum Kind {
    /// Carried out when it arrives; `false`: nobody waits for the answer any more.
    Request(Request, bool),
    Answer(Result<Answer, Failure>),
}

struct World {
    now: Instant,
    random: Rng,
    store: SimStore,
    nodes: Vec<Node>,
    messages: Vec<Message>,
    watches: BTreeMap<usize, (u64, Id, String, String, i64)>,
    /// Probability of faults, in percent.
    faults: u64,
    pool: IpNet,
    size: u8,
}

fn settings(name: &str, identity: &str, seed: u64) -> Settings {
    Settings {
        keys: Keys::new("/f"),
        node: name.to_owned(),
        record: NodeRecord {
            identity: identity.to_owned(),
            address: None,
            address6: None,
            asn: Some(64512),
            labels: BTreeMap::new(),
            version: String::new(),
        },
        lease: Duration::from_secs(15),
        follow: true,
        reclaim_after: None,
        seed,
    }
}

impl World {
    fn new(seed: u64, nodes: usize, pool: &str, size: u8, faults: u64) -> Self {
        let now = Instant::now();
        let mut random = Rng::with_seed(seed);
        let nodes = (0..nodes).map(|number| {
            let name = format!("node-{number}");
            let identity = format!("id-{number}");
            Node {
                core: Core::new(now, settings(&name, &identity, random.u64(..)), Vec::new()),
                name,
                identity,
                disk: BTreeSet::new(),
                fresh: Vec::new(),
                wanted: 0,
                cut: false,
                full: 0,
                runs: 0,
                told: Vec::new(),
            }
        });
        let nodes = nodes.collect();
        World {
            now,
            store: SimStore::default(),
            nodes,
            messages: Vec::new(),
            watches: BTreeMap::new(),
            faults,
            pool: pool.parse().unwrap(),
            size,
            random,
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            pool: "p".into(),
            cidr: self.pool,
            block_size: self.size,
            reserved: Vec::new(),
            block: None,
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.u64(0..100) < percent
    }

    fn acquire(&mut self, node: usize) {
        let wanted = self.wanted();
        self.nodes[node].wanted += 1;
        self.nodes[node].core.acquire(self.now, wanted);
    }

    /// Everything in memory is lost.
    fn crash(&mut self, node: usize) {
        let seed = self.random.u64(..);
        let missing;
        {
            let node = &mut self.nodes[node];
            node.runs += 1;
            node.fresh.clear();
            let held = node
                .disk
                .iter()
                .map(|block| ("p".to_owned(), *block))
                .collect();
            node.core = Core::new(self.now, settings(&node.name, &node.identity, seed), held);
            missing = node.wanted.saturating_sub(node.disk.len());
        }
        self.watches.remove(&node);
        let wanted = self.wanted();
        for _ in 0..missing {
            self.nodes[node].core.acquire(self.now, wanted.clone());
        }
    }

    /// First from the disk, then from the store.
    fn give_back(&mut self, node: usize) {
        let faults = self.faults;
        let node_ref = &mut self.nodes[node];
        let Some(block) = node_ref.disk.iter().next().copied() else {
            return;
        };
        node_ref.disk.remove(&block);
        node_ref.wanted -= 1;
        if faults > 0 && self.random.u64(0..100) < faults {
            self.crash(node);
            return;
        }
        self.nodes[node].core.give_back(self.now, block);
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in 0..self.nodes.len() {
            let due = self.nodes[node].core.poll_timeout();
            if due.is_some_and(|at| at <= self.now) {
                self.nodes[node].core.handle_timeout(self.now);
            }
            self.deliver(node);
        }
        let mut due = Vec::new();
        let mut later = Vec::new();
        for message in std::mem::take(&mut self.messages) {
            if message.at <= self.now {
                due.push(message);
            } else {
                later.push(message);
            }
        }
        self.messages = later;
        self.random.shuffle(&mut due);
        for message in due {
            self.arrive(message);
            self.check();
        }
        self.watch();
        for node in 0..self.nodes.len() {
            // A disk takes its time.
            if self.chance(50) {
                let fresh = std::mem::take(&mut self.nodes[node].fresh);
                self.nodes[node].disk.extend(fresh);
            }
        }
        self.check();
    }

    fn deliver(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].core.poll_output() {
            match output {
                Output::Send { id, request } => {
                    let run = self.nodes[node].runs;
                    let cut = self.nodes[node].cut;
                    let lost = self.chance(self.faults) || cut;
                    let delay = self.random.u32(0..3);
                    let mut message = |at, kind| {
                        self.messages.push(Message {
                            at,
                            node,
                            run,
                            id,
                            kind,
                        });
                    };
                    if !lost {
                        message(self.now + STEP * delay, Kind::Request(request, true));
                        continue;
                    }
                    // Nobody hears of it in time; perhaps it is carried out, and perhaps much later.
                    let failure = Kind::Answer(Err(Failure("lost".to_owned())));
                    message(self.now + Duration::from_millis(1_500), failure);
                    if !cut && self.random.bool() {
                        let late = Duration::from_millis(self.random.u64(0..6_000));
                        self.messages.push(Message {
                            at: self.now + late,
                            node,
                            run,
                            id,
                            kind: Kind::Request(request, false),
                        });
                    }
                }
                Output::Watch {
                    id,
                    from,
                    to,
                    revision,
                } => {
                    let run = self.nodes[node].runs;
                    self.watches.insert(node, (run, id, from, to, revision));
                }
                Output::Acquired { block, .. } => {
                    if self.faults > 0 && self.chance(self.faults / 4) {
                        self.crash(node);
                        return;
                    }
                    self.nodes[node].fresh.push(block);
                }
                Output::AcquireFailed { why, .. } => {
                    let node = &mut self.nodes[node];
                    node.full += usize::from(why == Refusal::Full);
                    node.told.push(format!("{why:?}"));
                }
                Output::Lost { block, by } => {
                    panic!("{} has lost {block} to {by}", self.nodes[node].name)
                }
                Output::Nodes | Output::Reclaim(_) => {}
            }
        }
    }

    fn arrive(&mut self, message: Message) {
        let Message {
            node,
            run,
            id,
            kind,
            ..
        } = message;
        match kind {
            Kind::Request(request, waits) => {
                let answer = self.store.apply(self.now, request);
                if waits {
                    self.messages.push(Message {
                        at: self.now,
                        node,
                        run,
                        id,
                        kind: Kind::Answer(Ok(answer)),
                    });
                }
            }
            Kind::Answer(result) => {
                if self.nodes[node].runs == run {
                    self.nodes[node].core.handle_answer(self.now, id, result);
                    self.deliver(node);
                }
            }
        }
    }

    fn watch(&mut self) {
        for node in 0..self.nodes.len() {
            let Some((run, id, from, to, revision)) = self.watches.get(&node).cloned() else {
                continue;
            };
            if run != self.nodes[node].runs || self.nodes[node].cut {
                continue;
            }
            if self.chance(self.faults / 10) {
                self.watches.remove(&node);
                let event = WatchEvent::Ended("cut".to_owned());
                self.nodes[node].core.handle_watch(self.now, id, event);
                continue;
            }
            let event = self.store.changes(&from, &to, revision);
            match &event {
                WatchEvent::Changes(changes) if changes.is_empty() => continue,
                WatchEvent::Changes(_) => {
                    let next = self.store.revision() + 1;
                    self.watches.insert(node, (run, id, from, to, next));
                }
                _ => drop(self.watches.remove(&node)),
            }
            self.nodes[node].core.handle_watch(self.now, id, event);
            self.deliver(node);
        }
    }

    /// No block is used by two nodes, and each that is used is claimed.
    fn check(&self) {
        let mut used: Vec<(IpNet, usize)> = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            for block in node.disk.iter().chain(&node.fresh) {
                for (other, by) in &used {
                    let overlaps = other.contains(block) || block.contains(other);
                    assert!(
                        !overlaps || *by == number,
                        "{block} of {number} and {other} of {by}"
                    );
                }
                used.push((*block, number));
                let owner = self.store.value(&Keys::new("/f").block(block));
                let owner: Owner = serde_json::from_str(&owner.unwrap_or_else(|| {
                    panic!("{block} is used by node-{number} and nobody holds it")
                }))
                .unwrap();
                assert_eq!(owner.identity, node.identity, "{block}");
            }
        }
    }

    /// Without further faults, all comes to rest.
    fn settle(&mut self) {
        self.faults = 0;
        for node in &mut self.nodes {
            node.cut = false;
        }
        for _ in 0..20_000 {
            self.step();
            let all = self.nodes.iter().all(|node| node.disk.len() == node.wanted);
            if all && self.held() == self.claimed() && self.messages.is_empty() {
                return;
            }
        }
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| (&node.name, node.disk.len(), node.wanted, node.core.status()))
            .collect();
        panic!(
            "not settled: held {:?}, claimed {:?}, {nodes:#?}",
            self.held(),
            self.claimed()
        );
    }

    fn held(&self) -> BTreeSet<(String, IpNet)> {
        self.nodes
            .iter()
            .flat_map(|node| node.disk.iter().map(|block| (node.name.clone(), *block)))
            .collect()
    }

    /// By the store, both ways of writing it.
    fn claimed(&self) -> BTreeSet<(String, IpNet)> {
        let keys = Keys::new("/f");
        let (from, to) = keys.all_owned();
        let owned: BTreeSet<(String, IpNet)> = self
            .store
            .keys(&from, &to)
            .map(|key| {
                (
                    keys.owner_name(key).unwrap().to_owned(),
                    parse_block(key).unwrap(),
                )
            })
            .collect();
        let blocks = self.store.keys("/f/blocks/", "/f/blocks0").count();
        assert_eq!(blocks, owned.len());
        owned
    }
}

#[test]
fn whatever_is_lost_or_late_or_crashes_no_block_has_two_nodes_and_all_is_settled_in_the_end() {
    for seed in 0..20 {
        let faults = [5, 15, 30][usize::try_from(seed % 3).unwrap()];
        let mut world = World::new(seed, 6, "10.0.0.0/20", 26, faults);
        println!("seed {seed}");
        for round in 0..400 {
            let node = world.random.usize(0..6);
            match world.random.u32(0..40) {
                0..=2 if world.nodes[node].wanted < 6 => world.acquire(node),
                3..=4 => world.give_back(node),
                5 => world.crash(node),
                6 => world.nodes[node].cut = !world.nodes[node].cut,
                7 if round % 5 == 0 => world.store.compact(),
                8 if world.random.bool() => world.store.expire_leases(),
                _ => {}
            }
            world.step();
        }
        world.settle();
    }
}

#[test]
fn a_pool_with_as_many_blocks_as_are_wanted_is_filled_to_the_last_one() {
    for seed in 0..20 {
        let mut world = World::new(seed, 8, "10.0.0.0/22", 26, 0);
        for node in 0..8 {
            world.acquire(node);
            world.acquire(node);
        }
        world.settle();
        assert_eq!(world.held().len(), 16);
        // And nobody waits for ever for one more: it is said that there is none.
        let full = world.nodes[0].full;
        let wanted = world.wanted();
        world.nodes[0].core.acquire(world.now, wanted);
        for _ in 0..300 {
            world.step();
        }
        assert!(world.nodes[0].full > full);
        // Until somebody gives one back.
        world.give_back(5);
        world.nodes[0].wanted += 1;
        world.settle();
    }
}

#[test]
fn blocks_of_different_sizes_never_overlap() {
    for seed in 0..20 {
        let mut world = World::new(seed, 6, "10.0.0.0/21", 26, 10);
        for round in 0..24 {
            world.size = [26, 24, 28][round % 3];
            world.acquire(round % 6);
            for _ in 0..10 {
                world.step();
            }
        }
        for _ in 0..300 {
            world.step();
        }
    }
}

#[test]
fn a_thousand_nodes_at_once_need_hardly_more_than_one_transaction_each() {
    let mut world = World::new(1, 1_000, "10.0.0.0/12", 26, 0);
    for node in 0..1_000 {
        world.acquire(node);
    }
    // Checking every step would take long.
    for _ in 0..60 {
        world.now += STEP;
        for node in 0..1_000 {
            let due = world.nodes[node].core.poll_timeout();
            if due.is_some_and(|at| at <= world.now) {
                world.nodes[node].core.handle_timeout(world.now);
            }
            world.deliver(node);
        }
        for message in std::mem::take(&mut world.messages) {
            if message.at > world.now {
                world.messages.push(message);
            } else {
                world.arrive(message);
            }
        }
    }
    world.check();
    let held: usize = world.nodes.iter().map(|node| node.fresh.len()).sum();
    let retries: u64 = world
        .nodes
        .iter()
        .map(|node| node.core.status().retries)
        .sum();
    assert_eq!(held, 1_000);
    assert!(retries < 10, "{retries}");
}

#[test]
fn a_node_that_was_removed_while_it_was_away_claims_again_what_is_still_free() {
    let mut world = World::new(3, 2, "10.0.0.0/20", 26, 0);
    world.acquire(0);
    world.acquire(1);
    world.settle();
    world.nodes[0].cut = true;
    for _ in 0..200 {
        world.step();
    }
    // What an operator's removal does to the store.
    let keys = Keys::new("/f");
    world.store.delete(&keys.node("node-0"));
    for block in world.nodes[0].disk.clone() {
        world.store.delete(&keys.block(&block));
        world.store.delete(&keys.owned("node-0", &block));
    }
    let disk = std::mem::take(&mut world.nodes[0].disk);
    for _ in 0..50 {
        world.step();
    }
    world.nodes[0].cut = false;
    for _ in 0..7_000 {
        world.step();
    }
    world.nodes[0].disk = disk;
    world.settle();
}

#[test]
fn another_installation_of_the_same_name_gets_nothing_and_says_why() {
    let mut world = World::new(4, 2, "10.0.0.0/20", 26, 0);
    world.acquire(0);
    world.settle();
    let disk = world.nodes[0].disk.clone();
    let imposter = settings("node-0", "id-other", 1);
    world.nodes[1].core = Core::new(world.now, imposter, Vec::new());
    world.nodes[1].runs += 1;
    world.acquire(1);
    for _ in 0..300 {
        world.step();
    }
    assert!(world.nodes[1].disk.is_empty());
    let status = world.nodes[1].core.status();
    assert!(
        status
            .refused
            .unwrap()
            .contains("agentctl node remove node-0")
    );
    assert!(
        world.nodes[1]
            .told
            .iter()
            .any(|told| told.contains("another installation"))
    );
    assert_eq!(world.nodes[0].disk, disk);
}

#[test]
fn a_compacted_watch_begins_anew_from_a_list() {
    let mut world = World::new(5, 3, "10.0.0.0/20", 26, 0);
    for _ in 0..50 {
        world.step();
    }
    assert_eq!(world.nodes[0].core.status().nodes, 3);
    // What node 0 does not see for a while, and what is then not kept any more.
    world.nodes[0].cut = true;
    world.store.delete(&Keys::new("/f").node("node-2"));
    world.nodes[2].cut = true;
    world.step();
    world.store.compact();
    world.nodes[0].cut = false;
    for _ in 0..1_200 {
        world.step();
    }
    let status = world.nodes[0].core.status();
    assert_eq!(status.compactions, 1);
    assert!(world.watches.contains_key(&0));
}

//! The reconciler against the kernel in memory.
#![allow(clippy::unwrap_used)]

mod ahead;
mod audit;
mod blackhole;
mod bridges;
mod flat;
mod learned;
mod properties;
mod tunnels;
mod workloads;
mod written;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::*;
use crate::{
    desired::{Attachment, FailureKind, Inside, LearnedRoute, Workload},
    fake::{FakeKernel, netns, plain_link},
    kernel::{Gateway, Route, Target},
};

pub(super) struct World {
    pub(super) kernel: FakeKernel,
    pub(super) reconciler: Reconciler,
    pub(super) now: Instant,
    pub(super) events: Vec<Event>,
    /// Of the operations of each batch.
    pub(super) batches: Vec<Vec<Op>>,
    pub(super) queries: Vec<Query>,
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) const UNDERLAY: u32 = 2;

pub(super) fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::new();
    kernel
        .host
        .links
        .insert(UNDERLAY, plain_link(UNDERLAY, "eth0"));
    kernel.add_host_address(UNDERLAY, net("192.168.1.10/24"));
    kernel.add_host_address(UNDERLAY, net("fd00:1::10/64"));
    kernel
        .edit(&Op::AddRoute {
            place: Place::Host,
            route: foreign_via("0.0.0.0/0", "192.168.1.1"),
        })
        .unwrap();
    kernel.changes.clear();
    kernel
}

pub(super) fn foreign_via(prefix: &str, gateway: &str) -> Route {
    Route {
        prefix: net(prefix),
        table: 254,
        metric: 0,
        protocol: 3,
        target: Target::Gateways(vec![Gateway {
            address: Some(ip(gateway)),
            index: UNDERLAY,
            onlink: false,
            weight: 1,
        }]),
    }
}

pub(super) fn foreign_link(prefix: &str) -> Route {
    Route {
        target: Target::Link { index: UNDERLAY },
        ..foreign_via(prefix, "192.168.1.1")
    }
}

pub(super) fn workload(id: &str, space: u64, addresses: &[&str]) -> Object {
    Object::Workload(Arc::new(Workload {
        id: id.into(),
        attachment: Attachment::Routed(Inside {
            netns: netns(space),
            interface: "eth0".to_owned(),
        }),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        mtu: None,
        access: Default::default(),
    }))
}

pub(super) fn learned(prefix: &str, next_hops: &[&str]) -> Object {
    Object::Route(LearnedRoute {
        prefix: net(prefix),
        next_hops: next_hops.iter().map(|a| ip(a).into()).collect(),
    })
}

pub(super) fn workload_id(id: &str) -> ObjectId {
    ObjectId::Workload(id.into())
}

pub(super) fn config() -> Config {
    Config {
        underlay: vec![ip("192.168.1.10")],
        seed: 7,
        ..Config::default()
    }
}

impl World {
    pub(super) fn new(kernel: FakeKernel) -> Self {
        let now = Instant::now();
        let mut world = Self {
            kernel,
            reconciler: Reconciler::new(config(), now),
            now,
            events: Vec::new(),
            batches: Vec::new(),
            queries: Vec::new(),
        };
        world.run();
        world
    }

    /// The same kernel, a new agent: nothing but the kernel's state is left.
    pub(super) fn restart(self) -> Self {
        let mut kernel = self.kernel;
        kernel.changes.clear();
        kernel.writes = 0;
        Self::new(kernel)
    }

    /// Until nothing is left to do now.
    pub(super) fn run(&mut self) {
        for _ in 0..20_000 {
            while let Some((place, change)) = self.kernel.changes.pop_front() {
                self.reconciler.handle_change(self.now, place, change);
            }
            match self.reconciler.poll_output() {
                Some(Output::Event(event)) => self.events.push(event),
                Some(Output::Apply { id, ops }) => {
                    let results = self.kernel.apply(&ops);
                    self.batches.push(ops);
                    self.reconciler.handle_results(self.now, id, results);
                }
                Some(Output::Query { id, query }) => {
                    let answer = self.kernel.query(&query);
                    self.queries.push(query);
                    self.reconciler.handle_snapshot(self.now, id, answer);
                }
                None if self.kernel.changes.is_empty() => return,
                None => {}
            }
        }
        panic!(
            "the reconciler does not come to rest: {:?}",
            self.reconciler.status()
        );
    }

    /// Lets time pass, with everything that is due.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..100_000 {
            match self.reconciler.poll_timeout() {
                Some(due) if due <= end => {
                    self.now = self.now.max(due);
                    self.reconciler.handle_timeout(self.now);
                    self.run();
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("timers do not come to rest");
    }

    pub(super) fn set(&mut self, object: Object) {
        self.reconciler.set(self.now, object);
        self.run();
    }

    pub(super) fn remove(&mut self, id: ObjectId) {
        self.reconciler.remove(self.now, id);
        self.run();
    }

    pub(super) fn sync(&mut self) {
        for source in [Source::Block, Source::Workload, Source::Bgp] {
            self.reconciler.source_synced(self.now, source);
        }
        self.run();
    }

    pub(super) fn edit(&mut self, op: Op) {
        self.kernel.edit(&op).unwrap();
        self.run();
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub(super) fn route(&self, prefix: &str) -> Option<&Route> {
        let prefix = net(prefix);
        let mut routes = self.kernel.host.routes.values();
        routes.find(|route| route.prefix == prefix)
    }

    pub(super) fn status_of(&self, id: &str) -> ObjectStatus {
        self.reconciler.object(&workload_id(id)).unwrap()
    }
}

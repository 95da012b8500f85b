//! From any state, after any finite faults and foreign edits, the kernel becomes as wanted, nothing
//! foreign is touched on the way, and a second pass plans nothing. A failure prints its seed:
//! `SEED=n cargo nextest run -p dataplane properties` runs that one alone.

mod checks;

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::{
    desired::{Bridge, Encapsulation, LearnedRoute, PoolTunnel, Scope, Tap, Tunnels},
    fake::{FakeNamespace, Missing},
    kernel::{Address, LinkChange, NextHop, NextHopKind, PROTOCOL_AGENTD_BGP, TUNNEL_PREFIX},
    reconcile::{
        attach::{Spec, Want},
        table::{LINK, is_object, is_own, own_metric},
        values::{is_own_link, single},
    },
};

/// Another number can be asked for, and where it begins: `SEQUENCES=5000 FIRST=10000`.
const SEQUENCES: u64 = 400;
/// These found something once.
const REGRESSIONS: [u64; 8] = [2145, 2911, 4709, 7103, 9204, 14901, 16088, 35164];
const STEPS: usize = 40;

struct Chaos {
    rng: fastrand::Rng,
    world: World,
    wanted: BTreeMap<ObjectId, Object>,
    /// What is wanted changed after the batch was planned that is to be carried out now.
    overtaken: bool,
    /// So did what the kernel has.
    told: bool,
    /// Batches on their way, in order; with results once they were carried out.
    under_way: VecDeque<(BatchId, Vec<Op>, Option<Vec<OpResult>>)>,
}

/// What carries no mark of ours.
#[derive(Debug, PartialEq)]
struct Foreign {
    routes: Vec<Route>,
    links: Vec<Link>,
    next_hops: Vec<NextHop>,
    addresses: Vec<Address>,
}

fn is_ours(link: &Link) -> bool {
    is_own_link(link) || link.name.starts_with(TUNNEL_PREFIX)
}

fn foreign(space: &FakeNamespace) -> Foreign {
    let own: Vec<u32> = space
        .links
        .values()
        .filter(|link| is_ours(link))
        .map(|link| link.index)
        .collect();
    Foreign {
        routes: (space.routes.values())
            .filter(|route| !is_own(route.protocol))
            .cloned()
            .collect(),
        links: (space.links.values())
            .filter(|link| !is_ours(link))
            .cloned()
            .collect(),
        next_hops: (space.next_hops.values())
            .filter(|object| object.protocol != PROTOCOL_AGENTD_BGP)
            .cloned()
            .collect(),
        addresses: (space.addresses.values())
            .filter(|address| !own.contains(&address.index))
            .copied()
            .collect(),
    }
}

/// Namespaces.
const SPACES: u64 = 7;

fn bridge() -> Object {
    Object::Bridge(Arc::new(Bridge {
        name: "br0".into(),
        gateways: vec![net("172.31.0.1/24")],
        mtu: None,
    }))
}

const PREFIXES: [&str; 6] = [
    "10.1.0.0/26",
    "10.2.0.0/26",
    "10.3.0.0/24",
    "fd00:7::/64",
    "fd00:8::/64",
    "10.0.0.0/26",
];
const NEXT_HOPS: [&str; 5] = [
    "192.168.1.11",
    "192.168.1.12",
    "172.30.0.1",
    "fd00:1::11",
    "fd00:1::12",
];

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut kernel = kernel();
        for space in 0..SPACES {
            kernel.add_namespace(space);
        }
        let mut chaos = Self {
            rng: fastrand::Rng::with_seed(seed),
            world: World::new(kernel),
            wanted: BTreeMap::new(),
            overtaken: false,
            told: false,
            under_way: VecDeque::new(),
        };
        // As the daemon does first of all.
        chaos.want(Object::Tunnels(Box::default()));
        chaos
    }

    fn want(&mut self, object: Object) {
        let now = self.world.now;
        self.wanted.insert(object.id(), object.clone());
        self.world.reconciler.set(now, object);
    }

    fn object(&mut self) -> Object {
        match self.rng.u8(..9) {
            0 => Object::Blackhole(net(["10.0.0.0/26", "fd00::/122"][self.rng.usize(..2)])),
            1 => self.attached(),
            2 => self.tunnels(),
            3 | 4 => {
                let number = self.rng.u64(..4);
                let mut addresses = vec![format!("10.0.0.{}", number + 1)];
                if self.rng.bool() {
                    addresses.push(format!("fd00::{}", number + 1));
                }
                let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
                let space = if self.rng.u8(..4) == 0 {
                    3 - number
                } else {
                    number
                };
                workload(&format!("w{number}"), space, &addresses)
            }
            _ => {
                let prefix = net(PREFIXES[self.rng.usize(..PREFIXES.len() - 1)]);
                let mut next_hops: Vec<crate::desired::Via> = (0..=self.rng.usize(..2))
                    .map(|_| ip(NEXT_HOPS[self.rng.usize(..NEXT_HOPS.len())]))
                    .filter(|hop| prefix.addr().is_ipv4() || hop.is_ipv6())
                    .map(Into::into)
                    .collect();
                next_hops.sort_unstable();
                next_hops.dedup();
                // None left: it is a blackhole.
                let next_hops = next_hops.into();
                Object::Route(LearnedRoute { prefix, next_hops })
            }
        }
    }

    /// A workload of another kind than a routed one, or a bridge.
    fn attached(&mut self) -> Object {
        let number = self.rng.u64(..2);
        let inside = |space| Inside {
            netns: netns(space),
            interface: "eth0".to_owned(),
        };
        let (id, attachment, address) = match self.rng.u8(..4) {
            0 => {
                let mac = self.rng.bool().then_some([2, 0, 0, 0, 0, 9]);
                let tap = Tap {
                    mac,
                    ..Tap::default()
                };
                let address = format!("10.0.0.{}", 11 + number);
                (format!("t{number}"), Attachment::Tap(tap), Some(address))
            }
            1 => {
                let attachment = Attachment::Bridged {
                    inside: inside(4 + number),
                    bridge: "br0".into(),
                };
                let address = format!("172.31.0.{}", 2 + number);
                (format!("b{number}"), attachment, Some(address))
            }
            2 => ("l".to_owned(), Attachment::Loopback(netns(6)), None),
            _ => return bridge(),
        };
        Object::Workload(Arc::new(Workload {
            id: id.as_str().into(),
            attachment,
            addresses: address.iter().map(|address| ip(address)).collect(),
            mtu: None,
            access: Default::default(),
        }))
    }

    /// Not of the workloads' own addresses: those have the MTU of the underlay.
    fn tunnels(&mut self) -> Object {
        let mode = |rng: &mut fastrand::Rng| {
            let modes = [
                Encapsulation::None,
                Encapsulation::Ipip,
                Encapsulation::Vxlan,
            ];
            modes[rng.usize(..3)]
        };
        let mut pools = Vec::new();
        for cidr in ["10.1.0.0/16", "10.2.0.0/16", "fd00:7::/64"] {
            let cidr = net(cidr);
            let encapsulation = match mode(&mut self.rng) {
                Encapsulation::Ipip if cidr.addr().is_ipv6() => Encapsulation::Vxlan,
                other => other,
            };
            let scope = match self.rng.bool() {
                true => Scope::Always,
                false => Scope::CrossSubnet,
            };
            pools.push(PoolTunnel {
                cidr,
                encapsulation,
                scope,
            });
        }
        Object::Tunnels(Box::new(Tunnels {
            local: Some("192.168.1.10".parse().unwrap()),
            local6: Some("fd00:1::10".parse().unwrap()),
            vni: 4096,
            port: if self.rng.u8(..8) == 0 { 8472 } else { 4789 },
            accept: Vec::new(),
            pools,
        }))
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.rng.usize(..from.len())].clone())
    }

    /// BGP has no path with a next hop any more: it is not watched, and each of its routes is told
    /// something else, with anything in between.
    fn lose_next_hop(&mut self) {
        let via = ip(NEXT_HOPS[self.rng.usize(..NEXT_HOPS.len())]).into();
        let now = self.world.now;
        self.world.reconciler.unwatch_next_hop(now, via);
        let concerned: Vec<LearnedRoute> = (self.wanted.values())
            .filter_map(|object| match object {
                Object::Route(route) if route.next_hops.contains(&via) => Some(route.clone()),
                _ => None,
            })
            .collect();
        for mut route in concerned {
            let limit = self.rng.usize(..3);
            self.run(limit);
            self.overtaken |= self.is_planned();
            let left = route.next_hops.iter().filter(|hop| **hop != via);
            route.next_hops = left.copied().collect();
            let id = ObjectId::Route(route.prefix);
            let now = self.world.now;
            if route.next_hops.is_empty() {
                self.wanted.remove(&id);
                self.world.reconciler.remove(now, id);
            } else {
                self.wanted.insert(id, Object::Route(route.clone()));
                self.world.reconciler.set(now, Object::Route(route));
            }
        }
    }

    /// Somebody else's doing.
    fn edit(&mut self) {
        let host = &self.world.kernel.host;
        let place = Place::Host;
        let own_links: Vec<Link> = (host.links.values())
            .filter(|link| is_ours(link))
            .cloned()
            .collect();
        let entries: Vec<_> = host.fdb.values().copied().collect();
        let neighbours: Vec<_> = host.neighbours.values().copied().collect();
        let routes: Vec<Route> = host.routes.values().cloned().collect();
        let objects: Vec<NextHop> = host.next_hops.values().cloned().collect();
        let link = |index| LinkChange {
            index,
            ..LinkChange::default()
        };
        let op = match self.rng.u8(..15) {
            0 | 1 => {
                let own: Vec<Route> = (routes.into_iter())
                    .filter(|route| is_own(route.protocol))
                    .collect();
                self.pick(&own)
                    .map(|route| Op::DeleteRoute { place, route })
            }
            2 => {
                let route = foreign_link(PREFIXES[self.rng.usize(..PREFIXES.len())]);
                Some(Op::ReplaceRoute { place, route })
            }
            3 => {
                let metric = |route: &Route| route.metric != 0 || route.protocol == 3;
                let theirs: Vec<Route> = (routes.into_iter())
                    .filter(|route| !is_own(route.protocol) && metric(route))
                    .collect();
                self.pick(&theirs)
                    .map(|route| Op::DeleteRoute { place, route })
            }
            4 => self
                .pick(&own_links)
                .map(|link| Op::DeleteLinks(vec![link.index])),
            5 => self.pick(&own_links).map(|own| Op::SetLink {
                place,
                link: LinkChange {
                    up: Some(self.rng.bool()),
                    mtu: Some(1400),
                    ..link(own.index)
                },
            }),
            6 => Some(Op::SetLink {
                place,
                link: LinkChange {
                    up: Some(self.rng.bool()),
                    ..link(UNDERLAY)
                },
            }),
            7 => self
                .pick(&objects)
                .map(|object| Op::DeleteNextHop { id: object.id }),
            8 => self.pick(&objects).map(|mut object| {
                if let NextHopKind::Gateway(gateway) = &mut object.kind {
                    gateway.address = Some(ip("192.168.1.99"));
                }
                Op::ReplaceNextHop(object)
            }),
            9 => self.pick(&own_links).map(|link| Op::WriteSysctl {
                place,
                path: format!("net/ipv4/conf/{}/rp_filter", link.name),
                value: "0".to_owned(),
            }),
            11 => self.pick(&entries).map(Op::DeleteFdb),
            12 => self.pick(&neighbours).map(|mut neighbour| {
                neighbour.permanent = self.rng.bool();
                neighbour.mac = [2, 0, 0, 0, 0, 1];
                Op::ReplaceNeighbour { place, neighbour }
            }),
            13 => self.pick(&own_links).map(|own| Op::SetLink {
                place,
                link: LinkChange {
                    master: Some(0),
                    ..link(own.index)
                },
            }),
            10 => {
                let via = ["192.168.1.1", "192.168.1.2"][self.rng.usize(..2)];
                let route = foreign_via(["172.30.0.0/16", "0.0.0.0/0"][self.rng.usize(..2)], via);
                Some(Op::ReplaceRoute { place, route })
            }
            _ => {
                let space = self.rng.u64(..SPACES);
                if self.rng.bool() {
                    self.world.kernel.delete_namespace(space);
                } else if !self.world.kernel.namespaces.contains_key(&(4, space)) {
                    self.world.kernel.add_namespace(space);
                }
                None
            }
        };
        if let Some(op) = op {
            // The kernel may refuse it; that is not our concern.
            let _ = self.world.kernel.edit(&op);
        }
    }

    fn faults(&mut self) {
        let errnos = [
            libc::EEXIST,
            libc::ENODEV,
            libc::ENOBUFS,
            libc::EINTR,
            libc::EPERM,
            libc::ENOMEM,
            libc::EBUSY,
        ];
        for _ in 0..self.rng.usize(..30) {
            let fault = (self.rng.u8(..3) == 0).then(|| errnos[self.rng.usize(..errnos.len())]);
            match self.rng.u8(..5) {
                0 => self.world.kernel.query_faults.push_back(fault),
                _ => self.world.kernel.faults.push_back(fault),
            }
        }
    }

    /// Carries out what the reconciler wants, at most so many outputs, and checks each operation.
    fn run(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            if self.rng.bool()
                && let Some((place, change)) = self.world.kernel.changes.pop_front()
            {
                let now = self.world.now;
                let planned = self.is_planned();
                self.overtaken |= planned;
                self.told |= planned;
                self.world.reconciler.handle_change(now, place, change);
            }
            let now = self.world.now;
            if self.rng.bool() && self.go_on() {
                continue;
            }
            match self.world.reconciler.poll_output() {
                Some(Output::Event(_)) => {}
                Some(Output::Apply { id, ops }) => self.under_way.push_back((id, ops, None)),
                Some(Output::Query { id, query }) => {
                    assert!(self.under_way.is_empty(), "read before it is written");
                    let answer = self.world.kernel.query(&query);
                    self.world.reconciler.handle_snapshot(now, id, answer);
                }
                None if self.go_on() => {}
                None if self.world.kernel.changes.is_empty() => return true,
                None => {}
            }
        }
        false
    }

    /// A batch is to be carried out.
    fn is_planned(&self) -> bool {
        let under_way = self.under_way.iter();
        let waits = under_way.filter(|(_, _, results)| results.is_none());
        waits.count() > 0 || !self.world.reconciler.outbox.is_empty()
    }

    /// The next batch is carried out, or the reconciler learns what became of the first.
    fn go_on(&mut self) -> bool {
        let next = self.under_way.iter().position(|(_, _, r)| r.is_none());
        let answered = next != Some(0) && !self.under_way.is_empty();
        if answered && (next.is_none() || self.rng.bool()) {
            if let Some((id, _, Some(results))) = self.under_way.pop_front() {
                let now = self.world.now;
                self.world.reconciler.handle_results(now, id, results);
            }
            return true;
        }
        let Some(at) = next else {
            return false;
        };
        let ops = std::mem::take(&mut self.under_way[at].1);
        let mut missing = Missing::default();
        let checked = ops.iter().map(|op| self.checked(&mut missing, op));
        let results = checked.collect();
        self.world.batches.push(ops);
        self.under_way[at].2 = Some(results);
        if !self.is_planned() {
            (self.overtaken, self.told) = (false, false);
        }
        true
    }

    fn checked(&mut self, missing: &mut Missing, op: &Op) -> Result<(), OpError> {
        let before = foreign(&self.world.kernel.host);
        let standing = self.standing();
        let result = self.world.kernel.apply_one(missing, op);
        // Who replaces our route at this very moment is not seen: a replacement names no protocol.
        let raced = matches!(op, Op::ReplaceRoute { .. })
            && (self.told || !self.world.kernel.changes.is_empty());
        if !raced {
            assert_eq!(before, foreign(&self.world.kernel.host), "{op:?}");
        }
        // Nor is it seen who takes the other members of a group away at this very moment.
        let loses = |change: &Change| match change {
            Change::NextHopDeleted { .. } | Change::LinkDeleted { .. } => true,
            Change::Link(link) => !link.up,
            _ => false,
        };
        let untold = matches!(op, Op::DeleteNextHop { .. })
            && (self.world.kernel.changes.iter()).any(|(_, change)| loses(change));
        // Make before break: a wanted route that stood still stands, unless a link had to go that
        // led elsewhere, or a next hop cannot be reached: the route's own, or that to which it still
        // points because something fails.
        if !self.overtaken && !untold && !matches!(op, Op::DeleteLinks(_)) {
            let after = self.standing();
            let reconciler = &self.world.reconciler;
            for prefix in standing {
                let set = reconciler.table.get(&prefix).learned;
                let excused = matches!(op, Op::DeleteNextHop { id }
                    if is_object(set) && reconciler.wanted_kind(set).is_none()
                        || reconciler.is_wanted_object(*id));
                assert!(excused || after.contains(&prefix), "{op:?} breaks {prefix}");
            }
        }
        result
    }

    /// Prefixes that are wanted and have a route of ours.
    fn standing(&self) -> Vec<IpNet> {
        let routes = self.world.kernel.host.routes.values();
        routes
            .filter(|route| is_own(route.protocol))
            .map(|route| route.prefix)
            .filter(|prefix| {
                self.wanted.values().any(|object| match object {
                    Object::Blackhole(of) => of == prefix,
                    Object::Route(route) => route.prefix == *prefix,
                    Object::Tunnels(_) | Object::Bridge(_) => false,
                    Object::Workload(workload) => {
                        // Not while it is taken away to be made anew elsewhere.
                        let id = ObjectId::Workload(workload.id.clone());
                        self.world.reconciler.object(&id) != Some(ObjectStatus::Removing)
                            && workload.addresses.iter().any(|a| single(*a) == *prefix)
                    }
                })
            })
            .collect()
    }

    fn step(&mut self) {
        let now = self.world.now;
        self.overtaken |= self.is_planned();
        match self.rng.u8(..20) {
            0..=6 => {
                let object = self.object();
                let bridged = matches!(&object, Object::Workload(workload)
                    if matches!(workload.attachment, Attachment::Bridged { .. }));
                if bridged && !self.wanted.contains_key(&bridge().id()) {
                    self.want(bridge());
                }
                self.want(object);
            }
            7..=9 => {
                // A bridge goes after what is on it.
                let bridged = self.wanted.values().any(|object| {
                    matches!(object, Object::Workload(workload)
                        if matches!(workload.attachment, Attachment::Bridged { .. }))
                });
                let ids = self.wanted.keys().filter(|id| match id {
                    ObjectId::Tunnels => false,
                    ObjectId::Bridge(_) => !bridged,
                    _ => true,
                });
                let ids: Vec<ObjectId> = ids.cloned().collect();
                if let Some(id) = self.pick(&ids) {
                    self.wanted.remove(&id);
                    self.world.reconciler.remove(now, id);
                }
            }
            10 => self.lose_next_hop(),
            11..=14 => self.edit(),
            15 => self.faults(),
            16 => {
                // Notifications are lost.
                self.world.kernel.changes.clear();
                self.world.reconciler.handle_overrun(now);
            }
            17 => self.restart(),
            18 => {
                for source in [Source::Block, Source::Workload, Source::Bgp] {
                    self.world.reconciler.source_synced(now, source);
                }
            }
            _ => {
                let time = Duration::from_millis(self.rng.u64(..2000));
                self.world.now += time;
                let now = self.world.now;
                self.world.reconciler.handle_timeout(now);
            }
        }
        let limit = self.rng.usize(..40);
        self.run(limit);
    }

    fn restart(&mut self) {
        self.world.kernel.changes.clear();
        self.under_way.clear();
        self.world.reconciler = Reconciler::new(config(), self.world.now);
        (self.overtaken, self.told) = (false, false);
        let now = self.world.now;
        let is_bridge = |object: &&Object| matches!(object, Object::Bridge(_));
        let all = self.wanted.values();
        let others = all.clone().filter(|object| !is_bridge(object));
        for object in all.filter(is_bridge).chain(others) {
            self.world.reconciler.set(now, object.clone());
        }
    }

    /// Peace: faults end, the namespaces exist, foreigners leave our keys, the underlay is up.
    fn settle(&mut self) {
        self.world.kernel.faults.clear();
        self.world.kernel.query_faults.clear();
        for space in 0..SPACES {
            if !self.world.kernel.namespaces.contains_key(&(4, space)) {
                self.world.kernel.add_namespace(space);
            }
        }
        let place = || Place::Host;
        let up = Op::SetLink {
            place: place(),
            link: LinkChange {
                index: UNDERLAY,
                up: Some(true),
                ..LinkChange::default()
            },
        };
        self.world.kernel.edit(&up).unwrap();
        self.world
            .kernel
            .add_host_address(UNDERLAY, net("192.168.1.10/24"));
        self.world
            .kernel
            .add_host_address(UNDERLAY, net("fd00:1::10/64"));
        let route = foreign_via("0.0.0.0/0", "192.168.1.1");
        self.world
            .kernel
            .edit(&Op::ReplaceRoute {
                place: place(),
                route,
            })
            .unwrap();
        let in_the_way: Vec<Route> = (self.world.kernel.host.routes.values())
            .filter(|route| {
                !is_own(route.protocol) && PREFIXES.contains(&&*route.prefix.to_string())
            })
            .cloned()
            .collect();
        for route in in_the_way {
            let place = place();
            self.world
                .kernel
                .edit(&Op::DeleteRoute { place, route })
                .unwrap();
        }
        let now = self.world.now;
        for source in [Source::Block, Source::Workload, Source::Bgp] {
            self.world.reconciler.source_synced(now, source);
        }
        for _ in 0..40 {
            assert!(self.run(5000), "does not come to rest");
            self.world.now += Duration::from_secs(35);
            let now = self.world.now;
            self.world.reconciler.handle_timeout(now);
        }
        assert!(self.run(5000), "does not come to rest");
    }
}

fn sequence(seed: u64) {
    let mut chaos = Chaos::new(seed);
    for _ in 0..STEPS {
        chaos.step();
    }
    chaos.settle();
    chaos.check();
    let rivals = chaos.world.reconciler.status().failing > 0;
    chaos.world.batches.clear();
    chaos.world.reconciler.handle_overrun(chaos.world.now);
    assert!(chaos.run(5000));
    if !rivals {
        assert_eq!(chaos.world.batches, Vec::<Vec<Op>>::new(), "a second pass");
    }
    chaos.check();
}

#[test]
fn it_converges_from_any_state_after_any_finite_faults() {
    if let Ok(seed) = std::env::var("SEED") {
        sequence(seed.parse().unwrap());
        return;
    }
    let number = |name| std::env::var(name).map(|text| text.parse::<u64>().unwrap());
    let first = number("FIRST").unwrap_or(0);
    let seeds = first..first + number("SEQUENCES").unwrap_or(SEQUENCES);
    for seed in REGRESSIONS.into_iter().chain(seeds) {
        let outcome = std::panic::catch_unwind(|| sequence(seed));
        if let Err(panic) = outcome {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

//! Speakers in a simulated network: whatever is cut, reset, killed and restarted, in the end every
//! table holds what it must.
//!
//! A failing seed prints the command that repeats it; `BGP_SIM_TRACE=1` with it tells the story.
//! `BGP_SIM_SEEDS=N` runs other than the usual number.

#![allow(clippy::disallowed_methods)]

mod restarts;
mod scenarios;
mod world;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bgp::{
    attributes::well_known,
    policy::Policy,
    rib::Table,
    speaker::{
        SoftReset,
        config::{LongLived, PeerConfig, SpeakerConfig},
    },
    types::{Asn, Family},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use self::world::{NodeId, World, address, address6};

/// Seeds of an ordinary run, spread over `SHARDS` tests that run side by side.
const SEEDS: u64 = 1040;
const SHARDS: u64 = 8;
/// Faults happen within this time; then everything is whole and must come to rest.
const TROUBLE: Duration = Duration::from_secs(120);
/// Longer than any back-off, restart time and hold time in use.
const REST: Duration = Duration::from_secs(200);

/// Who talks to whom, and what that makes of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// External sessions: nodes in a row.
    Line,
    /// External sessions: everybody with everybody.
    Mesh,
    /// External sessions: a circle.
    Ring,
    /// One AS, node 0 reflects.
    Reflector,
    /// One AS, everybody with everybody.
    Internal,
}

struct Plan {
    shape: Shape,
    nodes: usize,
    edges: Vec<(NodeId, NodeId)>,
}

impl Plan {
    fn random(rng: &mut fastrand::Rng) -> Self {
        let shape = [
            Shape::Line,
            Shape::Mesh,
            Shape::Ring,
            Shape::Reflector,
            Shape::Internal,
        ][rng.usize(..5)];
        let nodes = match shape {
            Shape::Ring => rng.usize(3..=5),
            _ => rng.usize(2..=5),
        };
        let all = || (0..nodes).flat_map(|a| (0..a).map(move |b| (b, a)));
        let edges = match shape {
            Shape::Line => (1..nodes).map(|node| (node - 1, node)).collect(),
            Shape::Ring => (0..nodes).map(|node| (node, (node + 1) % nodes)).collect(),
            Shape::Mesh | Shape::Internal => all().collect(),
            Shape::Reflector => (1..nodes).map(|node| (0, node)).collect(),
        };
        Self {
            shape,
            nodes,
            edges,
        }
    }

    fn internal(&self) -> bool {
        matches!(self.shape, Shape::Reflector | Shape::Internal)
    }

    fn asn(&self, node: NodeId) -> Asn {
        if self.internal() {
            Asn(64_512)
        } else {
            // Some do not fit two octets.
            Asn([64_512, 4_200_000_000][node % 2] + node as u32)
        }
    }

    fn configs(&self, rng: &mut fastrand::Rng) -> Vec<SpeakerConfig> {
        let mut configs: Vec<_> = (0..self.nodes)
            .map(|node| {
                let mut config = SpeakerConfig::new(self.asn(node), address(node));
                config.next_hop_self = [None, Some(address6(node).into())];
                config.multipath = [1, 8][rng.usize(..2)];
                config.seed = rng.u64(..);
                if self.shape == Shape::Reflector && node == 0 {
                    config.cluster_id = Some(address(0));
                }
                config
            })
            .collect();
        for (a, b) in self.edges.iter().copied() {
            // Both dial, or one of them.
            let passive = rng.usize(..4);
            let restart = rng.bool();
            for (node, other, is_passive) in [(a, b, passive == 0), (b, a, passive == 1)] {
                let mut peer =
                    PeerConfig::new(format!("n{other}"), address(other).into(), self.asn(other));
                peer.import = Arc::new(Policy::all());
                peer.export = Arc::new(Policy::all());
                peer.passive = is_passive;
                peer.route_reflector_client = self.shape == Shape::Reflector && node == 0;
                peer.timers.hold_time = Duration::from_secs([3, 9, 30][rng.usize(..3)]);
                if rng.u8(..) < 32 {
                    peer.timers.open_delay = Duration::from_secs(2);
                }
                peer.graceful_restart = (restart || rng.bool()).then(|| Duration::from_secs(60));
                peer.long_lived =
                    [None, Some(0), Some(40), Some(90)][rng.usize(..4)].map(|time| LongLived {
                        stale_time: Duration::from_secs(time),
                        max_stale_time: Duration::from_secs(time),
                    });
                peer.add_path_receive = rng.bool();
                peer.add_path_send = [0, 2, u16::MAX][rng.usize(..3)];
                configs[node].peers.push(peer);
            }
        }
        configs
    }

    /// Sessions between two nodes on the shortest way.
    fn distance(&self, from: NodeId, to: NodeId) -> usize {
        let mut distance = 0;
        let mut reached = BTreeSet::from([from]);
        while !reached.contains(&to) {
            let next: BTreeSet<_> = self
                .edges
                .iter()
                .flat_map(|(a, b)| [(*a, *b), (*b, *a)])
                .filter(|(a, _)| reached.contains(a))
                .map(|(_, b)| b)
                .collect();
            reached.extend(next);
            distance += 1;
        }
        distance
    }
}

fn prefix(node: NodeId, index: u8, family: Family) -> IpNet {
    match family {
        Family::Ipv4Unicast => {
            let address = Ipv4Addr::new(10, node as u8, index, 0);
            Ipv4Net::new(address, 26).expect("a good length").into()
        }
        Family::Ipv6Unicast => {
            let address = Ipv6Addr::new(0x2001, 0xdb8, node as u16, u16::from(index), 0, 0, 0, 0);
            Ipv6Net::new(address, 64).expect("a good length").into()
        }
    }
}

fn random_prefix(world: &mut World, node: NodeId) -> IpNet {
    let index = world.rng.u8(..6);
    let family = Family::ALL[world.rng.usize(..2)];
    prefix(node, index, family)
}

/// One thing that happens to the network.
fn trouble(world: &mut World, plan: &Plan) {
    let (a, b) = plan.edges[world.rng.usize(..plan.edges.len())];
    let node = world.rng.usize(..plan.nodes);
    match world.rng.usize(..12) {
        0 => world.cut(a, b),
        1 | 2 => world.heal(a, b),
        3 | 4 => world.reset(a, b),
        5 => {
            if !world.nodes[node].dead {
                let silent = world.rng.bool();
                world.kill(node, silent);
            }
        }
        6 | 7 => {
            if world.nodes[node].dead {
                let restarting = world.rng.bool();
                world.start(node, restarting);
            }
        }
        8 => {
            let prefix = random_prefix(world, node);
            world.originate(node, prefix);
        }
        9 => {
            let prefix = random_prefix(world, node);
            world.withdraw(node, prefix);
        }
        10 => world.command(a, |speaker, now| {
            let _ = speaker.reset_hard(now, &format!("n{b}"));
        }),
        _ => world.command(b, |speaker, now| {
            let _ = speaker.reset_soft(now, &format!("n{a}"), SoftReset::BOTH);
        }),
    }
}

fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let plan = Plan::random(&mut rng);
    let configs = plan.configs(&mut rng);
    let mut world = World::new(rng.u64(..), configs);
    for node in 0..plan.nodes {
        for family in Family::ALL {
            world.originate(node, prefix(node, 0, family));
        }
    }
    let steps = rng.usize(..25);
    let mut times: Vec<_> = (0..steps)
        .map(|_| Duration::from_millis(rng.u64(..TROUBLE.as_millis() as u64)))
        .collect();
    times.sort();
    for time in times {
        let at = world.start + time;
        world.run_until(at);
        trouble(&mut world, &plan);
    }
    world.run_until(world.start + TROUBLE);
    world.heal_all();
    for node in 0..plan.nodes {
        if world.nodes[node].dead {
            world.start(node, false);
        }
    }
    let end = world.now + REST;
    world.run_until(end);
    check(&world, &plan);
}

/// The oracle: every table is what the whole network makes of it, however it came about.
fn check(world: &World, plan: &Plan) {
    for (id, node) in world.nodes.iter().enumerate() {
        for peer in node.speaker.peers() {
            assert_eq!(
                format!("{:?}", peer.state),
                "Established",
                "{:?}: node {id} with {}: {}",
                plan.shape,
                peer.name,
                peer.reason
            );
            for family in Family::ALL {
                let counts = node.speaker.rib().counts(peer.id, family);
                assert_eq!(counts.stale, 0, "node {id}: stale routes of {}", peer.name);
                assert!(
                    counts.end_of_rib_received && counts.end_of_rib_sent,
                    "{:?}: node {id} with {}: no End-of-RIB: {counts:?}",
                    plan.shape,
                    peer.name
                );
            }
        }
        assert!(node.first_sync, "node {id} was never in sync");
        let mut expected = BTreeSet::new();
        for (origin, other) in world.nodes.iter().enumerate() {
            if origin == id {
                continue;
            }
            for prefix in &other.originated {
                expected.insert(*prefix);
                let hops = node
                    .forwarding
                    .get(prefix)
                    .unwrap_or_else(|| panic!("{:?}: node {id} lacks {prefix}", plan.shape));
                for hop in hops.iter() {
                    check_next_hop(plan, id, origin, hop.address);
                }
            }
        }
        let actual: BTreeSet<_> = node.forwarding.keys().copied().collect();
        assert_eq!(actual, expected, "{:?}: the table of node {id}", plan.shape);
        let listed = node.speaker.rib().routes(&bgp::rib::RouteQuery {
            table: Table::LocRib,
            prefix: None,
            after: None,
            limit: 10_000,
        });
        assert!(
            listed.routes.iter().all(
                |route| !route.stale && !route.attributes.has_community(well_known::LLGR_STALE)
            ),
            "{:?}: node {id} has stale routes",
            plan.shape
        );
        let listed: BTreeSet<_> = listed
            .routes
            .iter()
            .filter(|route| route.best && route.peer.is_some())
            .map(|route| route.prefix)
            .collect();
        assert_eq!(
            listed, expected,
            "{:?}: the Loc-RIB of node {id}",
            plan.shape
        );
    }
}

fn check_next_hop(plan: &Plan, node: NodeId, origin: NodeId, hop: IpAddr) {
    let via = (0..plan.nodes)
        .find(|other| [IpAddr::from(address(*other)), address6(*other).into()].contains(&hop))
        .unwrap_or_else(|| panic!("{hop} is no node"));
    if plan.internal() {
        assert_eq!(
            via, origin,
            "the next hop inside an AS is the one that originates"
        );
    } else {
        assert_eq!(
            plan.distance(via, origin) + 1,
            plan.distance(node, origin),
            "{:?}: node {node} to node {origin} via node {via} is not the shortest way",
            plan.shape
        );
    }
}

fn run_shard(shard: u64) {
    let from_environment = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let only: Option<u64> = from_environment("BGP_SIM_SEED");
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("BGP_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds.filter(|seed| seed % SHARDS == shard) {
        if only.is_some() {
            run(seed);
        } else if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
            panic!(
                "repeat with: BGP_SIM_SEED={seed} cargo test -p bgp --test simulation all_tables"
            );
        }
    }
}

macro_rules! shards {
    ($($name:ident $shard:literal)*) => {
        mod all_tables_are_right_in_the_end_whatever_happens {
            $(#[test]
            fn $name() {
                super::run_shard($shard);
            })*

            #[test]
            fn and_no_seed_is_left_out() {
                let shards = [$($shard),*];
                assert!(shards.into_iter().eq(0..super::SHARDS));
            }
        }
    };
}

shards! { seeds_0 0 seeds_1 1 seeds_2 2 seeds_3 3 seeds_4 4 seeds_5 5 seeds_6 6 seeds_7 7 }

#[test]
fn a_run_is_the_same_each_time() {
    let story = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::random(&mut rng);
        let configs = plan.configs(&mut rng);
        let mut world = World::new(rng.u64(..), configs);
        world.originate(0, prefix(0, 0, Family::Ipv4Unicast));
        for _ in 0..10 {
            let at = world.now + Duration::from_secs(7);
            world.run_until(at);
            trouble(&mut world, &plan);
        }
        let at = world.now + REST;
        world.run_until(at);
        world
            .nodes
            .iter()
            .flat_map(|node| node.speaker.peers())
            .map(|peer| format!("{} {:?} {:?}", peer.name, peer.state, peer.counters))
            .collect::<Vec<_>>()
    };
    assert_eq!(story(11), story(11));
    assert_eq!(story(12), story(12));
}

#[test]
fn a_network_without_trouble_is_up_within_seconds() {
    for seed in 1000..1040 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::random(&mut rng);
        let configs = plan.configs(&mut rng);
        let mut world = World::new(rng.u64(..), configs);
        let end = world.start + Duration::from_secs(15);
        world.run_until(end);
        assert!(world.all_established(), "seed {seed}, {:?}", plan.shape);
    }
}

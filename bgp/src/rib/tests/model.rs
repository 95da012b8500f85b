//! Random operations against a naive implementation: flat maps, no interning, no groups, no
//! increments. Compared are the forwarding table and what each peer holds after decoding
//! everything it was sent.

use proptest::prelude::*;

use super::*;
use crate::attributes::{Origin, well_known};
use crate::rib::shared::Limits;

const EXTERNAL_A: u8 = 11;
const EXTERNAL_B: u8 = 12;
const CLIENT_A: u8 = 21;
const CLIENT_B: u8 = 22;
const INTERNAL_A: u8 = 31;
const INTERNAL_B: u8 = 32;
const PEERS: [u8; 6] = [
    EXTERNAL_A, EXTERNAL_B, CLIENT_A, CLIENT_B, INTERNAL_A, INTERNAL_B,
];

const PREFIXES: [&str; 7] = [
    "10.1.0.0/24",
    "10.1.0.0/26",
    "10.1.0.64/26",
    "10.2.0.0/24",
    "0.0.0.0/0",
    "2001:db8::/64",
    "2001:db8::40/122",
];
const ORIGINATED: [&str; 3] = ["10.1.0.0/24", "10.1.0.64/26", "2001:db8::/64"];
/// The third is the address of a client.
const NEXT_HOPS: [&str; 3] = ["192.0.2.101", "192.0.2.102", "192.0.2.21"];
const VARIANTS: u8 = 12;

#[derive(Clone, Debug)]
enum Op {
    Announce {
        peer: usize,
        path: u32,
        prefixes: u8,
        variant: u8,
        next_hop: usize,
    },
    Withdraw {
        peer: usize,
        path: u32,
        prefixes: u8,
    },
    Down {
        peer: usize,
        keep: bool,
    },
    Up {
        peer: usize,
    },
    EndOfRib {
        peer: usize,
    },
    Originate {
        prefix: usize,
        med: bool,
    },
    WithdrawOriginated {
        prefix: usize,
    },
    NextHop {
        which: usize,
        state: u8,
    },
    Pull {
        peer: usize,
        budget: usize,
    },
    Refresh {
        peer: usize,
    },
    Export {
        peer: usize,
        policy: u8,
    },
    Import {
        peer: usize,
        policy: u8,
    },
    Settle,
}

fn op() -> impl Strategy<Value = Op> {
    let peer = 0..PEERS.len();
    prop_oneof![
        8 => (peer.clone(), 0u32..3, 1u8..128, 0..VARIANTS, 0..NEXT_HOPS.len()).prop_map(
            |(peer, path, prefixes, variant, next_hop)| {
                let path = received_path(peer, path);
                Op::Announce { peer, path, prefixes, variant, next_hop }
            }
        ),
        4 => (peer.clone(), 0u32..3, 1u8..128).prop_map(|(peer, path, prefixes)| {
            let path = received_path(peer, path);
            Op::Withdraw { peer, path, prefixes }
        }),
        1 => (peer.clone(), any::<bool>()).prop_map(|(peer, keep)| Op::Down { peer, keep }),
        2 => peer.clone().prop_map(|peer| Op::Up { peer }),
        1 => peer.clone().prop_map(|peer| Op::EndOfRib { peer }),
        2 => (0..ORIGINATED.len(), any::<bool>())
            .prop_map(|(prefix, med)| Op::Originate { prefix, med }),
        1 => (0..ORIGINATED.len()).prop_map(|prefix| Op::WithdrawOriginated { prefix }),
        2 => (0..NEXT_HOPS.len(), 0u8..3).prop_map(|(which, state)| Op::NextHop { which, state }),
        8 => (peer.clone(), prop_oneof![Just(1usize), Just(100_000)])
            .prop_map(|(peer, budget)| Op::Pull { peer, budget }),
        1 => peer.clone().prop_map(|peer| Op::Refresh { peer }),
        1 => (peer.clone(), 0u8..3).prop_map(|(peer, policy)| Op::Export { peer, policy }),
        1 => (peer, 0u8..3).prop_map(|(peer, policy)| Op::Import { peer, policy }),
        2 => Just(Op::Settle),
    ]
}

/// Two of the peers send several paths of a prefix.
fn received_path(peer: usize, path: u32) -> u32 {
    match PEERS[peer] {
        EXTERNAL_A | CLIENT_A => path,
        _ => 0,
    }
}

/// Three of them, one of each kind, take `several`.
fn session_of(n: u8, several: u16) -> PeerRib {
    match n {
        EXTERNAL_B | CLIENT_B | INTERNAL_B => taking(several, fresh_session(n)),
        _ => fresh_session(n),
    }
}

fn fresh_session(n: u8) -> PeerRib {
    match n {
        EXTERNAL_A | EXTERNAL_B => session(PeerKind::External, n),
        CLIENT_A | CLIENT_B => client(n),
        _ => session(PeerKind::Internal, n),
    }
}

fn variant(peer: &PeerRib, variant: u8, next_hop: &str) -> Attributes {
    let first = peer.remote_asn.0;
    let external = peer.kind == PeerKind::External;
    let lead: &[u32] = if external { &[first] } else { &[] };
    let mut attributes = attributes(&[lead, &[65100]].concat(), next_hop);
    if !external {
        attributes.local_pref = Some(100);
    }
    match variant {
        1 => attributes.as_path = path(&[lead, &[65100, 65101]].concat()),
        2 => attributes.med = Some(10),
        3 => attributes.med = Some(20),
        4 => attributes.origin = Origin::Incomplete,
        5 => attributes.communities = vec![well_known::NO_EXPORT],
        6 => attributes.communities = vec![well_known::NO_ADVERTISE],
        7 => attributes.as_path = path(&[lead, &[OUR_AS.0]].concat()),
        8 if !external => attributes.local_pref = Some(200),
        9 if !external => attributes.cluster_list = vec![Ipv4Addr::new(9, 9, 9, 9)],
        10 if !external => attributes.originator_id = Some(OUR_ID),
        11 if !external => attributes.originator_id = Some(Ipv4Addr::new(1, 1, 1, 1)),
        _ => {}
    }
    attributes
}

fn import_policy(which: u8) -> Policy {
    match which {
        0 => Policy::all(),
        1 => Policy::import_pools(&[net("10.1.0.0/16"), net("2001:db8::/32")]),
        _ => Policy::none(),
    }
}

fn export_policy(which: u8) -> Policy {
    match which {
        0 => Policy::all(),
        1 => Policy::export_blocks(),
        _ => Policy::none(),
    }
}

#[derive(Clone)]
struct ModelPath {
    attributes: Attributes,
    stale: bool,
}

struct ModelPeer {
    session: PeerRib,
    up: bool,
    import: u8,
    export: u8,
    paths: BTreeMap<(IpNet, u32), ModelPath>,
}

/// Index of a peer and identifier; `None` is a route of our own.
type Source = Option<(usize, u32)>;

struct Model {
    peers: Vec<ModelPeer>,
    originated: BTreeMap<IpNet, bool>,
    next_hops: [u8; 3],
    multipath: usize,
}

impl Model {
    fn metric(&self, address: IpAddr) -> Option<u32> {
        let index = NEXT_HOPS
            .iter()
            .position(|text| ip(text) == address)
            .unwrap();
        match self.next_hops[index] {
            0 => None,
            state => Some(u32::from(state) * 10),
        }
    }

    fn accepts(&self, peer: &ModelPeer, prefix: IpNet, attributes: &Attributes) -> bool {
        let contains = |outer: &IpNet| outer.contains(&prefix);
        !attributes.as_path.contains(OUR_AS)
            && attributes.originator_id != Some(OUR_ID)
            && !attributes.cluster_list.contains(&CLUSTER)
            && match peer.import {
                0 => !self
                    .originated
                    .keys()
                    .any(|o| *o != prefix && o.contains(&prefix)),
                1 => {
                    prefix.prefix_len() > 0
                        && !self.originated.keys().any(contains)
                        && [net("10.1.0.0/16"), net("2001:db8::/32")]
                            .iter()
                            .any(contains)
                }
                _ => false,
            }
    }

    /// The best path and all equal ones, of those that are not to be left out.
    fn best(&self, prefix: IpNet, without: &[Source]) -> Vec<Source> {
        if self.originated.contains_key(&prefix) && !without.contains(&None) {
            return vec![None];
        }
        let mut left: Vec<(usize, &Attributes, u32, u32)> = Vec::new();
        for (index, peer) in self.peers.iter().enumerate() {
            for ((_, id), path) in peer.paths.range((prefix, 0)..=(prefix, u32::MAX)) {
                if !without.contains(&Some((index, *id)))
                    && self.accepts(peer, prefix, &path.attributes)
                    && let Some(metric) = self.metric(path.attributes.next_hop.address)
                {
                    left.push((index, &path.attributes, *id, metric));
                }
            }
        }
        let external = |index: usize| self.peers[index].session.kind == PeerKind::External;
        let rank = |(index, attributes, ..): &(usize, &Attributes, u32, u32)| {
            let local_pref = if external(*index) {
                100
            } else {
                attributes.local_pref.unwrap()
            };
            (
                std::cmp::Reverse(local_pref),
                attributes.as_path.path_length(),
                attributes.origin,
            )
        };
        let Some(first) = left.iter().map(rank).min() else {
            return Vec::new();
        };
        left.retain(|path| rank(path) == first);
        let neighbour = |attributes: &Attributes| attributes.as_path.0[0].asns[0];
        let all = left.clone();
        left.retain(|(_, mine, ..)| {
            !all.iter().any(|(_, other, ..)| {
                neighbour(other) == neighbour(mine)
                    && other.med.unwrap_or(0) < mine.med.unwrap_or(0)
            })
        });
        if left.iter().any(|(index, ..)| external(*index)) {
            left.retain(|(index, ..)| external(*index));
        }
        let least = left.iter().map(|(.., metric)| *metric).min();
        left.retain(|(.., metric)| Some(*metric) == least);
        left.sort_by_key(|(index, attributes, id, _)| {
            let peer = &self.peers[*index].session;
            (
                attributes.originator_id.unwrap_or(peer.remote_router_id),
                attributes.cluster_list.len(),
                peer.remote_address,
                *id,
            )
        });
        left.into_iter()
            .map(|(index, _, id, _)| Some((index, id)))
            .collect()
    }

    /// All usable paths, each the best of those that are left.
    fn ranked(&self, prefix: IpNet) -> Vec<Source> {
        let mut ranked = Vec::new();
        while let Some(next) = self.best(prefix, &ranked).first() {
            ranked.push(*next);
        }
        ranked
    }

    fn forwarding(&self, prefix: IpNet) -> Vec<IpAddr> {
        let mut next_hops = Vec::new();
        for (index, id) in self.best(prefix, &[]).into_iter().flatten() {
            let path = &self.peers[index].paths[&(prefix, id)];
            let address = path.attributes.next_hop.address;
            if !next_hops.contains(&address) && next_hops.len() < self.multipath {
                next_hops.push(address);
            }
        }
        next_hops.sort();
        next_hops
    }

    /// What the peer should hold for a prefix.
    fn sent(&self, to: usize, prefix: IpNet) -> Vec<Attributes> {
        let target = &self.peers[to].session;
        let mut paths = self.ranked(prefix);
        let most = if target.negotiated.add_path_send[0] {
            usize::from(target.add_path_send)
        } else {
            paths.truncate(1);
            1
        };
        let paths = paths.into_iter();
        let mut sent: Vec<_> = paths
            .filter_map(|source| Some((source, self.exported(to, prefix, source)?)))
            .take(most)
            .collect();
        // Never what it sent itself, and never with its own address as next hop.
        sent.retain(|(source, attributes)| {
            source.is_none_or(|(index, _)| index != to)
                && attributes.next_hop.address != target.remote_address
        });
        sent.into_iter().map(|(_, attributes)| attributes).collect()
    }

    /// A path as it is sent to a peer that may get it.
    fn exported(&self, to: usize, prefix: IpNet, source: Source) -> Option<Attributes> {
        let target = &self.peers[to];
        let from = source.map(|(index, id)| (&self.peers[index], id));
        let (from, id) = (from.map(|(from, _)| from), from.map_or(0, |(_, id)| id));
        let to_external = target.session.kind == PeerKind::External;
        match target.export {
            0 => {}
            1 if from.is_none_or(|from| from.session.rr_client) => {}
            _ => return None,
        }
        let ours = match prefix {
            IpNet::V4(_) => IpAddr::from(OUR_ID),
            IpNet::V6(_) => ip("2001:db8:ffff::1"),
        };
        let Some(from) = from else {
            let mut attributes = Attributes::originated(ours.into());
            attributes.med = self.originated[&prefix].then_some(5);
            if to_external {
                attributes.as_path = path(&[OUR_AS.0]);
            } else {
                attributes.local_pref = Some(100);
            }
            return Some(attributes);
        };
        let mut attributes = from.paths[&(prefix, id)].attributes.clone();
        if attributes.communities.contains(&well_known::NO_ADVERTISE)
            || to_external && attributes.communities.contains(&well_known::NO_EXPORT)
        {
            return None;
        }
        let from_internal = from.session.kind == PeerKind::Internal;
        if to_external {
            attributes.as_path.prepend(OUR_AS, 1);
            attributes.med = None;
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list.clear();
            attributes.next_hop = ours.into();
            return Some(attributes);
        }
        if from_internal {
            if !from.session.rr_client && !target.session.rr_client {
                return None;
            }
            attributes
                .originator_id
                .get_or_insert(from.session.remote_router_id);
            attributes.cluster_list.insert(0, CLUSTER);
        } else {
            attributes.local_pref = Some(100);
        }
        // IPv4 next hops of IPv6 prefixes cannot be passed on.
        if matches!(prefix, IpNet::V6(_)) {
            attributes.next_hop = ours.into();
        }
        Some(attributes)
    }
}

fn state(number: u8) -> NextHopState {
    match number {
        0 => NextHopState::Unreachable,
        number => NextHopState::Reachable {
            metric: u32::from(number) * 10,
        },
    }
}

fn pick(prefixes: u8) -> Vec<IpNet> {
    let chosen = PREFIXES
        .iter()
        .enumerate()
        .filter(|(bit, _)| prefixes >> bit & 1 == 1);
    chosen.map(|(_, text)| net(text)).collect()
}

fn check(multipath: usize, several: u16, limits: Limits, ops: &[Op]) {
    let mut fixture = Fixture::new(RibConfig {
        multipath,
        ..config()
    });
    fixture.rib.shared.limits = limits;
    for text in NEXT_HOPS {
        fixture.metrics.insert(ip(text), state(1));
    }
    let mut model = Model {
        peers: PEERS
            .iter()
            .map(|n| ModelPeer {
                session: session_of(*n, several),
                up: false,
                import: 0,
                export: 0,
                paths: BTreeMap::new(),
            })
            .collect(),
        originated: BTreeMap::new(),
        next_hops: [1; 3],
        multipath,
    };
    let mut receivers: Vec<Receiver> = Vec::new();
    for (index, n) in PEERS.iter().enumerate() {
        receivers.push(Receiver::new(
            u32::from(*n),
            &model.peers[index].session.negotiated,
        ));
    }
    let up = |fixture: &mut Fixture, model: &mut Model, receivers: &mut Vec<Receiver>, i: usize| {
        let peer = &mut model.peers[i];
        let mut session = peer.session.clone();
        session.import = Arc::new(import_policy(peer.import));
        session.export = Arc::new(export_policy(peer.export));
        peer.up = true;
        receivers[i] = Receiver::new(u32::from(PEERS[i]), &session.negotiated);
        fixture.rib.peer_up(PeerId(u32::from(PEERS[i])), session);
    };
    for index in 0..PEERS.len() {
        up(&mut fixture, &mut model, &mut receivers, index);
    }
    for op in ops {
        match op.clone() {
            Op::Announce {
                peer,
                path: id,
                prefixes,
                variant: number,
                next_hop,
            } => {
                if !model.peers[peer].up {
                    continue;
                }
                let attributes = variant(&model.peers[peer].session, number, NEXT_HOPS[next_hop]);
                for prefix in pick(prefixes) {
                    let path = ModelPath {
                        attributes: attributes.clone(),
                        stale: false,
                    };
                    model.peers[peer].paths.insert((prefix, id), path);
                }
                let update = announce_path(&attributes, &pick(prefixes), id);
                let id = PeerId(u32::from(PEERS[peer]));
                fixture.rib.update(fixture.now, id, &update).unwrap();
            }
            Op::Withdraw {
                peer,
                path,
                prefixes,
            } => {
                if !model.peers[peer].up {
                    continue;
                }
                for prefix in pick(prefixes) {
                    model.peers[peer].paths.remove(&(prefix, path));
                }
                let id = PeerId(u32::from(PEERS[peer]));
                fixture
                    .rib
                    .update(fixture.now, id, &withdraw_path(&pick(prefixes), path))
                    .unwrap();
            }
            Op::Down { peer, keep } => {
                if !model.peers[peer].up {
                    continue;
                }
                model.peers[peer].up = false;
                model.peers[peer].paths.retain(|_, _| keep);
                model.peers[peer]
                    .paths
                    .values_mut()
                    .for_each(|path| path.stale = true);
                fixture
                    .rib
                    .peer_down(PeerId(u32::from(PEERS[peer])), [keep; 2]);
            }
            Op::Up { peer } => {
                if !model.peers[peer].up {
                    up(&mut fixture, &mut model, &mut receivers, peer);
                }
            }
            Op::EndOfRib { peer } => {
                if !model.peers[peer].up {
                    continue;
                }
                model.peers[peer].paths.retain(|_, path| !path.stale);
                for family in Family::ALL {
                    let id = PeerId(u32::from(PEERS[peer]));
                    fixture
                        .rib
                        .update(fixture.now, id, &end_of_rib(family))
                        .unwrap();
                }
            }
            Op::Originate { prefix, med } => {
                let prefix = net(ORIGINATED[prefix]);
                model.originated.insert(prefix, med);
                let route = LocalRoute {
                    med: med.then_some(5),
                    ..LocalRoute::default()
                };
                fixture.rib.originate(fixture.now, prefix, route);
            }
            Op::WithdrawOriginated { prefix } => {
                let prefix = net(ORIGINATED[prefix]);
                model.originated.remove(&prefix);
                fixture.rib.withdraw_originated(prefix);
            }
            Op::NextHop {
                which,
                state: number,
            } => {
                model.next_hops[which] = number;
                let address = ip(NEXT_HOPS[which]);
                fixture.metrics.insert(address, state(number));
                fixture.rib.set_next_hop(address, state(number));
            }
            Op::Pull { peer, budget } => {
                receivers[peer].pull(&mut fixture.rib, budget);
            }
            Op::Refresh { peer } => {
                receivers[peer].forgiving = true;
                for family in Family::ALL {
                    fixture.rib.refresh(PeerId(u32::from(PEERS[peer])), family);
                }
            }
            Op::Export { peer, policy } => {
                receivers[peer].forgiving = true;
                model.peers[peer].export = policy;
                let policy = Arc::new(export_policy(policy));
                fixture
                    .rib
                    .set_export(PeerId(u32::from(PEERS[peer])), policy);
            }
            Op::Import { peer, policy } => {
                model.peers[peer].import = policy;
                let policy = Arc::new(import_policy(policy));
                fixture
                    .rib
                    .set_import(PeerId(u32::from(PEERS[peer])), policy);
            }
            Op::Settle => fixture.settle(),
        }
    }
    fixture.settle();
    for (index, receiver) in receivers.iter_mut().enumerate() {
        if model.peers[index].up {
            receiver.drain(&mut fixture.rib);
            assert_eq!(
                receiver.end_of_rib, [1; 2],
                "End-of-RIB once for each family"
            );
        }
    }
    fixture.settle();
    let mut forwarding = BTreeMap::new();
    for text in PREFIXES {
        let prefix = net(text);
        let next_hops = model.forwarding(prefix);
        if !next_hops.is_empty() {
            forwarding.insert(prefix, next_hops);
        }
        for (index, receiver) in receivers.iter().enumerate() {
            if model.peers[index].up {
                let held: Vec<_> = receiver.paths_of(prefix).collect();
                let mut left: Vec<_> = held.iter().map(|(_, path)| (*path).clone()).collect();
                for expected in model.sent(index, prefix) {
                    let found = left.iter().position(|path| *path == expected);
                    let found = found.unwrap_or_else(|| {
                        panic!(
                            "{prefix} at {}: {expected:?} is not in {held:?}",
                            PEERS[index]
                        )
                    });
                    left.swap_remove(found);
                }
                assert!(left.is_empty(), "{prefix} at {}: {left:?}", PEERS[index]);
                let id = PeerId(u32::from(PEERS[index]));
                let said = fixture.rib.advertised(id, prefix);
                assert_eq!(
                    !held.is_empty(),
                    said.is_ok(),
                    "{prefix} at {id:?}: {said:?}"
                );
            }
        }
    }
    assert_eq!(fixture.forwarding, forwarding);
    check_counts(&fixture, &model, &receivers);
    check_nothing_is_left(fixture);
}

fn check_counts(fixture: &Fixture, model: &Model, receivers: &[Receiver]) {
    for (index, peer) in model.peers.iter().enumerate() {
        let id = PeerId(u32::from(PEERS[index]));
        let rows = fixture.rows(Table::AdjRibIn(Some(id)));
        assert_eq!(rows.len(), peer.paths.len());
        let mut counts = [PeerCounts::default(); 2];
        for ((prefix, _), path) in &peer.paths {
            let counts = &mut counts[Family::of(prefix.addr()).index()];
            counts.received += 1;
            counts.accepted += u32::from(model.accepts(peer, *prefix, &path.attributes));
            counts.stale += u32::from(path.stale);
        }
        for family in Family::ALL {
            let have = fixture.rib.counts(id, family);
            let expected = counts[family.index()];
            assert_eq!(
                (have.received, have.accepted, have.stale),
                (expected.received, expected.accepted, expected.stale),
                "{family} of {id:?}"
            );
            if peer.up {
                let held = receivers[index].paths.keys();
                let held = held
                    .filter(|(prefix, _)| Family::of(prefix.addr()) == family)
                    .count();
                assert_eq!(have.advertised as usize, held, "{family} to {id:?}");
            }
        }
        if peer.up {
            let rows = fixture.rows(Table::AdjRibOut(id));
            let held: Vec<_> = receivers[index].paths.iter().collect();
            let rows: Vec<_> = rows
                .iter()
                .map(|row| ((row.prefix, row.path_id), &row.attributes))
                .collect();
            let held: Vec<_> = held.into_iter().map(|(path, a)| (*path, a)).collect();
            assert_eq!(rows, held);
        }
    }
}

/// With all peers gone and nothing originated, every table is empty and every count is zero.
fn check_nothing_is_left(mut fixture: Fixture) {
    for n in PEERS {
        fixture.rib.peer_down(PeerId(u32::from(n)), [false; 2]);
    }
    for text in ORIGINATED {
        fixture.rib.withdraw_originated(net(text));
    }
    fixture.settle();
    assert!(fixture.forwarding.is_empty(), "{:?}", fixture.forwarding);
    assert!(fixture.watched.is_empty(), "{:?}", fixture.watched);
    for family in Family::ALL {
        assert_eq!(fixture.rib.prefix_count(family), 0, "{family}");
    }
    assert_eq!(
        fixture.rib.shared.attributes.len(),
        0,
        "attribute sets left"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn whatever_happens_the_tables_are_those_of_the_naive_implementation(
        multipath in 1usize..4,
        several in prop_oneof![Just(0u16), Just(1), Just(2), Just(u16::MAX)],
        limits in prop_oneof![
            Just(Limits::default()),
            // Several steps, several segments, and slow members fall out of step.
            Just(Limits { step: 2, segment_bytes: 1, batches_bytes: 400 }),
        ],
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        check(multipath, several, limits, &ops);
    }
}

//! Tests of the RIB from outside: what goes in as updates, what comes out as forwarding changes
//! and as messages, decoded again by the codec.
#![allow(clippy::unwrap_used)]

mod blackhole;
mod bounds;
mod claims;
mod decision;
mod exports;
mod imports;
mod model;
mod paths;
mod sending;
mod stale;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;

use super::*;
use crate::{
    attributes::{AsPath, Attributes, NextHop},
    message::{Announced, Message, Negotiated, Nlri},
    types::Asn,
    wire::{Decoder, frame},
};

const OUR_AS: Asn = Asn(64512);
const OUR_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLUSTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn negotiated(internal: bool) -> Negotiated {
    Negotiated {
        four_octet_as: true,
        internal,
        families: [true; 2],
        route_refresh: true,
        ..Negotiated::default()
    }
}

/// A session with peer number `n`, address 192.0.2.n, both families, everything let through.
fn session(kind: PeerKind, n: u8) -> PeerRib {
    let remote_asn = match kind {
        PeerKind::Internal => OUR_AS,
        PeerKind::External => Asn(65000 + u32::from(n)),
    };
    let id = Ipv4Addr::new(192, 0, 2, n);
    let negotiated = Arc::new(negotiated(kind == PeerKind::Internal));
    let mut session = PeerRib::new(kind, remote_asn, id, id.into(), OUR_ID.into(), negotiated);
    session.next_hop_self[1] = Some(ip("2001:db8:ffff::1").into());
    session.import = Arc::new(Policy::all());
    session.export = Arc::new(Policy::all());
    session
}

fn client(n: u8) -> PeerRib {
    PeerRib {
        rr_client: true,
        ..session(PeerKind::Internal, n)
    }
}

/// The session with a peer that takes this many paths of a prefix.
fn taking(paths: u16, mut session: PeerRib) -> PeerRib {
    let mut negotiated = Negotiated::clone(&session.negotiated);
    negotiated.add_path_send = [paths > 0; 2];
    session.negotiated = Arc::new(negotiated);
    session.add_path_send = paths;
    session
}

fn config() -> RibConfig {
    RibConfig {
        cluster_id: Some(CLUSTER),
        ..RibConfig::new(OUR_AS, OUR_ID)
    }
}

fn path(asns: &[u32]) -> AsPath {
    AsPath::sequence(asns.iter().copied().map(Asn))
}

/// Attributes with this AS path and next hop.
fn attributes(asns: &[u32], next_hop: &str) -> Attributes {
    let mut attributes = Attributes::originated(ip(next_hop).into());
    attributes.as_path = path(asns);
    attributes
}

fn nlri_list(prefixes: &[IpNet], path_id: u32) -> Vec<NlriList> {
    let v4 = prefixes.iter().filter_map(|prefix| match prefix {
        IpNet::V4(prefix) => Some(Nlri {
            path_id,
            prefix: *prefix,
        }),
        IpNet::V6(_) => None,
    });
    let v6 = prefixes.iter().filter_map(|prefix| match prefix {
        IpNet::V6(prefix) => Some(Nlri {
            path_id,
            prefix: *prefix,
        }),
        IpNet::V4(_) => None,
    });
    [NlriList::Ipv4(v4.collect()), NlriList::Ipv6(v6.collect())]
        .into_iter()
        .filter(|list| !list.is_empty())
        .collect()
}

fn announce(attributes: &Attributes, prefixes: &[IpNet]) -> Update {
    announce_path(attributes, prefixes, 0)
}

fn announce_path(attributes: &Attributes, prefixes: &[IpNet], path_id: u32) -> Update {
    let attributes = Arc::new(attributes.clone());
    let announced = nlri_list(prefixes, path_id)
        .into_iter()
        .map(|nlri| Announced {
            attributes: attributes.clone(),
            nlri,
        })
        .collect();
    Update {
        announced,
        ..Update::default()
    }
}

fn withdraw(prefixes: &[IpNet]) -> Update {
    withdraw_path(prefixes, 0)
}

fn withdraw_path(prefixes: &[IpNet], path_id: u32) -> Update {
    Update {
        withdrawn: nlri_list(prefixes, path_id).into(),
        ..Update::default()
    }
}

fn end_of_rib(family: Family) -> Update {
    Update {
        end_of_rib: Some(family),
        ..Update::default()
    }
}

/// A RIB with all next hops 192.0.2.0/24 and 2001:db8::/32 reachable at metric 0 unless said
/// otherwise, and everything that came out of it.
struct Fixture {
    rib: Rib,
    now: Instant,
    forwarding: BTreeMap<IpNet, Vec<IpAddr>>,
    /// Prefixes of which the set of next hops shrank with an `Unwatch`: a report has to follow.
    ahead: BTreeSet<IpNet>,
    watched: BTreeSet<IpAddr>,
    metrics: BTreeMap<IpAddr, NextHopState>,
}

impl Fixture {
    fn new(config: RibConfig) -> Self {
        let now = Instant::now();
        Self {
            rib: Rib::new(config, now),
            now,
            forwarding: BTreeMap::new(),
            ahead: BTreeSet::new(),
            watched: BTreeSet::new(),
            metrics: BTreeMap::new(),
        }
    }

    /// Peers with the numbers of their sessions' addresses.
    fn with_peers(config: RibConfig, sessions: impl IntoIterator<Item = PeerRib>) -> Self {
        let mut fixture = Self::new(config);
        for session in sessions {
            let IpAddr::V4(address) = session.remote_address else {
                unreachable!("IPv4 in tests")
            };
            fixture
                .rib
                .peer_up(PeerId(u32::from(address.octets()[3])), session);
        }
        fixture
    }

    fn update(&mut self, peer: u32, update: Update) {
        self.rib.update(self.now, PeerId(peer), &update).unwrap();
        self.settle();
    }

    /// Takes watches and forwarding changes until there are none.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(watch) = self.rib.poll_next_hop_watch() {
                quiet = false;
                match watch {
                    NextHopWatch::Watch(via) => {
                        let address = via.address;
                        assert!(self.watched.insert(address), "{address} watched twice");
                        let state = self.metrics.get(&address).copied();
                        let state = state.unwrap_or(NextHopState::Reachable { metric: 0 });
                        self.rib.set_next_hop(via, state);
                    }
                    NextHopWatch::Unwatch(via) => {
                        let address = via.address;
                        assert!(self.watched.remove(&address), "{address} was not watched");
                        // As the dataplane does.
                        for (prefix, next_hops) in &mut self.forwarding {
                            if next_hops.len() > 1 && next_hops.contains(&address) {
                                next_hops.retain(|other| *other != address);
                                self.ahead.insert(*prefix);
                            }
                        }
                    }
                }
            }
            while let Some(change) = self.rib.poll_change() {
                quiet = false;
                let next_hops: Vec<IpAddr> = change
                    .next_hops
                    .iter()
                    .map(|next_hop| next_hop.address)
                    .collect();
                let before = if next_hops.is_empty() {
                    self.forwarding.remove(&change.prefix)
                } else {
                    self.forwarding.insert(change.prefix, next_hops.clone())
                };
                assert!(
                    self.ahead.remove(&change.prefix) || before.unwrap_or_default() != next_hops,
                    "{} unchanged",
                    change.prefix
                );
            }
            if quiet {
                break;
            }
        }
        assert_eq!(self.ahead, BTreeSet::new(), "left out, and not reported");
    }

    fn set_next_hop(&mut self, address: &str, state: NextHopState) {
        self.metrics.insert(ip(address), state);
        self.rib.set_next_hop(ip(address), state);
        self.settle();
    }

    fn next_hops(&self, prefix: &str) -> Vec<String> {
        let found = self.forwarding.get(&net(prefix));
        found.into_iter().flatten().map(IpAddr::to_string).collect()
    }

    /// Every row of a table.
    fn rows(&self, table: Table) -> Vec<RouteView> {
        let mut rows = Vec::new();
        let mut after = None;
        loop {
            let query = RouteQuery {
                table,
                prefix: None,
                after,
                limit: 2,
            };
            let page = self.rib.routes(&query);
            rows.extend(page.routes);
            after = page.next;
            if after.is_none() {
                break rows;
            }
        }
    }

    fn reason(&self, table: Table, prefix: &str, peer: u32) -> Reason {
        let rows = self.rows(table);
        let row = rows
            .iter()
            .find(|row| row.prefix == net(prefix) && row.peer == Some(PeerId(peer)));
        row.unwrap_or_else(|| panic!("no row for {prefix} from {peer} in {rows:?}"))
            .reason
            .clone()
    }
}

/// What a peer holds that decodes everything it is sent.
struct Receiver {
    peer: PeerId,
    decoder: Decoder,
    /// By prefix: what came last, where there are several paths.
    held: BTreeMap<IpNet, Arc<Attributes>>,
    /// By prefix and identifier.
    paths: BTreeMap<(IpNet, u32), Arc<Attributes>>,
    end_of_rib: [u32; 2],
    updates: u32,
    /// Prefixes announced since it was last looked at.
    announced: Vec<IpNet>,
    withdrawn: Vec<IpNet>,
    /// Repetitions are expected: a refresh or a change of policy.
    forgiving: bool,
    refresh_markers: Vec<u8>,
}

impl Receiver {
    fn new(peer: u32, negotiated: &Negotiated) -> Self {
        let mut decoder = Decoder::new();
        // What we may send is what it may receive.
        decoder.set_negotiated(Negotiated {
            add_path_receive: negotiated.add_path_send,
            ..negotiated.clone()
        });
        Self {
            peer: PeerId(peer),
            decoder,
            held: BTreeMap::new(),
            paths: BTreeMap::new(),
            end_of_rib: [0; 2],
            updates: 0,
            announced: Vec::new(),
            withdrawn: Vec::new(),
            forgiving: false,
            refresh_markers: Vec::new(),
        }
    }

    fn pull(&mut self, rib: &mut Rib, budget: usize) -> Pulled {
        let mut bytes = Vec::new();
        let pulled = rib.pull(self.peer, &mut bytes, budget);
        let mut rest = bytes.as_slice();
        let mut updates = 0;
        while let Some(length) = frame(rest, 4096).unwrap() {
            let message = self.decoder.decode(&rest[..length]).unwrap();
            rest = &rest[length..];
            match message {
                Message::Update(update) => {
                    updates += 1;
                    self.handle(update);
                }
                Message::RouteRefresh(marker) => self.refresh_markers.push(marker.subtype),
                other => panic!("not an UPDATE: {other:?}"),
            }
        }
        assert!(rest.is_empty(), "whole messages only");
        assert_eq!(updates, pulled.updates, "messages are counted");
        self.updates += updates;
        if !pulled.more {
            assert!(
                !rib.has_pending(self.peer),
                "nothing is left when `more` is false"
            );
        }
        pulled
    }

    fn drain(&mut self, rib: &mut Rib) {
        self.announced.clear();
        self.withdrawn.clear();
        self.updates = 0;
        while self.pull(rib, 64 * 1024).more {}
    }

    fn handle(&mut self, update: Update) {
        assert!(update.faults.is_empty(), "{:?}", update.faults);
        if let Some(family) = update.end_of_rib {
            self.end_of_rib[family.index()] += 1;
        }
        for list in &update.withdrawn {
            for path in paths_of(list) {
                let held = self.paths.remove(&path);
                assert!(
                    held.is_some() || self.forgiving,
                    "{path:?} withdrawn and never announced"
                );
                let prefix = path.0;
                if self.paths_of(prefix).next().is_none() {
                    self.held.remove(&prefix);
                }
                self.withdrawn.push(prefix);
            }
        }
        for announced in &update.announced {
            for path in paths_of(&announced.nlri) {
                let attributes = announced.attributes.clone();
                let before = self.paths.insert(path, attributes.clone());
                assert!(
                    before.as_ref() != Some(&attributes) || self.forgiving,
                    "{path:?} sent again unchanged: {attributes:?}"
                );
                self.held.insert(path.0, attributes);
                self.announced.push(path.0);
            }
        }
    }

    /// The paths of a prefix, by identifier.
    fn paths_of(&self, prefix: IpNet) -> impl Iterator<Item = (u32, &Attributes)> {
        self.paths
            .range((prefix, 0)..=(prefix, u32::MAX))
            .map(|((_, id), attributes)| (*id, &**attributes))
    }

    fn prefixes(&self) -> Vec<String> {
        self.held.keys().map(IpNet::to_string).collect()
    }
}

fn paths_of(list: &NlriList) -> Vec<(IpNet, u32)> {
    match list {
        NlriList::Ipv4(list) => list
            .iter()
            .map(|nlri| (IpNet::V4(nlri.prefix), nlri.path_id))
            .collect(),
        NlriList::Ipv6(list) => list
            .iter()
            .map(|nlri| (IpNet::V6(nlri.prefix), nlri.path_id))
            .collect(),
    }
}

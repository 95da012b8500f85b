//! A kernel in memory, for tests and benchmarks: it carries out [`Op`] and [`Query`] as Linux does,
//! as far as the reconciler can tell, with the errors Linux gives, and with faults on demand.
//!
//! What it shares with the real one on purpose: a link that goes down or away takes its IPv4 routes
//! and nexthop objects along without a notification; deleting a nexthop object removes its routes;
//! an index or a name that is taken is EEXIST; a namespace that is gone is ENOENT. The caller's own
//! operations are not notified, edits through [`FakeKernel::edit`] are.

mod links;

pub use self::links::Missing;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    desired::Netns,
    kernel::{
        Address, Change, FdbEntry, Link, LinkKind, Neighbour, NextHop, NextHopKind, Op, OpError,
        OpResult, Place, Query, Route, Snapshot, Target, Tunnel,
    },
};

type RouteKey = (IpNet, u32, u32);

/// One network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeNamespace {
    pub links: BTreeMap<u32, Link>,
    pub addresses: BTreeMap<(u32, IpNet), Address>,
    /// Addresses that carry the agent's mark.
    pub marked: BTreeSet<(u32, IpNet)>,
    /// By prefix, table and metric.
    pub routes: BTreeMap<RouteKey, Route>,
    pub next_hops: BTreeMap<u32, NextHop>,
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// By index and MAC address.
    pub fdb: BTreeMap<(u32, [u8; 6]), FdbEntry>,
    pub sysctls: BTreeMap<String, String>,
}

impl FakeNamespace {
    pub fn marked_addresses(&self) -> Vec<Address> {
        let marked = self.marked.iter();
        marked
            .filter_map(|key| self.addresses.get(key))
            .copied()
            .collect()
    }
}

#[derive(Debug)]
pub struct FakeKernel {
    pub host: FakeNamespace,
    /// By device and inode.
    pub namespaces: BTreeMap<(u64, u64), FakeNamespace>,
    /// What was notified and not taken yet.
    pub changes: VecDeque<(Place, Change)>,
    /// Operations carried out, also those that failed.
    pub writes: u64,
    /// Every operation with its result, when recording.
    pub log: Option<Vec<(Op, OpResult)>>,
    /// Errors for the next operations: `Some(errno)` makes one fail.
    pub faults: VecDeque<Option<i32>>,
    /// Errors for the next queries.
    pub query_faults: VecDeque<Option<i32>>,
    /// Kinds of tunnel devices that this kernel does not have: `ipip`, `vxlan`.
    pub unknown_kinds: BTreeSet<&'static str>,
    /// Where the other end of a veth stands: (namespace, index), by (namespace, index).
    peers: BTreeMap<(Where, u32), (Where, u32)>,
}

type Where = Option<(u64, u64)>;

fn error(errno: i32, text: &str) -> OpError {
    OpError {
        errno,
        text: text.into(),
    }
}

fn place_of(place: &Place) -> Where {
    match place {
        Place::Host => None,
        Place::Netns(netns) => Some((netns.device, netns.inode)),
    }
}

/// A namespace for tests: its inode is its name.
pub fn netns(inode: u64) -> Netns {
    Netns {
        path: format!("/run/netns/test-{inode}").into(),
        device: 4,
        inode,
    }
}

/// A plain link that is up and running.
pub fn plain_link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: LinkKind::Other("dummy".to_owned()),
        alias: None,
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: true,
        running: true,
        peer_index: None,
        master: None,
        tunnel: None,
    }
}

fn loopback(up: bool) -> Link {
    Link {
        kind: LinkKind::Loopback,
        mac: None,
        mtu: 65536,
        up,
        running: up,
        ..plain_link(1, "lo")
    }
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeKernel {
    /// A host with `lo` and nothing else.
    pub fn new() -> Self {
        let mut host = FakeNamespace::default();
        host.links.insert(1, loopback(true));
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            host.sysctls.insert(path.to_owned(), "0".to_owned());
        }
        Self {
            host,
            namespaces: BTreeMap::new(),
            changes: VecDeque::new(),
            writes: 0,
            log: None,
            faults: VecDeque::new(),
            query_faults: VecDeque::new(),
            unknown_kinds: BTreeSet::new(),
            peers: BTreeMap::new(),
        }
    }

    /// Makes an empty namespace: see [`netns`].
    pub fn add_namespace(&mut self, inode: u64) {
        let mut space = FakeNamespace::default();
        space.links.insert(1, loopback(false));
        self.namespaces.insert((4, inode), space);
    }

    /// Deletes a namespace with all links in it, and their other ends.
    pub fn delete_namespace(&mut self, inode: u64) {
        let at = Some((4, inode));
        let indexes: Vec<u32> = match self.namespaces.get(&(4, inode)) {
            Some(space) => space.links.keys().copied().collect(),
            None => return,
        };
        for index in indexes {
            self.delete_link(at, index, true);
        }
        self.namespaces.remove(&(4, inode));
    }

    fn space(&mut self, at: Where) -> Result<&mut FakeNamespace, OpError> {
        match at {
            None => Ok(&mut self.host),
            Some(key) => self
                .namespaces
                .get_mut(&key)
                .ok_or_else(|| error(libc::ENOENT, "no such namespace")),
        }
    }

    /// Carries out a batch.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<OpResult> {
        let mut missing = Missing::default();
        ops.iter()
            .map(|op| self.apply_one(&mut missing, op))
            .collect()
    }

    /// Carries out one operation of a batch; `missing` is the batch's.
    pub fn apply_one(&mut self, missing: &mut Missing, op: &Op) -> OpResult {
        let fault = self.faults.pop_front().flatten();
        let result = if missing.concerns(op) {
            Err(error(libc::ECANCELED, "its interface could not be made"))
        } else {
            self.writes += 1;
            match fault {
                Some(errno) => Err(error(errno, "injected")),
                None => self.carry_out(op, false),
            }
        };
        if result.is_err() {
            missing.note(op);
        }
        if let Some(log) = &mut self.log {
            log.push((op.clone(), result.clone()));
        }
        result
    }

    /// Somebody else's operation: like [`apply`](Self::apply), with notifications.
    pub fn edit(&mut self, op: &Op) -> OpResult {
        self.carry_out(op, true)
    }

    fn tell(&mut self, loud: bool, at: Where, change: Change) {
        if !loud {
            return;
        }
        let place = match at {
            None => Place::Host,
            Some((_, inode)) => Place::Netns(netns(inode)),
        };
        self.changes.push_back((place, change));
    }

    fn carry_out(&mut self, op: &Op, loud: bool) -> OpResult {
        match op {
            Op::CreateTunnel(create) => self.create_tunnel(create, loud),
            Op::ReplaceFdb(entry) => {
                match self.host.links.get(&entry.index).map(|link| link.tunnel) {
                    None => return Err(error(libc::ENODEV, "replace fdb entry")),
                    Some(Some(Tunnel::Vxlan { .. })) => {}
                    Some(_) => return Err(error(libc::EOPNOTSUPP, "replace fdb entry")),
                }
                self.host.fdb.insert((entry.index, entry.mac), *entry);
                self.tell(loud, None, Change::Fdb(*entry));
                Ok(())
            }
            Op::DeleteFdb(entry) => match self.host.fdb.remove(&(entry.index, entry.mac)) {
                Some(gone) => {
                    self.tell(loud, None, Change::FdbDeleted(gone));
                    Ok(())
                }
                None => Err(error(libc::ENOENT, "delete fdb entry")),
            },
            Op::CreateVeth(create) => self.create_veth(create, loud),
            Op::CreateTap(create) => self.create_tap(create, loud),
            Op::CreateBridge(create) => self.create_bridge(create, loud),
            Op::SetLink { place, link } => self.set_link(place_of(place), link, loud),
            Op::DeleteLinks(indexes) => {
                for index in indexes {
                    self.delete_link(None, *index, loud);
                }
                Ok(())
            }
            Op::AddAddress { place, address } => {
                let at = place_of(place);
                let space = self.space(at)?;
                if !space.links.contains_key(&address.index) {
                    return Err(error(libc::ENODEV, "add address"));
                }
                let key = (address.index, address.net);
                space.addresses.insert(key, *address);
                if !loud && at.is_none() {
                    space.marked.insert(key);
                }
                self.tell(loud, at, Change::Address(*address));
                Ok(())
            }
            Op::DeleteAddress { place, address } => {
                let at = place_of(place);
                let key = (address.index, address.net);
                let space = self.space(at)?;
                space.marked.remove(&key);
                match space.addresses.remove(&key) {
                    Some(gone) => {
                        self.tell(loud, at, Change::AddressDeleted(gone));
                        Ok(())
                    }
                    None => Err(error(libc::EADDRNOTAVAIL, "delete address")),
                }
            }
            Op::AddRoute { place, route } => self.route(place_of(place), route, false, loud),
            Op::ReplaceRoute { place, route } => self.route(place_of(place), route, true, loud),
            Op::DeleteRoute { place, route } => {
                let at = place_of(place);
                let key = key_of(route);
                let space = self.space(at)?;
                match space.routes.get(&key) {
                    Some(seen) if seen.protocol == route.protocol => {
                        let gone = seen.clone();
                        space.routes.remove(&key);
                        self.tell(loud, at, Change::RouteDeleted(gone));
                        Ok(())
                    }
                    _ => Err(error(libc::ESRCH, "delete route")),
                }
            }
            Op::ReplaceNextHop(object) => self.replace_next_hop(object, loud),
            Op::DeleteNextHop { id } => self.delete_next_hop(*id, loud),
            Op::ReplaceNeighbour { place, neighbour } => {
                let at = place_of(place);
                let space = self.space(at)?;
                if !space.links.contains_key(&neighbour.index) {
                    return Err(error(libc::ENODEV, "replace neighbour"));
                }
                let key = (neighbour.index, neighbour.address);
                space.neighbours.insert(key, *neighbour);
                self.tell(loud, at, Change::Neighbour(*neighbour));
                Ok(())
            }
            Op::DeleteNeighbour { place, neighbour } => {
                let at = place_of(place);
                let key = (neighbour.index, neighbour.address);
                match self.space(at)?.neighbours.remove(&key) {
                    Some(gone) => {
                        self.tell(loud, at, Change::NeighbourDeleted(gone));
                        Ok(())
                    }
                    None => Err(error(libc::ENOENT, "delete neighbour")),
                }
            }
            Op::WriteSysctl { place, path, value } => {
                let at = place_of(place);
                let space = self.space(at)?;
                let Some(seen) = space.sysctls.get_mut(path) else {
                    return Err(error(libc::ENOENT, "write sysctl"));
                };
                seen.clone_from(value);
                let name = path.split('/').nth(3).unwrap_or_default();
                let index = space
                    .links
                    .values()
                    .find(|link| link.name == name)
                    .map(|link| link.index);
                if let Some(index) = index {
                    self.tell(loud, at, Change::Netconf { index });
                }
                Ok(())
            }
        }
    }

    fn route(&mut self, at: Where, route: &Route, replace: bool, loud: bool) -> OpResult {
        let key = key_of(route);
        let space = self.space(at)?;
        if !replace && space.routes.contains_key(&key) {
            return Err(error(libc::EEXIST, "add route"));
        }
        let usable = |index: &u32| space.links.get(index).is_some_and(|link| link.up);
        match &route.target {
            Target::Link { index } if !usable(index) => {
                return Err(error(libc::ENETDOWN, "add route"));
            }
            Target::Gateways(hops) if !hops.iter().all(|hop| usable(&hop.index)) => {
                return Err(error(libc::ENETDOWN, "add route"));
            }
            Target::NextHop { id } if !space.next_hops.contains_key(id) => {
                return Err(error(libc::EINVAL, "nexthop id does not exist"));
            }
            _ => {}
        }
        let mut route = route.clone();
        route.metric = key.2;
        space.routes.insert(key, route.clone());
        self.tell(loud, at, Change::Route(route));
        Ok(())
    }

    fn replace_next_hop(&mut self, object: &NextHop, loud: bool) -> OpResult {
        let host = &mut self.host;
        match &object.kind {
            NextHopKind::Gateway(hop) => {
                if !host
                    .links
                    .get(&hop.index)
                    .is_some_and(|link| link.up && link.running)
                {
                    return Err(error(libc::ENETDOWN, "replace nexthop"));
                }
            }
            NextHopKind::Group(members) => {
                if members.is_empty()
                    || !members
                        .iter()
                        .all(|(id, _)| host.next_hops.contains_key(id))
                {
                    return Err(error(libc::EINVAL, "replace nexthop group"));
                }
            }
            NextHopKind::Blackhole => {}
        }
        host.next_hops.insert(object.id, object.clone());
        self.tell(loud, None, Change::NextHop(object.clone()));
        Ok(())
    }

    fn delete_next_hop(&mut self, id: u32, loud: bool) -> OpResult {
        if !self.host.next_hops.contains_key(&id) {
            return Err(error(libc::ENOENT, "delete nexthop"));
        }
        self.drop_next_hop(id);
        self.tell(loud, None, Change::NextHopDeleted { id });
        Ok(())
    }

    fn drop_next_hop(&mut self, id: u32) {
        let host = &mut self.host;
        host.next_hops.remove(&id);
        host.routes
            .retain(|_, route| route.target != Target::NextHop { id });
        let mut emptied = BTreeSet::new();
        for object in host.next_hops.values_mut() {
            if let NextHopKind::Group(members) = &mut object.kind {
                members.retain(|(member, _)| *member != id);
                if members.is_empty() {
                    emptied.insert(object.id);
                }
            }
        }
        for id in emptied {
            self.drop_next_hop(id);
        }
    }

    /// Answers a query.
    pub fn query(&mut self, query: &Query) -> Result<Snapshot, OpError> {
        if let Some(errno) = self.query_faults.pop_front().flatten() {
            return Err(error(errno, "injected"));
        }
        match query {
            Query::Place { place, sysctls } => {
                let space = self.space(place_of(place))?;
                Ok(Snapshot {
                    links: space.links.values().cloned().collect(),
                    addresses: space.addresses.values().copied().collect(),
                    marked_addresses: space.marked_addresses(),
                    routes: space.routes.values().cloned().collect(),
                    next_hops: space.next_hops.values().cloned().collect(),
                    neighbours: space.neighbours.values().copied().collect(),
                    fdb: space.fdb.values().copied().collect(),
                    sysctls: read_sysctls(space, sysctls),
                })
            }
            Query::Inside {
                netns,
                neighbours,
                sysctls,
            } => {
                let space = self.space(Some((netns.device, netns.inode)))?;
                Ok(Snapshot {
                    links: space.links.values().cloned().collect(),
                    addresses: space.addresses.values().copied().collect(),
                    routes: space.routes.values().cloned().collect(),
                    neighbours: neighbours
                        .iter()
                        .filter_map(|key| space.neighbours.get(key))
                        .copied()
                        .collect(),
                    sysctls: read_sysctls(space, sysctls),
                    ..Snapshot::default()
                })
            }
            Query::Link {
                place,
                index,
                neighbours,
                sysctls,
            } => {
                let space = self.space(place_of(place))?;
                let Some(link) = space.links.get(index) else {
                    return Err(error(libc::ENODEV, "get link"));
                };
                Ok(Snapshot {
                    links: vec![link.clone()],
                    addresses: space
                        .addresses
                        .values()
                        .filter(|address| address.index == *index)
                        .copied()
                        .collect(),
                    marked_addresses: space.marked_addresses(),
                    neighbours: neighbours
                        .iter()
                        .filter_map(|address| space.neighbours.get(&(*index, *address)))
                        .copied()
                        .collect(),
                    sysctls: read_sysctls(space, sysctls),
                    ..Snapshot::default()
                })
            }
            Query::Routes(prefixes) => Ok(Snapshot {
                routes: prefixes
                    .iter()
                    .flat_map(|prefix| {
                        self.host
                            .routes
                            .range((*prefix, 0, 0)..=(*prefix, u32::MAX, u32::MAX))
                    })
                    .map(|(_, route)| route.clone())
                    .collect(),
                ..Snapshot::default()
            }),
        }
    }

    /// A foreign address with its connected route, as the kernel makes it.
    pub fn add_host_address(&mut self, index: u32, net: IpNet) {
        let address = Address {
            index,
            net,
            nodad: false,
        };
        let place = Place::Host;
        let added = self.edit(&Op::AddAddress { place, address });
        debug_assert!(added.is_ok(), "no such link");
        let route = Route {
            prefix: net.trunc(),
            table: 254,
            metric: 0,
            protocol: 2,
            target: Target::Link { index },
        };
        let place = Place::Host;
        let added = self.edit(&Op::ReplaceRoute { place, route });
        debug_assert!(added.is_ok(), "link is down");
    }
}

fn key_of(route: &Route) -> RouteKey {
    let metric = match route.prefix {
        IpNet::V6(_) if route.metric == 0 => 1024,
        _ => route.metric,
    };
    (route.prefix, route.table, metric)
}

fn read_sysctls(space: &FakeNamespace, paths: &[String]) -> Vec<(String, Option<String>)> {
    paths
        .iter()
        .map(|path| (path.clone(), space.sysctls.get(path).cloned()))
        .collect()
}

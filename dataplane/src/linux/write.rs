//! Carries out batches.
//!
//! Operations on one place keep their order. Places are taken one after the other, the host first:
//! what is done in a workload's namespace depends on links the host has made, and never the other
//! way round. Where a batch deletes links, or makes a second one for a namespace, it is cut before
//! that (see [`segment_end`]).

use std::{fs::File, io, sync::Arc};

use hashbrown::{HashMap, HashSet};
use indexmap::IndexMap;
use ipnet::IpNet;
use netlink_packet_route::link::LinkMessage;
use rtnetlink::LinkUnspec;

use super::{
    Namespaces, Station,
    encode::{AF_INET, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute, kind},
    group, netns,
    pipe::{Answers, Pipe},
    socket::{Ports, Socket},
    sysctl::{self, ByMessage, Folders},
};
use crate::{
    desired::Netns,
    kernel::{LinkChange, Op, OpResult, Place, Target},
};

/// Deletes of IPv4 routes are shuffled from this number on.
const SHUFFLE: usize = 64;
/// Namespaces that are open at a time.
const NAMESPACES: usize = 128;

/// Belongs to the writer thread.
#[derive(Debug)]
pub(super) struct Writer(pub(super) Station);

/// What the operations of a batch have to know of each other.
#[derive(Debug, Default)]
pub(super) struct Links<'a> {
    /// Links that could not be made. What is to be done with them is not tried: a foreign link may
    /// stand under that index.
    pub(super) missing: HashSet<(Option<&'a Netns>, u32)>,
    /// The same by name: a foreign link may have it.
    pub(super) unnamed: HashSet<(Option<&'a Netns>, &'a str)>,
    /// Index of links made on the host, by name.
    pub(super) made: HashMap<&'a str, u32>,
    /// Links made on the host that are not up yet, and the operation that made them.
    pub(super) down: IndexMap<u32, usize, foldhash::fast::RandomState>,
}

impl Writer {
    /// The thread stands in the wrong namespace and has to end.
    pub(super) fn lost(&self) -> bool {
        self.0.home.lost()
    }

    pub(super) fn apply(&mut self, ops: &[Op]) -> Vec<OpResult> {
        let mut answers = Answers::new(ops);
        let mut links = Links::default();
        self.0.host.discard(&mut self.0.pipe.receive);
        let mut start = 0;
        while start < ops.len() {
            let end = segment_end(ops, start);
            self.segment(start..end, &mut answers, &mut links);
            start = end;
        }
        answers.results
    }

    fn segment<'a>(
        &mut self,
        range: std::ops::Range<usize>,
        answers: &mut Answers<'a>,
        links: &mut Links<'a>,
    ) {
        let ops = answers.ops;
        let mut host = Vec::with_capacity(range.len());
        let mut inside: IndexMap<&Netns, Vec<usize>, foldhash::fast::RandomState> =
            IndexMap::default();
        for index in range {
            match ops.get(index).map(place_of) {
                Some(Place::Netns(netns)) => inside.entry(netns).or_default().push(index),
                Some(Place::Host) => {
                    host.push(index);
                    // Its peer is set up inside the namespace.
                    if let Some(Op::CreateVeth(veth)) = ops.get(index) {
                        inside.entry(&veth.peer_netns).or_default().push(index);
                    }
                }
                None => {}
            }
        }
        shuffle_deletes(ops, &mut host);

        let mut files = HashMap::new();
        let socket = Arc::clone(&self.0.host);
        let folders = Arc::clone(&self.0.folders);
        let mut run = Run {
            socket: &socket,
            folders: Some(&folders),
            pipe: &mut self.0.pipe,
            answers,
            links,
            namespaces: &self.0.namespaces,
        };
        run.host(&host, &mut files);
        let deaf: Vec<(usize, u32)> = host
            .iter()
            .filter_map(|index| match ops.get(*index) {
                Some(Op::CreateVeth(veth)) if veth.deaf => Some((*index, veth.index)),
                _ => None,
            })
            .collect();
        for (netns, list) in inside {
            let file = match files.remove(netns) {
                Some(file) => Ok(file),
                None => netns::open(netns),
            };
            let ports = self.0.ports;
            let outcome = file.and_then(|file| {
                self.0
                    .home
                    .inside(&file, || -> io::Result<()> {
                        // It pins the namespace, so it is gone when the work is done.
                        let socket = Socket::open(ports, Ports::WRITER)?;
                        let mut run = Run {
                            socket: &socket,
                            folders: None,
                            pipe: &mut self.0.pipe,
                            answers,
                            links,
                            namespaces: &self.0.namespaces,
                        };
                        run.inside(netns, &list);
                        Ok(())
                    })
                    .flatten()
            });
            if let Err(error) = outcome {
                for index in list {
                    answers.fail_io(index, &error);
                }
            }
        }
        // They have their carrier now.
        let mut run = Run {
            socket: &socket,
            folders: None,
            pipe: &mut self.0.pipe,
            answers,
            links,
            namespaces: &self.0.namespaces,
        };
        for (index, link) in deaf {
            run.deafen(index, link);
        }
        run.flush();
    }
}

/// Operations on one place.
pub(super) struct Run<'r, 'a> {
    pub(super) socket: &'r Socket,
    /// The host's.
    folders: Option<&'r Folders>,
    pub(super) pipe: &'r mut Pipe,
    pub(super) answers: &'r mut Answers<'a>,
    pub(super) links: &'r mut Links<'a>,
    pub(super) namespaces: &'r Namespaces,
}

impl<'a> Run<'_, 'a> {
    fn host(&mut self, list: &[usize], files: &mut HashMap<&'a Netns, File>) {
        let ops = self.answers.ops;
        let mut position = 0;
        while let Some(&index) = list.get(position) {
            position += match ops.get(index) {
                Some(Op::CreateVeth(veth)) => {
                    self.create_veth(index, veth, files);
                    1
                }
                Some(Op::CreateTap(tap)) => {
                    self.create_tap(index, tap);
                    1
                }
                Some(Op::CreateBridge(bridge)) => {
                    self.create_bridge(index, bridge);
                    1
                }
                Some(Op::CreateTunnel(tunnel)) => {
                    self.create_tunnel(index, tunnel);
                    1
                }
                Some(Op::DeleteLinks(indexes)) => {
                    self.flush();
                    if let (Some(op), Some(result)) =
                        (ops.get(index), self.answers.results.get_mut(index))
                    {
                        *result = group::delete_links(self.socket, self.pipe, op, indexes);
                    }
                    1
                }
                _ => self.common(None, list, position),
            };
        }
        for (link, index) in std::mem::take(&mut self.links.down) {
            self.send_up(index, link);
        }
        self.flush();
    }

    /// A link that is up but has no carrier yet has the kernel walk all IPv6 routes of the host with
    /// every change, so what can be set before is set before.
    fn send_up(&mut self, index: usize, link: u32) {
        let up = LinkUnspec::new_with_index(link).up().build();
        self.send_link(index, kind::SET_LINK, 0, &up);
    }

    fn inside(&mut self, netns: &'a Netns, list: &[usize]) {
        let ops = self.answers.ops;
        let mut position = 0;
        while let Some(&index) = list.get(position) {
            position += match ops.get(index) {
                Some(Op::CreateVeth(veth)) => {
                    if self.answers.is_ok(index) {
                        // Its only neighbour is the host. On a bridge there are others.
                        if veth.master.is_none() {
                            self.no_link_local(index, veth.peer_index);
                        }
                        self.send_up(index, veth.peer_index);
                    }
                    1
                }
                _ => self.common(Some(netns), list, position),
            };
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        self.pipe.flush(self.socket, self.answers, |_, _| {});
    }

    pub(super) fn send_link(&mut self, index: usize, kind: u16, flags: u16, link: &LinkMessage) {
        let sequence = self.pipe.next(index);
        self.pipe.encoder.link(kind, flags, sequence, link);
    }

    /// Handles the operation at `position` and possibly some after it; returns how many.
    fn common(&mut self, netns: Option<&'a Netns>, list: &[usize], position: usize) -> usize {
        let ops = self.answers.ops;
        let Some(&index) = list.get(position) else {
            return 1;
        };
        let Some(op) = ops.get(index) else {
            return 1;
        };
        if !self.links.missing.is_empty()
            && (link_of(op).is_some_and(|link| self.links.missing.contains(&(netns, link)))
                || name_of(op).is_some_and(|name| self.links.unnamed.contains(&(netns, name))))
        {
            let said = "its interface could not be made";
            self.answers.fail(index, libc::ECANCELED, Some(said));
            return 1;
        }
        let mut taken = 1;
        match op {
            Op::WriteSysctl { path, value, .. } => {
                taken = self.sysctl(list, position, path, value);
            }
            _ => {
                if netns.is_none()
                    && let Some(link) = link_of(op)
                    && let Some(made_by) = self.links.down.swap_remove(&link)
                {
                    self.send_up(made_by, link);
                }
                let sequence = self.pipe.next(index);
                self.encode(sequence, op);
            }
        }
        if self.pipe.is_full(self.socket) {
            self.flush();
        }
        taken
    }

    fn encode(&mut self, sequence: u32, op: &Op) {
        let encoder = &mut self.pipe.encoder;
        const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;
        match op {
            Op::AddRoute { route, .. } => {
                encoder.route(kind::NEW_ROUTE, NLM_F_CREATE | NLM_F_EXCL, sequence, route);
            }
            Op::ReplaceRoute { route, .. } => {
                encoder.route(kind::NEW_ROUTE, REPLACE, sequence, route);
            }
            Op::DeleteRoute { route, .. } => {
                encoder.route(kind::DELETE_ROUTE, 0, sequence, route);
            }
            Op::ReplaceNextHop(next_hop) => encoder.next_hop(REPLACE, sequence, next_hop),
            Op::DeleteNextHop { id } => encoder.delete_next_hop(sequence, *id),
            Op::AddAddress { place, address } => match place {
                Place::Host => {
                    encoder.marked_address(kind::NEW_ADDRESS, REPLACE, sequence, address);
                }
                Place::Netns(_) => {
                    encoder.interface_address(kind::NEW_ADDRESS, REPLACE, sequence, address);
                }
            },
            Op::DeleteAddress { address, .. } => {
                encoder.interface_address(kind::DELETE_ADDRESS, 0, sequence, address);
            }
            Op::ReplaceNeighbour { neighbour, .. } => {
                encoder.neighbour(kind::NEW_NEIGHBOUR, REPLACE, sequence, neighbour);
            }
            Op::DeleteNeighbour { neighbour, .. } => {
                encoder.neighbour(kind::DELETE_NEIGHBOUR, 0, sequence, neighbour);
            }
            Op::SetLink { link, .. } => {
                encoder.link(kind::SET_LINK, 0, sequence, &link_message(link));
            }
            Op::ReplaceFdb(entry) => {
                encoder.fdb(kind::NEW_NEIGHBOUR, REPLACE, sequence, entry);
            }
            Op::DeleteFdb(entry) => encoder.fdb(kind::DELETE_NEIGHBOUR, 0, sequence, entry),
            Op::CreateVeth(_)
            | Op::CreateTap(_)
            | Op::CreateBridge(_)
            | Op::CreateTunnel(_)
            | Op::DeleteLinks(_)
            | Op::WriteSysctl { .. } => {}
        }
    }

    /// Parameters of one interface that follow each other go into one message where that is
    /// possible; the others through /proc, after what comes before them is done.
    fn sysctl(&mut self, list: &[usize], position: usize, path: &str, value: &str) -> usize {
        let ops = self.answers.ops;
        let Some(&index) = list.get(position) else {
            return 1;
        };
        match (sysctl::by_message(path), value.parse::<u32>()) {
            (Some(ByMessage::ProxyDelay { interface }), Ok(0))
                if self.links.made.contains_key(interface) =>
            {
                let link = self.links.made.get(interface).copied().unwrap_or_default();
                let sequence = self.pipe.next(index);
                self.pipe.encoder.proxy_delay(sequence, link, 0);
                1
            }
            (Some(ByMessage::Conf { interface, .. }), Ok(_)) => {
                let sequence = self.pipe.next(index);
                let link = self.links.made.get(interface).copied();
                let encoder = &mut self.pipe.encoder;
                encoder.begin_link(kind::SET_LINK, 0, sequence, link.unwrap_or_default());
                if link.is_none() {
                    encoder.string(attribute::IFLA_IFNAME, interface);
                }
                let specification = encoder.begin_nest(attribute::IFLA_AF_SPEC);
                let family = encoder.begin_nest(u16::from(AF_INET));
                let configuration = encoder.begin_nest(attribute::IFLA_INET_CONF);
                let mut taken = 0;
                while let Some(&next) = list.get(position + taken)
                    && let Some(Op::WriteSysctl { path, value, .. }) = ops.get(next)
                    && let Some(ByMessage::Conf {
                        interface: same,
                        number,
                    }) = sysctl::by_message(path)
                    && same == interface
                    && let Ok(value) = value.parse::<u32>()
                {
                    if taken > 0 {
                        self.pipe.also(next, 0);
                    }
                    self.pipe.encoder.u32(number, value);
                    taken += 1;
                }
                let encoder = &mut self.pipe.encoder;
                encoder.end_nest(configuration);
                encoder.end_nest(family);
                encoder.end_nest(specification);
                encoder.end();
                taken
            }
            _ => {
                self.flush();
                self.pipe.count_file();
                let written = match self.folders {
                    Some(folders) => folders.write(path, value),
                    None => sysctl::write(path, value),
                };
                if let Err(error) = written {
                    self.answers.fail_io(index, &error);
                }
                1
            }
        }
    }
}

/// Where a segment that begins at `start` ends. Inside of a segment the host's operations may be
/// done before those of namespaces.
fn segment_end(ops: &[Op], start: usize) -> usize {
    let mut seen: HashSet<&Netns> = HashSet::new();
    for (index, op) in ops.iter().enumerate().skip(start) {
        let cut = match op {
            Op::DeleteLinks(_) => !seen.is_empty(),
            Op::CreateVeth(veth) => seen.contains(&veth.peer_netns) || seen.len() >= NAMESPACES,
            _ => false,
        };
        if cut {
            return index;
        }
        match (place_of(op), op) {
            (_, Op::CreateVeth(veth)) => {
                seen.insert(&veth.peer_netns);
            }
            (Place::Netns(netns), _) => {
                seen.insert(netns);
            }
            (Place::Host, _) => {}
        }
    }
    ops.len()
}

/// Deletes of IPv4 routes in the order of their prefixes make the kernel rebalance its trie all the
/// time; in random order they are about three times as fast. IPv6 likes their order.
fn shuffle_deletes(ops: &[Op], list: &mut [usize]) {
    let is_delete = |index: &usize| {
        matches!(ops.get(*index), Some(Op::DeleteRoute { route, .. })
            if matches!(route.prefix, IpNet::V4(_)))
    };
    for run in list.chunk_by_mut(|a, b| is_delete(a) == is_delete(b)) {
        if run.len() >= SHUFFLE && run.first().is_some_and(is_delete) {
            fastrand::shuffle(run);
        }
    }
}

fn place_of(op: &Op) -> &Place {
    match op {
        Op::SetLink { place, .. }
        | Op::AddAddress { place, .. }
        | Op::DeleteAddress { place, .. }
        | Op::AddRoute { place, .. }
        | Op::ReplaceRoute { place, .. }
        | Op::DeleteRoute { place, .. }
        | Op::ReplaceNeighbour { place, .. }
        | Op::DeleteNeighbour { place, .. }
        | Op::WriteSysctl { place, .. } => place,
        Op::CreateVeth(_)
        | Op::CreateTap(_)
        | Op::CreateBridge(_)
        | Op::CreateTunnel(_)
        | Op::ReplaceFdb(_)
        | Op::DeleteFdb(_)
        | Op::DeleteLinks(_)
        | Op::ReplaceNextHop(_)
        | Op::DeleteNextHop { .. } => &Place::Host,
    }
}

/// The link a parameter belongs to, by name.
fn name_of(op: &Op) -> Option<&str> {
    match op {
        // net/FAMILY/TABLE/INTERFACE/KEY
        Op::WriteSysctl { path, .. } => path.split('/').nth(3),
        _ => None,
    }
}

/// The link an operation is about, by index.
fn link_of(op: &Op) -> Option<u32> {
    match op {
        Op::SetLink { link, .. } => Some(link.index),
        Op::AddAddress { address, .. } | Op::DeleteAddress { address, .. } => Some(address.index),
        Op::ReplaceNeighbour { neighbour, .. } | Op::DeleteNeighbour { neighbour, .. } => {
            Some(neighbour.index)
        }
        Op::ReplaceFdb(entry) | Op::DeleteFdb(entry) => Some(entry.index),
        Op::AddRoute { route, .. } | Op::ReplaceRoute { route, .. } => match &route.target {
            Target::Link { index } => Some(*index),
            Target::Gateways(gateways) => gateways.first().map(|gateway| gateway.index),
            Target::Blackhole | Target::Reject | Target::NextHop { .. } => None,
        },
        _ => None,
    }
}

fn link_message(change: &LinkChange) -> LinkMessage {
    let mut link = LinkUnspec::new_with_index(change.index);
    match change.up {
        Some(true) => link = link.up(),
        Some(false) => link = link.down(),
        None => {}
    }
    if let Some(mtu) = change.mtu {
        link = link.mtu(mtu);
    }
    if let Some(mac) = change.mac {
        link = link.address(mac.to_vec());
    }
    if let Some(alias) = &change.alias {
        link = link.alias(alias.as_str());
    }
    match change.master {
        Some(0) => link = link.nocontroller(),
        Some(master) => link = link.controller(master),
        None => {}
    }
    if let Some(name) = &change.name {
        link = link.name(name.as_str());
    }
    link.build()
}

//! The host's main routing table as last seen, with what is wanted of learned routes beside it.
//!
//! Own routes come by the hundred thousand, so each costs two words: their whole content is one of
//! a few forms, which fit into a code. With prefix and flags an IPv4 route takes 14 octets, an IPv6
//! route 26. Foreign routes, usually a handful, are kept as they are.

use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use smallvec::SmallVec;

use super::parted::Parted;
use crate::kernel::{PROTOCOL_AGENTD, PROTOCOL_AGENTD_BGP, Route, Target};

pub(super) type Hash = foldhash::fast::RandomState;

/// RT_TABLE_MAIN.
pub(super) const MAIN: u32 = 254;

/// Content of an own route: nothing, the blackhole of a block, something that we never write, the
/// blackhole of a learned route, an interface (`LINK` and its index), or else the id of a nexthop
/// object.
pub(super) type Code = u32;
pub(super) const NONE: Code = 0;
pub(super) const BLACKHOLE: Code = 1;
pub(super) const OTHER: Code = 2;
pub(super) const DISCARD: Code = 3;
pub(super) const LINK: Code = 0x8000_0000;

/// In one of the queues.
pub(super) const QUEUED: u8 = 1;
/// By a batch that is under way.
pub(super) const WRITING: u8 = 16;
/// Met in the dump that is being read.
pub(super) const MET: u8 = 2;
/// The route was as wanted, and somebody changed it.
pub(super) const SPOILT: u8 = 4;
/// With the former: it was not deleted, but led elsewhere.
pub(super) const ALTERED: u8 = 8;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// What the learned route of this prefix should be; `NONE`: there is none.
    pub(super) learned: Code,
    /// What stands in the kernel.
    pub(super) seen: Code,
    pub(super) flags: u8,
}

impl Entry {
    fn is_empty(self) -> bool {
        self.learned == NONE && self.seen == NONE && self.flags & (QUEUED | SPOILT | WRITING) == 0
    }
}

/// An entry as it is stored: without the gaps that alignment would make beside a prefix.
#[derive(Clone, Copy, Debug, Default)]
struct Packed {
    learned: [u8; 4],
    seen: [u8; 4],
    flags: u8,
}

impl Packed {
    fn new(entry: Entry) -> Self {
        Self {
            learned: entry.learned.to_ne_bytes(),
            seen: entry.seen.to_ne_bytes(),
            flags: entry.flags,
        }
    }

    fn entry(self) -> Entry {
        Entry {
            learned: Code::from_ne_bytes(self.learned),
            seen: Code::from_ne_bytes(self.seen),
            flags: self.flags,
        }
    }
}

const _: () = assert!(size_of::<(Ipv4Net, Packed)>() == 14);
const _: () = assert!(size_of::<(Ipv6Net, Packed)>() == 26);

/// Metric with which we write routes: what the kernel makes of "none given".
pub(super) fn own_metric(prefix: &IpNet) -> u32 {
    match prefix {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

pub(super) fn is_own(protocol: u8) -> bool {
    protocol == PROTOCOL_AGENTD || protocol == PROTOCOL_AGENTD_BGP
}

/// Whether routes with this content point to a nexthop object, which has to stand before them.
pub(super) fn is_object(code: Code) -> bool {
    code > DISCARD && code & LINK == 0
}

pub(super) fn code_of(route: &Route) -> Code {
    match (&route.target, route.protocol) {
        (Target::Blackhole, PROTOCOL_AGENTD) => BLACKHOLE,
        (Target::Link { index }, PROTOCOL_AGENTD) if *index < LINK => LINK | *index,
        (Target::Gateways(gateways), PROTOCOL_AGENTD) => match gateways.as_slice() {
            [one] if one.address.is_none() && one.index < LINK => LINK | one.index,
            _ => OTHER,
        },
        (Target::Blackhole, PROTOCOL_AGENTD_BGP) => DISCARD,
        (Target::NextHop { id }, PROTOCOL_AGENTD_BGP) if *id > DISCARD && *id < LINK => *id,
        _ => OTHER,
    }
}

pub(super) fn route_of(prefix: IpNet, code: Code) -> Route {
    let (protocol, target) = match code {
        BLACKHOLE => (PROTOCOL_AGENTD, Target::Blackhole),
        DISCARD => (PROTOCOL_AGENTD_BGP, Target::Blackhole),
        code if code & LINK != 0 => (
            PROTOCOL_AGENTD,
            Target::Link {
                index: code & !LINK,
            },
        ),
        id => (PROTOCOL_AGENTD_BGP, Target::NextHop { id }),
    };
    Route {
        prefix,
        table: MAIN,
        metric: own_metric(&prefix),
        protocol,
        target,
    }
}

#[derive(Debug)]
pub(super) struct Table {
    v4: Parted<Ipv4Net, Packed>,
    v6: Parted<Ipv6Net, Packed>,
    /// Own routes on our key whose content is `OTHER`.
    pub(super) other: HashMap<IpNet, Route, Hash>,
    /// Own routes with a metric that we never use.
    pub(super) odd: HashMap<(IpNet, u32), Route, Hash>,
    foreign: HashMap<IpNet, SmallVec<[Route; 1]>, Hash>,
    /// Prefixes of own routes to each interface.
    by_link: HashMap<u32, SmallVec<[IpNet; 2]>, Hash>,
    /// How many own and foreign prefixes there are of each length.
    own_lengths: [Vec<u32>; 2],
    foreign_lengths: [Vec<u32>; 2],
}

fn family(prefix: &IpNet) -> usize {
    usize::from(matches!(prefix, IpNet::V6(_)))
}

fn lengths() -> [Vec<u32>; 2] {
    [vec![0; 33], vec![0; 129]]
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            v4: Parted::new(),
            v6: Parted::new(),
            other: HashMap::default(),
            odd: HashMap::default(),
            foreign: HashMap::default(),
            by_link: HashMap::default(),
            own_lengths: lengths(),
            foreign_lengths: lengths(),
        }
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Entry {
        let found = match prefix {
            IpNet::V4(net) => self.v4.get(net),
            IpNet::V6(net) => self.v6.get(net),
        };
        found.map_or_else(Entry::default, |packed| packed.entry())
    }

    /// Changes an entry, making or dropping it as needed, and returns it as it is afterwards.
    pub(super) fn update(&mut self, prefix: &IpNet, change: impl FnOnce(&mut Entry)) -> Entry {
        let mut after = Entry::default();
        let set = |packed: &mut Packed| {
            after = packed.entry();
            change(&mut after);
            *packed = Packed::new(after);
        };
        let keep = |packed: &Packed| !packed.entry().is_empty();
        let more = match prefix {
            IpNet::V4(net) => self.v4.update(*net, set, keep),
            IpNet::V6(net) => self.v6.update(*net, set, keep),
        };
        let count = &mut self.own_lengths[family(prefix)][usize::from(prefix.prefix_len())];
        *count = count.wrapping_add_signed(more);
        after
    }

    pub(super) fn set_seen(&mut self, prefix: &IpNet, code: Code) {
        let mut before = NONE;
        self.update(prefix, |entry| {
            before = entry.seen;
            entry.seen = code;
        });
        self.relink(prefix, before, code);
        if code != OTHER {
            self.other.remove(prefix);
        }
    }

    /// A batch has ended. `code` is what stands there now; `None`: what stood there before.
    pub(super) fn written(&mut self, prefix: &IpNet, code: Option<Code>) {
        let mut before = NONE;
        let after = self.update(prefix, |entry| {
            before = entry.seen;
            entry.seen = code.unwrap_or(before);
            entry.flags &= !WRITING;
        });
        self.relink(prefix, before, after.seen);
        if after.seen != OTHER && !self.other.is_empty() {
            self.other.remove(prefix);
        }
    }

    /// Notes that an own route stands in the kernel.
    pub(super) fn see(&mut self, route: &Route) {
        if route.metric != own_metric(&route.prefix) {
            self.odd.insert((route.prefix, route.metric), route.clone());
            return;
        }
        let code = code_of(route);
        let mut before = NONE;
        self.update(&route.prefix, |entry| {
            before = entry.seen;
            entry.seen = code;
            entry.flags |= MET;
        });
        self.relink(&route.prefix, before, code);
        if code == OTHER {
            self.other.insert(route.prefix, route.clone());
        } else {
            self.other.remove(&route.prefix);
        }
    }

    /// What is seen at a prefix has changed.
    pub(super) fn relink(&mut self, prefix: &IpNet, before: Code, after: Code) {
        if before == after {
            return;
        }
        if before & LINK != 0
            && let Some(prefixes) = self.by_link.get_mut(&(before & !LINK))
        {
            prefixes.retain(|other| other != prefix);
            if prefixes.is_empty() {
                self.by_link.remove(&(before & !LINK));
            }
        }
        if after & LINK != 0 {
            let prefixes = self.by_link.entry(after & !LINK).or_default();
            prefixes.push(*prefix);
        }
    }

    /// Prefixes of own routes to an interface.
    pub(super) fn to_link(&self, index: u32) -> &[IpNet] {
        self.by_link.get(&index).map_or(&[], |prefixes| prefixes)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, Entry)> + '_ {
        let v4 = self
            .v4
            .iter()
            .map(|(net, packed)| (IpNet::V4(*net), packed.entry()));
        let v6 = self
            .v6
            .iter()
            .map(|(net, packed)| (IpNet::V6(*net), packed.entry()));
        v4.chain(v6)
    }

    pub(super) fn for_each(&mut self, mut change: impl FnMut(IpNet, &mut Entry)) {
        let mut change = |net, packed: &mut Packed| {
            let mut entry = packed.entry();
            change(net, &mut entry);
            *packed = Packed::new(entry);
        };
        for (net, packed) in self.v4.iter_mut() {
            change(IpNet::V4(net), packed);
        }
        for (net, packed) in self.v6.iter_mut() {
            change(IpNet::V6(net), packed);
        }
    }

    /// Drops entries that [`for_each`](Self::for_each) emptied.
    pub(super) fn prune(&mut self) {
        let [v4, v6] = &mut self.own_lengths;
        let keep = |packed: &Packed, count: &mut u32| {
            let keep = !packed.entry().is_empty();
            *count -= u32::from(!keep);
            keep
        };
        self.v4
            .retain(|net, packed| keep(packed, &mut v4[usize::from(net.prefix_len())]));
        self.v6
            .retain(|net, packed| keep(packed, &mut v6[usize::from(net.prefix_len())]));
    }

    pub(super) fn clear_foreign(&mut self) {
        self.foreign.clear();
        self.foreign_lengths = lengths();
    }

    pub(super) fn add_foreign(&mut self, route: Route) {
        let routes = self.foreign.entry(route.prefix).or_default();
        if routes.is_empty() {
            self.foreign_lengths[family(&route.prefix)][usize::from(route.prefix.prefix_len())] +=
                1;
        }
        routes.retain(|other| other.metric != route.metric);
        routes.push(route);
        routes.sort_by_key(|route| route.metric);
    }

    /// Removes foreign routes of a prefix, and returns whether there were any.
    pub(super) fn remove_foreign(&mut self, prefix: &IpNet, gone: impl Fn(&Route) -> bool) -> bool {
        let Some(routes) = self.foreign.get_mut(prefix) else {
            return false;
        };
        let before = routes.len();
        routes.retain(|route| !gone(route));
        let changed = routes.len() != before;
        if routes.is_empty() {
            self.foreign.remove(prefix);
            self.foreign_lengths[family(prefix)][usize::from(prefix.prefix_len())] -= 1;
        }
        changed
    }

    pub(super) fn foreign(&self, prefix: &IpNet) -> &[Route] {
        self.foreign.get(prefix).map_or(&[], |routes| routes)
    }

    pub(super) fn all_foreign(&self) -> impl Iterator<Item = &Route> + '_ {
        self.foreign.values().flatten()
    }

    /// The foreign route that stands where an own route of this prefix would.
    pub(super) fn foreign_on_key(&self, prefix: &IpNet) -> Option<&Route> {
        let metric = own_metric(prefix);
        self.foreign(prefix)
            .iter()
            .find(|route| route.metric == metric)
    }

    /// Prefixes that contain an address and have a route, longest first.
    pub(super) fn covering(&self, address: IpAddr) -> impl Iterator<Item = IpNet> + '_ {
        let (which, bits) = match address {
            IpAddr::V4(_) => (0, 32u8),
            IpAddr::V6(_) => (1, 128u8),
        };
        (0..=bits).rev().filter_map(move |length| {
            let at = usize::from(length);
            if self.own_lengths[which][at] == 0 && self.foreign_lengths[which][at] == 0 {
                return None;
            }
            IpNet::new(address, length).ok().map(|net| net.trunc())
        })
    }
}

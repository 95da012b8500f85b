//! Whole tables through codec, policy, decision process and codec again, judged by an oracle that
//! shares no code with them.
//!
//! Two neighbours announce a table that is made like those of the Internet: long tails of AS path
//! lengths and of communities, prepending, AS_SET, two segments, aggregators, attributes of unknown
//! kinds, some of them with the Partial bit, and now and then a fault of RFC 7606. A third one
//! looks on. What it is sent is taken apart here, octet by octet, and compared with what RFC 4271
//! makes of what was sent; then routes change, go, and a neighbour with them.
//!
//! Made anew from a seed each time; `BGP_REPLAY_SEED` and `BGP_REPLAY_PREFIXES` choose another one
//! and its size.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use bgp::{
    message::{Message, Negotiated},
    policy::Policy,
    rib::{NextHopState, NextHopWatch, PeerKind, PeerRib, Rib, RibConfig},
    types::{Asn, Family, PeerId},
    wire::{Decoder, frame},
};
use ipnet::IpNet;

const OUR_AS: u32 = 64512;
const OUR_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OURS_V6: &str = "2001:db8:ffff::1";
const OBSERVER: u8 = 13;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Small mostly, `most` at the most.
    fn tail(&mut self, most: u64) -> u64 {
        let mut value = 0;
        while value < most && !self.one_in(3) {
            value += 1 + self.below(1 + value);
        }
        value.min(most)
    }

    fn asn(&mut self) -> u32 {
        match self.below(4) {
            0 => 100_000 + u32::try_from(self.below(300_000)).unwrap(),
            _ => 1_000 + u32::try_from(self.below(22_000)).unwrap(),
        }
    }

    fn octets(&mut self, count: u64) -> Vec<u8> {
        (0..count)
            .map(|_| u8::try_from(self.below(256)).unwrap())
            .collect()
    }
}

/// Flags without the extended length bit, and value, by type code.
type Attributes = BTreeMap<u8, (u8, Vec<u8>)>;

/// Segments of an AS path: kind and numbers.
type Path = Vec<(u8, Vec<u32>)>;

/// One attribute set as a neighbour sends it, with what should become of it.
#[derive(Clone)]
struct Sent {
    path: Path,
    attributes: Attributes,
    /// Octets in place of the attributes, when there is a fault in them.
    raw: Option<Vec<u8>>,
    /// With a fault for which the routes count as withdrawn (RFC 7606 §2).
    withdrawn: bool,
    /// NO_EXPORT is among its communities.
    stays: bool,
}

fn path_value(path: &Path) -> Vec<u8> {
    let mut value = Vec::new();
    for (kind, asns) in path {
        value.extend([*kind, u8::try_from(asns.len()).unwrap()]);
        asns.iter().for_each(|asn| value.extend(asn.to_be_bytes()));
    }
    value
}

/// As the decision process counts (RFC 4271 §9.1.2.2 a).
fn path_length(path: &Path) -> usize {
    let of = |(kind, asns): &(u8, Vec<u32>)| if *kind == 1 { 1 } else { asns.len() };
    path.iter().map(of).sum()
}

fn make(random: &mut Random, neighbour: u32) -> Sent {
    let mut asns = vec![neighbour; 1 + usize::try_from(random.tail(6)).unwrap()];
    let more = match random.below(400) {
        0 => 200 + random.below(120),
        _ => 1 + random.tail(12),
    };
    asns.extend((0..more).map(|_| random.asn()));
    let mut path: Path = asns.chunks(255).map(|part| (2, part.to_vec())).collect();
    if random.one_in(60) {
        let set = (0..1 + random.below(5)).map(|_| random.asn()).collect();
        path.push((1, set));
    }
    let mut attributes = Attributes::new();
    let origin = [0, 0, 0, 2, 1][usize::try_from(random.below(5)).unwrap()];
    attributes.insert(1, (0x40, vec![origin]));
    if random.one_in(3) {
        attributes.insert(4, (0x80, random.octets(4)));
    }
    if random.one_in(12) {
        attributes.insert(6, (0x40, vec![]));
    }
    let partial = |random: &mut Random| if random.one_in(9) { 0xe0 } else { 0xc0 };
    if random.one_in(10) {
        let mut value = random.asn().to_be_bytes().to_vec();
        value.extend(random.octets(4));
        attributes.insert(7, (partial(random), value));
    }
    let mut stays = false;
    if !random.one_in(4) {
        let mut value = Vec::new();
        for _ in 0..1 + random.tail(60) {
            let asn = u16::try_from(1_000 + random.below(60_000)).unwrap();
            value.extend(asn.to_be_bytes());
            value.extend(random.octets(2));
        }
        if random.one_in(50) {
            value.extend([0xff, 0xff, 0xff, 0x01]);
            stays = true;
        }
        attributes.insert(8, (partial(random), value));
    }
    if random.one_in(6) {
        let mut value = Vec::new();
        for _ in 0..1 + random.tail(6) {
            value.extend([[0, 2], [0x40, 4], [3, 0x0b]][usize::try_from(random.below(3)).unwrap()]);
            value.extend(random.octets(6));
        }
        attributes.insert(16, (partial(random), value));
    }
    if random.one_in(5) {
        let value = (0..1 + random.tail(12)).flat_map(|_| random.octets(12));
        let value = value.collect();
        attributes.insert(32, (partial(random), value));
    }
    if random.one_in(40) {
        attributes.insert(35, (0xc0, random.asn().to_be_bytes().to_vec()));
    }
    for code in [28, 99, 128, 254] {
        if random.one_in(50) {
            let count = random.tail(300);
            let flags = if random.one_in(4) {
                0x80
            } else {
                partial(random)
            };
            attributes.insert(code, (flags, random.octets(count)));
        }
    }
    let mut sent = Sent {
        path,
        attributes,
        raw: None,
        withdrawn: false,
        stays,
    };
    if random.one_in(80) {
        fault(random, &mut sent);
    }
    sent
}

/// One fault, after which the session stands (RFC 7606 §7).
fn fault(random: &mut Random, sent: &mut Sent) {
    let mut broken = sent.clone();
    match random.below(5) {
        0 => drop(broken.attributes.insert(1, (0x40, vec![7]))),
        1 => drop(broken.attributes.insert(8, (0xc0, vec![1, 2, 3, 4, 5]))),
        2 => drop(broken.attributes.remove(&1)),
        3 => drop(broken.attributes.insert(32, (0xc0, vec![0; 11]))),
        // Discarded, and the route stands without it.
        _ => {
            broken.attributes.insert(7, (0xc0, vec![0; 5]));
            sent.attributes.remove(&7);
            sent.raw = Some(attributes_octets(&broken));
            return;
        }
    }
    sent.raw = Some(attributes_octets(&broken));
    sent.withdrawn = true;
}

fn tlv(out: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend([flags, code, length]),
        Err(_) => {
            out.extend([flags | 0x10, code]);
            out.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        }
    }
    out.extend(value);
}

/// All but the next hop and MP_REACH_NLRI.
fn attributes_octets(sent: &Sent) -> Vec<u8> {
    let mut out = Vec::new();
    for (code, (flags, value)) in &sent.attributes {
        tlv(&mut out, *flags, *code, value);
    }
    tlv(&mut out, 0x40, 2, &path_value(&sent.path));
    out
}

fn nlri(prefix: &IpNet) -> Vec<u8> {
    let octets = match prefix.addr() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let used = usize::from(prefix.prefix_len().div_ceil(8));
    [&[prefix.prefix_len()], &octets[..used]].concat()
}

fn message(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    let length = 23 + withdrawn.len() + attributes.len() + announced.len();
    out.extend(u16::try_from(length).unwrap().to_be_bytes());
    out.push(2);
    out.extend(u16::try_from(withdrawn.len()).unwrap().to_be_bytes());
    out.extend(withdrawn);
    out.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    out.extend(attributes);
    out.extend(announced);
    out
}

fn announcement(sent: &Sent, from: u8, prefixes: &[IpNet]) -> Vec<u8> {
    let mut attributes = sent.raw.clone().unwrap_or_else(|| attributes_octets(sent));
    let nlri: Vec<u8> = prefixes.iter().flat_map(nlri).collect();
    if prefixes[0].addr().is_ipv4() {
        tlv(&mut attributes, 0x40, 3, &[192, 0, 2, from]);
        return message(&[], &attributes, &nlri);
    }
    let next_hop = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(from));
    let mut value = vec![0, 2, 1, 16];
    value.extend(next_hop.octets());
    value.push(0);
    value.extend(nlri);
    let mut first = Vec::new();
    tlv(&mut first, 0x80, 14, &value);
    first.extend(attributes);
    message(&[], &first, &[])
}

fn withdrawal(prefix: &IpNet) -> Vec<u8> {
    if prefix.addr().is_ipv4() {
        return message(&nlri(prefix), &[], &[]);
    }
    let mut attribute = Vec::new();
    tlv(
        &mut attribute,
        0x80,
        15,
        &[vec![0, 2, 1], nlri(prefix)].concat(),
    );
    message(&[], &attribute, &[])
}

/// What the observer is sent for a route (RFC 4271 §5, §9.2).
fn expected(sent: &Sent, v4: bool) -> Attributes {
    let mut path = sent.path.clone();
    match path.first_mut() {
        Some((2, asns)) if asns.len() < 255 => asns.insert(0, OUR_AS),
        _ => path.insert(0, (2, vec![OUR_AS])),
    }
    let mut out = Attributes::new();
    for (code, (flags, value)) in &sent.attributes {
        let (mut flags, mut value) = (*flags, value.clone());
        let known = matches!(code, 1..=8 | 16 | 32 | 35);
        match code {
            // A MED goes no further, and what is unknown and not transitive does not either.
            4 => continue,
            _ if !known && flags & 0x40 == 0 => continue,
            // Those not transitive end at the border of the AS (RFC 4360 §6).
            16 => {
                value = value
                    .chunks(8)
                    .filter(|c| c[0] & 0x40 == 0)
                    .flatten()
                    .copied()
                    .collect()
            }
            _ if !known => flags |= 0x20,
            _ => {}
        }
        if *code != 16 || !value.is_empty() {
            out.insert(*code, (flags, value));
        }
    }
    out.insert(2, (0x40, path_value(&path)));
    if v4 {
        out.insert(3, (0x40, OUR_ID.octets().to_vec()));
    } else {
        let ours: Ipv6Addr = OURS_V6.parse().unwrap();
        out.insert(14, (0x80, ours.octets().to_vec()));
    }
    out
}

/// The table of the observer, read octet by octet.
#[derive(Default)]
struct Observed(BTreeMap<IpNet, Attributes>);

impl Observed {
    fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
            assert!((19..=4096).contains(&length) && bytes[18] == 2);
            self.update(&bytes[19..length]);
            bytes = &bytes[length..];
        }
    }

    fn update(&mut self, body: &[u8]) {
        let (count, rest) = body.split_at(2);
        let (withdrawn, rest) =
            rest.split_at(usize::from(u16::from_be_bytes([count[0], count[1]])));
        let (count, rest) = rest.split_at(2);
        let (mut list, announced) =
            rest.split_at(usize::from(u16::from_be_bytes([count[0], count[1]])));
        for prefix in prefixes(withdrawn, true) {
            assert!(self.0.remove(&prefix).is_some(), "{prefix} was not there");
        }
        let mut attributes = Attributes::new();
        let mut reached = prefixes(announced, true);
        while !list.is_empty() {
            let (flags, code) = (list[0], list[1]);
            let (length, head) = match flags & 0x10 {
                0 => (usize::from(list[2]), 3),
                _ => (usize::from(u16::from_be_bytes([list[2], list[3]])), 4),
            };
            let mut value = list[head..head + length].to_vec();
            list = &list[head + length..];
            match code {
                14 => {
                    assert_eq!(value[..4], [0, 2, 1, 16]);
                    reached = prefixes(&value[21..], false);
                    value = value[4..20].to_vec();
                }
                15 => {
                    for prefix in prefixes(&value[3..], false) {
                        assert!(self.0.remove(&prefix).is_some(), "{prefix} was not there");
                    }
                    continue;
                }
                _ => {}
            }
            let before = attributes.insert(code, (flags & !0x10, value));
            assert!(before.is_none(), "attribute {code} twice");
        }
        for prefix in reached {
            self.0.insert(prefix, attributes.clone());
        }
    }
}

fn prefixes(mut bytes: &[u8], v4: bool) -> Vec<IpNet> {
    let mut list = Vec::new();
    while let [length, rest @ ..] = bytes {
        let used = usize::from(length.div_ceil(8));
        let mut octets = [0; 16];
        octets[..used].copy_from_slice(&rest[..used]);
        let address = match v4 {
            true => IpAddr::from(*octets.first_chunk::<4>().unwrap()),
            false => IpAddr::from(octets),
        };
        list.push(IpNet::new(address, *length).unwrap());
        bytes = &rest[used..];
    }
    list
}

struct World {
    rib: Rib,
    now: Instant,
    decoders: BTreeMap<u8, Decoder>,
    /// What each neighbour's routes are, by prefix: kept here as the truth.
    tables: BTreeMap<u8, BTreeMap<IpNet, Arc<Sent>>>,
    observed: Observed,
}

fn negotiated() -> Negotiated {
    Negotiated {
        four_octet_as: true,
        families: [true; 2],
        ..Negotiated::default()
    }
}

fn session(number: u8) -> PeerRib {
    let address = Ipv4Addr::new(192, 0, 2, number);
    let mut session = PeerRib::new(
        PeerKind::External,
        Asn(65_000 + u32::from(number)),
        address,
        address.into(),
        OUR_ID.into(),
        Arc::new(negotiated()),
    );
    session.next_hop_self[Family::Ipv6Unicast.index()] =
        Some(OURS_V6.parse::<IpAddr>().unwrap().into());
    session.import = Arc::new(Policy::all());
    session.export = Arc::new(Policy::all());
    session
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut world = Self {
            rib: Rib::new(RibConfig::new(Asn(OUR_AS), OUR_ID), now),
            now,
            decoders: BTreeMap::new(),
            tables: BTreeMap::new(),
            observed: Observed::default(),
        };
        for number in [11, 12, OBSERVER] {
            world.up(number);
        }
        world
    }

    fn up(&mut self, number: u8) {
        self.rib.peer_up(PeerId(number.into()), session(number));
        let mut decoder = Decoder::new();
        decoder.set_negotiated(negotiated());
        self.decoders.insert(number, decoder);
    }

    fn receive(&mut self, from: u8, bytes: &[u8]) {
        assert_eq!(frame(bytes, 4096).unwrap(), Some(bytes.len()));
        let decoder = self.decoders.get_mut(&from).unwrap();
        let Message::Update(update) = decoder.decode(bytes).unwrap() else {
            panic!("not an UPDATE");
        };
        self.rib
            .update(self.now, PeerId(from.into()), &update)
            .unwrap();
    }

    fn announce(&mut self, from: u8, sent: &Arc<Sent>, prefixes: &[IpNet]) {
        self.receive(from, &announcement(sent, from, prefixes));
        let table = self.tables.entry(from).or_default();
        for prefix in prefixes {
            match sent.withdrawn {
                true => drop(table.remove(prefix)),
                false => drop(table.insert(*prefix, Arc::clone(sent))),
            }
        }
    }

    fn withdraw(&mut self, from: u8, prefix: &IpNet) {
        self.receive(from, &withdrawal(prefix));
        self.tables.entry(from).or_default().remove(prefix);
    }

    /// Lets everything settle and compares what the observer has.
    fn check(&mut self) {
        while let Some(watch) = self.rib.poll_next_hop_watch() {
            if let NextHopWatch::Watch(via) = watch {
                self.rib
                    .set_next_hop(via, NextHopState::Reachable { metric: 0 });
            }
        }
        while self.rib.poll_change().is_some() {}
        let mut bytes = Vec::new();
        while self
            .rib
            .pull(PeerId(OBSERVER.into()), &mut bytes, 64 * 1024)
            .more
        {}
        self.observed.read(&bytes);
        let mut best: BTreeMap<IpNet, (u8, Arc<Sent>)> = BTreeMap::new();
        // RFC 4271 §9.1.2.2: shorter path, lower origin, lower router id; neighbours of two ASes.
        let rank = |sent: &Sent| (path_length(&sent.path), sent.attributes[&1].1[0]);
        for (from, table) in &self.tables {
            for (prefix, sent) in table {
                match best.get(prefix) {
                    Some((_, other)) if rank(other) <= rank(sent) => {}
                    _ => drop(best.insert(*prefix, (*from, Arc::clone(sent)))),
                }
            }
        }
        best.retain(|_, (_, sent)| !sent.stays);
        for (prefix, (from, sent)) in &best {
            let expected = expected(sent, prefix.addr().is_ipv4());
            let seen = self.observed.0.get(prefix);
            assert_eq!(seen, Some(&expected), "{prefix} of {from}");
        }
        let stray = self
            .observed
            .0
            .keys()
            .find(|prefix| !best.contains_key(prefix));
        assert_eq!(stray, None);
    }
}

fn prefix(random: &mut Random, number: u64) -> IpNet {
    if number.is_multiple_of(5) {
        let length = [29, 32, 36, 44, 48, 48, 48][usize::try_from(random.below(7)).unwrap()];
        let high = 0x2a00_u128 << 112 | u128::from(random.below(1 << 32)) << 80;
        return IpNet::new(Ipv6Addr::from_bits(high).into(), length)
            .unwrap()
            .trunc();
    }
    let length =
        [8, 16, 19, 20, 22, 22, 23, 24, 24, 24, 24, 32][usize::try_from(random.below(12)).unwrap()];
    // 1.0.0.0 to 126.255.255.255: no loopback and no multicast.
    let address = u32::try_from((1 << 24) + random.below(125 << 24)).unwrap();
    IpNet::new(Ipv4Addr::from_bits(address).into(), length)
        .unwrap()
        .trunc()
}

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_table_like_those_of_the_internet_arrives_as_rfc_4271_has_it() {
    let seed = number_of("BGP_REPLAY_SEED", 0x9e37_79b9_7f4a_7c15).max(1);
    let count = number_of("BGP_REPLAY_PREFIXES", 20_000);
    println!("BGP_REPLAY_SEED={seed} BGP_REPLAY_PREFIXES={count}");
    let mut random = Random(seed);
    let mut world = World::new();
    let mut all: Vec<IpNet> = (0..count).map(|n| prefix(&mut random, n)).collect();
    all.sort();
    all.dedup();
    let mut left = all.as_slice();
    while !left.is_empty() {
        // Neighbours in a table often share their attributes.
        let family = left[0].addr().is_ipv4();
        let alike = left
            .iter()
            .take_while(|p| p.addr().is_ipv4() == family)
            .count();
        let part = (1 + usize::try_from(random.tail(30)).unwrap()).min(alike);
        let (some, rest) = left.split_at(part);
        left = rest;
        for from in [11, 12] {
            if !random.one_in(4) {
                let sent = make(&mut random, 65_000 + u32::from(from));
                world.announce(from, &Arc::new(sent), some);
            }
        }
    }
    world.check();
    let many = world.observed.0.len();
    assert!(many > all.len() / 2, "{many} of {}", all.len());
    // Routes go, come back with other attributes, and change.
    for _ in 0..4 {
        for _ in 0..all.len() / 8 {
            let prefix = all[usize::try_from(random.below(all.len() as u64)).unwrap()];
            let from = if random.one_in(2) { 11 } else { 12 };
            if random.one_in(3) {
                world.withdraw(from, &prefix);
            } else {
                let sent = make(&mut random, 65_000 + u32::from(from));
                world.announce(from, &Arc::new(sent), &[prefix]);
            }
        }
        world.check();
    }
    for from in [11, 12] {
        world.rib.peer_down(PeerId(from.into()), [false; 2]);
        world.tables.remove(&from);
        world.check();
    }
    assert!(world.observed.0.is_empty());
    for family in Family::ALL {
        assert_eq!(world.rib.prefix_count(family), 0);
    }
}

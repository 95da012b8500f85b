//! Fixed amounts of the work that must stay cheap, each in a function of its own, for a count of
//! instructions by `valgrind --tool=callgrind` (see `tests/instructions.rs`). Does nothing else.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd::ipam::{Action, Ipam, Now};
use agentd::node::WorkloadId;
use bgp::attributes::{AsPath, Attributes, NextHop};
use bgp::message::{Announced, Negotiated, Nlri, NlriList, Update};
use bgp::policy::Policy;
use bgp::rib::{NextHopState, NextHopWatch, PeerKind, PeerRib, Rib, RibConfig};
use bgp::types::{Asn, Family, PeerId};
use bgp::wire::{Decoder, EncodedAttributes, encode_announce};
use dataplane::desired::{LearnedRoute, Object};
use dataplane::fake::{FakeKernel, plain_link};
use dataplane::reconcile::{Config, Output, Reconciler};
use ipnet::{IpNet, Ipv4Net};

const SENDER: PeerId = PeerId(1);
const RECEIVER: PeerId = PeerId(2);
const PREFIXES: u32 = 2000;

fn negotiated() -> Negotiated {
    Negotiated {
        four_octet_as: true,
        families: [true, true],
        ..Negotiated::default()
    }
}

fn attributes(variant: u32) -> Attributes {
    Attributes {
        as_path: AsPath::sequence([Asn(65001), Asn(65002), Asn(64000 + variant)]),
        ..Attributes::originated(NextHop::from(IpAddr::from([10, 0, 0, 1])))
    }
}

fn prefixes(count: u32) -> Vec<Nlri<Ipv4Net>> {
    (0..count)
        .map(|n| Nlri::from(Ipv4Net::new_assert((0x1400_0000 + n * 256).into(), 24)))
        .collect()
}

fn message(count: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let encoded = EncodedAttributes::new(&attributes(0), &negotiated(), Family::Ipv4Unicast);
    encode_announce(&mut out, &negotiated(), &encoded, &prefixes(count)).expect("it fits");
    out
}

/// One thousand UPDATEs of one prefix.
// SAFETY: the names are like no symbol of a library.
#[unsafe(no_mangle)]
extern "Rust" fn measured_decode_one(decoder: &mut Decoder, message: &[u8]) {
    for _ in 0..1000 {
        let _ = black_box(decoder.decode(black_box(message)));
    }
}

/// Ten UPDATEs of 800 prefixes.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "Rust" fn measured_decode_many(decoder: &mut Decoder, message: &[u8]) {
    for _ in 0..10 {
        let _ = black_box(decoder.decode(black_box(message)));
    }
}

/// Ten full messages.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "Rust" fn measured_encode(
    out: &mut Vec<u8>,
    encoded: &EncodedAttributes,
    negotiated: &Negotiated,
    nlri: &[Nlri<Ipv4Net>],
) {
    for _ in 0..10 {
        out.clear();
        let _ = black_box(encode_announce(out, negotiated, encoded, black_box(nlri)));
    }
}

/// One hundred changes of a best path in a table of [`PREFIXES`].
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "Rust" fn measured_best_path(rib: &mut Rib, now: Instant, flap: &[Update; 2]) {
    for _ in 0..50 {
        for update in flap {
            let _ = black_box(rib.update(now, SENDER, update));
            black_box(rib.poll_change());
        }
    }
}

/// A table of [`PREFIXES`] with ten attribute sets, packed for one peer.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "Rust" fn measured_export(rib: &mut Rib, out: &mut Vec<u8>) {
    while rib.has_pending(RECEIVER) {
        out.clear();
        black_box(rib.pull(RECEIVER, out, 64 * 1024));
    }
}

/// One hundred workloads get addresses of both families and give them back.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "Rust" fn measured_allocate(ipam: &mut Ipam, now: Now, ids: &[WorkloadId]) {
    for id in ids {
        let _ = black_box(ipam.allocate(now, id, None, &[]));
    }
    for id in ids {
        black_box(ipam.release(now, id, None));
    }
}

/// [`PREFIXES`] learned routes from wanted to written.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "Rust" fn measured_plan(reconciler: &mut Reconciler, now: Instant, routes: Vec<Object>) {
    for route in routes {
        reconciler.set(now, route);
    }
    while let Some(output) = reconciler.poll_output() {
        if let Output::Apply { id, ops } = output {
            reconciler.handle_results(now, id, vec![Ok(()); ops.len()]);
        }
    }
}

fn session(n: u32) -> PeerRib {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
    let mut session = PeerRib::new(
        PeerKind::External,
        Asn(65000 + n),
        address,
        address.into(),
        [10, 0, 255, 1].into(),
        Arc::new(negotiated()),
    );
    session.import = Arc::new(Policy::all());
    session.export = Arc::new(Policy::all());
    session
}

fn update(variant: u32, nlri: Vec<Nlri<Ipv4Net>>) -> Update {
    Update {
        announced: [Announced {
            attributes: Arc::new(attributes(variant)),
            nlri: NlriList::Ipv4(nlri),
        }]
        .into_iter()
        .collect(),
        ..Update::default()
    }
}

fn rib_with_table(now: Instant) -> Rib {
    let mut rib = Rib::new(RibConfig::new(Asn(64512), [10, 0, 255, 1].into()), now);
    for n in 1..=2 {
        rib.peer_up(PeerId(n), session(n));
    }
    for (variant, chunk) in (0..).zip(prefixes(PREFIXES).chunks(200)) {
        let update = update(variant % 10, chunk.to_vec());
        rib.update(now, SENDER, &update).expect("no limit");
        while let Some(watch) = rib.poll_next_hop_watch() {
            if let NextHopWatch::Watch(via) = watch {
                rib.set_next_hop(via, NextHopState::Reachable { metric: 0 });
            }
        }
    }
    while rib.poll_change().is_some() {}
    rib
}

fn bgp(now: Instant) {
    let (one, many) = (message(1), message(800));
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated());
    measured_decode_one(&mut decoder, &one);
    measured_decode_many(&mut decoder, &many);

    let encoded = EncodedAttributes::new(&attributes(0), &negotiated(), Family::Ipv4Unicast);
    let mut out = Vec::with_capacity(128 * 1024);
    measured_encode(&mut out, &encoded, &negotiated(), &prefixes(2000));

    let mut rib = rib_with_table(now);
    measured_export(&mut rib, &mut out);
    let flap = [20, 21].map(|variant| update(variant, prefixes(1)));
    measured_best_path(&mut rib, now, &flap);
}

fn settle(ipam: &mut Ipam, now: Now) {
    while let Some(action) = ipam.poll_action() {
        match action {
            Action::Claim(record) => ipam.block_persisted(record.cidr),
            Action::Program(cidr) => ipam.block_active(now, cidr),
            Action::Release(cidr) => ipam.block_released(cidr),
            _ => {}
        }
    }
}

fn addresses() {
    let now = Now::read();
    let pools =
        [("four", "10.0.0.0/8", 26), ("six", "fd00::/64", 122)].map(|(name, cidr, size)| {
            let cidr = cidr.parse().expect("a prefix");
            agentd::config::Pool {
                claim: vec![cidr],
                ..agentd::config::Pool::new(name, cidr, size)
            }
        });
    let mut ipam = Ipam::new(now, &pools, &agentd::config::Ipam::default());
    let id = |number: u32| WorkloadId::new(&format!("workload-{number}")).expect("an id");
    for number in 0..200 {
        ipam.allocate(now, &id(number), None, &[])
            .expect("there is room");
        settle(&mut ipam, now);
    }
    let ids: Vec<_> = (1000..1100).map(id).collect();
    measured_allocate(&mut ipam, now, &ids);
}

fn routes(now: Instant) {
    let mut kernel = FakeKernel::new();
    kernel.host.links.insert(2, plain_link(2, "eth0"));
    kernel.add_host_address(2, "192.168.0.10/16".parse().expect("an address"));
    let mut reconciler = Reconciler::new(Config::default(), now);
    while let Some(output) = reconciler.poll_output() {
        match output {
            Output::Apply { id, ops } => {
                let results = kernel.apply(&ops);
                reconciler.handle_results(now, id, results);
            }
            Output::Query { id, query } => {
                let answer = kernel.query(&query);
                reconciler.handle_snapshot(now, id, answer);
            }
            Output::Event(_) => {}
        }
    }
    let hops = [IpAddr::from([192, 168, 1, 1])];
    let routes = prefixes(PREFIXES).into_iter().map(|nlri| {
        Object::Route(LearnedRoute {
            prefix: IpNet::V4(nlri.prefix),
            next_hops: hops.map(Into::into).into(),
        })
    });
    measured_plan(&mut reconciler, now, routes.collect());
}

fn main() {
    let now = Instant::now() + Duration::from_secs(1);
    bgp(now);
    addresses();
    routes(now);
}

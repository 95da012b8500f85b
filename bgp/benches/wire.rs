//! What the wire layer costs for each message, on one core.
//!
//! The promises: at most 60 ns for a validated one-prefix UPDATE, 2.5 µs for one of 800 prefixes,
//! and 3 µs to encode a full message of 4,096 octets.

use std::{hint::black_box, net::IpAddr};

use bgp::{
    attributes::{AsPath, Attributes, NextHop},
    message::{Negotiated, Nlri},
    types::{Asn, Family},
    wire::{Decoder, EncodedAttributes, WirePrefix, encode_announce, encode_withdraw},
};
use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::{Ipv4Net, Ipv6Net};

fn negotiated() -> Negotiated {
    Negotiated {
        four_octet_as: true,
        internal: true,
        families: [true, true],
        ..Negotiated::default()
    }
}

fn attributes(next_hop: &str) -> Attributes {
    Attributes {
        as_path: AsPath::sequence([Asn(65001), Asn(65002), Asn(65003)]),
        local_pref: Some(100),
        communities: vec![0xfc00_0001, 0xfc00_0002],
        ..Attributes::originated(NextHop::from(
            next_hop.parse::<IpAddr>().expect("an address"),
        ))
    }
}

fn v4(count: u32) -> Vec<Nlri<Ipv4Net>> {
    (0..count)
        .map(|n| {
            let address = (0x0a00_0000 + n * 256).into();
            Nlri::from(Ipv4Net::new(address, 24).expect("a length"))
        })
        .collect()
}

fn v6(count: u128) -> Vec<Nlri<Ipv6Net>> {
    (0..count)
        .map(|n| {
            let address = (0x2001_0db8 << 96 | n << 64).into();
            Nlri::from(Ipv6Net::new(address, 64).expect("a length"))
        })
        .collect()
}

fn update<P: WirePrefix>(attributes: &Attributes, nlri: &[Nlri<P>]) -> Vec<u8> {
    let mut out = Vec::new();
    let encoded = EncodedAttributes::new(attributes, &negotiated(), P::FAMILY);
    let taken = encode_announce(&mut out, &negotiated(), &encoded, nlri).expect("it fits");
    assert_eq!(taken, nlri.len());
    out
}

fn decoder() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated());
    decoder
}

fn decode(c: &mut Criterion) {
    let four = attributes("10.0.0.1");
    let other = attributes("10.0.0.2");
    let six = attributes("fd00::1");
    let mut group = c.benchmark_group("decode");
    for (name, message) in [
        ("ipv4 1 prefix", update(&four, &v4(1))),
        ("ipv4 10 prefixes", update(&four, &v4(10))),
        ("ipv4 800 prefixes", update(&four, &v4(800))),
        ("ipv6 1 prefix", update(&six, &v6(1))),
        ("ipv6 400 prefixes", update(&six, &v6(400))),
    ] {
        let mut decoder = decoder();
        group.bench_function(name, |b| b.iter(|| decoder.decode(black_box(&message))));
    }
    let messages = [update(&four, &v4(1)), update(&other, &v4(1))];
    let mut decoder = decoder();
    let mut turn = 0;
    group.bench_function("ipv4 1 prefix, attributes differ each time", |b| {
        b.iter(|| {
            turn ^= 1;
            decoder.decode(black_box(&messages[turn]))
        });
    });
    let mut withdraw = Vec::new();
    encode_withdraw(&mut withdraw, &negotiated(), &v4(1));
    group.bench_function("ipv4 1 prefix withdrawn", |b| {
        b.iter(|| decoder.decode(black_box(&withdraw)));
    });
    group.finish();
}

fn encode(c: &mut Criterion) {
    let negotiated = negotiated();
    let four = attributes("10.0.0.1");
    let six = attributes("fd00::1");
    let encoded4 = EncodedAttributes::new(&four, &negotiated, Family::Ipv4Unicast);
    let encoded6 = EncodedAttributes::new(&six, &negotiated, Family::Ipv6Unicast);
    let (many4, many6) = (v4(2000), v6(1000));
    let mut out = Vec::with_capacity(8192);
    let mut group = c.benchmark_group("encode");
    group.bench_function("attributes", |b| {
        b.iter(|| EncodedAttributes::new(black_box(&four), &negotiated, Family::Ipv4Unicast));
    });
    group.bench_function("ipv4 1 prefix", |b| {
        b.iter(|| {
            out.clear();
            encode_announce(&mut out, &negotiated, &encoded4, black_box(&many4[..1]))
        });
    });
    group.bench_function("ipv4 full message", |b| {
        b.iter(|| {
            out.clear();
            encode_announce(&mut out, &negotiated, &encoded4, black_box(&many4))
        });
    });
    group.bench_function("ipv6 full message", |b| {
        b.iter(|| {
            out.clear();
            encode_announce(&mut out, &negotiated, &encoded6, black_box(&many6))
        });
    });
    group.bench_function("ipv4 full withdrawal", |b| {
        b.iter(|| {
            out.clear();
            encode_withdraw(&mut out, &negotiated, black_box(&many4))
        });
    });
    group.finish();
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);

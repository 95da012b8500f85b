//! Faults of path attributes (RFC 4271 §6.3 as revised by RFC 7606 and others): one
//! case for each attribute and fault, seen at a second peer.

use anyhow::{Result, ensure};
use integration::lab::raw_message::{self as raw, attribute};

use super::world::{self, ASN, Cases, Pair, World};

#[derive(Clone, Debug)]
enum Outcome {
    /// Session reset with this NOTIFICATION.
    Reset(u8, u8),
    /// RFC 7606 §2, treat-as-withdraw.
    Withdraw,
    /// RFC 7606 §2, attribute discard: the route stands without this attribute.
    Discard(u8),
    /// Nothing wrong with it.
    Accept,
}

struct Fault {
    name: String,
    /// In place of the attribute with the same code.
    attributes: Vec<u8>,
    replaces: u8,
    outcome: Outcome,
}

fn fault(name: impl Into<String>, replaces: u8, attributes: Vec<u8>, outcome: Outcome) -> Fault {
    Fault {
        name: name.into(),
        attributes,
        replaces,
        outcome,
    }
}

/// A good value of every attribute that an external peer may send.
fn good_values() -> Vec<(u8, u8, Vec<u8>)> {
    vec![
        (1, 0x40, vec![0]),
        (2, 0x40, raw::segment(2, &[65001])),
        (3, 0x40, vec![10, 9, 0, 11]),
        (4, 0x80, vec![0, 0, 0, 5]),
        (6, 0x40, vec![]),
        (7, 0xc0, vec![0, 0, 0xfd, 0xe9, 10, 0, 0, 1]),
        (8, 0xc0, vec![0xfd, 0xe9, 0, 1]),
        (16, 0xc0, vec![0, 2, 0xfd, 0xe9, 0, 0, 0, 1]),
        (25, 0xc0, vec![0; 20]),
        (32, 0xc0, vec![0, 0, 0xfd, 0xe9, 0, 0, 0, 1, 0, 0, 0, 2]),
        (35, 0xc0, vec![0, 0, 0xfd, 0xe9]),
    ]
}

fn external_faults() -> Vec<Fault> {
    use Outcome::{Accept, Discard, Reset, Withdraw};
    let mut list = Vec::new();
    for (code, flags, value) in good_values() {
        list.push(fault(
            format!("attribute {code}, good"),
            code,
            attribute(flags, code, &value),
            Accept,
        ));
        list.push(fault(
            format!("attribute {code}, good, extended length"),
            code,
            attribute(flags | 0x10, code, &value),
            Accept,
        ));
        list.push(fault(
            format!("attribute {code}, unused flag bits set"),
            code,
            attribute(flags | 0x0f, code, &value),
            Accept,
        ));
        // RFC 7606 §3 c
        for wrong in [0x00, 0x40, 0x80, 0xc0] {
            if wrong != flags {
                list.push(fault(
                    format!("attribute {code}, flags {wrong:02x}"),
                    code,
                    attribute(wrong, code, &value),
                    Withdraw,
                ));
            }
        }
        // RFC 7606 §3 g: the first counts.
        list.push(fault(
            format!("attribute {code} twice"),
            code,
            [
                attribute(flags, code, &value),
                attribute(flags, code, &value),
            ]
            .concat(),
            Accept,
        ));
        // RFC 7606 §7
        let outcome = || {
            if matches!(code, 6 | 7) {
                Discard(code)
            } else {
                Withdraw
            }
        };
        if code != 2 {
            list.push(fault(
                format!("attribute {code}, an octet too long"),
                code,
                attribute(flags, code, &[value.as_slice(), &[0]].concat()),
                outcome(),
            ));
            if !value.is_empty() {
                list.push(fault(
                    format!("attribute {code}, an octet too short"),
                    code,
                    attribute(flags, code, &value[1..]),
                    outcome(),
                ));
                list.push(fault(
                    format!("attribute {code}, empty"),
                    code,
                    attribute(flags, code, &[]),
                    outcome(),
                ));
            }
        }
    }
    // RFC 4271 §5.1.1, RFC 7606 §7.1
    for value in [3, 4, 255] {
        list.push(fault(
            format!("ORIGIN {value}"),
            1,
            raw::origin(value),
            Withdraw,
        ));
    }
    for value in [1, 2] {
        list.push(fault(
            format!("ORIGIN {value}"),
            1,
            raw::origin(value),
            Accept,
        ));
    }
    // RFC 7606 §7.2
    let path = |value: &[u8]| attribute(0x40, 2, value);
    let first = raw::segment(2, &[65001]);
    for (name, value, outcome) in [
        (
            "a stray octet at the end",
            [first.clone(), vec![2]].concat(),
            Withdraw,
        ),
        (
            "an empty segment",
            [first.clone(), vec![2, 0]].concat(),
            Withdraw,
        ),
        (
            "segment type 0",
            [first.clone(), vec![0, 1, 0, 0, 0, 1]].concat(),
            Withdraw,
        ),
        (
            "segment type 5",
            [first.clone(), vec![5, 1, 0, 0, 0, 1]].concat(),
            Withdraw,
        ),
        (
            "a segment that overruns",
            vec![2, 2, 0, 0, 0xfd, 0xe9],
            Withdraw,
        ),
        (
            "a segment that underruns",
            [first.clone(), vec![0, 0]].concat(),
            Withdraw,
        ),
        (
            "a confederation sequence",
            [raw::segment(3, &[65100]), first.clone()].concat(),
            Withdraw,
        ),
        (
            "a confederation set",
            [raw::segment(4, &[65100]), first.clone()].concat(),
            Withdraw,
        ),
        ("AS 0", raw::segment(2, &[65001, 0]), Withdraw),
        // RFC 4271 §6.3: the check of the first number is optional, and route servers need it off.
        ("another AS first", raw::segment(2, &[64999, 65001]), Accept),
        (
            "our own AS: a loop",
            raw::segment(2, &[65001, ASN]),
            Withdraw,
        ),
        (
            "our own AS in a set: a loop",
            [first.clone(), raw::segment(1, &[5, ASN])].concat(),
            Withdraw,
        ),
        (
            "a set at the end",
            [first.clone(), raw::segment(1, &[5, 6])].concat(),
            Accept,
        ),
        (
            "two sequences",
            [first.clone(), raw::segment(2, &[7])].concat(),
            Accept,
        ),
        ("255 numbers", raw::segment(2, &[65001; 255]), Accept),
        ("AS_TRANS", raw::segment(2, &[65001, 23456]), Accept),
        (
            "a four-octet number",
            raw::segment(2, &[65001, 4_294_967_294]),
            Accept,
        ),
    ] {
        list.push(fault(format!("AS_PATH: {name}"), 2, path(&value), outcome));
    }
    // RFC 4271 §6.3: semantically wrong next hops are ignored or withdrawn.
    for address in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 5],
        [255; 4],
        world::SPEAKER.octets(),
    ] {
        list.push(fault(
            format!("NEXT_HOP {address:?}"),
            3,
            raw::next_hop(address.into()),
            Withdraw,
        ));
    }
    for (code, name) in [(1, "ORIGIN"), (2, "AS_PATH"), (3, "NEXT_HOP")] {
        // RFC 7606 §3 d
        list.push(fault(format!("{name} missing"), code, Vec::new(), Withdraw));
    }
    // RFC 7606 §7.5, §7.9, §7.10: from an external peer
    list.push(fault(
        "LOCAL_PREF from outside",
        5,
        raw::local_pref(900),
        Discard(5),
    ));
    list.push(fault(
        "LOCAL_PREF from outside, too long",
        5,
        attribute(0x40, 5, &[0; 5]),
        Discard(5),
    ));
    list.push(fault(
        "ORIGINATOR_ID from outside",
        9,
        attribute(0x80, 9, &[1, 2, 3, 4]),
        Discard(9),
    ));
    list.push(fault(
        "ORIGINATOR_ID from outside, short",
        9,
        attribute(0x80, 9, &[1, 2]),
        Discard(9),
    ));
    list.push(fault(
        "CLUSTER_LIST from outside",
        10,
        attribute(0x80, 10, &[1, 2, 3, 4]),
        Discard(10),
    ));
    list.push(fault(
        "CLUSTER_LIST from outside, short",
        10,
        attribute(0x80, 10, &[1, 2, 3]),
        Discard(10),
    ));
    // RFC 6793 §4.1, §6
    let as4 = raw::segment(2, &[65001, 4_200_000_000]);
    list.push(fault(
        "AS4_PATH from a four-octet speaker",
        17,
        attribute(0xc0, 17, &as4),
        Discard(17),
    ));
    list.push(fault(
        "AS4_PATH malformed",
        17,
        attribute(0xc0, 17, &[2, 9, 0]),
        Discard(17),
    ));
    list.push(fault(
        "AS4_AGGREGATOR from a four-octet speaker",
        18,
        attribute(0xc0, 18, &[0, 1, 0, 1, 1, 2, 3, 4]),
        Discard(18),
    ));
    // RFC 7607 §2
    list.push(fault(
        "AGGREGATOR of AS 0",
        7,
        attribute(0xc0, 7, &[0, 0, 0, 0, 1, 2, 3, 4]),
        Discard(7),
    ));
    // RFC 4271 §6.3
    list.push(fault(
        "unknown well-known attribute",
        200,
        attribute(0x40, 200, &[1]),
        Reset(3, 2),
    ));
    list.push(fault(
        "unknown well-known attribute, not transitive",
        201,
        attribute(0x00, 201, &[1]),
        Reset(3, 2),
    ));
    list.push(fault(
        "unknown optional transitive attribute",
        202,
        attribute(0xc0, 202, &[1]),
        Accept,
    ));
    list.push(fault(
        "unknown optional attribute",
        203,
        attribute(0x80, 203, &[1]),
        Discard(203),
    ));
    list.push(fault(
        "unknown optional attribute, empty",
        204,
        attribute(0xc0, 204, &[]),
        Accept,
    ));
    list.push(fault(
        "unknown optional attribute twice",
        205,
        [attribute(0xc0, 205, &[1]), attribute(0xc0, 205, &[2])].concat(),
        Accept,
    ));
    // RFC 7606 §4
    list.push(fault(
        "the last attribute overruns",
        8,
        vec![0xc0, 8, 200, 0, 1],
        Withdraw,
    ));
    list.push(fault(
        "one octet after the last attribute",
        8,
        vec![0xc0],
        Withdraw,
    ));
    list.push(fault(
        "flags and code after the last attribute",
        8,
        vec![0xc0, 8],
        Withdraw,
    ));
    list.push(fault(
        "half an extended length",
        8,
        vec![0xd0, 8, 0],
        Withdraw,
    ));
    // RFC 7606 §3 h: the strongest
    list.push(fault(
        "a discard and a withdraw",
        4,
        [attribute(0x40, 6, &[1]), attribute(0x80, 4, &[1])].concat(),
        Withdraw,
    ));
    list
}

/// The attributes of the base without one code, and others after them.
pub fn with(base: &[u8], replaces: u8, attributes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = base;
    while let [_, code, length, ..] = *rest {
        let (whole, after) = rest.split_at(3 + usize::from(length));
        if code != replaces {
            out.extend_from_slice(whole);
        }
        rest = after;
    }
    out.extend_from_slice(attributes);
    out
}

fn check(
    world: &World,
    pair: &mut Pair,
    octets: (u8, u8),
    number: u8,
    fault: &Fault,
) -> Result<()> {
    let prefix = format!("10.20.{number}.0/24");
    let result = check_inner(pair, &prefix, fault);
    if result.is_err() || matches!(fault.outcome, Outcome::Reset(..)) {
        pair.again(world, octets)?;
    }
    result
}

fn check_inner(pair: &mut Pair, prefix: &str, fault: &Fault) -> Result<()> {
    pair.announce_plain(prefix)?;
    pair.observer
        .until("the good route", |peer| peer.table.has(prefix))?;
    let attributes = with(&pair.attributes.clone(), fault.replaces, &fault.attributes);
    pair.announce(&attributes, prefix)?;
    match fault.outcome {
        Outcome::Reset(code, subcode) => {
            world::expect_notification(&mut pair.sender, code, subcode, None)?;
            return pair
                .observer
                .until("the route is gone", |peer| !peer.table.has(prefix));
        }
        Outcome::Withdraw => {
            pair.sync()?;
            ensure!(!pair.observer.table.has(prefix), "the route still stands");
        }
        Outcome::Discard(code) => {
            pair.sync()?;
            let route = pair.observer.table.get(prefix);
            ensure!(route.is_some(), "the route is gone");
            ensure!(
                route.and_then(|route| route.get(code)).is_none(),
                "the attribute is still there"
            );
        }
        Outcome::Accept => {
            pair.sync()?;
            ensure!(pair.observer.table.has(prefix), "the route is gone");
        }
    }
    pair.sender
        .send(&raw::update(&raw::nlri(prefix), &[], &[]))?;
    pair.observer
        .until("the withdrawal", |peer| !peer.table.has(prefix))
}

fn check_all(world: &World, cases: &mut Cases, octets: (u8, u8), list: &[Fault]) -> Result<()> {
    let mut pair = world.pair(octets.0, octets.1)?;
    for (number, fault) in (0u8..).zip(list) {
        cases.case(&fault.name, || {
            check(world, &mut pair, octets, number, fault)
        });
    }
    Ok(())
}

#[test]
fn faults_of_attributes_from_an_external_peer() {
    world::run(|world, cases| check_all(world, cases, (11, 12), &external_faults()));
}

#[test]
fn faults_of_attributes_from_an_internal_peer() {
    use Outcome::{Accept, Discard, Withdraw};
    let path = |value: &[u8]| attribute(0x40, 2, value);
    let list = [
        fault("empty AS_PATH", 2, raw::as_path(&[]), Accept),
        fault(
            "confederation segment",
            2,
            path(&raw::segment(3, &[64999])),
            Accept,
        ),
        fault("our own AS: a loop", 2, raw::as_path(&[5, ASN]), Withdraw),
        fault("LOCAL_PREF", 5, raw::local_pref(7), Accept),
        fault("LOCAL_PREF short", 5, attribute(0x40, 5, &[0; 3]), Withdraw),
        fault("LOCAL_PREF long", 5, attribute(0x40, 5, &[0; 5]), Withdraw),
        fault("LOCAL_PREF flags", 5, attribute(0xc0, 5, &[0; 4]), Withdraw),
        fault("LOCAL_PREF missing", 5, Vec::new(), Accept),
        fault(
            "ORIGINATOR_ID",
            9,
            attribute(0x80, 9, &[1, 2, 3, 4]),
            Accept,
        ),
        fault(
            "ORIGINATOR_ID short",
            9,
            attribute(0x80, 9, &[1, 2, 3]),
            Withdraw,
        ),
        fault(
            "ORIGINATOR_ID long",
            9,
            attribute(0x80, 9, &[0; 5]),
            Withdraw,
        ),
        fault(
            "ORIGINATOR_ID flags",
            9,
            attribute(0xc0, 9, &[0; 4]),
            Withdraw,
        ),
        fault(
            "ORIGINATOR_ID ours",
            9,
            attribute(0x80, 9, &world::SPEAKER.octets()),
            Withdraw,
        ),
        fault(
            "CLUSTER_LIST",
            10,
            attribute(0x80, 10, &[1, 2, 3, 4]),
            Accept,
        ),
        fault(
            "CLUSTER_LIST short",
            10,
            attribute(0x80, 10, &[1, 2, 3]),
            Withdraw,
        ),
        fault("CLUSTER_LIST empty", 10, attribute(0x80, 10, &[]), Withdraw),
        fault(
            "CLUSTER_LIST flags",
            10,
            attribute(0xc0, 10, &[0; 4]),
            Withdraw,
        ),
        fault(
            "CLUSTER_LIST with ours",
            10,
            attribute(0x80, 10, &[1, 2, 3, 4, 10, 9, 0, 1]),
            Withdraw,
        ),
        fault(
            "ATOMIC_AGGREGATE long",
            6,
            attribute(0x40, 6, &[1]),
            Discard(6),
        ),
    ];
    world::run(|world, cases| check_all(world, cases, (21, 12), &list));
}

//! Rules about what attributes mean, one after the other: prefixes that are no unicast, next hops
//! that cannot be used, where MP_REACH_NLRI may stand, what leaves the AS, graceful shutdown, how
//! tables are packed (RFC 4271 §5, §6.3, §9; RFC 4360, 4760, 5701, 7606, 8326).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::lab::raw_message::{self as raw, Route, attribute};
use integration::lab::raw_peer::Event;

use super::propagation::{Stage, path, with_value, without};
use super::world::{self, ASN, Cases, Pair, World, address};

const V6_HOP: [u8; 16] = [0xfd, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11];
const V6_LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn plain() -> Vec<u8> {
    [raw::origin(0), raw::as_path(&[65001])].concat()
}

#[test]
fn prefixes_and_next_hops() {
    world::run(|world, cases| {
        let mut pair = world.pair(11, 12)?;
        let base = pair.attributes.clone();
        // RFC 4271 §6.3: a prefix of multicast is ignored, the session stays.
        for (bytes, text) in [
            (&[4u8, 224][..], "224.0.0.0/4"),
            (&[24, 224, 0, 0], "224.0.0.0/24"),
            (&[32, 239, 1, 2, 3], "239.1.2.3/32"),
            (&[8, 127], "127.0.0.0/8"),
            (&[32, 127, 0, 0, 1], "127.0.0.1/32"),
            (&[32, 255, 255, 255, 255], "255.255.255.255/32"),
            (&[24, 0, 1, 2], "0.1.2.0/24"),
        ] {
            cases.case(
                &format!("{text} is ignored, its neighbours are not"),
                || {
                    let nlri = [bytes, &raw::nlri("10.31.0.0/16")].concat();
                    pair.sender.send(&raw::update(&[], &base, &nlri))?;
                    pair.sync()?;
                    ensure!(!pair.observer.table.has(text), "it is passed on");
                    ensure!(pair.observer.table.has("10.31.0.0/16"), "the other is lost");
                    pair.sender.send(&raw::update(&nlri, &[], &[]))?;
                    pair.sync()?;
                    ensure!(!pair.observer.table.has("10.31.0.0/16"), "not withdrawn");
                    Ok(())
                },
            );
        }
        for (bytes, text) in [
            (&[8u8, 0xff][..], "ff00::/8"),
            (&[32, 0xff, 0x0e, 0, 1], "ff0e:1::/32"),
            (&[10, 0xfe, 0x80], "fe80::/10"),
        ] {
            cases.case(
                &format!("{text} is ignored, its neighbours are not"),
                || {
                    let nlri = [bytes, &raw::nlri("2001:db8:31::/48")].concat();
                    let attributes = [raw::mp_reach6(&V6_HOP, &nlri), plain()].concat();
                    pair.sender.send(&raw::update(&[], &attributes, &[]))?;
                    pair.observer
                        .until("its neighbour", |peer| peer.table.has("2001:db8:31::/48"))?;
                    pair.sync()?;
                    ensure!(!pair.observer.table.has(text), "it is passed on");
                    pair.sender
                        .send(&raw::update(&[], &raw::mp_unreach6(&nlri), &[]))?;
                    pair.observer
                        .until("the end", |peer| !peer.table.has("2001:db8:31::/48"))
                },
            );
        }
        // RFC 4271 §5.1.3, §6.3 and §9.1.2: such a route is not used; the session stays.
        for (hop, what, usable) in [
            ([10, 9, 0, 1], "our own address", false),
            ([10, 9, 0, 11], "the sender", true),
            ([10, 9, 0, 16], "another on the subnet", true),
            ([203, 0, 113, 1], "nowhere", false),
            ([0, 0, 0, 0], "zero", false),
            ([127, 0, 0, 1], "loopback", false),
            ([224, 0, 0, 1], "multicast", false),
            ([255, 255, 255, 255], "broadcast", false),
        ] {
            cases.case(&format!("next hop: {what}"), || {
                let attributes = [plain(), raw::next_hop(hop.into())].concat();
                pair.announce(&attributes, "10.32.0.0/16")?;
                pair.sync()?;
                if usable {
                    pair.observer
                        .until("the route", |peer| peer.table.has("10.32.0.0/16"))?;
                } else {
                    std::thread::sleep(Duration::from_millis(20));
                    pair.observer.drain()?;
                    ensure!(!pair.observer.table.has("10.32.0.0/16"), "it is passed on");
                }
                pair.sender
                    .send(&raw::update(&raw::nlri("10.32.0.0/16"), &[], &[]))?;
                pair.sync()
            });
        }
        // RFC 4271 §5.1.3: never the address of the one who is told.
        cases.case("a next hop is not sent to its owner", || {
            let attributes = [plain(), raw::next_hop(address(12))].concat();
            pair.announce(&attributes, "10.33.0.0/16")?;
            pair.sync()?;
            std::thread::sleep(Duration::from_millis(20));
            pair.observer.drain()?;
            let own = pair
                .observer
                .table
                .get("10.33.0.0/16")
                .and_then(|route| route.value(3))
                == Some(&address(12).octets());
            ensure!(!own, "it is");
            Ok(())
        });
        families(cases, &mut pair)
    });
}

/// Where prefixes can stand, and several families in one UPDATE (RFC 4760, RFC 7606 §5.1).
fn families(cases: &mut Cases, pair: &mut Pair) -> Result<()> {
    let hop = raw::next_hop(address(11));
    let reach = |prefix: &str| raw::mp_reach6(&V6_HOP, &raw::nlri(prefix));
    let unreach = |prefix: &str| raw::mp_unreach6(&raw::nlri(prefix));
    let (a, b) = ("2001:db8:a::/48", "2001:db8:b::/48");
    for (name, attributes) in [
        ("first", [reach(a), plain()].concat()),
        (
            "in the middle",
            [raw::origin(0), reach(a), raw::as_path(&[65001])].concat(),
        ),
        ("last", [plain(), reach(a)].concat()),
        (
            "behind an unknown attribute",
            [plain(), attribute(0xc0, 200, &[1]), reach(a)].concat(),
        ),
    ] {
        cases.case(&format!("MP_REACH_NLRI {name}"), || {
            pair.sender.send(&raw::update(&[], &attributes, &[]))?;
            pair.observer.until("the route", |peer| peer.table.has(a))?;
            pair.sender.send(&raw::update(&[], &unreach(a), &[]))?;
            pair.observer.until("the end", |peer| !peer.table.has(a))
        });
    }
    cases.case("attributes in descending order", || {
        let attributes = [
            raw::communities(&[7]),
            hop.clone(),
            raw::as_path(&[65001]),
            raw::origin(1),
        ]
        .concat();
        pair.announce(&attributes, "10.34.0.0/16")?;
        pair.sync()?;
        let route = pair.observer.table.get("10.34.0.0/16").cloned();
        with_value(route.as_ref(), 1, 0x40, &[1])?;
        with_value(route.as_ref(), 8, 0xc0, &[0, 0, 0, 7])
    });
    for (name, attributes) in [
        ("unreach first", [unreach(a), plain(), reach(b)].concat()),
        ("reach first", [plain(), reach(b), unreach(a)].concat()),
    ] {
        cases.case(
            &format!("MP_REACH_NLRI and MP_UNREACH_NLRI together, {name}"),
            || {
                let first = [plain(), reach(a)].concat();
                pair.sender.send(&raw::update(&[], &first, &[]))?;
                pair.observer.until("the first", |peer| peer.table.has(a))?;
                pair.sender.send(&raw::update(&[], &attributes, &[]))?;
                pair.observer
                    .until("the change", |peer| peer.table.has(b) && !peer.table.has(a))?;
                pair.sender.send(&raw::update(&[], &unreach(b), &[]))?;
                pair.observer.until("the end", |peer| !peer.table.has(b))
            },
        );
    }
    cases.case("all four places of one UPDATE at once", || {
        let nlri = raw::nlri("10.35.0.0/16");
        pair.announce_plain("10.36.0.0/16")?;
        let attributes = [reach(a), unreach(b), plain(), hop.clone()].concat();
        pair.sender
            .send(&raw::update(&raw::nlri("10.36.0.0/16"), &attributes, &nlri))?;
        pair.observer.until("both families", |peer| {
            peer.table.has(a) && peer.table.has("10.35.0.0/16") && !peer.table.has("10.36.0.0/16")
        })?;
        let route = pair.observer.table.get(a);
        without(route, 3)?;
        pair.sender.send(&raw::update(&nlri, &unreach(a), &[]))?;
        pair.observer.until("the end of both", |peer| {
            !peer.table.has(a) && !peer.table.has("10.35.0.0/16")
        })
    });
    cases.case("IPv4 in MP_REACH_NLRI, out by MP_UNREACH_NLRI", || {
        let value = [
            &[0, 1, 1, 4, 10, 9, 0, 11, 0][..],
            &raw::nlri("10.37.0.0/16"),
        ]
        .concat();
        let attributes = [attribute(0x80, 14, &value), plain()].concat();
        pair.sender.send(&raw::update(&[], &attributes, &[]))?;
        pair.sync()?;
        let route = pair.observer.table.get("10.37.0.0/16").context("route")?;
        ensure!(route.value(3).is_some(), "no NEXT_HOP: {route:02x?}");
        let value = [&[0, 1, 1][..], &raw::nlri("10.37.0.0/16")].concat();
        pair.sender
            .send(&raw::update(&[], &attribute(0x80, 15, &value), &[]))?;
        pair.sync()?;
        ensure!(!pair.observer.table.has("10.37.0.0/16"), "it stays");
        Ok(())
    });
    cases.case(
        "IPv4 announced in the body, withdrawn by MP_UNREACH_NLRI",
        || {
            pair.announce_plain("10.38.0.0/16")?;
            let value = [&[0, 1, 1][..], &raw::nlri("10.38.0.0/16")].concat();
            pair.sender
                .send(&raw::update(&[], &attribute(0x80, 15, &value), &[]))?;
            pair.sync()?;
            ensure!(!pair.observer.table.has("10.38.0.0/16"), "it stays");
            Ok(())
        },
    );
    for (name, hop) in [
        ("a global address", V6_HOP.to_vec()),
        ("global and link-local", [V6_HOP, V6_LINK_LOCAL].concat()),
        // Both halves link-local, or nothing global: as some speakers send it.
        ("global twice", [V6_HOP, V6_HOP].concat()),
        ("global and zero", [V6_HOP, [0; 16]].concat()),
    ] {
        cases.case(&format!("IPv6 next hop of {name}"), || {
            let attributes = [raw::mp_reach6(&hop, &raw::nlri(a)), plain()].concat();
            pair.sender.send(&raw::update(&[], &attributes, &[]))?;
            pair.observer.until("the route", |peer| peer.table.has(a))?;
            pair.sender.send(&raw::update(&[], &unreach(a), &[]))?;
            pair.observer.until("the end", |peer| !peer.table.has(a))
        });
    }
    for (afi, safi) in [
        (1u16, 2u8),
        (1, 4),
        (1, 128),
        (2, 128),
        (25, 65),
        (25, 70),
        (16388, 71),
        (0, 0),
        (65535, 255),
    ] {
        cases.case(&format!("AFI {afi} SAFI {safi} is passed over"), || {
            let [high, low] = afi.to_be_bytes();
            let reach = [&[high, low, safi, 4, 1, 2, 3, 4, 0][..], &[0xff; 30]].concat();
            let unreach = [&[high, low, safi][..], &[0xff; 30]].concat();
            let both = [
                attribute(0x80, 14, &reach),
                attribute(0x80, 15, &unreach),
                plain(),
                raw::next_hop(address(11)),
            ]
            .concat();
            pair.sender
                .send(&raw::update(&[], &both, &raw::nlri("10.39.0.0/16")))?;
            pair.sync()?;
            ensure!(pair.observer.table.has("10.39.0.0/16"), "the body is lost");
            pair.sender
                .send(&raw::update(&raw::nlri("10.39.0.0/16"), &[], &[]))?;
            pair.sync()
        });
    }
    Ok(())
}

/// What stops at the border of the AS, and what changes there.
#[test]
fn what_leaves_the_as() {
    world::run(|world, cases| {
        let base = world::base(65001, address(11));
        let mut stage = Stage::new(world, 11, &[12, 21])?;
        let mut send =
            |cases: &mut Cases,
             name: &str,
             extra: Vec<u8>,
             judge: &dyn Fn(&Option<Route>, &Option<Route>) -> Result<()>| {
                cases.case(name, || {
                    let got = stage.send(&[base.clone(), extra].concat(), &base)?;
                    let [external, internal] = got.as_slice() else {
                        unreachable!("two observers")
                    };
                    judge(external, internal)
                });
            };
        // RFC 4360 §6
        let (transitive, not) = (
            [0, 2, 0xfd, 0xe9, 0, 0, 0, 1],
            [0x40, 4, 0xfd, 0xe9, 0, 0, 0, 1],
        );
        send(
            cases,
            "extended communities that are not transitive stay inside",
            attribute(0xc0, 16, &[transitive, not].concat()),
            &|external, internal| {
                with_value(external.as_ref(), 16, 0xc0, &transitive)?;
                with_value(internal.as_ref(), 16, 0xc0, &[transitive, not].concat())
            },
        );
        send(
            cases,
            "nothing is left of the extended communities",
            attribute(0xc0, 16, &not),
            &|external, internal| {
                without(external.as_ref(), 16)?;
                with_value(internal.as_ref(), 16, 0xc0, &not)
            },
        );
        // RFC 8326 §4.2
        send(
            cases,
            "GRACEFUL_SHUTDOWN lowers LOCAL_PREF",
            raw::communities(&[0xffff_0000]),
            &|external, internal| {
                with_value(internal.as_ref(), 5, 0x40, &[0; 4])?;
                without(external.as_ref(), 5)
            },
        );
        // RFC 1997: order and repetition are the sender's affair.
        let order = [0xfde9_0009u32, 0xfde9_0001, 0xfde9_0009];
        send(
            cases,
            "communities keep their order",
            raw::communities(&order),
            &|external, internal| {
                let value: Vec<u8> = order.iter().flat_map(|c| c.to_be_bytes()).collect();
                with_value(external.as_ref(), 8, 0xc0, &value)?;
                with_value(internal.as_ref(), 8, 0xc0, &value)
            },
        );
        // RFC 4271 §4.3: the low four bits say nothing and are not passed on.
        send(
            cases,
            "unused flag bits of an unknown attribute",
            attribute(0xcf, 200, &[1, 2]),
            &|external, _| with_value(external.as_ref(), 200, 0xe0, &[1, 2]),
        );
        send(
            cases,
            "extended length of a short attribute",
            attribute(0xd0, 200, &[1, 2]),
            &|external, _| with_value(external.as_ref(), 200, 0xe0, &[1, 2]),
        );
        // RFC 9234 §5: what is no leak goes on unchanged, Partial or not.
        let otc = 65001u32.to_be_bytes();
        send(
            cases,
            "ONLY_TO_CUSTOMER without roles",
            attribute(0xe0, 35, &otc),
            &|external, internal| {
                with_value(external.as_ref(), 35, 0xe0, &otc)?;
                with_value(internal.as_ref(), 35, 0xe0, &otc)
            },
        );
        // What is found in real tables: RFC 6368, RFC 7311, RFC 9012, RFC 8205 and more.
        for (code, name) in [
            (20u8, "CONNECTOR"),
            (21, "AS_PATHLIMIT"),
            (23, "Tunnel Encapsulation"),
            (27, "PE Distinguisher Labels"),
            (28, "BGP Entropy Label"),
            (36, "BGP Domain Path"),
            (40, "BGP Prefix-SID"),
            (128, "ATTR_SET"),
            (255, "for development"),
        ] {
            let value = vec![code; 12];
            send(
                cases,
                &format!("{name} goes on with Partial"),
                attribute(0xc0, code, &value),
                &|external, internal| {
                    with_value(external.as_ref(), code, 0xe0, &value)?;
                    with_value(internal.as_ref(), code, 0xe0, &value)
                },
            );
        }
        for (code, name) in [(26u8, "AIGP"), (29, "BGP-LS"), (33, "BGPsec_Path")] {
            send(
                cases,
                &format!("{name} ends here"),
                attribute(0x80, code, &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 7]),
                &|external, internal| {
                    without(external.as_ref(), code)?;
                    without(internal.as_ref(), code)
                },
            );
        }
        stage.close();
        long_paths(world, cases)
    });
}

fn long_paths(world: &World, cases: &mut Cases) -> Result<()> {
    let base = world::base(65001, address(11));
    let mut stage = Stage::new(world, 11, &[12, 21])?;
    for (name, value) in [
        ("254 numbers", path(&[65001; 254])),
        ("255 and 255 numbers", path(&[65001; 255]).repeat(2)),
        (
            "a sequence, a set of 200, a sequence",
            [
                path(&[65001]),
                raw::segment(1, &(1000..1200).collect::<Vec<u32>>()),
                path(&[7, 8]),
            ]
            .concat(),
        ),
        // RFC 7300: the last numbers of both sizes are reserved, and no error.
        ("reserved numbers", path(&[65001, 65535, u32::MAX])),
    ] {
        cases.case(&format!("AS_PATH of {name}"), || {
            let attributes = [
                raw::origin(0),
                attribute(0x50, 2, &value),
                raw::next_hop(address(11)),
            ]
            .concat();
            let got = stage.send(&attributes, &base)?;
            let (kind, count) = (value[0], value[1]);
            let prepended = if kind == 2 && count < 255 {
                let mut out = vec![2, count + 1];
                out.extend(ASN.to_be_bytes());
                out.extend(&value[2..]);
                out
            } else {
                [path(&[ASN]), value.clone()].concat()
            };
            with_value(got[0].as_ref(), 2, 0x40, &prepended)?;
            with_value(got[1].as_ref(), 2, 0x40, &value)
        });
    }
    stage.close();
    Ok(())
}

/// How much of the wire a table takes, and in which order things come.
#[test]
fn packing_and_order() {
    world::run(|world, cases| {
        let base = world::base(65001, address(11));
        let mut sender = world.peer(11)?;
        let mut observer = world.peer(12)?;
        observer.until("End-of-RIB", |peer| peer.table.end_of_rib == [1, 1])?;
        let nlri = |from: u32, count: u32| -> Vec<u8> {
            (from..from + count)
                .flat_map(|n| {
                    let [_, a, b, c] = (0x10_0000 + n).to_be_bytes();
                    [24, a, b, c]
                })
                .collect()
        };
        cases.case("prefixes of equal attributes share UPDATEs", || {
            for n in 0..20 {
                sender.send(&raw::update(&[], &base, &nlri(n * 500, 500)))?;
            }
            observer.until("10,000 routes", |peer| peer.table.routes.len() == 10_000)?;
            let mut late = world.peer(13)?;
            late.until("End-of-RIB", |peer| peer.table.end_of_rib[0] > 0)?;
            ensure!(late.table.routes.len() == 10_000, "incomplete");
            // 10,000 prefixes of 4 octets fill ten messages; the marks are two more.
            ensure!(late.table.updates <= 16, "{} UPDATEs", late.table.updates);
            late.close();
            Ok(())
        });
        cases.case("many changes at once lead to the last state", || {
            for n in 0..50u32 {
                let attributes = [base.clone(), raw::med(n), raw::communities(&[n])].concat();
                sender.send(&raw::update(&[], &attributes, &nlri(n * 100, 100)))?;
                sender.send(&raw::update(&nlri(5000 + n * 50, 50), &[], &[]))?;
            }
            observer.until("the withdrawals", |peer| peer.table.routes.len() == 7500)?;
            observer.until("the changes", |peer| {
                let changed = peer.table.routes.values().filter(|r| r.value(8).is_some());
                changed.count() == 5000
            })
        });
        cases.case("flapping ends as it ends", || {
            for _ in 0..200 {
                sender.send(&raw::update(&nlri(0, 500), &[], &[]))?;
                sender.send(&raw::update(&[], &base, &nlri(0, 500)))?;
            }
            sender.send(&raw::update(&nlri(0, 500), &[], &[]))?;
            // Of what is sent together withdrawals go first, so the mark has a message of its own.
            sender.send(&raw::update(&[], &base, &raw::nlri("10.45.0.0/16")))?;
            observer.until("the mark", |peer| peer.table.has("10.45.0.0/16"))?;
            observer.until("the last withdrawal", |peer| {
                peer.table.routes.len() == 7001
            })?;
            observer.drain()?;
            ensure!(observer.table.routes.len() == 7001, "they came back");
            Ok(())
        });
        cases.case("a route that moves between peers is never missing", || {
            let mut other = world.peer(13)?;
            let prefix = "10.44.0.0/16";
            let better = [world::base(65003, address(13)), raw::communities(&[13])].concat();
            let worse = [
                raw::origin(2),
                raw::as_path(&[65001, 7]),
                raw::next_hop(address(11)),
            ]
            .concat();
            sender.send(&raw::update(&[], &worse, &raw::nlri(prefix)))?;
            observer.until("the route", |peer| peer.table.has(prefix))?;
            for _ in 0..20 {
                other.send(&raw::update(&[], &better, &raw::nlri(prefix)))?;
                other.send(&raw::update(&raw::nlri(prefix), &[], &[]))?;
            }
            // Everything that comes is looked at one by one.
            let end = std::time::Instant::now() + Duration::from_millis(300);
            while std::time::Instant::now() < end {
                let event = observer.event(Duration::from_millis(20))?;
                ensure!(event != Event::Closed, "closed");
                ensure!(observer.table.has(prefix), "it was withdrawn");
            }
            other.close();
            Ok(())
        });
        Ok(())
    });
}

//! What becomes of a route on its way through the speaker: attributes passed on, changed and
//! dropped, and to whom (RFC 4271 §5 and §9, RFC 1997, 4360, 4456, 6793, 8092, 8654).

use anyhow::{Context as _, Result, ensure};
use integration::lab::raw_message::{self as raw, Attribute, Route, attribute};
use integration::lab::raw_peer::RawPeer;

use super::world::{self, ASN, Cases, World, address};

const PREFIX: &str = "10.30.0.0/16";

/// One sender and several who look on.
pub(super) struct Stage {
    pub(super) sender: RawPeer,
    pub(super) observers: Vec<(u8, RawPeer)>,
    count: u16,
}

impl Stage {
    pub(super) fn new(world: &World, sender: u8, observers: &[u8]) -> Result<Self> {
        Ok(Self {
            sender: world.peer(sender)?,
            observers: observers
                .iter()
                .map(|octet| Ok((*octet, world.peer(*octet)?)))
                .collect::<Result<_>>()?,
            count: 0,
        })
    }

    /// Announces the prefix and returns how each observer has it. A second, plain prefix says when
    /// everything has arrived; it is sent `mark`ed as its sender may.
    pub(super) fn send(&mut self, attributes: &[u8], mark: &[u8]) -> Result<Vec<Option<Route>>> {
        let mut out = Vec::new();
        self.sender
            .send(&raw::update(&raw::nlri(PREFIX), &[], &[]))?;
        self.mark(mark)?;
        self.sender
            .send(&raw::update(&[], attributes, &raw::nlri(PREFIX)))?;
        // Routes with other attributes may be sent in another order, but not in a later portion.
        self.mark(mark)?;
        self.mark(mark)?;
        for (_, observer) in &self.observers {
            out.push(observer.table.get(PREFIX).cloned());
        }
        self.sender.drain()?;
        Ok(out)
    }

    pub(super) fn mark(&mut self, attributes: &[u8]) -> Result<()> {
        self.count += 1;
        let [high, low] = self.count.to_be_bytes();
        let marker = format!("10.254.{high}.{low}/32");
        self.sender
            .send(&raw::update(&[], attributes, &raw::nlri(&marker)))?;
        for (octet, observer) in &mut self.observers {
            observer
                .until("the marker", |peer| peer.table.has(&marker))
                .with_context(|| format!("observer {octet}"))?;
        }
        Ok(())
    }

    pub(super) fn close(self) {
        self.sender.close();
        for (_, observer) in &self.observers {
            observer.close();
        }
    }
}

pub(super) fn with_value(route: Option<&Route>, code: u8, flags: u8, value: &[u8]) -> Result<()> {
    let found = route.context("no route")?.get(code);
    let wanted = Attribute {
        flags,
        code,
        value: value.to_vec(),
    };
    ensure!(
        found == Some(&wanted),
        "attribute {code}: {found:02x?} and not {wanted:02x?}"
    );
    Ok(())
}

pub(super) fn without(route: Option<&Route>, code: u8) -> Result<()> {
    let found = route.context("no route")?.get(code);
    ensure!(found.is_none(), "attribute {code}: {found:02x?}");
    Ok(())
}

pub(super) fn path(asns: &[u32]) -> Vec<u8> {
    raw::segment(2, asns)
}

#[test]
fn from_an_external_peer() {
    world::run(|world, cases| {
        // An external, an internal and a client of the reflector look on.
        let mut stage = Stage::new(world, 11, &[12, 21, 31])?;
        let base = world::base(65001, address(11));
        let mut check = |cases: &mut Cases,
                         name: &str,
                         extra: &[u8],
                         judge: &dyn Fn(&[Option<Route>]) -> Result<()>| {
            cases.case(name, || {
                let got = stage.send(&[base.as_slice(), extra].concat(), &base)?;
                judge(&got)
            });
        };
        let each = |got: &[Option<Route>], code: u8, flags: u8, value: &[u8]| -> Result<()> {
            for (index, route) in got.iter().enumerate() {
                with_value(route.as_ref(), code, flags, value)
                    .with_context(|| format!("observer {index}"))?;
            }
            Ok(())
        };
        check(cases, "mandatory attributes", &[], &|got| {
            let [external, internal, client] = got else {
                unreachable!()
            };
            with_value(external.as_ref(), 2, 0x40, &path(&[ASN, 65001]))?;
            with_value(external.as_ref(), 1, 0x40, &[0])?;
            let hop = external
                .as_ref()
                .and_then(|route| route.value(3))
                .context("next hop")?;
            ensure!(
                hop == world::SPEAKER.octets() || hop == address(11).octets(),
                "next hop {hop:?}"
            );
            without(external.as_ref(), 5)?;
            for route in [internal, client] {
                with_value(route.as_ref(), 2, 0x40, &path(&[65001]))?;
                with_value(route.as_ref(), 3, 0x40, &address(11).octets())?;
                with_value(route.as_ref(), 5, 0x40, &100u32.to_be_bytes())?;
                without(route.as_ref(), 9)?;
                without(route.as_ref(), 10)?;
            }
            Ok(())
        });
        // RFC 4271 §5.1.4
        check(
            cases,
            "MED goes to internal peers only",
            &raw::med(7),
            &|got| {
                without(got[0].as_ref(), 4)?;
                with_value(got[1].as_ref(), 4, 0x80, &[0, 0, 0, 7])?;
                with_value(got[2].as_ref(), 4, 0x80, &[0, 0, 0, 7])
            },
        );
        check(
            cases,
            "ATOMIC_AGGREGATE",
            &attribute(0x40, 6, &[]),
            &|got| each(got, 6, 0x40, &[]),
        );
        let aggregator = [0, 0, 0xfd, 0xe9, 192, 0, 2, 1];
        check(
            cases,
            "AGGREGATOR",
            &attribute(0xc0, 7, &aggregator),
            &|got| each(got, 7, 0xc0, &aggregator),
        );
        let communities = [0xfd, 0xe9, 0, 1, 0xfd, 0xe9, 0, 2];
        check(
            cases,
            "communities",
            &attribute(0xc0, 8, &communities),
            &|got| each(got, 8, 0xc0, &communities),
        );
        let extended = [0, 2, 0xfd, 0xe9, 0, 0, 0, 1, 3, 12, 0, 0, 0, 0, 0, 8];
        check(
            cases,
            "extended communities",
            &attribute(0xc0, 16, &extended),
            &|got| each(got, 16, 0xc0, &extended),
        );
        let large = [0, 0, 0xfd, 0xe9, 0, 0, 0, 1, 0, 0, 0, 2];
        check(
            cases,
            "large communities",
            &attribute(0xc0, 32, &large),
            &|got| each(got, 32, 0xc0, &large),
        );
        check(
            cases,
            "large communities twice the same",
            &attribute(0xc0, 32, &large.repeat(2)),
            &|got| each(got, 32, 0xc0, &large),
        );
        let many: Vec<u8> = (0..300u32)
            .flat_map(|n| (0xfde9_0000 | n).to_be_bytes())
            .collect();
        check(
            cases,
            "an attribute of 1,200 octets",
            &attribute(0xd0, 8, &many),
            &|got| each(got, 8, 0xc0, &many),
        );
        // RFC 4271 §5: whoever set Partial, it stays set.
        check(
            cases,
            "Partial of communities stays",
            &attribute(0xe0, 8, &communities),
            &|got| each(got, 8, 0xe0, &communities),
        );
        check(
            cases,
            "Partial of AGGREGATOR stays",
            &attribute(0xe0, 7, &aggregator),
            &|got| each(got, 7, 0xe0, &aggregator),
        );
        check(
            cases,
            "Partial of large communities stays",
            &attribute(0xe0, 32, &large),
            &|got| each(got, 32, 0xe0, &large),
        );
        check(
            cases,
            "Partial of extended communities stays",
            &attribute(0xe0, 16, &extended),
            &|got| each(got, 16, 0xe0, &extended),
        );
        // RFC 4271 §5 and §9
        for (code, length) in [
            (11u8, 4usize),
            (13, 1),
            (26, 0),
            (99, 300),
            (128, 9),
            (254, 255),
        ] {
            let value = vec![0xa5; length];
            check(
                cases,
                &format!("unknown transitive attribute {code}"),
                &attribute(0xc0, code, &value),
                &|got| each(got, code, 0xe0, &value),
            );
        }
        check(
            cases,
            "unknown transitive attribute that is Partial",
            &attribute(0xe0, 99, &[1]),
            &|got| each(got, 99, 0xe0, &[1]),
        );
        check(
            cases,
            "two unknown attributes",
            &[attribute(0xc0, 201, &[2]), attribute(0xc0, 200, &[1])].concat(),
            &|got| {
                each(got, 200, 0xe0, &[1])?;
                each(got, 201, 0xe0, &[2])
            },
        );
        check(
            cases,
            "unknown attribute, not transitive",
            &attribute(0x80, 99, &[1]),
            &|got| got.iter().try_for_each(|route| without(route.as_ref(), 99)),
        );
        for (name, community, external, internal) in [
            ("NO_EXPORT", 0xffff_ff01, false, true),
            ("NO_ADVERTISE", 0xffff_ff02, false, false),
            ("NO_EXPORT_SUBCONFED", 0xffff_ff03, false, true),
            ("NO_PEER", 0xffff_ff04, true, true),
            ("BLACKHOLE", 0xffff_029a, true, true),
            ("a private one", 0xfde9_0001, true, true),
        ] {
            check(
                cases,
                name,
                &raw::communities(&[0xfde9_0009, community]),
                &|got| {
                    let have: Vec<bool> = got.iter().map(Option::is_some).collect();
                    ensure!(
                        have == [external, internal, internal],
                        "external, internal, client: {have:?}"
                    );
                    Ok(())
                },
            );
        }
        for (value, name) in [(1u8, "EGP"), (2, "INCOMPLETE")] {
            cases.case(&format!("ORIGIN {name}"), || {
                let attributes = [
                    raw::origin(value),
                    raw::as_path(&[65001]),
                    raw::next_hop(address(11)),
                ]
                .concat();
                let got = stage.send(&attributes, &base)?;
                each(&got, 1, 0x40, &[value])
            });
        }
        for (name, value) in [
            ("a set", [path(&[65001]), raw::segment(1, &[7, 8])].concat()),
            ("two sequences", [path(&[65001]), path(&[9])].concat()),
            (
                "a set between sequences",
                [path(&[65001]), raw::segment(1, &[7, 8]), path(&[9])].concat(),
            ),
        ] {
            cases.case(&format!("AS_PATH with {name}"), || {
                let attributes = [
                    raw::origin(0),
                    attribute(0x40, 2, &value),
                    raw::next_hop(address(11)),
                ]
                .concat();
                let got = stage.send(&attributes, &base)?;
                let mut prepended = path(&[ASN, 65001]);
                prepended.extend(&value[6..]);
                with_value(got[0].as_ref(), 2, 0x40, &prepended)?;
                with_value(got[1].as_ref(), 2, 0x40, &value)
            });
        }
        cases.case("a segment of 255 numbers gets one before it", || {
            let value = path(&[65001; 255]);
            let attributes = [
                raw::origin(0),
                attribute(0x50, 2, &value),
                raw::next_hop(address(11)),
            ]
            .concat();
            let got = stage.send(&attributes, &base)?;
            with_value(got[0].as_ref(), 2, 0x40, &[path(&[ASN]), value].concat())
        });
        cases.case("a route does not go back to its sender", || {
            stage.sender.drain()?;
            ensure!(
                stage.sender.table.routes.is_empty(),
                "{:?}",
                stage.sender.table.routes.keys()
            );
            Ok(())
        });
        cases.case(
            "the AS path of a receiver does not keep it from getting the route",
            || {
                let attributes = [
                    raw::origin(0),
                    raw::as_path(&[65001, 65002]),
                    raw::next_hop(address(11)),
                ]
                .concat();
                stage.send(&attributes, &base).map(drop)
            },
        );
        stage.close();
        ipv6(world, cases);
        Ok(())
    });
}

fn ipv6(world: &World, cases: &mut Cases) {
    cases.case(
        "IPv6 goes through MP_REACH_NLRI and MP_UNREACH_NLRI",
        || {
            let mut pair = world.pair(11, 12)?;
            let hop: std::net::Ipv6Addr = "fd09::b".parse()?;
            let attributes = [
                raw::mp_reach6(&hop.octets(), &raw::nlri("2001:db8::/32")),
                raw::origin(0),
                raw::as_path(&[65001]),
            ]
            .concat();
            pair.sender.send(&raw::update(&[], &attributes, &[]))?;
            pair.observer
                .until("the route", |peer| peer.table.has("2001:db8::/32"))?;
            let route = pair.observer.table.get("2001:db8::/32").context("route")?;
            with_value(Some(route), 2, 0x40, &path(&[ASN, 65001]))?;
            without(Some(route), 3)?;
            let hop = route.value(14).context("next hop")?;
            ensure!(hop.len() == 16 || hop.len() == 32, "next hop {hop:02x?}");
            ensure!(hop[..2] == [0xfd, 0x09], "next hop {hop:02x?}");
            pair.sender.send(&raw::update(
                &[],
                &raw::mp_unreach6(&raw::nlri("2001:db8::/32")),
                &[],
            ))?;
            pair.observer
                .until("the withdrawal", |peer| !peer.table.has("2001:db8::/32"))?;
            pair.sender.close();
            pair.observer.close();
            Ok(())
        },
    );
}

/// RFC 4271 §9.2, RFC 4456.
#[test]
fn from_internal_peers_and_clients() {
    world::run(|world, cases| {
        let base = |octet: u8| world::base(ASN, address(octet));
        cases.case(
            "an internal peer's route goes to external peers and clients only",
            || {
                let mut stage = Stage::new(world, 21, &[12, 31])?;
                let mut other = world.peer(22)?;
                let got = stage.send(&[base(21), raw::med(5)].concat(), &base(21))?;
                with_value(got[0].as_ref(), 2, 0x40, &path(&[ASN]))?;
                without(got[0].as_ref(), 4).or_else(|_| Ok::<_, anyhow::Error>(()))?;
                without(got[0].as_ref(), 5)?;
                // Reflected: originator and cluster.
                with_value(got[1].as_ref(), 9, 0x80, &address(21).octets())?;
                with_value(got[1].as_ref(), 10, 0x80, &world::CLUSTER.octets())?;
                with_value(got[1].as_ref(), 3, 0x40, &address(21).octets())?;
                with_value(got[1].as_ref(), 4, 0x80, &[0, 0, 0, 5])?;
                other.drain()?;
                ensure!(
                    other.table.routes.is_empty(),
                    "{:?}",
                    other.table.routes.keys()
                );
                other.close();
                stage.close();
                Ok(())
            },
        );
        cases.case("a client's route goes to all", || {
            let mut stage = Stage::new(world, 31, &[12, 21, 32])?;
            let got = stage.send(
                &[
                    base(31),
                    attribute(0x80, 9, &[9, 9, 9, 9]),
                    attribute(0x80, 10, &[8, 8, 8, 8]),
                ]
                .concat(),
                &base(31),
            )?;
            without(got[0].as_ref(), 9)?;
            without(got[0].as_ref(), 10)?;
            for route in &got[1..] {
                with_value(route.as_ref(), 9, 0x80, &[9, 9, 9, 9])?;
                with_value(route.as_ref(), 10, 0x80, &[10, 9, 0, 1, 8, 8, 8, 8])?;
                with_value(route.as_ref(), 5, 0x40, &100u32.to_be_bytes())?;
                with_value(route.as_ref(), 3, 0x40, &address(31).octets())?;
            }
            stage.close();
            Ok(())
        });
        cases.case("confederation segments do not leave the AS", || {
            let mut stage = Stage::new(world, 31, &[12, 21])?;
            let value = [raw::segment(3, &[64999]), path(&[7])].concat();
            let attributes = [
                raw::origin(0),
                attribute(0x40, 2, &value),
                raw::next_hop(address(31)),
                raw::local_pref(100),
            ]
            .concat();
            let got = stage.send(&attributes, &base(31))?;
            with_value(got[0].as_ref(), 2, 0x40, &path(&[ASN, 7]))?;
            with_value(got[1].as_ref(), 2, 0x40, &value)?;
            stage.close();
            Ok(())
        });
        cases.case("LOCAL_PREF goes on inside and not outside", || {
            let mut stage = Stage::new(world, 31, &[12, 21])?;
            let attributes = [
                raw::origin(0),
                raw::as_path(&[]),
                raw::next_hop(address(31)),
                raw::local_pref(777),
            ]
            .concat();
            let got = stage.send(&attributes, &base(31))?;
            without(got[0].as_ref(), 5)?;
            with_value(got[1].as_ref(), 5, 0x40, &777u32.to_be_bytes())?;
            stage.close();
            Ok(())
        });
        Ok(())
    });
}

/// RFC 6793 §4.2.
#[test]
fn two_octet_and_four_octet_speakers() {
    world::run(|world, cases| {
        let old = |octet: u8| -> Result<RawPeer> {
            let mut identity = world.identity(octet);
            identity.four_octet_as = false;
            RawPeer::establish(&identity, world.remote)
        };
        cases.case("to an old speaker: AS_TRANS and AS4 attributes", || {
            let mut stage = Stage::new(world, 17, &[])?;
            stage.observers.push((12, old(12)?));
            let base = world::base(4_200_000_017, address(17));
            let attributes = [
                raw::origin(0),
                raw::as_path(&[4_200_000_017, 70_000, 5]),
                raw::next_hop(address(17)),
                attribute(0xc0, 7, &[0, 1, 0x11, 0x70, 1, 2, 3, 4]),
            ]
            .concat();
            let got = stage.send(&attributes, &base)?;
            with_value(
                got[0].as_ref(),
                2,
                0x40,
                &raw::segment2(2, &[65000, 23456, 23456, 5]),
            )?;
            with_value(
                got[0].as_ref(),
                17,
                0xc0,
                &path(&[ASN, 4_200_000_017, 70_000, 5]),
            )?;
            with_value(got[0].as_ref(), 7, 0xc0, &[0x5b, 0xa0, 1, 2, 3, 4])?;
            with_value(got[0].as_ref(), 18, 0xc0, &[0, 1, 0x11, 0x70, 1, 2, 3, 4])?;
            stage.close();
            Ok(())
        });
        cases.case("to an old speaker: nothing that needs four octets", || {
            let mut stage = Stage::new(world, 11, &[])?;
            stage.observers.push((12, old(12)?));
            let base = world::base(65001, address(11));
            let got = stage.send(&base, &base)?;
            with_value(got[0].as_ref(), 2, 0x40, &raw::segment2(2, &[65000, 65001]))?;
            without(got[0].as_ref(), 17)?;
            stage.close();
            Ok(())
        });
        // AS_PATH, AS4_PATH and what an observer with four octets sees.
        let paths: Vec<(&str, Vec<u8>, Option<Vec<u8>>, Vec<u8>)> = vec![
            (
                "no AS4_PATH",
                raw::segment2(2, &[65001, 23456]),
                None,
                path(&[ASN, 65001, 23456]),
            ),
            (
                "the end from AS4_PATH",
                raw::segment2(2, &[65001, 23456, 5]),
                Some(path(&[70_000, 5])),
                path(&[ASN, 65001, 70_000, 5]),
            ),
            (
                "the whole from AS4_PATH",
                raw::segment2(2, &[65001, 23456]),
                Some(path(&[65001, 70_000])),
                path(&[ASN, 65001, 70_000]),
            ),
            (
                "AS4_PATH longer: ignored",
                raw::segment2(2, &[65001]),
                Some(path(&[65001, 70_000])),
                path(&[ASN, 65001]),
            ),
            (
                "AS4_PATH malformed: ignored",
                raw::segment2(2, &[65001, 23456]),
                Some(vec![2, 9, 1]),
                path(&[ASN, 65001, 23456]),
            ),
            (
                "AS4_PATH with a set",
                [raw::segment2(2, &[65001]), raw::segment2(1, &[23456, 7])].concat(),
                Some(raw::segment(1, &[70_000, 7])),
                [path(&[ASN, 65001]), raw::segment(1, &[70_000, 7])].concat(),
            ),
        ];
        let mut sender = old(11)?;
        let mut observer = world.peer(12)?;
        let mut count = 0u8;
        for (name, value, as4, expected) in paths {
            count += 1;
            let prefix = format!("10.40.{count}.0/24");
            cases.case(&format!("from an old speaker: {name}"), || {
                let mut attributes = [
                    raw::origin(0),
                    attribute(0x40, 2, &value),
                    raw::next_hop(address(11)),
                ]
                .concat();
                if let Some(as4) = as4 {
                    attributes.extend(attribute(0xc0, 17, &as4));
                }
                sender.send(&raw::update(&[], &attributes, &raw::nlri(&prefix)))?;
                observer.until("the route", |peer| peer.table.has(&prefix))?;
                let route = observer.table.get(&prefix);
                with_value(route, 2, 0x40, &expected)?;
                without(route, 17)
            });
        }
        for (name, aggregator, as4, expected) in [
            (
                "AGGREGATOR of two octets",
                [0xfd, 0xe9, 1, 2, 3, 4],
                None,
                [0, 0, 0xfd, 0xe9, 1, 2, 3, 4],
            ),
            (
                "AS_TRANS and AS4_AGGREGATOR",
                [0x5b, 0xa0, 1, 2, 3, 4],
                Some([0, 1, 0x11, 0x70, 1, 2, 3, 4]),
                [0, 1, 0x11, 0x70, 1, 2, 3, 4],
            ),
            (
                "another AS and AS4_AGGREGATOR: ignored",
                [0xfd, 0xe9, 1, 2, 3, 4],
                Some([0, 1, 0x11, 0x70, 1, 2, 3, 4]),
                [0, 0, 0xfd, 0xe9, 1, 2, 3, 4],
            ),
        ] {
            count += 1;
            let prefix = format!("10.40.{count}.0/24");
            cases.case(&format!("from an old speaker: {name}"), || {
                let mut attributes = [
                    raw::origin(0),
                    attribute(0x40, 2, &raw::segment2(2, &[65001])),
                    raw::next_hop(address(11)),
                    attribute(0xc0, 7, &aggregator),
                ]
                .concat();
                if let Some(as4) = as4 {
                    attributes.extend(attribute(0xc0, 18, &as4));
                }
                sender.send(&raw::update(&[], &attributes, &raw::nlri(&prefix)))?;
                observer.until("the route", |peer| peer.table.has(&prefix))?;
                let route = observer.table.get(&prefix);
                with_value(route, 7, 0xc0, &expected)?;
                without(route, 18)
            });
        }
        Ok(())
    });
}

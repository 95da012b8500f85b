//! The decision process (RFC 4271 §9.1, RFC 4456 §9): two or more peers announce one prefix, and a
//! third sees which path is passed on.

use anyhow::{Context as _, Result, ensure};
use integration::lab::raw_message::{self as raw, attribute};
use integration::lab::raw_peer::RawPeer;

use super::world::{self, World, address};

/// Peers that announce, and one that watches. Paths are told apart by a community.
struct Contest {
    contestants: Vec<(u8, RawPeer)>,
    observer: RawPeer,
    count: u8,
}

impl Contest {
    fn new(world: &World, contestants: &[u8], observer: u8) -> Result<Self> {
        Ok(Self {
            contestants: contestants
                .iter()
                .map(|octet| Ok((*octet, world.peer(*octet)?)))
                .collect::<Result<_>>()?,
            observer: world.peer(observer)?,
            count: 0,
        })
    }

    /// Announces in both orders; the winner is the same, and follows when it withdraws.
    fn check(&mut self, paths: &[(u8, Vec<u8>)], winner: u8) -> Result<()> {
        for reverse in [false, true] {
            self.count += 1;
            let prefix = format!("10.60.{}.0/24", self.count);
            let nlri = raw::nlri(&prefix);
            let mut order: Vec<_> = paths.iter().collect();
            if reverse {
                order.reverse();
            }
            for (octet, attributes) in &order {
                let attributes = [
                    attributes.as_slice(),
                    &raw::communities(&[u32::from(*octet)]),
                ]
                .concat();
                self.peer(*octet)?
                    .send(&raw::update(&[], &attributes, &nlri))?;
                // So that the order of arrival is the order here.
                self.peer(*octet)?.drain()?;
            }
            let is = |peer: &RawPeer, octet: u8| {
                peer.table.get(&prefix).and_then(|route| route.value(8))
                    == Some(&u32::from(octet).to_be_bytes())
            };
            self.observer
                .until("the winner", |peer| is(peer, winner))
                .with_context(|| format!("reverse: {reverse}"))?;
            std::thread::sleep(std::time::Duration::from_millis(10));
            self.observer.drain()?;
            ensure!(
                is(&self.observer, winner),
                "the winner did not stay, reverse: {reverse}"
            );
            // The second best takes over.
            self.peer(winner)?.send(&raw::update(&nlri, &[], &[]))?;
            self.observer.until("another", |peer| {
                peer.table.has(&prefix) && !is(peer, winner)
            })?;
            for (octet, _) in order {
                self.peer(*octet)?.send(&raw::update(&nlri, &[], &[]))?;
            }
            self.observer
                .until("nobody", |peer| !peer.table.has(&prefix))?;
        }
        Ok(())
    }

    fn peer(&mut self, octet: u8) -> Result<&mut RawPeer> {
        self.contestants
            .iter_mut()
            .find(|(other, _)| *other == octet)
            .map(|(_, peer)| peer)
            .context("no such contestant")
    }
}

fn external(octet: u8, asns: &[u32], origin: u8, extra: &[u8]) -> (u8, Vec<u8>) {
    let attributes = [
        raw::origin(origin),
        raw::as_path(asns),
        raw::next_hop(address(octet)),
    ]
    .concat();
    (octet, [attributes.as_slice(), extra].concat())
}

fn internal(octet: u8, asns: &[u32], local_pref: u32, extra: &[u8]) -> (u8, Vec<u8>) {
    let attributes = [
        raw::origin(0),
        raw::as_path(asns),
        raw::next_hop(address(octet)),
        raw::local_pref(local_pref),
    ]
    .concat();
    (octet, [attributes.as_slice(), extra].concat())
}

#[test]
fn every_step_of_the_decision() {
    world::run(|world, cases| {
        // 11 and 16 are of the same AS.
        let mut contest = Contest::new(world, &[11, 12, 13, 16, 21, 22, 31], 14)?;
        let med = raw::med;
        let list: Vec<(&str, Vec<(u8, Vec<u8>)>, u8)> = vec![
            (
                "higher LOCAL_PREF",
                vec![
                    internal(21, &[], 100, &[]),
                    internal(22, &[7, 8, 9], 101, &[]),
                ],
                22,
            ),
            (
                "LOCAL_PREF before everything",
                vec![
                    external(11, &[65001], 0, &[]),
                    internal(21, &[1, 2, 3, 4], 200, &[]),
                ],
                21,
            ),
            (
                "shorter AS path",
                vec![
                    external(11, &[65001, 5, 6], 0, &[]),
                    external(12, &[65002, 5], 0, &[]),
                ],
                12,
            ),
            (
                "a set counts as one",
                vec![
                    external(11, &[65001, 5, 6], 0, &[]),
                    (
                        12,
                        [
                            raw::origin(0),
                            attribute(
                                0x40,
                                2,
                                &[raw::segment(2, &[65002]), raw::segment(1, &[1, 2, 3])].concat(),
                            ),
                            raw::next_hop(address(12)),
                        ]
                        .concat(),
                    ),
                ],
                12,
            ),
            (
                "the AS path before ORIGIN",
                vec![
                    external(11, &[65001, 5], 0, &[]),
                    external(12, &[65002], 2, &[]),
                ],
                12,
            ),
            (
                "ORIGIN: IGP before EGP",
                vec![
                    external(11, &[65001], 1, &[]),
                    external(12, &[65002], 0, &[]),
                ],
                12,
            ),
            (
                "ORIGIN: EGP before INCOMPLETE",
                vec![
                    external(11, &[65001], 2, &[]),
                    external(12, &[65002], 1, &[]),
                ],
                12,
            ),
            (
                "lower MED of the same AS",
                vec![
                    external(11, &[65001], 0, &med(20)),
                    external(16, &[65001], 0, &med(10)),
                ],
                16,
            ),
            (
                "no MED is 0",
                vec![
                    external(11, &[65001], 0, &med(1)),
                    external(16, &[65001], 0, &[]),
                ],
                16,
            ),
            (
                "MED of different AS is not compared",
                vec![
                    external(11, &[65001], 0, &med(20)),
                    external(12, &[65002], 0, &med(10)),
                ],
                11,
            ),
            (
                "MED with a third between",
                vec![
                    external(11, &[65001], 0, &med(20)),
                    external(12, &[65002], 0, &med(0)),
                    external(16, &[65001], 0, &med(10)),
                ],
                12,
            ),
            (
                "external before internal",
                vec![
                    internal(21, &[65001], 100, &[]),
                    external(13, &[65003], 0, &[]),
                ],
                13,
            ),
            (
                "lower identifier",
                vec![
                    external(12, &[65002], 0, &[]),
                    external(13, &[65003], 0, &[]),
                ],
                12,
            ),
            (
                "ORIGINATOR_ID in place of the identifier",
                vec![
                    internal(21, &[7], 100, &attribute(0x80, 9, &[10, 99, 0, 1])),
                    internal(22, &[7], 100, &attribute(0x80, 9, &[10, 1, 0, 1])),
                ],
                22,
            ),
            (
                "shorter CLUSTER_LIST",
                vec![
                    internal(
                        21,
                        &[7],
                        100,
                        &[
                            attribute(0x80, 9, &[1, 1, 1, 1]),
                            attribute(0x80, 10, &[1, 1, 1, 1, 2, 2, 2, 2]),
                        ]
                        .concat(),
                    ),
                    internal(
                        22,
                        &[7],
                        100,
                        &[
                            attribute(0x80, 9, &[1, 1, 1, 1]),
                            attribute(0x80, 10, &[1, 1, 1, 1]),
                        ]
                        .concat(),
                    ),
                ],
                22,
            ),
            (
                "lower address of the peer",
                vec![
                    internal(21, &[7], 100, &attribute(0x80, 9, &[1, 1, 1, 1])),
                    internal(22, &[7], 100, &attribute(0x80, 9, &[1, 1, 1, 1])),
                ],
                21,
            ),
            (
                "a client is an internal peer",
                vec![internal(31, &[7], 100, &[]), internal(22, &[7], 100, &[])],
                22,
            ),
        ];
        for (name, paths, winner) in list {
            cases.case(name, || contest.check(&paths, winner));
        }
        cases.case(
            "a path whose next hop cannot be reached does not count",
            || {
                let far = [
                    raw::origin(0),
                    raw::as_path(&[65001]),
                    raw::next_hop([203, 0, 113, 9].into()),
                ]
                .concat();
                let nlri = raw::nlri("10.61.0.0/24");
                contest.peer(11)?.send(&raw::update(&[], &far, &nlri))?;
                let (_, near) = external(12, &[65002, 5, 6], 0, &raw::communities(&[12]));
                contest.peer(12)?.send(&raw::update(&[], &near, &nlri))?;
                contest.observer.until("the near one", |peer| {
                    peer.table
                        .get("10.61.0.0/24")
                        .and_then(|route| route.value(8))
                        == Some(&[0, 0, 0, 12])
                })
            },
        );
        Ok(())
    });
}

//! The life of sessions: collisions, resets, refresh, limits, shutdown (RFC 4271 §6.8, RFC 2918,
//! RFC 4486, RFC 8654, RFC 9003).

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use integration::lab::raw_message::{self as raw, capability};
use integration::lab::raw_peer::{Event, RawPeer};

use super::world::{self, Cases, World, address, expect_notification};

fn prefixes(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|n| {
            let [_, _, high, low] = n.to_be_bytes();
            [24, 100, high, low]
        })
        .collect()
}

#[test]
fn routes_come_and_go() {
    world::run(|world, cases| {
        let base = world::base(65001, address(11));
        let mut pair = world.pair(11, 12)?;
        cases.case("implicit withdraw: the newer announcement counts", || {
            pair.announce(
                &[base.as_slice(), &raw::communities(&[1])].concat(),
                "10.2.0.0/16",
            )?;
            pair.announce(
                &[base.as_slice(), &raw::communities(&[2])].concat(),
                "10.2.0.0/16",
            )?;
            pair.sync()?;
            let route = pair.observer.table.get("10.2.0.0/16").context("route")?;
            ensure!(route.value(8) == Some(&[0, 0, 0, 2]), "{route:02x?}");
            Ok(())
        });
        cases.case("the same announcement again is not passed on", || {
            pair.announce_plain("10.3.0.0/16")?;
            pair.sync()?;
            let before = pair.observer.table.prefixes;
            for _ in 0..5 {
                pair.announce_plain("10.3.0.0/16")?;
            }
            pair.sync()?;
            // The marker comes and goes.
            ensure!(
                pair.observer.table.prefixes == before + 2,
                "{} more",
                pair.observer.table.prefixes - before - 2
            );
            Ok(())
        });
        cases.case(
            "a prefix withdrawn and announced in one UPDATE is announced",
            || {
                let nlri = raw::nlri("10.4.0.0/16");
                pair.sender.send(&raw::update(&nlri, &base, &nlri))?;
                pair.sync()?;
                ensure!(pair.observer.table.has("10.4.0.0/16"), "it is gone");
                Ok(())
            },
        );
        cases.case("the same prefix twice in one UPDATE", || {
            pair.sender.send(&raw::update(
                &[],
                &base,
                &raw::nlri("10.5.0.0/16").repeat(2),
            ))?;
            pair.sync()?;
            ensure!(pair.observer.table.has("10.5.0.0/16"), "it is missing");
            Ok(())
        });
        cases.case("host bits are not part of a prefix", || {
            pair.sender
                .send(&raw::update(&[], &base, &[20, 10, 6, 0x1f]))?;
            pair.sync()?;
            ensure!(
                pair.observer.table.has("10.6.16.0/20"),
                "{:?}",
                pair.observer.table.routes.keys()
            );
            pair.sender
                .send(&raw::update(&[20, 10, 6, 0x18], &[], &[]))?;
            pair.sync()?;
            ensure!(!pair.observer.table.has("10.6.16.0/20"), "it stays");
            Ok(())
        });
        for length in [0u8, 1, 7, 8, 9, 16, 24, 25, 31, 32] {
            cases.case(&format!("a prefix of {length} bits"), || {
                let net: ipnet::IpNet = ipnet::Ipv4Net::new([170, 85, 170, 85].into(), length)?
                    .trunc()
                    .into();
                let text = net.to_string();
                pair.announce_plain(&text)?;
                pair.sync()?;
                ensure!(pair.observer.table.has(&text), "{text} is missing");
                pair.sender
                    .send(&raw::update(&raw::nlri(&text), &[], &[]))?;
                pair.sync()?;
                ensure!(!pair.observer.table.has(&text), "{text} stays");
                Ok(())
            });
        }
        let before = pair.observer.table.routes.len();
        cases.case("a message of 4,096 octets", || {
            let room = 4096 - 23 - base.len();
            let nlri = prefixes(u32::try_from(room / 4)?);
            let mut message = raw::update(&[], &base, &nlri);
            // Filled up with a default route, if need be twice.
            while message.len() < 4096 {
                message = raw::update(
                    &[],
                    &base,
                    &[nlri.as_slice(), &vec![0; 4096 - message.len()]].concat(),
                );
            }
            ensure!(message.len() == 4096, "{}", message.len());
            pair.sender.send(&message)?;
            pair.sync()?;
            let have = pair.observer.table.routes.len();
            ensure!(have >= before + room / 4, "{have} routes");
            pair.sender.send(&raw::update(&nlri, &[], &[]))?;
            pair.sender.send(&raw::update(&[0], &[], &[]))?;
            pair.sync()?;
            ensure!(
                pair.observer.table.routes.len() == before,
                "{} stay",
                pair.observer.table.routes.len() - before
            );
            Ok(())
        });
        cases.case("a thousand messages in one segment", || {
            let mut all = Vec::new();
            for n in 0..1000u32 {
                let [_, _, high, low] = n.to_be_bytes();
                all.extend(raw::update(&[], &base, &[24, 101, high, low]));
                if n % 10 == 0 {
                    all.extend(raw::keepalive());
                }
            }
            pair.sender.send(&all)?;
            pair.sync()?;
            ensure!(
                pair.observer.table.routes.len() == before + 1000,
                "{}",
                pair.observer.table.routes.len()
            );
            Ok(())
        });
        cases.case("octet by octet", || {
            for octet in raw::update(&[], &base, &raw::nlri("10.7.0.0/16")) {
                pair.sender.send(&[octet])?;
                std::thread::sleep(Duration::from_millis(1));
            }
            pair.sync()?;
            ensure!(pair.observer.table.has("10.7.0.0/16"), "missing");
            Ok(())
        });
        cases.case("route refresh sends everything again", || {
            let routes = pair.observer.table.routes.clone();
            pair.observer.table.routes.clear();
            pair.observer.send(&raw::route_refresh(1, 0, 1))?;
            pair.observer
                .until("the table", |peer| peer.table.routes.len() == routes.len())?;
            ensure!(pair.observer.table.routes == routes, "it differs");
            Ok(())
        });
        for (name, message) in [
            (
                "of a family that was not negotiated",
                raw::route_refresh(25, 0, 70),
            ),
            ("of an unknown subtype", raw::route_refresh(1, 77, 1)),
            ("of IPv6", raw::route_refresh(2, 0, 1)),
        ] {
            cases.case(&format!("route refresh {name} harms nobody"), || {
                pair.observer.send(&message)?;
                pair.sync()
            });
        }
        cases.case(
            "a lost session withdraws its routes, and they come back with it",
            || {
                let mut other = world.peer(13)?;
                other.until("the table", |peer| peer.table.has("10.7.0.0/16"))?;
                pair.sender.close();
                pair.observer
                    .until("nothing", |peer| peer.table.routes.is_empty())?;
                other.until("nothing", |peer| peer.table.routes.is_empty())?;
                pair.sender = world.peer(11)?;
                pair.announce_plain("10.8.0.0/16")?;
                other.until("the new one", |peer| peer.table.has("10.8.0.0/16"))?;
                other.close();
                Ok(())
            },
        );
        cases.case("a new peer gets the table, then End-of-RIB", || {
            let mut other = world.peer(13)?;
            other.until("End-of-RIB", |peer| peer.table.end_of_rib[0] == 1)?;
            ensure!(
                other.table.has("10.8.0.0/16"),
                "End-of-RIB before the table"
            );
            other.close();
            Ok(())
        });
        cases.case("ROUTE-REFRESH of a wrong length", || {
            let mut peer = world.peer(13)?;
            peer.send(&raw::message(raw::ROUTE_REFRESH, &[0, 1, 0]))?;
            expect_notification(&mut peer, 1, 2, Some(&[0, 22]))
        });
        Ok(())
    });
}

#[test]
fn limits_and_ends() {
    world::run(|world, cases| {
        cases.case(
            "more prefixes than allowed: 6/1 with the family and the bound",
            || {
                let mut peer = world.peer(42)?;
                let mut observer = world.peer(12)?;
                let base = world::base(65042, address(42));
                peer.send(&raw::update(&[], &base, &prefixes(10)))?;
                observer.until("10 routes", |peer| peer.table.routes.len() == 10)?;
                peer.drain()?;
                peer.send(&raw::update(&[], &base, &prefixes(11)))?;
                expect_notification(&mut peer, 6, 1, Some(&[0, 1, 1, 0, 0, 0, 10]))?;
                observer.until("no routes", |peer| peer.table.routes.is_empty())?;
                observer.close();
                Ok(())
            },
        );
        collisions(world, cases);
        cases.case("extended messages when both can", || {
            let mut identity = world.identity(11);
            identity.capabilities.push(capability(6, &[]));
            let mut peer = RawPeer::establish(&identity, world.remote)?;
            let mut observer = world.peer(12)?;
            let base = world::base(65001, address(11));
            peer.send(&raw::update(&[], &base, &prefixes(15_000)))?;
            observer.until("15,000 routes", |peer| peer.table.routes.len() == 15_000)?;
            // RFC 8654 §4: OPEN and KEEPALIVE stay short.
            peer.send(&raw::raw_message([0xff; 16], 4097, raw::OPEN, &[]))?;
            expect_notification(&mut peer, 1, 2, Some(&4097u16.to_be_bytes()))?;
            observer.close();
            Ok(())
        });
        roles(world, cases);
        cases.case("ADD-PATH is not used unless agreed", || {
            let mut identity = world.identity(11);
            identity
                .capabilities
                .push(capability(69, &[0, 1, 1, 3, 0, 2, 1, 3]));
            let mut peer = RawPeer::establish(&identity, world.remote)?;
            let mut observer = world.peer(12)?;
            peer.send(&raw::update(
                &[],
                &world::base(65001, address(11)),
                &raw::nlri("10.1.0.0/16"),
            ))?;
            observer.until("the route", |peer| peer.table.has("10.1.0.0/16"))?;
            peer.close();
            observer.close();
            Ok(())
        });
        for attempt in 0..60 {
            cases.case(&format!("connecting again after error {attempt}"), || {
                let mut peer = RawPeer::connect(address(13), world.remote)?;
                ensure!(
                    matches!(
                        peer.event(Duration::from_secs(2))?,
                        Event::Message {
                            kind: raw::OPEN,
                            ..
                        }
                    ),
                    "refused"
                );
                peer.send(&raw::message(0, &[]))?;
                expect_notification(&mut peer, 1, 3, None)
            });
        }
        cases.case("an unknown neighbour is not served", || {
            let mut stranger = RawPeer::connect([10, 9, 0, 200].into(), world.remote)
                .or_else(|_| RawPeer::connect([127, 0, 0, 1].into(), world.remote));
            if let Ok(peer) = &mut stranger {
                ensure!(
                    peer.event(Duration::from_secs(2))? != Event::Quiet,
                    "it waits"
                );
            }
            Ok(())
        });
        if let Some(agent) = &world.agent {
            cases.case("administrative shutdown with a text", || {
                let mut peer = world.peer(12)?;
                let mut waiting = world.opened(13)?;
                agent.terminate()?;
                for peer in [&mut peer, &mut waiting] {
                    let (code, subcode, data) = peer.notification()?;
                    ensure!((code, subcode) == (6, 2), "{code}/{subcode}");
                    let [length, text @ ..] = data.as_slice() else {
                        bail!("no text")
                    };
                    ensure!(usize::from(*length) == text.len(), "{data:?}");
                    ensure!(std::str::from_utf8(text)?.contains("agentd"), "{text:?}");
                }
                Ok(())
            });
        }
        Ok(())
    });
}

/// RFC 9234: the speaker is the customer of this peer.
fn roles(world: &World, cases: &mut Cases) {
    let with = |roles: &[u8]| {
        let mut identity = world.identity(45);
        for role in roles {
            identity.capabilities.push(capability(9, &[*role]));
        }
        identity
    };
    for (roles, good) in [
        (&[][..], true),
        (&[0], true),
        (&[0, 0], true),
        (&[1], false),
        (&[3], false),
        (&[4], false),
        (&[9], false),
        (&[0, 4], false),
    ] {
        cases.case(&format!("roles {roles:?} towards a customer"), || {
            let mut peer = world.opened(45)?;
            peer.send(&with(roles).open().message())?;
            if good {
                peer.expect(raw::KEEPALIVE)?;
                peer.close();
                return Ok(());
            }
            expect_notification(&mut peer, 2, 11, None)
        });
    }
    cases.case("a route for customers does not leak to a provider", || {
        let mut provider = RawPeer::establish(&with(&[0]), world.remote)?;
        let mut other = world.peer(12)?;
        let mut observer = world.peer(13)?;
        let otc = raw::attribute(0xc0, 35, &[0, 0, 0xfd, 0xea]);
        let base = world::base(65002, address(12));
        let marked = [base.as_slice(), &otc].concat();
        other.send(&raw::update(&[], &marked, &raw::nlri("10.1.0.0/16")))?;
        other.send(&raw::update(&[], &base, &raw::nlri("10.2.0.0/16")))?;
        provider.until("the free one", |peer| peer.table.has("10.2.0.0/16"))?;
        observer.until("both", |peer| peer.table.has("10.1.0.0/16"))?;
        provider.drain()?;
        ensure!(!provider.table.has("10.1.0.0/16"), "it leaks");
        // Routes of a provider are marked with its number.
        let base = world::base(65045, address(45));
        provider.send(&raw::update(&[], &base, &raw::nlri("10.3.0.0/16")))?;
        observer.until("the provider's", |peer| peer.table.has("10.3.0.0/16"))?;
        let route = observer.table.get("10.3.0.0/16").context("route")?;
        ensure!(
            route.value(35) == Some(&65045u32.to_be_bytes()),
            "{route:02x?}"
        );
        for peer in [provider, other, observer] {
            peer.close();
        }
        Ok(())
    });
}

/// RFC 4271 §6.8.
fn collisions(world: &World, cases: &mut Cases) {
    cases.case(
        "a second connection of an established peer is closed with 6/7",
        || {
            let mut first = world.peer(11)?;
            first.until("End-of-RIB", |peer| peer.table.end_of_rib[0] > 0)?;
            let mut second = RawPeer::connect(address(11), world.remote)?;
            second.send(&world.identity(11).open().message())?;
            let (code, subcode, _) = second.notification()?;
            ensure!((code, subcode) == (6, 7), "{code}/{subcode}");
            first.send(&raw::keepalive())?;
            first.drain()?;
            first.close();
            Ok(())
        },
    );
    for (name, router_id, newer_stays) in [
        ("greater", [10, 99, 0, 1], true),
        ("smaller", [1, 1, 1, 1], false),
    ] {
        cases.case(
            &format!("two connections of a peer with the {name} identifier"),
            || {
                let mut identity = world.identity(11);
                identity.router_id = router_id.into();
                let open = identity.open().message();
                let mut first = world.opened(11)?;
                first.send(&open)?;
                first.expect(raw::KEEPALIVE)?;
                let mut second = RawPeer::connect(address(11), world.remote)?;
                second.send(&open)?;
                let (winner, loser) = if newer_stays {
                    (&mut second, &mut first)
                } else {
                    (&mut first, &mut second)
                };
                let (code, subcode, _) = loser.notification().context("the loser")?;
                ensure!((code, subcode) == (6, 7), "{code}/{subcode}");
                winner.send(&raw::keepalive())?;
                winner
                    .until("End-of-RIB", |peer| peer.table.end_of_rib[0] > 0)
                    .context("the winner")?;
                winner.close();
                Ok(())
            },
        );
        // The speaker dials this one.
        cases.case(
            &format!("one connection from each side, the {name} identifier there"),
            || {
                let listener = TcpListener::bind((address(44), 179))?;
                let mut identity = world.identity(44);
                identity.router_id = router_id.into();
                let open = identity.open().message();
                let mut theirs = RawPeer::accept(&listener)?;
                theirs.remote_open = theirs.expect(raw::OPEN)?;
                let mut ours = world.opened(44)?;
                theirs.send(&open)?;
                theirs.expect(raw::KEEPALIVE)?;
                ours.send(&open)?;
                let (winner, loser) = if newer_stays {
                    (&mut ours, &mut theirs)
                } else {
                    (&mut theirs, &mut ours)
                };
                let (code, subcode, _) = loser.notification().context("the loser")?;
                ensure!((code, subcode) == (6, 7), "{code}/{subcode}");
                winner.send(&raw::keepalive())?;
                winner
                    .until("End-of-RIB", |peer| peer.table.end_of_rib[0] > 0)
                    .context("the winner")?;
                winner.send(&raw::notification(6, 4, &[]))?;
                winner.close();
                Ok(())
            },
        );
    }
}

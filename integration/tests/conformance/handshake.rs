//! Message headers, OPEN, capabilities and what two OPENs agree on (RFC 4271 §6.1 and §6.2,
//! RFC 5492, RFC 6286, RFC 6793, RFC 7607, RFC 9072).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::lab::raw_message::{self as raw, capability, parameter};
use integration::lab::raw_peer::{Event, RawPeer};

use super::world::{self, ASN, Cases, World, expect_notification};

const ONES: [u8; 16] = [0xff; 16];

/// Octets that end a session, in which state, and the NOTIFICATION.
fn header_faults() -> Vec<(String, Vec<u8>, (u8, u8), Option<Vec<u8>>)> {
    let mut list = Vec::new();
    for index in [0, 7, 15] {
        let mut marker = ONES;
        marker[index] = 0xfe;
        list.push((
            format!("marker wrong in octet {index}"),
            raw::raw_message(marker, 19, raw::KEEPALIVE, &[]),
            (1, 1),
            None,
        ));
    }
    list.push((
        "marker of zeros".into(),
        raw::raw_message([0; 16], 19, 4, &[]),
        (1, 1),
        None,
    ));
    for length in [0u16, 1, 18, 4097, 65535] {
        list.push((
            format!("length {length}"),
            raw::raw_message(ONES, length, raw::UPDATE, &[0; 4]),
            (1, 2),
            Some(length.to_be_bytes().to_vec()),
        ));
    }
    for (kind, length) in [(1, 28u16), (2, 22), (3, 20), (4, 20), (4, 4096)] {
        list.push((
            format!("type {kind} with length {length}"),
            raw::raw_message(ONES, length, kind, &[0; 10]),
            (1, 2),
            Some(length.to_be_bytes().to_vec()),
        ));
    }
    for kind in [0, 6, 7, 128, 255] {
        list.push((
            format!("type {kind}"),
            raw::message(kind, &[]),
            (1, 3),
            Some(vec![kind]),
        ));
    }
    list
}

#[test]
fn faults_of_the_header_in_every_state() {
    world::run(|world, cases| {
        for (name, octets, (code, subcode), data) in header_faults() {
            for state in ["OpenSent", "OpenConfirm", "Established"] {
                cases.case(&format!("{name} in {state}"), || {
                    let mut peer = world.opened(11)?;
                    if state != "OpenSent" {
                        peer.send(&world.identity(11).open().message())?;
                        peer.expect(raw::KEEPALIVE)?;
                    }
                    if state == "Established" {
                        peer.send(&raw::keepalive())?;
                        peer.until("End-of-RIB", |peer| peer.table.end_of_rib[0] > 0)?;
                    }
                    peer.send(&octets)?;
                    expect_notification(&mut peer, code, subcode, data.as_deref())
                });
            }
        }
        Ok(())
    });
}

#[test]
fn faults_of_the_open() {
    world::run(|world, cases| {
        let open = world.identity(11).open();
        let with = |change: &dyn Fn(&mut raw::OpenSpec)| {
            let mut open = open.clone();
            change(&mut open);
            open.message()
        };
        let parameters = |bytes: Vec<u8>| with(&|open| open.parameters = bytes.clone());
        let capabilities = |bytes: Vec<u8>| parameters(parameter(2, &bytes));
        let as4 = capability(65, &65001u32.to_be_bytes());
        let faults: Vec<(&str, Vec<u8>, (u8, u8), Option<Vec<u8>>)> = vec![
            (
                "version 0",
                with(&|o| o.version = 0),
                (2, 1),
                Some(vec![0, 4]),
            ),
            (
                "version 3",
                with(&|o| o.version = 3),
                (2, 1),
                Some(vec![0, 4]),
            ),
            (
                "version 5",
                with(&|o| o.version = 5),
                (2, 1),
                Some(vec![0, 4]),
            ),
            (
                "version 255",
                with(&|o| o.version = 255),
                (2, 1),
                Some(vec![0, 4]),
            ),
            (
                "AS 0",
                with(&|o| {
                    o.asn = 0;
                    o.parameters = Vec::new();
                }),
                (2, 2),
                None,
            ),
            (
                "AS 0 in the capability",
                capabilities(capability(65, &[0; 4])),
                (2, 2),
                None,
            ),
            (
                "another AS",
                with(&|o| {
                    o.asn = 64999;
                    o.parameters = Vec::new();
                }),
                (2, 2),
                None,
            ),
            (
                "another AS in the capability",
                capabilities(capability(65, &64999u32.to_be_bytes())),
                (2, 2),
                None,
            ),
            (
                "AS_TRANS without the capability",
                with(&|o| {
                    o.asn = 23456;
                    o.parameters = Vec::new();
                }),
                (2, 2),
                None,
            ),
            (
                "our own AS",
                with(&|o| {
                    o.asn = 65000;
                    o.parameters = Vec::new();
                }),
                (2, 2),
                None,
            ),
            (
                "identifier 0.0.0.0",
                with(&|o| o.router_id = [0; 4].into()),
                (2, 3),
                None,
            ),
            ("hold time 1", with(&|o| o.hold_time = 1), (2, 6), None),
            ("hold time 2", with(&|o| o.hold_time = 2), (2, 6), None),
            (
                "unknown parameter",
                parameters(parameter(3, &[1])),
                (2, 4),
                None,
            ),
            (
                "authentication, which is deprecated",
                parameters(parameter(1, &[0, 1])),
                (2, 4),
                None,
            ),
            (
                "unknown parameter after capabilities",
                parameters([parameter(2, &as4), parameter(9, &[])].concat()),
                (2, 4),
                None,
            ),
            (
                "parameters longer than the message",
                with(&|o| o.parameters_length = Some(200)),
                (2, 0),
                None,
            ),
            (
                "parameters shorter than the message",
                with(&|o| o.parameters_length = Some(2)),
                (2, 0),
                None,
            ),
            (
                "a parameter that overruns",
                parameters(vec![2, 9, 1, 4]),
                (2, 0),
                None,
            ),
            (
                "one octet of a parameter",
                parameters(vec![2]),
                (2, 0),
                None,
            ),
            (
                "a capability that overruns",
                capabilities(vec![1, 9, 0, 1]),
                (2, 0),
                None,
            ),
            (
                "one octet of a capability",
                capabilities(vec![1]),
                (2, 0),
                None,
            ),
            (
                "multiprotocol of 3 octets",
                capabilities(capability(1, &[0, 1, 0])),
                (2, 0),
                None,
            ),
            (
                "four-octet AS of 3 octets",
                capabilities(capability(65, &[0, 0, 1])),
                (2, 0),
                None,
            ),
            (
                "extended parameters that overrun",
                parameters(vec![255, 0, 9, 2, 0, 0]),
                (2, 0),
                None,
            ),
        ];
        for (name, octets, (code, subcode), data) in faults {
            cases.case(name, || {
                let mut peer = world.opened(11)?;
                peer.send(&octets)?;
                expect_notification(&mut peer, code, subcode, data.as_deref())
            });
        }
        // RFC 6286 §2.2: unique inside an AS only.
        cases.case("our identifier, internal", || {
            let mut peer = world.opened(21)?;
            let mut open = world.identity(21).open();
            open.router_id = world::SPEAKER;
            peer.send(&open.message())?;
            expect_notification(&mut peer, 2, 3, None)
        });

        let all_octets: Vec<u8> = (0..=200).collect();
        let mut many = Vec::new();
        for code in [1u8, 2, 65, 6, 64, 69, 70, 71, 73] {
            let value: &[u8] = match code {
                1 => &[0, 1, 0, 1],
                65 => &[0, 0, 0xfd, 0xe9],
                64 => &[0, 120, 0, 1, 1, 0],
                69 => &[0, 1, 1, 3],
                71 => &[0, 1, 1, 0, 0, 0, 10],
                73 => &[1, b'a', 1, b'b'],
                _ => &[],
            };
            many.extend(parameter(2, &capability(code, value)));
        }
        let extended = |bytes: &[u8]| {
            let mut out = vec![255];
            out.extend(u16::try_from(bytes.len()).expect("short").to_be_bytes());
            out.extend(bytes);
            out
        };
        let mut long = vec![2];
        let content = [
            as4.clone(),
            capability(1, &[0, 1, 0, 1]),
            capability(239, &all_octets),
            capability(240, &all_octets),
        ]
        .concat();
        long.extend(u16::try_from(content.len()).expect("short").to_be_bytes());
        long.extend(content);
        let good: Vec<(&str, Vec<u8>)> = vec![
            ("no parameters", parameters(Vec::new())),
            ("hold time 3", with(&|o| o.hold_time = 3)),
            ("hold time 0", with(&|o| o.hold_time = 0)),
            ("hold time 65535", with(&|o| o.hold_time = 65535)),
            (
                "our identifier, external",
                with(&|o| o.router_id = world::SPEAKER),
            ),
            (
                "unknown capability",
                capabilities([as4.clone(), capability(239, &[1, 2, 3])].concat()),
            ),
            (
                "unknown capability alone",
                capabilities(capability(200, &[])),
            ),
            (
                "a capability twice",
                capabilities([as4.clone(), as4.clone()].concat()),
            ),
            ("a parameter for each capability", parameters(many)),
            (
                "an empty capabilities parameter",
                parameters(parameter(2, &[])),
            ),
            (
                "families that nobody knows",
                capabilities(
                    [
                        as4.clone(),
                        capability(1, &[0, 1, 0, 1]),
                        capability(1, &[0x40, 4, 0, 71]),
                    ]
                    .concat(),
                ),
            ),
            ("AS_TRANS with the capability", with(&|o| o.asn = 23456)),
            (
                "extended parameters, RFC 9072",
                with(&|o| {
                    o.parameters = extended(&long);
                    o.parameters_length = Some(255);
                }),
            ),
            (
                "extended parameters with another short length",
                with(&|o| {
                    o.parameters = extended(&long);
                    o.parameters_length = Some(17);
                }),
            ),
        ];
        for (name, octets) in good {
            cases.case(name, || {
                let mut peer = world.opened(11)?;
                peer.handshake(&octets)?;
                peer.until("End-of-RIB", |peer| peer.table.end_of_rib[0] > 0)?;
                peer.send(&raw::update(&[], &[], &[]))?;
                peer.drain()?;
                peer.close();
                Ok(())
            });
        }
        what_the_open_says(world, cases);
        Ok(())
    });
}

fn what_the_open_says(world: &World, cases: &mut Cases) {
    cases.case("the speaker's OPEN", || {
        let peer = world.opened(11)?;
        let open = &peer.remote_open;
        ensure!(open[0] == 4, "version {}", open[0]);
        ensure!(open[1..3] == 65000u16.to_be_bytes(), "AS {:?}", &open[1..3]);
        ensure!(
            open[5..9] == world::SPEAKER.octets(),
            "identifier {:?}",
            &open[5..9]
        );
        ensure!(
            usize::from(open[9]) == open.len() - 10,
            "length of the parameters"
        );
        let found = capabilities_of(open)?;
        for code in [1, 2, 65] {
            ensure!(
                found.iter().any(|(have, _)| *have == code),
                "no capability {code}"
            );
        }
        ensure!(
            found.contains(&(65, ASN.to_be_bytes().to_vec())),
            "capability 65: {found:?}"
        );
        for afi in [1, 2] {
            ensure!(
                found.contains(&(1, vec![0, afi, 0, 1])),
                "no family {afi}/1: {found:?}"
            );
        }
        peer.close();
        Ok(())
    });
    cases.case("only the configured families are offered", || {
        let peer = world.opened(47)?;
        let found = capabilities_of(&peer.remote_open)?;
        ensure!(!found.contains(&(1, vec![0, 2, 0, 1])), "{found:?}");
        peer.close();
        Ok(())
    });
    cases.case("End-of-RIB of each family", || {
        let mut peer = world.peer(11)?;
        peer.until("both", |peer| peer.table.end_of_rib == [1, 1])?;
        peer.close();
        Ok(())
    });
}

fn capabilities_of(open: &[u8]) -> Result<Vec<(u8, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut rest = open.get(10..).context("short")?;
    while let [2, length, after @ ..] = rest {
        let (mut value, after) = after
            .split_at_checked(usize::from(*length))
            .context("parameter")?;
        while let [code, length, tail @ ..] = value {
            let (octets, tail) = tail
                .split_at_checked(usize::from(*length))
                .context("capability")?;
            found.push((*code, octets.to_vec()));
            value = tail;
        }
        rest = after;
    }
    ensure!(rest.is_empty(), "odd parameters {rest:?}");
    Ok(found)
}

/// RFC 6608, RFC 4271 §6.5, §8.2.2 and §10.
#[test]
fn unexpected_messages_and_timers() {
    world::run(|world, cases| {
        let open = world.identity(11).open().message();
        let update = raw::update(
            &[],
            &world::base(65001, world::address(11)),
            &raw::nlri("10.1.0.0/16"),
        );
        let broken = raw::message(raw::UPDATE, &[0, 9, 0, 0]);
        let refresh = raw::route_refresh(1, 0, 1);
        for (state, subcode, messages) in [
            (
                "OpenSent",
                1,
                vec![
                    (4, raw::keepalive()),
                    (2, update.clone()),
                    (2, broken.clone()),
                    (5, refresh.clone()),
                ],
            ),
            (
                "OpenConfirm",
                2,
                vec![
                    (1, open.clone()),
                    (2, update.clone()),
                    (2, broken),
                    (5, refresh),
                ],
            ),
            ("Established", 3, vec![(1, open.clone())]),
        ] {
            for (kind, message) in messages {
                cases.case(&format!("message of type {kind} in {state}"), || {
                    let mut peer = world.opened(11)?;
                    if state != "OpenSent" {
                        peer.send(&open)?;
                        peer.expect(raw::KEEPALIVE)?;
                    }
                    if state == "Established" {
                        peer.send(&raw::keepalive())?;
                    }
                    peer.send(&message)?;
                    expect_notification(&mut peer, 5, subcode, Some(&[kind]))
                });
            }
        }
        for state in ["OpenSent", "OpenConfirm", "Established"] {
            cases.case(
                &format!("a NOTIFICATION in {state} closes without an answer"),
                || {
                    let mut peer = world.opened(11)?;
                    if state != "OpenSent" {
                        peer.send(&open)?;
                        peer.expect(raw::KEEPALIVE)?;
                    }
                    if state == "Established" {
                        peer.send(&raw::keepalive())?;
                    }
                    peer.send(&raw::notification(6, 2, &[]))?;
                    loop {
                        match peer.event(Duration::from_secs(3))? {
                            Event::Closed => return Ok(()),
                            Event::Message {
                                kind: raw::UPDATE | raw::KEEPALIVE,
                                ..
                            } => {}
                            other => anyhow::bail!("{other:?}"),
                        }
                    }
                },
            );
        }
        // Three timers at the same time.
        cases.case("hold time of 3 s: keepalives, then 4/0", || {
            let mut peer = world.opened(41)?;
            let mut zero = world.opened(43)?;
            let mut offered = world.identity(12);
            offered.hold_time = 3;
            let mut ours = RawPeer::establish(&offered, world.remote)?;
            peer.handshake(&world.identity(41).open().message())?;
            zero.handshake(&world.identity(43).open().message())?;
            ensure!(
                peer.remote_open[3..5] == [0, 3],
                "offered {:?}",
                &peer.remote_open[3..5]
            );
            ensure!(
                zero.remote_open[3..5] == [0, 0],
                "offered {:?}",
                &zero.remote_open[3..5]
            );
            let start = Instant::now();
            let got = peer.notification_within(Duration::from_secs(6))?;
            let after = start.elapsed();
            ensure!((got.0, got.1) == (4, 0), "{got:?}");
            ensure!(
                (Duration::from_millis(2800)..Duration::from_millis(3900)).contains(&after),
                "after {after:?}"
            );
            ensure!(
                (3..=6).contains(&peer.keepalives),
                "{} keepalives in 3 s",
                peer.keepalives
            );
            let got = ours
                .notification_within(Duration::from_secs(2))
                .context("the peer's 3 s")?;
            ensure!((got.0, got.1) == (4, 0), "{got:?}");
            zero.drain().context("hold time 0")?;
            ensure!(
                zero.keepalives == 1,
                "{} keepalives with hold time 0",
                zero.keepalives
            );
            zero.close();
            Ok(())
        });
        cases.case("any message keeps the session", || {
            let mut peer = world.peer(41)?;
            for round in 0..9 {
                std::thread::sleep(Duration::from_millis(500));
                if round % 2 == 0 {
                    peer.send(&raw::update(&[], &[], &[]))?;
                } else {
                    peer.send(&raw::keepalive())?;
                }
                peer.drain()?;
            }
            peer.close();
            Ok(())
        });
        Ok(())
    });
}

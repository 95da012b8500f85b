//! Mutated messages over live sessions, and a table of 100,000 routes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::lab::raw_message::{self as raw, attribute};
use integration::lab::raw_peer::Event;

use super::world::{self, World, address};

/// A small generator (xorshift), so that a failing run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a usize")
    }
}

/// More of them, or others, when they are asked for.
fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Valid messages of a session, to start from.
fn seeds() -> Vec<Vec<u8>> {
    let base = world::base(65001, address(11));
    let mut v6 = raw::mp_reach6(&[0xfd; 16], &raw::nlri("2001:db8::/32"));
    v6.extend([raw::origin(0), raw::as_path(&[65001, 7])].concat());
    let rich = [
        base.clone(),
        raw::med(5),
        attribute(0x40, 6, &[]),
        attribute(0xc0, 7, &[0, 0, 0xfd, 0xe9, 1, 2, 3, 4]),
        raw::communities(&[1, 2, 3]),
        attribute(0xc0, 16, &[0, 2, 0, 1, 0, 0, 0, 1]),
        attribute(0xc0, 32, &[0; 12]),
        attribute(0xc0, 99, &[1; 20]),
    ]
    .concat();
    vec![
        raw::update(&[], &base, &raw::nlri("10.70.0.0/16")),
        raw::update(&raw::nlri("10.70.0.0/16"), &[], &[]),
        raw::update(
            &[],
            &rich,
            &[raw::nlri("10.71.0.0/16"), raw::nlri("10.72.3.0/24")].concat(),
        ),
        raw::update(&[], &v6, &[]),
        raw::update(&[], &raw::mp_unreach6(&raw::nlri("2001:db8::/32")), &[]),
        raw::route_refresh(1, 0, 1),
        raw::keepalive(),
    ]
}

fn mutate(random: &mut Random, message: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = 16 + random.below(message.len() - 16);
        match random.below(6) {
            0 => message[at] = u8::try_from(random.below(256)).expect("an octet"),
            1 => message[at] ^= 1 << random.below(8),
            2 => message[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 if message.len() > 20 => drop(message.remove(at)),
            4 => message.insert(at, u8::try_from(random.below(256)).expect("an octet")),
            _ => {
                let other = 16 + random.below(message.len() - 16);
                message.swap(at, other);
            }
        }
    }
    // Most keep a header that is right, so that the body is looked at.
    if random.below(8) != 0 {
        let length = u16::try_from(message.len()).expect("short").to_be_bytes();
        message[16..18].copy_from_slice(&length);
        if message.len() >= 23 {
            message[18] = 2;
        }
    }
}

fn memory(world: &World) -> Result<u64> {
    let Some(agent) = &world.agent else {
        return Ok(0);
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process()?.pid()))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("number")?.parse()?)
}

#[test]
fn mutated_messages_harm_nobody_else() {
    world::run(|world, cases| {
        let mut bystander = world.peer(13)?;
        let mut observer = world.peer(12)?;
        bystander.send(&raw::update(
            &[],
            &world::base(65003, address(13)),
            &raw::nlri("10.80.0.0/16"),
        ))?;
        observer.until("the bystander's route", |peer| {
            peer.table.has("10.80.0.0/16")
        })?;
        let seeds = seeds();
        let seed = number_of("CONFORMANCE_SEED", 0x5eed_1234_5678_9abc);
        let mutations = number_of("CONFORMANCE_MUTATIONS", 2500);
        println!("CONFORMANCE_SEED={seed} CONFORMANCE_MUTATIONS={mutations}");
        let mut random = Random(seed.max(1));
        let before = memory(world)?;
        let mut peer = world.peer(11)?;
        let (mut resets, mut survived, mut refusals) = (0, 0, 0);
        let mut thousand = Instant::now();
        for number in 0..mutations {
            if number > 0 && number % 1000 == 0 {
                println!(
                    "{number} mutations, the last thousand in {:?}",
                    thousand.elapsed()
                );
                thousand = Instant::now();
            }
            let mut message = seeds[random.below(seeds.len())].clone();
            mutate(&mut random, &mut message);
            cases.case(&format!("mutation {number}: {message:02x?}"), || {
                peer.try_send(&message);
                // A message cut short would wait for the rest.
                peer.try_send(&raw::keepalive());
                peer.try_send(&raw::route_refresh(1, 0, 1));
                match peer.event(Duration::from_millis(1))? {
                    Event::Quiet
                    | Event::Message {
                        kind: raw::UPDATE | raw::KEEPALIVE,
                        ..
                    } => {
                        survived += 1;
                        return Ok(());
                    }
                    Event::Message {
                        kind: raw::NOTIFICATION,
                        body,
                    } => {
                        resets += 1;
                        ensure!(
                            body.len() >= 2 && (1..=7).contains(&body[0]),
                            "NOTIFICATION {body:02x?}"
                        );
                    }
                    Event::Message { kind, .. } => anyhow::bail!("a message of type {kind}"),
                    Event::Closed => {}
                }
                peer.close();
                peer = world.peer(11)?;
                refusals += peer.refusals;
                Ok(())
            });
            if number % 100 == 0 {
                observer.send(&raw::keepalive())?;
                bystander.send(&raw::keepalive())?;
                observer.drain()?;
                bystander.drain()?;
            }
        }
        println!("{resets} resets seen, {survived} survived or not yet answered");
        cases.case("whoever comes back is served", || {
            ensure!(
                world::is_bird() || refusals == 0,
                "{refusals} connections were refused"
            );
            Ok(())
        });
        cases.case("the others have not noticed", || {
            observer.drain()?;
            bystander.drain()?;
            bystander.send(&raw::update(
                &[],
                &world::base(65003, address(13)),
                &raw::nlri("10.81.0.0/16"),
            ))?;
            observer.until("another route", |peer| {
                peer.table.has("10.81.0.0/16") && peer.table.has("10.80.0.0/16")
            })
        });
        cases.case("memory is bounded", || {
            let after = memory(world)?;
            ensure!(
                after < before + 40_000,
                "{before} kB before, {after} kB after"
            );
            Ok(())
        });
        Ok(())
    });
}

#[test]
fn mutated_handshakes_harm_nobody() {
    world::run(|world, cases| {
        let mut bystander = world.peer(13)?;
        let mut identity = world.identity(11);
        identity.capabilities.extend([
            raw::capability(6, &[]),
            raw::capability(64, &[0, 120, 0, 1, 1, 0]),
            raw::capability(69, &[0, 1, 1, 3]),
            raw::capability(73, &[1, b'a', 1, b'b']),
        ]);
        let open = identity.open().message();
        let mut random = Random(0x0be4_1234_5678_9abc);
        for number in 0..500 {
            let mut message = open.clone();
            for _ in 0..=random.below(3) {
                let at = 19 + random.below(message.len() - 19);
                message[at] = u8::try_from(random.below(256)).expect("an octet");
            }
            cases.case(&format!("OPEN {number}: {message:02x?}"), || {
                let mut peer = world.opened(11)?;
                peer.send(&[message.as_slice(), &raw::keepalive()].concat())?;
                match peer.event(Duration::from_secs(2))? {
                    Event::Message {
                        kind: raw::KEEPALIVE,
                        ..
                    } => {}
                    Event::Message {
                        kind: raw::NOTIFICATION,
                        body,
                    } => {
                        ensure!(body.first() == Some(&2), "NOTIFICATION {body:02x?}");
                    }
                    other => anyhow::bail!("{other:?}"),
                }
                peer.close();
                Ok(())
            });
        }
        bystander.send(&raw::keepalive())?;
        bystander.drain()
    });
}

#[test]
fn a_table_of_100_000_routes() {
    world::run(|world, cases| {
        const COUNT: usize = 100_000;
        let mut observer = world.peer(12)?;
        let mut sender = world.peer(11)?;
        cases.case("it arrives", || {
            let start = Instant::now();
            // About as many attribute sets for prefixes as in real tables.
            let mut all = Vec::new();
            for group in 0..u32::try_from(COUNT / 10)? {
                let attributes = [
                    raw::origin(0),
                    raw::as_path(&[65001, 1000 + group % 977, 3000 + group % 3001, 7000 + group]),
                    raw::next_hop(address(11)),
                    raw::med(group % 7),
                    raw::communities(&[0xfde9_0000 | (group % 313)]),
                ]
                .concat();
                let nlri: Vec<u8> = (0..10u32)
                    .flat_map(|n| {
                        let [_, a, b, c] = (0x10_0000 + group * 10 + n).to_be_bytes();
                        [24, a, b, c]
                    })
                    .collect();
                all.extend(raw::update(&[], &attributes, &nlri));
            }
            all.extend(raw::update(&[], &[], &[]));
            sender.send(&all)?;
            observer.until_within(Duration::from_secs(40), "the table", |peer| {
                peer.table.routes.len() >= COUNT
            })?;
            println!("100,000 routes after {:?}", start.elapsed());
            Ok(())
        });
        cases.case("a second observer gets all of it, then End-of-RIB", || {
            let mut late = world.peer(13)?;
            late.until_within(Duration::from_secs(20), "End-of-RIB", |peer| {
                peer.table.end_of_rib[0] > 0
            })?;
            ensure!(
                late.table.routes.len() == COUNT,
                "{}",
                late.table.routes.len()
            );
            ensure!(
                late.table.routes == observer.table.routes,
                "the tables differ"
            );
            late.close();
            Ok(())
        });
        cases.case("it goes with its session", || {
            sender.close();
            observer.until_within(Duration::from_secs(20), "nothing", |peer| {
                peer.table.routes.is_empty()
            })
        });
        Ok(())
    });
}

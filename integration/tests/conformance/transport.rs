//! How connections can end and hang at every stage, and what that costs others: FIN, RST, half a
//! close, readers that do not read, floods of connections (RFC 4271 §8.2.2, §4.4).

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::lab::raw_message as raw;
use integration::lab::raw_peer::{Event, RawPeer};

use super::world::{self, Cases, World, address};

/// A session that has a route and must not notice anything.
struct Witness {
    sender: RawPeer,
    observer: RawPeer,
    count: u8,
}

impl Witness {
    fn new(world: &World) -> Result<Self> {
        let mut witness = Self {
            sender: world.peer(13)?,
            observer: world.peer(12)?,
            count: 0,
        };
        witness.check()?;
        Ok(witness)
    }

    /// Another route goes through, soon, and the older ones are still there.
    fn check(&mut self) -> Result<()> {
        self.count += 1;
        let prefix = format!("10.90.{}.0/24", self.count);
        let base = world::base(65003, address(13));
        let start = Instant::now();
        self.sender
            .send(&raw::update(&[], &base, &raw::nlri(&prefix)))?;
        self.observer
            .until("the route of the witness", |peer| peer.table.has(&prefix))?;
        ensure!(
            start.elapsed() < Duration::from_secs(2),
            "it took {:?}",
            start.elapsed()
        );
        self.sender.drain()?;
        for number in 1..=self.count {
            let prefix = format!("10.90.{number}.0/24");
            ensure!(self.observer.table.has(&prefix), "{prefix} is lost");
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Connected,
    HalfAnOpen,
    OpenSent,
    OpenConfirm,
    Established,
    HalfAnUpdate,
}

fn bring(world: &World, stage: Stage) -> Result<RawPeer> {
    let open = world.identity(11).open().message();
    Ok(match stage {
        Stage::Connected => RawPeer::connect(address(11), world.remote)?,
        Stage::HalfAnOpen => {
            let mut peer = world.opened(11)?;
            peer.send(&open[..20])?;
            peer
        }
        Stage::OpenSent => world.opened(11)?,
        Stage::OpenConfirm => {
            let mut peer = world.opened(11)?;
            peer.send(&open)?;
            peer.expect(raw::KEEPALIVE)?;
            peer
        }
        Stage::Established => world.peer(11)?,
        Stage::HalfAnUpdate => {
            let mut peer = world.peer(11)?;
            let base = world::base(65001, address(11));
            peer.send(&raw::update(&[], &base, &raw::nlri("10.1.0.0/16")))?;
            peer.send(&raw::update(&[], &base, &raw::nlri("10.2.0.0/16"))[..30])?;
            peer
        }
    })
}

#[test]
fn connections_end_at_every_stage() {
    world::run(|world, cases| {
        let mut witness = Witness::new(world)?;
        for stage in [
            Stage::Connected,
            Stage::HalfAnOpen,
            Stage::OpenSent,
            Stage::OpenConfirm,
            Stage::Established,
            Stage::HalfAnUpdate,
        ] {
            for (name, end) in [
                (
                    "FIN",
                    &(|peer: RawPeer| {
                        peer.close();
                        Ok(())
                    }) as &dyn Fn(RawPeer) -> Result<()>,
                ),
                ("RST", &|peer| peer.reset()),
                ("half a close", &|mut peer| {
                    peer.close_sending();
                    // The speaker does not keep a session with somebody who cannot speak.
                    let end = Instant::now() + Duration::from_secs(5);
                    loop {
                        match peer.event(Duration::from_secs(5))? {
                            Event::Closed => return Ok(()),
                            Event::Message { .. } => {}
                            Event::Quiet => anyhow::bail!("the connection stays"),
                        }
                        ensure!(Instant::now() < end, "the connection stays");
                    }
                }),
            ] {
                cases.case(&format!("{name} after {stage:?}"), || {
                    end(bring(world, stage)?)?;
                    // The next one is served at once, and the routes of the last are gone.
                    let mut next = world.peer(11)?;
                    witness.check()?;
                    witness.observer.drain()?;
                    ensure!(!witness.observer.table.has("10.1.0.0/16"), "it stays");
                    next.drain()?;
                    next.close();
                    Ok(())
                });
            }
        }
        Ok(())
    });
}

#[test]
fn slow_and_many_connections_cost_nobody_else() {
    world::run(|world, cases| {
        let mut witness = Witness::new(world)?;
        slow_reader(world, cases, &mut witness);
        cases.case("400 connections of one peer", || {
            let mut peer = world.peer(11)?;
            let mut held = Vec::new();
            for _ in 0..400 {
                held.push(RawPeer::connect(address(11), world.remote)?);
            }
            witness.check()?;
            // The first session is the one that stays.
            peer.send(&raw::keepalive())?;
            peer.drain()?;
            drop(held);
            witness.check()?;
            peer.close();
            Ok(())
        });
        cases.case(
            "400 connections that say nothing, of all peers in turn",
            || {
                let mut held = Vec::new();
                for number in 0..400u32 {
                    let octet = [11, 14, 15, 16, 21, 22][usize::try_from(number % 6)?];
                    held.push(RawPeer::connect(address(octet), world.remote)?);
                }
                witness.check()?;
                drop(held);
                let mut peer = world.peer(14)?;
                peer.drain()?;
                peer.close();
                witness.check()
            },
        );
        cases.case("400 connections of strangers", || {
            let mut held: Vec<TcpStream> = Vec::new();
            for _ in 0..400 {
                if let Ok(stream) =
                    TcpStream::connect_timeout(&world.remote, Duration::from_secs(1))
                {
                    held.push(stream);
                }
            }
            witness.check()?;
            drop(held);
            witness.check()
        });
        cases.case("300 sessions one after the other", || {
            let base = world::base(65001, address(11));
            for _ in 0..300 {
                let mut peer = world.peer(11)?;
                peer.send(&raw::update(&[], &base, &raw::nlri("10.1.0.0/16")))?;
                peer.reset()?;
            }
            witness.check()?;
            let mut peer = world.peer(11)?;
            peer.drain()?;
            peer.close();
            Ok(())
        });
        Ok(())
    });
}

/// RFC 4271 §6.5 is about those who do not send; this is about one who does not read.
fn slow_reader(world: &World, cases: &mut Cases, witness: &mut Witness) {
    cases.case(
        "one that does not read holds nobody up, and misses nothing",
        || {
            let mut slow = world.peer(14)?;
            let mut sender = world.peer(11)?;
            // Far more than the buffers of both kernels hold.
            let long: Vec<u32> = (0..800).map(|n| 0xfde9_0000 | n).collect();
            for round in 0..3000u32 {
                let [_, _, high, low] = round.to_be_bytes();
                let attributes = [
                    world::base(65001, address(11)),
                    raw::med(round),
                    raw::communities(&long),
                    raw::attribute(0xc0, 200, &round.to_be_bytes()),
                ]
                .concat();
                sender.send(&raw::update(&[], &attributes, &[32, 20, 1, high, low]))?;
                if round % 1000 == 0 {
                    witness.check()?;
                    witness.observer.send(&raw::keepalive())?;
                }
            }
            witness.check()?;
            // Changes pile up by prefix and not by number.
            for round in 0..20u32 {
                for prefix in 0..100u32 {
                    let [_, _, high, low] = prefix.to_be_bytes();
                    let attributes =
                        [world::base(65001, address(11)), raw::communities(&[round])].concat();
                    sender.send(&raw::update(&[], &attributes, &[32, 20, 1, high, low]))?;
                }
            }
            witness.check()?;
            slow.until_within(Duration::from_secs(20), "the table", |peer| {
                let last = 19u32.to_be_bytes();
                let is_last = |n: u8| {
                    peer.table
                        .get(&format!("20.1.0.{n}/32"))
                        .is_some_and(|route| route.value(8) == Some(&last))
                };
                (0..100).all(is_last)
            })?;
            sender.close();
            slow.until_within(Duration::from_secs(20), "the end", |peer| {
                !peer.table.has("20.1.0.1/32") && !peer.table.has("20.1.11.183/32")
            })?;
            slow.close();
            Ok(())
        },
    );
}

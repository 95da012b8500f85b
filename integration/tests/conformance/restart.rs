//! Graceful restart of a peer (RFC 4724, RFC 8538), and messages that come in unusual portions.

use std::time::Duration;

use anyhow::ensure;
use integration::lab::raw_message::{self as raw, capability};
use integration::lab::raw_peer::{Identity, RawPeer};

use super::world::{self, World, address};

/// With graceful restart of IPv4 for 2 s, and forwarding kept.
fn restarting(world: &World, octet: u8, notification: bool) -> Identity {
    let mut identity = world.identity(octet);
    let flags = if notification { 0xc0 } else { 0x80 };
    identity
        .capabilities
        .push(capability(64, &[flags, 2, 0, 1, 1, 0x80]));
    identity
}

#[test]
fn a_peer_restarts() {
    world::run(|world, cases| {
        let base = world::base(65001, address(11));
        let announce = |prefix: &str| raw::update(&[], &base, &raw::nlri(prefix));
        let mut observer = world.peer(12)?;
        cases.case(
            "routes stay while it is away, and what it no longer has goes",
            || {
                let mut peer = RawPeer::establish(&restarting(world, 11, false), world.remote)?;
                peer.send(&announce("10.1.0.0/16"))?;
                peer.send(&announce("10.2.0.0/16"))?;
                observer.until("both", |peer| peer.table.routes.len() == 2)?;
                peer.close();
                std::thread::sleep(Duration::from_millis(300));
                observer.drain()?;
                ensure!(
                    observer.table.routes.len() == 2,
                    "{:?}",
                    observer.table.routes.keys()
                );
                let mut peer = RawPeer::establish(&restarting(world, 11, false), world.remote)?;
                peer.send(&announce("10.2.0.0/16"))?;
                std::thread::sleep(Duration::from_millis(100));
                observer.drain()?;
                ensure!(observer.table.routes.len() == 2, "swept before End-of-RIB");
                peer.send(&raw::update(&[], &[], &[]))?;
                observer.until("the sweep", |peer| {
                    peer.table.has("10.2.0.0/16") && !peer.table.has("10.1.0.0/16")
                })?;
                // It does not come back.
                peer.close();
                observer.until("the end of the restart time", |peer| {
                    peer.table.routes.is_empty()
                })
            },
        );
        for (name, notification, keeps) in [
            ("a NOTIFICATION ends the routes", false, false),
            ("with the N bit they stay over a NOTIFICATION", true, true),
        ] {
            cases.case(name, || {
                let mut peer =
                    RawPeer::establish(&restarting(world, 11, notification), world.remote)?;
                peer.send(&announce("10.3.0.0/16"))?;
                observer.until("the route", |peer| peer.table.has("10.3.0.0/16"))?;
                peer.send(&raw::notification(6, 4, &[]))?;
                peer.close();
                std::thread::sleep(Duration::from_millis(200));
                observer.drain()?;
                ensure!(
                    observer.table.has("10.3.0.0/16") == keeps,
                    "kept: {}",
                    !keeps
                );
                observer.until("the end", |peer| peer.table.routes.is_empty())
            });
        }
        cases.case("a Hard Reset ends the routes in any case", || {
            let mut peer = RawPeer::establish(&restarting(world, 11, true), world.remote)?;
            peer.send(&announce("10.3.0.0/16"))?;
            observer.until("the route", |peer| peer.table.has("10.3.0.0/16"))?;
            peer.send(&raw::notification(6, 9, &[6, 4]))?;
            observer.until("the end", |peer| peer.table.routes.is_empty())?;
            peer.close();
            Ok(())
        });
        Ok(())
    });
}

#[test]
fn portions_and_sizes() {
    world::run(|world, cases| {
        let base = world::base(65001, address(11));
        let mut observer = world.peer(12)?;
        cases.case("OPEN, KEEPALIVE and UPDATE in one segment", || {
            let mut peer = RawPeer::connect(address(11), world.remote)?;
            let all = [
                world.identity(11).open().message(),
                raw::keepalive(),
                raw::update(&[], &base, &raw::nlri("10.1.0.0/16")),
            ];
            peer.send(&all.concat())?;
            observer.until("the route", |peer| peer.table.has("10.1.0.0/16"))?;
            peer.close();
            observer.until("the end", |peer| peer.table.routes.is_empty())
        });
        cases.case("a whole session octet by octet", || {
            let mut peer = RawPeer::connect(address(11), world.remote)?;
            let all = [
                world.identity(11).open().message(),
                raw::keepalive(),
                raw::update(&[], &base, &raw::nlri("10.1.0.0/16")),
            ];
            for octet in all.concat() {
                peer.send(&[octet])?;
                std::thread::sleep(Duration::from_micros(300));
            }
            observer.until("the route", |peer| peer.table.has("10.1.0.0/16"))?;
            peer.close();
            observer.until("the end", |peer| peer.table.routes.is_empty())
        });
        // RFC 4271 §9.2: what does not fit any more with our number in front is not sent.
        cases.case("attributes that fill a message harm nobody", || {
            let mut peer = world.peer(11)?;
            let nlri = raw::nlri("10.2.0.0/24");
            let room = 4096 - 23 - base.len() - nlri.len() - 4;
            let communities: Vec<u8> = (0..room / 4)
                .flat_map(|n| (0xfde9_0000u32 + u32::try_from(n).unwrap_or(0)).to_be_bytes())
                .collect();
            let full = [base.clone(), raw::attribute(0xd0, 8, &communities)].concat();
            peer.send(&raw::update(&[], &base, &nlri))?;
            observer.until("the small one", |peer| peer.table.has("10.2.0.0/24"))?;
            peer.send(&raw::update(&[], &full, &nlri))?;
            peer.send(&raw::update(&[], &base, &raw::nlri("10.3.0.0/16")))?;
            observer.until("the next", |peer| peer.table.has("10.3.0.0/16"))?;
            std::thread::sleep(Duration::from_millis(50));
            observer.drain()?;
            peer.drain()?;
            let stale = observer
                .table
                .get("10.2.0.0/24")
                .is_some_and(|route| route.value(8).is_none());
            ensure!(!stale, "the replaced route is still announced");
            peer.close();
            observer.until("the end", |peer| peer.table.routes.is_empty())
        });
        Ok(())
    });
}

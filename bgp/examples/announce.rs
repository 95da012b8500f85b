//! Announces prefixes to one neighbour and prints what it learns.
//!
//! ```text
//! cargo run -p bgp --features driver --example announce -- \
//!     --as 64512 --id 192.0.2.1 --peer 192.0.2.2 --peer-as 64513 \
//!     [--listen 0.0.0.0:179] [--local 192.0.2.1] [--next-hop6 2001:db8::1] [--password KEY] \
//!     [--passive] [--port 179] [--hold SECONDS] [--multihop N] [--ttl-security N] \
//!     [--restarting] [--count N] [PREFIX ...]
//! ```
//!
//! `--count` announces so many /32 of 10.0.0.0/8 besides. Every next hop counts as reachable. It ends on SIGINT (closing the sessions) and on SIGTERM.

#![allow(clippy::disallowed_methods)]

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    driver::{Update, spawn},
    policy::Policy,
    rib::NextHopState,
    speaker::{
        config::{Password, PeerConfig, Restarting, SpeakerConfig},
        status::PeerStatus,
    },
    types::{Asn, Family},
};
use ipnet::IpNet;

struct Arguments {
    config: SpeakerConfig,
    prefixes: Vec<IpNet>,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut config = SpeakerConfig::new(Asn(0), [0, 0, 0, 0].into());
    let mut peer = PeerConfig::new("peer", IpAddr::from([0, 0, 0, 0]), Asn(0));
    peer.import = Arc::new(Policy::all());
    peer.export = Arc::new(Policy::all());
    let mut prefixes = Vec::new();
    let mut count = 0u32;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--as" => config.asn = Asn(value()?.parse()?),
            "--id" => config.router_id = value()?.parse()?,
            "--cluster-id" => config.cluster_id = Some(value()?.parse()?),
            "--listen" => config.listen.push(value()?.parse()?),
            "--next-hop4" => {
                config.next_hop_self[Family::Ipv4Unicast.index()] = Some(value()?.parse()?);
            }
            "--next-hop6" => {
                config.next_hop_self[Family::Ipv6Unicast.index()] = Some(value()?.parse()?);
            }
            "--peer" => peer.address = value()?.parse()?,
            "--peer-as" => peer.asn = Asn(value()?.parse()?).into(),
            "--port" => peer.port = value()?.parse()?,
            "--local" => peer.local_address = Some(value()?.parse()?),
            "--password" => peer.password = Some(Password::new(value()?)?),
            "--hold" => peer.timers.hold_time = Duration::from_secs(value()?.parse()?),
            "--multihop" => peer.multihop = Some(value()?.parse()?),
            "--ttl-security" => peer.ttl_security = Some(value()?.parse()?),
            "--restarting" => {
                config.restarting = Some(Restarting {
                    forwarding_preserved: [true; 2],
                });
            }
            "--count" => count = value()?.parse()?,
            "--passive" => peer.passive = true,
            prefix => prefixes.push(prefix.parse()?),
        }
    }
    prefixes.extend((0..count).map(|n| {
        let address = Ipv4Addr::from((10 << 24) + n);
        IpNet::from(IpAddr::from(address))
    }));
    config.seed = u64::from(std::process::id());
    config.peers.push(peer);
    Ok(Arguments { config, prefixes })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { config, prefixes } = arguments()?;
    let (handle, mut updates, task) = spawn(config)?;
    handle.originate(prefixes).await;
    handle.originations_synced().await;
    let start = Instant::now();
    let mut routes = 0usize;
    loop {
        tokio::select! {
            update = updates.next() => match update {
                None => break,
                Some(Update::Routes(changes)) => {
                    routes += changes.len();
                    for change in changes.iter().take(20) {
                        let next_hops: Vec<_> =
                            change.next_hops.iter().map(|hop| hop.address.to_string()).collect();
                        println!("route {} via [{}]", change.prefix, next_hops.join(", "));
                    }
                    println!("{routes} route changes after {:?}", start.elapsed());
                }
                Some(Update::WatchNextHops { add, .. }) => {
                    let reachable = NextHopState::Reachable { metric: 0 };
                    handle
                        .set_next_hops(add.into_iter().map(|address| (address, reachable)).collect())
                        .await;
                }
                Some(Update::Peers(peers)) => peers.iter().for_each(show),
                Some(Update::PeersGone(names)) => println!("gone: {}", names.join(", ")),
                Some(Update::Claims(claims)) => println!("others announce it, too: {claims:?}"),
                Some(Update::FirstSync) => println!("all tables received"),
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    handle.peers().await.iter().for_each(show);
    handle.shutdown("the example ends").await;
    task.await?;
    Ok(())
}

fn show(peer: &PeerStatus) {
    println!(
        "peer {} AS{} {:?} {} {:?}",
        peer.address,
        peer.asn.unwrap_or_default(),
        peer.state,
        peer.reason,
        peer.counters
    );
    for family in &peer.families {
        println!("  {family:?}");
    }
}

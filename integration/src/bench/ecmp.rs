//! Routes over two routers of which one's session ends: how long until nothing leads to it any more,
//! and how many kernel operations that took.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::fib::{self, Prefixes};
use super::injector::{self, Session};
use super::routes::{INJECTOR_ASN, PATIENCE, Place, place};
use crate::lab::agent::Agent;
use crate::lab::bird::Bird;
use crate::lab::config::{BirdConfig, BirdPeer, Peer};
use crate::lab::{Lab, single};

const ROUTERS: [&str; 2] = ["192.168.26.1", "192.168.26.2"];

/// Figures of one loss.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub healed: Duration,
    /// Of the agent's own count; `None` for others.
    pub operations: Option<u64>,
}

/// What the agent has written so far, once it is at rest.
fn writes(agent: &Agent) -> Result<u64> {
    loop {
        let status = agent.client().status()?;
        let dataplane = status.dataplane.context("dataplane")?;
        if dataplane.pending == 0 {
            return Ok(dataplane.writes);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn measure(place: &Place, prefixes: Prefixes, agent: Option<&Agent>) -> Result<Loss> {
    let target: SocketAddr = "192.168.26.11:179".parse()?;
    let mut sessions = Vec::new();
    for router in ROUTERS {
        let address: IpAddr = router.parse()?;
        let mut session = place.injector.enter(|| {
            Session::connect_with(
                Some(address),
                target,
                INJECTOR_ASN,
                PATIENCE,
                injector::discard,
            )
        })??;
        session.send(&injector::streams(prefixes, INJECTOR_ASN, address).announce)?;
        session.send(&injector::end_of_rib())?;
        sessions.push(session);
    }
    let wait = |paths| {
        place
            .daemon
            .enter(move || fib::wait_for_paths(prefixes, paths, PATIENCE))?
    };
    wait(2)?;
    std::thread::sleep(Duration::from_millis(500));
    let before = agent.map(writes).transpose()?;
    let second = sessions.pop().context("two sessions")?;
    let (start, end) = std::thread::scope(|scope| -> Result<_> {
        let watcher = scope.spawn(|| wait(1));
        std::thread::sleep(Duration::from_millis(20));
        let start = second.drop_connection()?;
        let end = watcher.join().ok().context("the watcher panicked")??;
        Ok((start, end))
    })?;
    // What would be written route by route has had its time.
    std::thread::sleep(Duration::from_millis(500));
    let after = agent.map(writes).transpose()?;
    Ok(Loss {
        healed: end.saturating_duration_since(start),
        operations: before.zip(after).map(|(before, after)| after - before),
    })
}

fn scene(lab: &Lab) -> Result<Place> {
    let place = place(lab, "node-ecmp")?;
    lab.address(&place.injector, "eth0", &format!("{}/24", ROUTERS[1]))?;
    Ok(place)
}

fn end(lab: &Lab, place: &Place) -> Result<()> {
    lab.delete_namespace(&place.daemon)?;
    lab.delete_namespace(&place.injector)
}

pub fn agent(lab: &Lab, prefixes: Prefixes) -> Result<Loss> {
    let place = scene(lab)?;
    let mut config = single::config();
    config.bgp = "import = \"all\"\nhold_time = \"240s\"".into();
    for router in ROUTERS {
        let name = format!("router{}", config.peers.len());
        let mut peer = Peer::new(&name, router, INJECTOR_ASN);
        peer.extra = "passive = true\nmax_prefixes = 2000000".into();
        config.peers.push(peer);
    }
    let agent = Agent::new(lab, &place.daemon, config)?;
    agent.start()?;
    let loss = measure(&place, prefixes, Some(&agent))?;
    agent.terminate()?;
    std::fs::remove_dir_all(agent.directory())?;
    end(lab, &place)?;
    Ok(loss)
}

/// BIRD 2 with merged paths.
pub fn bird(lab: &Lab, prefixes: Prefixes) -> Result<Loss> {
    let place = scene(lab)?;
    let peer = |(number, address): (usize, &&str)| BirdPeer {
        name: format!("router{number}"),
        address: (*address).into(),
        asn: INJECTOR_ASN,
        extra: "passive; hold time 240;".into(),
        families: vec!["ipv4"],
    };
    let config = BirdConfig {
        router_id: "192.168.26.11".into(),
        address: "192.168.26.11".into(),
        address6: "fd00:26::11".into(),
        asn: 64512,
        peers: ROUTERS.iter().enumerate().map(peer).collect(),
        extra: "protocol kernel { merge paths on; ipv4 { import none; export all; }; }".into(),
    };
    let bird = Bird::start(lab, &place.daemon, "bird-ecmp", &config)?;
    let loss = measure(&place, prefixes, None)?;
    bird.process().kill();
    end(lab, &place)?;
    Ok(loss)
}

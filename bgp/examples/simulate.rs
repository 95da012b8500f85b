//! A topology in one process, without sockets and in virtual time: a ring of ASes, each with a
//! prefix; a link is cut in silence, hold timers notice, routes go the other way round, and come
//! back when the link is mended.
//!
//! ```text
//! cargo run -p bgp --example simulate
//! ```

#![allow(clippy::disallowed_methods)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    message::Message,
    policy::Policy,
    rib::{LocalRoute, NextHopState, NextHopWatch},
    speaker::{
        ConnectionEvent, Output, Speaker,
        config::{BGP_PORT, PeerConfig, SpeakerConfig},
    },
    types::{Asn, ConnectionId},
    wire::{Decoder, frame},
};
use ipnet::IpNet;

/// One end of a connection.
#[derive(Debug)]
struct End {
    /// Router and connection at the other end.
    other: (usize, ConnectionId),
    decoder: Decoder,
    received: Vec<u8>,
    /// After an OPEN nothing is decoded before its parameters are known.
    waiting: bool,
}

/// Routers in a ring, router `n` with the address 192.0.2.(n + 1) and AS 65001 + n.
#[derive(Debug)]
pub struct Ring {
    now: Instant,
    start: Instant,
    routers: Vec<Speaker>,
    ends: HashMap<(usize, ConnectionId), End>,
    /// Links that lose everything.
    cut: BTreeSet<(usize, usize)>,
    /// What each router forwards: prefix to next hops.
    forwarding: Vec<BTreeMap<IpNet, Vec<IpAddr>>>,
}

fn address(router: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(router + 1).expect("a small ring"))
}

fn socket(router: usize) -> SocketAddr {
    SocketAddr::from((address(router), BGP_PORT))
}

fn prefix(router: usize) -> IpNet {
    let number = u8::try_from(router).expect("a small ring");
    IpNet::new([10, number, 0, 0].into(), 16).expect("a good length")
}

impl Ring {
    pub fn new(size: usize) -> Self {
        let now = Instant::now();
        let routers = (0..size).map(|router| {
            let asn = |router: usize| Asn(65001 + u32::try_from(router).expect("a small ring"));
            let mut config = SpeakerConfig::new(asn(router), address(router));
            config.seed = router as u64;
            for other in [(router + 1) % size, (router + size - 1) % size] {
                let mut peer =
                    PeerConfig::new(format!("r{other}"), address(other).into(), asn(other));
                peer.import = Arc::new(Policy::all());
                peer.export = Arc::new(Policy::all());
                // Otherwise the routes over a dead link would be kept for the restart time.
                peer.graceful_restart = None;
                config.peers.push(peer);
            }
            let mut speaker = Speaker::new(now, config).expect("a good configuration");
            speaker.originate(now, prefix(router), LocalRoute::default());
            speaker.originations_synced(now);
            speaker
        });
        Self {
            now,
            start: now,
            routers: routers.collect(),
            ends: HashMap::new(),
            cut: BTreeSet::new(),
            forwarding: vec![BTreeMap::new(); size],
        }
    }

    /// Since the start, in virtual time.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Nothing passes between the two any more; nobody is told.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    pub fn mend(&mut self, a: usize, b: usize) {
        self.cut.remove(&(a, b));
        self.cut.remove(&(b, a));
    }

    /// The routers a packet from `from` to the prefix of `to` passes, both included; `None` when it
    /// does not arrive.
    pub fn path(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let mut path = vec![from];
        let mut here = from;
        while here != to {
            let next_hop = *self.forwarding[here].get(&prefix(to))?.first()?;
            here = (0..self.routers.len()).find(|router| address(*router) == next_hop)?;
            if path.contains(&here) {
                return None;
            }
            path.push(here);
        }
        Some(path)
    }

    /// Lets time pass until the condition holds; false when it does not within the time.
    pub fn run_until(&mut self, patience: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + patience;
        loop {
            self.settle();
            if condition(self) {
                return true;
            }
            let next = self.routers.iter().filter_map(Speaker::poll_timeout).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                return false;
            };
            self.now = next.max(self.now);
            for router in &mut self.routers {
                router.handle_timeout(self.now);
            }
        }
    }

    /// Until nobody has anything to do at this time.
    fn settle(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for router in 0..self.routers.len() {
                while let Some(output) = self.routers[router].poll_output(self.now) {
                    self.act(router, output);
                    busy = true;
                }
                busy |= self.look(router);
            }
        }
    }

    fn act(&mut self, router: usize, output: Output) {
        match output {
            Output::Dial { connection, peer } => {
                let Some(other) =
                    (0..self.routers.len()).find(|other| peer.address == address(*other))
                else {
                    return;
                };
                // A dial over a link that was cut gets no answer.
                if !self.cut.contains(&(router, other)) {
                    self.connect(router, connection, other);
                }
            }
            Output::Send { connection, octets } => {
                let Some(end) = self.ends.get(&(router, connection)) else {
                    return;
                };
                let (other, their) = end.other;
                self.routers[router].handle_writable(connection);
                if self.cut.contains(&(router, other)) {
                    return;
                }
                if let Some(end) = self.ends.get_mut(&(other, their)) {
                    end.received.extend(octets);
                    self.read(other, their);
                }
            }
            Output::Negotiated {
                connection,
                negotiated,
            } => {
                if let Some(end) = self.ends.get_mut(&(router, connection)) {
                    end.decoder.set_negotiated((*negotiated).clone());
                    end.waiting = false;
                    self.read(router, connection);
                }
            }
            Output::Close { connection } => {
                let Some(end) = self.ends.remove(&(router, connection)) else {
                    return;
                };
                let (other, their) = end.other;
                if !self.cut.contains(&(router, other)) {
                    self.close(other, their, "closed by the peer");
                }
            }
        }
    }

    fn connect(&mut self, router: usize, connection: ConnectionId, other: usize) {
        let accepted = self.routers[other].handle_accepted(self.now, socket(other), socket(router));
        let event = match accepted {
            None => ConnectionEvent::Closed {
                reason: "refused".into(),
            },
            Some((their, _)) => {
                for (end, other) in [
                    ((router, connection), (other, their)),
                    ((other, their), (router, connection)),
                ] {
                    let end_of_connection = End {
                        other,
                        decoder: Decoder::new(),
                        received: Vec::new(),
                        waiting: false,
                    };
                    self.ends.insert(end, end_of_connection);
                }
                ConnectionEvent::Connected {
                    local: socket(router),
                }
            }
        };
        self.routers[router].handle_connection(self.now, connection, event);
    }

    fn close(&mut self, router: usize, connection: ConnectionId, reason: &str) {
        if self.ends.remove(&(router, connection)).is_some() {
            let reason = reason.into();
            let event = ConnectionEvent::Closed { reason };
            self.routers[router].handle_connection(self.now, connection, event);
        }
    }

    /// Hands over whole messages.
    fn read(&mut self, router: usize, connection: ConnectionId) {
        while let Some(end) = self.ends.get_mut(&(router, connection))
            && !end.waiting
        {
            let message = match frame(&end.received, end.decoder.max_message_size()) {
                Ok(None) => return,
                Ok(Some(length)) => {
                    let octets: Vec<u8> = end.received.drain(..length).collect();
                    end.decoder.decode(&octets)
                }
                Err(notification) => Err(notification),
            };
            end.waiting = matches!(message, Ok(Message::Open(_)) | Err(_));
            self.routers[router].handle_message(self.now, connection, message);
        }
    }

    /// Takes what a router has to say about next hops and routes.
    fn look(&mut self, router: usize) -> bool {
        let speaker = &mut self.routers[router];
        let mut busy = false;
        while let Some(watch) = speaker.poll_next_hop_watch() {
            busy = true;
            if let NextHopWatch::Watch(next_hop) = watch {
                speaker.set_next_hop(next_hop, NextHopState::Reachable { metric: 0 });
            }
        }
        while let Some(change) = speaker.poll_route_change() {
            busy = true;
            let hops: Vec<IpAddr> = change.next_hops.iter().map(|hop| hop.address).collect();
            if hops.is_empty() {
                self.forwarding[router].remove(&change.prefix);
            } else {
                self.forwarding[router].insert(change.prefix, hops);
            }
        }
        busy
    }
}

/// The story of the head of this file; returns how long each part of it took.
pub fn story() -> [Duration; 3] {
    const SIZE: usize = 6;
    let mut ring = Ring::new(SIZE);
    let complete =
        |ring: &Ring| (0..SIZE).all(|from| (0..SIZE).all(|to| ring.path(from, to).is_some()));
    let patience = Duration::from_secs(120);
    assert!(
        ring.run_until(patience, complete),
        "the ring does not converge"
    );
    assert_eq!(ring.path(0, 1), Some(vec![0, 1]));
    let up = ring.elapsed();

    ring.cut(0, 1);
    let around = |ring: &Ring| ring.path(0, 1) == Some(vec![0, 5, 4, 3, 2, 1]);
    assert!(
        ring.run_until(patience, around),
        "nobody finds the way round"
    );
    let noticed = ring.elapsed();

    ring.mend(0, 1);
    let direct = |ring: &Ring| ring.path(0, 1) == Some(vec![0, 1]);
    assert!(
        ring.run_until(patience, direct),
        "the link is not used again"
    );
    [up, noticed - up, ring.elapsed() - noticed]
}

#[allow(dead_code)]
fn main() {
    let [up, noticed, back] = story();
    println!("six ASes in a ring know each other's prefixes after {up:.1?}");
    println!("a link is cut in silence: all go the other way after {noticed:.1?}");
    println!("it is mended: used again after {back:.1?}");
}

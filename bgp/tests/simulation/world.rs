//! A world of speakers with virtual time: links that delay, hold back and cut, and connections
//! that behave as TCP does. Everything follows from one seed.
//!
//! A connection delivers octets in order. A cut link holds them back until it is whole again. A
//! closed end delivers what was sent before, then end of file. An end whose node was killed without
//! a word notices nothing; whoever writes to it learns of a reset when the link carries it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    attributes::NextHop,
    message::{Message, Negotiated},
    rib::{LocalRoute, NextHopState, NextHopWatch},
    speaker::{
        ConnectionEvent, Output, Speaker,
        config::{PeerConfig, Restarting, SpeakerConfig},
        status::PeerState,
    },
    types::ConnectionId,
    wire,
};
use ipnet::IpNet;

/// A node by its place in the world.
pub type NodeId = usize;

pub fn address(node: NodeId) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, node as u8 + 1)
}

pub fn address6(node: NodeId) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, node as u16 + 1)
}

fn node_of(address: IpAddr) -> NodeId {
    match address {
        IpAddr::V4(address) => usize::from(address.octets()[3]) - 1,
        IpAddr::V6(address) => usize::from(address.segments()[7]) - 1,
    }
}

pub struct Node {
    pub speaker: Speaker,
    /// Counts restarts, so that what was meant for an earlier run is dropped.
    incarnation: u32,
    pub config: SpeakerConfig,
    pub originated: BTreeSet<IpNet>,
    /// The forwarding table that the route changes add up to.
    pub forwarding: BTreeMap<IpNet, Arc<[NextHop]>>,
    pub first_sync: bool,
    ends: HashMap<ConnectionId, (usize, usize)>,
    pub dead: bool,
    /// The program says what it knows of next hops: all are reachable.
    pub answers: bool,
}

/// One end of a pipe.
struct End {
    node: NodeId,
    incarnation: u32,
    connection: ConnectionId,
    decoder: wire::Decoder,
    buffer: Vec<u8>,
    /// It has had its OPEN and waits for the parameters.
    waiting: bool,
    open: bool,
    /// On the way to it.
    incoming: VecDeque<Flow>,
}

enum Flow {
    /// The SYN-ACK.
    Connected,
    Octets(Vec<u8>),
    EndOfFile,
    Reset,
}

struct Pipe {
    link: (NodeId, NodeId),
    ends: [End; 2],
}

enum Event {
    /// A SYN arrives.
    Syn {
        from: NodeId,
        incarnation: u32,
        connection: ConnectionId,
        peer: Arc<PeerConfig>,
    },
    /// The first of what is on the way to this end arrives.
    Arrive { pipe: usize, end: usize },
    Refused {
        node: NodeId,
        incarnation: u32,
        connection: ConnectionId,
    },
    Writable {
        node: NodeId,
        incarnation: u32,
        connection: ConnectionId,
    },
}

pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub rng: fastrand::Rng,
    pub nodes: Vec<Node>,
    pipes: Vec<Pipe>,
    /// Links that carry nothing now.
    cut: BTreeSet<(NodeId, NodeId)>,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    pub trace: bool,
}

fn link(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl World {
    pub fn new(seed: u64, configs: Vec<SpeakerConfig>) -> Self {
        let start = Instant::now();
        let mut world = Self {
            start,
            now: start,
            rng: fastrand::Rng::with_seed(seed),
            nodes: Vec::new(),
            pipes: Vec::new(),
            cut: BTreeSet::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            trace: std::env::var_os("BGP_SIM_TRACE").is_some(),
        };
        for config in configs {
            let speaker = Speaker::new(start, config.clone()).expect("a valid configuration");
            world.nodes.push(Node {
                speaker,
                incarnation: 0,
                config,
                originated: BTreeSet::new(),
                forwarding: BTreeMap::new(),
                first_sync: false,
                ends: HashMap::new(),
                dead: false,
                answers: true,
            });
        }
        for node in 0..world.nodes.len() {
            world.nodes[node].speaker.originations_synced(start);
            world.settle(node);
        }
        world
    }

    /// Lets time pass.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = (0..self.nodes.len())
                .filter(|node| !self.nodes[*node].dead)
                .filter_map(|node| Some((self.nodes[node].speaker.poll_timeout()?, node)))
                .min();
            match (event, timer) {
                (Some(at), _) if at <= end && timer.is_none_or(|(due, _)| at <= due) => {
                    let (_, event) = self.queue.pop_first().expect("just seen");
                    self.now = self.now.max(at);
                    self.happen(event);
                }
                (_, Some((due, node))) if due <= end => {
                    self.now = self.now.max(due);
                    let now = self.now;
                    self.nodes[node].speaker.handle_timeout(now);
                    self.settle(node);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9.3} {}", (self.now - self.start).as_secs_f64(), what());
        }
    }

    fn schedule(&mut self, event: Event) {
        // Up to 30 ms, and now and then much more.
        let delay = if self.rng.u8(..) < 4 {
            self.rng.u64(0..500)
        } else {
            self.rng.u64(0..30)
        };
        self.sequence += 1;
        let at = self.now + Duration::from_millis(delay);
        self.queue.insert((at, self.sequence), event);
    }

    fn is_current(&self, node: NodeId, incarnation: u32) -> bool {
        !self.nodes[node].dead && self.nodes[node].incarnation == incarnation
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Syn {
                from,
                incarnation,
                connection,
                peer,
            } => {
                let to = node_of(peer.address);
                if self.cut.contains(&link(from, to)) {
                    // SYNs are lost; the dialler gives up by itself.
                    return;
                }
                if !self.is_current(from, incarnation) {
                    return;
                }
                let accepted = if self.nodes[to].dead {
                    None
                } else {
                    self.nodes[to].speaker.handle_accepted(
                        now,
                        SocketAddr::from((address(to), 179)),
                        SocketAddr::from((address(from), 40_000)),
                    )
                };
                let Some((theirs, _)) = accepted else {
                    self.schedule(Event::Refused {
                        node: from,
                        incarnation,
                        connection,
                    });
                    return;
                };
                let end = |node: NodeId, incarnation, connection| End {
                    node,
                    incarnation,
                    connection,
                    decoder: wire::Decoder::new(),
                    buffer: Vec::new(),
                    waiting: false,
                    open: true,
                    incoming: VecDeque::new(),
                };
                let pipe = self.pipes.len();
                self.pipes.push(Pipe {
                    link: link(from, to),
                    ends: [
                        end(from, incarnation, connection),
                        end(to, self.nodes[to].incarnation, theirs),
                    ],
                });
                self.nodes[from].ends.insert(connection, (pipe, 0));
                self.nodes[to].ends.insert(theirs, (pipe, 1));
                self.send(pipe, 0, Flow::Connected);
                self.settle(to);
            }
            Event::Refused {
                node,
                incarnation,
                connection,
            } => {
                if self.is_current(node, incarnation) {
                    self.closed(node, connection, "refused");
                }
            }
            Event::Writable {
                node,
                incarnation,
                connection,
            } => {
                if self.is_current(node, incarnation) {
                    self.nodes[node].speaker.handle_writable(connection);
                    self.settle(node);
                }
            }
            Event::Arrive { pipe, end } => self.arrive(pipe, end),
        }
    }

    fn arrive(&mut self, pipe: usize, end: usize) {
        if self.cut.contains(&self.pipes[pipe].link) {
            // It arrives again when the link is whole.
            return;
        }
        let Some(flow) = self.pipes[pipe].ends[end].incoming.pop_front() else {
            return;
        };
        let here = &self.pipes[pipe].ends[end];
        let (node, connection, open) = (here.node, here.connection, here.open);
        let alive = open && self.is_current(node, here.incarnation);
        match flow {
            Flow::Connected if alive => {
                let local = SocketAddr::from((address(node), 40_000));
                let now = self.now;
                self.nodes[node].speaker.handle_connection(
                    now,
                    connection,
                    ConnectionEvent::Connected { local },
                );
                self.settle(node);
            }
            Flow::Octets(octets) => {
                let there = &self.pipes[pipe].ends[1 - end];
                let (from, incarnation, theirs) = (there.node, there.incarnation, there.connection);
                if alive {
                    self.pipes[pipe].ends[end].buffer.extend_from_slice(&octets);
                    self.schedule(Event::Writable {
                        node: from,
                        incarnation,
                        connection: theirs,
                    });
                    self.read(pipe, end);
                } else {
                    self.send(pipe, 1 - end, Flow::Reset);
                }
            }
            Flow::EndOfFile if alive => self.closed(node, connection, "end of file"),
            Flow::Reset if alive => self.closed(node, connection, "reset"),
            Flow::Connected | Flow::EndOfFile | Flow::Reset => {}
        }
    }

    /// Decodes what has arrived, as far as it may.
    fn read(&mut self, pipe: usize, end: usize) {
        let now = self.now;
        loop {
            let here = &mut self.pipes[pipe].ends[end];
            if here.waiting || !here.open {
                return;
            }
            let limit = here.decoder.max_message_size();
            let message = match wire::frame(&here.buffer, limit) {
                Ok(None) => return,
                Ok(Some(length)) => {
                    let octets: Vec<u8> = here.buffer.drain(..length).collect();
                    here.decoder.decode(&octets)
                }
                Err(error) => Err(error),
            };
            here.waiting = matches!(message, Ok(Message::Open(_)) | Err(_));
            let (node, connection) = (here.node, here.connection);
            if let Err(error) = &message {
                panic!("node {node} cannot read a message of a peer: {error:?}");
            }
            self.nodes[node]
                .speaker
                .handle_message(now, connection, message);
            self.settle(node);
        }
    }

    /// Puts something on the way to an end.
    fn send(&mut self, pipe: usize, end: usize, flow: Flow) {
        self.pipes[pipe].ends[end].incoming.push_back(flow);
        self.schedule(Event::Arrive { pipe, end });
    }

    fn closed(&mut self, node: NodeId, connection: ConnectionId, reason: &str) {
        self.say(|| format!("node {node}: {connection:?} {reason}"));
        if let Some((pipe, end)) = self.nodes[node].ends.remove(&connection) {
            self.pipes[pipe].ends[end].open = false;
        }
        let now = self.now;
        let reason = reason.to_owned();
        self.nodes[node].speaker.handle_connection(
            now,
            connection,
            ConnectionEvent::Closed { reason },
        );
        self.settle(node);
    }

    /// Carries out what a node wants.
    pub fn settle(&mut self, node: NodeId) {
        let now = self.now;
        loop {
            let mut worked = false;
            while let Some(output) = self.nodes[node].speaker.poll_output(now) {
                worked = true;
                self.carry_out(node, output);
            }
            while let Some(watch) = self.nodes[node].speaker.poll_next_hop_watch() {
                worked = true;
                if let NextHopWatch::Watch(address) = watch
                    && self.nodes[node].answers
                {
                    self.nodes[node]
                        .speaker
                        .set_next_hop(address, NextHopState::Reachable { metric: 0 });
                }
            }
            while let Some(change) = self.nodes[node].speaker.poll_route_change() {
                worked = true;
                self.say(|| format!("node {node}: {} via {:?}", change.prefix, change.next_hops));
                let forwarding = &mut self.nodes[node].forwarding;
                if change.next_hops.is_empty() {
                    forwarding.remove(&change.prefix);
                } else {
                    forwarding.insert(change.prefix, change.next_hops);
                }
            }
            if self.nodes[node].speaker.poll_first_sync() {
                self.nodes[node].first_sync = true;
            }
            while let Some(peer) = self.nodes[node].speaker.poll_changed_peer() {
                self.say(|| {
                    format!(
                        "node {node}: {} {:?} {}",
                        peer.name, peer.state, peer.reason
                    )
                });
            }
            if !worked {
                return;
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, output: Output) {
        match output {
            Output::Dial { connection, peer } => {
                let incarnation = self.nodes[node].incarnation;
                self.schedule(Event::Syn {
                    from: node,
                    incarnation,
                    connection,
                    peer,
                });
            }
            Output::Send { connection, octets } => {
                if let Some((pipe, end)) = self.nodes[node].ends.get(&connection).copied() {
                    self.send(pipe, 1 - end, Flow::Octets(octets));
                }
            }
            Output::Negotiated {
                connection,
                negotiated,
            } => self.agree(node, connection, &negotiated),
            Output::Close { connection } => {
                if let Some((pipe, end)) = self.nodes[node].ends.remove(&connection) {
                    self.pipes[pipe].ends[end].open = false;
                    self.send(pipe, 1 - end, Flow::EndOfFile);
                }
            }
        }
    }

    fn agree(&mut self, node: NodeId, connection: ConnectionId, negotiated: &Negotiated) {
        let Some((pipe, end)) = self.nodes[node].ends.get(&connection).copied() else {
            return;
        };
        let here = &mut self.pipes[pipe].ends[end];
        here.decoder.set_negotiated(negotiated.clone());
        here.waiting = false;
        // What is in the buffer is read by the loop that delivered the OPEN.
    }

    // ---- faults and commands -----------------------------------------------------------------

    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        self.say(|| format!("cut {a}-{b}"));
        self.cut.insert(link(a, b));
    }

    pub fn heal(&mut self, a: NodeId, b: NodeId) {
        if !self.cut.remove(&link(a, b)) {
            return;
        }
        self.say(|| format!("heal {a}-{b}"));
        for pipe in 0..self.pipes.len() {
            if self.pipes[pipe].link == link(a, b) {
                for end in 0..2 {
                    for _ in 0..self.pipes[pipe].ends[end].incoming.len() {
                        self.schedule(Event::Arrive { pipe, end });
                    }
                }
            }
        }
    }

    pub fn heal_all(&mut self) {
        for (a, b) in self.cut.clone() {
            self.heal(a, b);
        }
    }

    /// Breaks all connections between two nodes. What is on the way is lost.
    pub fn reset(&mut self, a: NodeId, b: NodeId) {
        self.say(|| format!("reset {a}-{b}"));
        for pipe in 0..self.pipes.len() {
            if self.pipes[pipe].link == link(a, b) {
                for end in 0..2 {
                    self.pipes[pipe].ends[end].incoming.clear();
                    if self.pipes[pipe].ends[end].open {
                        self.send(pipe, end, Flow::Reset);
                    }
                }
            }
        }
    }

    /// The process is gone; with `silent` nobody is told, as when the power fails.
    pub fn kill(&mut self, node: NodeId, silent: bool) {
        self.say(|| format!("kill {node} silent={silent}"));
        self.nodes[node].dead = true;
        let ends: Vec<_> = self.nodes[node].ends.drain().map(|(_, end)| end).collect();
        for (pipe, end) in ends {
            self.pipes[pipe].ends[end].open = false;
            if !silent {
                self.send(pipe, 1 - end, Flow::EndOfFile);
            }
        }
    }

    /// Starts a killed node again, with what it originated before.
    pub fn start(&mut self, node: NodeId, restarting: bool) {
        self.start_unfinished(node, restarting);
        let now = self.now;
        self.nodes[node].speaker.originations_synced(now);
        self.settle(node);
    }

    /// The same, but what it originates is never complete, so that it sends no End-of-RIB.
    pub fn start_unfinished(&mut self, node: NodeId, restarting: bool) {
        self.say(|| format!("start {node}"));
        let now = self.now;
        let seed = self.rng.u64(..);
        let this = &mut self.nodes[node];
        let config = SpeakerConfig {
            restarting: restarting.then_some(Restarting {
                forwarding_preserved: [true; 2],
            }),
            seed,
            ..this.config.clone()
        };
        this.speaker = Speaker::new(now, config).expect("a valid configuration");
        this.incarnation += 1;
        this.dead = false;
        this.first_sync = false;
        // The kernel of a dead node keeps its routes; the oracle looks at those learned since.
        this.forwarding.clear();
        for prefix in this.originated.clone() {
            this.speaker.originate(now, prefix, LocalRoute::default());
        }
        self.settle(node);
    }

    pub fn originate(&mut self, node: NodeId, prefix: IpNet) {
        self.say(|| format!("node {node} originates {prefix}"));
        let now = self.now;
        let this = &mut self.nodes[node];
        this.originated.insert(prefix);
        if !this.dead {
            this.speaker.originate(now, prefix, LocalRoute::default());
            self.settle(node);
        }
    }

    pub fn withdraw(&mut self, node: NodeId, prefix: IpNet) {
        self.say(|| format!("node {node} withdraws {prefix}"));
        let this = &mut self.nodes[node];
        this.originated.remove(&prefix);
        if !this.dead {
            this.speaker.withdraw(prefix);
            self.settle(node);
        }
    }

    /// A command to the speaker of a living node.
    pub fn command(&mut self, node: NodeId, command: impl FnOnce(&mut Speaker, Instant)) {
        if !self.nodes[node].dead {
            let now = self.now;
            command(&mut self.nodes[node].speaker, now);
            self.settle(node);
        }
    }

    pub fn all_established(&self) -> bool {
        self.nodes.iter().all(|node| {
            node.speaker
                .peers()
                .iter()
                .all(|peer| peer.state == PeerState::Established)
        })
    }
}

//! A BGP-4 speaker as a library: wire codec, per-neighbour state machine, RIB and decision process.
//!
//! The core does no IO: it takes decoded messages, connection events, local routes and the time,
//! and returns messages to send, connections to dial or close, and changes of the Loc-RIB. The
//! `driver` feature adds the tokio shell around it (sockets, listeners, TCP MD5, timers).
//!
//! ```text
//!   socket bytes ─► wire (frame, decode, RFC 7606) ─► speaker ─► session (one per neighbour)
//!                                                       │           │ accepted updates
//!                                                       │           ▼
//!   socket bytes ◄─ wire (encode) ◄── pulled per peer ◄─┴────── rib (Adj-RIB-In → Loc-RIB → Adj-RIB-Out)
//!                                                                   │
//!                                                                   └─► RouteChange (for the kernel)
//! ```
//!
//! # Announcing a prefix
//!
//! With the `driver` feature, on a tokio runtime. `examples/announce.rs` is the same with arguments.
//!
#![cfg_attr(feature = "driver", doc = "```no_run")]
#![cfg_attr(not(feature = "driver"), doc = "```ignore")]
//! # async fn announce() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use bgp::{
//!     driver::{Update, spawn},
//!     policy::Policy,
//!     rib::NextHopState,
//!     speaker::config::{PeerConfig, SpeakerConfig},
//!     types::Asn,
//! };
//!
//! let mut config = SpeakerConfig::new(Asn(64512), "192.0.2.1".parse()?);
//! let mut peer = PeerConfig::new("router", "192.0.2.2".parse()?, Asn(64513));
//! peer.import = Arc::new(Policy::all());
//! config.peers.push(peer);
//!
//! let (handle, mut updates, _task) = spawn(config)?;
//! handle.originate(vec!["198.51.100.0/24".parse()?]).await;
//! handle.originations_synced().await;
//! while let Some(update) = updates.next().await {
//!     match update {
//!         Update::Routes(changes) => println!("{changes:?}"),
//!         // Only the program knows what it can reach; here: everything.
//!         Update::WatchNextHops { add, .. } => {
//!             let reachable = NextHopState::Reachable { metric: 0 };
//!             let states = add.into_iter().map(|address| (address, reachable));
//!             handle.set_next_hops(states.collect()).await;
//!         }
//!         Update::Peers(_) | Update::PeersGone(_) | Update::Claims(_) | Update::FirstSync => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/collect.rs` takes the whole table of a neighbour.
//!
//! # Two speakers without a network
//!
//! The core needs neither sockets nor a clock, so protocols of hours run in milliseconds.
//! `examples/simulate.rs` does so with a ring of speakers whose links break.
//!
//! ```
//! use std::{
//!     net::{Ipv4Addr, SocketAddr},
//!     sync::Arc,
//!     time::Instant,
//! };
//!
//! use bgp::{
//!     message::Message,
//!     policy::Policy,
//!     rib::{LocalRoute, NextHopState, NextHopWatch},
//!     speaker::{
//!         ConnectionEvent, Output, Speaker,
//!         config::{PeerConfig, SpeakerConfig},
//!     },
//!     types::{Asn, ConnectionId},
//!     wire,
//! };
//!
//! /// A speaker and its end of the only connection.
//! struct End {
//!     speaker: Speaker,
//!     connection: Option<ConnectionId>,
//!     decoder: wire::Decoder,
//!     received: Vec<u8>,
//!     waiting: bool,
//! }
//!
//! fn end(now: Instant, own: u8, other: u8, passive: bool) -> End {
//!     let address = |host| Ipv4Addr::new(192, 0, 2, host);
//!     let mut config = SpeakerConfig::new(Asn(64512 + u32::from(own)), address(own));
//!     let mut peer = PeerConfig::new("peer", address(other).into(), Asn(64512 + u32::from(other)));
//!     peer.import = Arc::new(Policy::all());
//!     peer.passive = passive;
//!     config.peers.push(peer);
//!     End {
//!         speaker: Speaker::new(now, config).unwrap(),
//!         connection: None,
//!         decoder: wire::Decoder::new(),
//!         received: Vec::new(),
//!         waiting: false,
//!     }
//! }
//!
//! /// Does what the speaker of one end wants; false when it wants nothing.
//! fn step(now: Instant, here: &mut End, there: &mut End) -> bool {
//!     let address = |host| SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), 179));
//!     match here.speaker.poll_output(now) {
//!         None => return false,
//!         Some(Output::Dial { connection, .. }) => {
//!             let accepted = there.speaker.handle_accepted(now, address(2), address(1));
//!             there.connection = accepted.map(|(connection, _)| connection);
//!             here.connection = Some(connection);
//!             let connected = ConnectionEvent::Connected { local: address(1) };
//!             here.speaker.handle_connection(now, connection, connected);
//!         }
//!         Some(Output::Send { connection, octets }) => {
//!             there.received.extend(octets);
//!             here.speaker.handle_writable(connection);
//!         }
//!         Some(Output::Negotiated { negotiated, .. }) => {
//!             here.decoder.set_negotiated((*negotiated).clone());
//!             here.waiting = false;
//!         }
//!         Some(Output::Close { .. }) => panic!("the session broke"),
//!     }
//!     // After an OPEN nothing is decoded before its parameters are known.
//!     for end in [here, there] {
//!         while !end.waiting
//!             && let Some(connection) = end.connection
//!             && let Some(length) = wire::frame(&end.received, end.decoder.max_message_size()).unwrap()
//!         {
//!             let octets: Vec<u8> = end.received.drain(..length).collect();
//!             let message = end.decoder.decode(&octets);
//!             end.waiting = matches!(message, Ok(Message::Open(_)));
//!             end.speaker.handle_message(now, connection, message);
//!         }
//!     }
//!     true
//! }
//!
//! let now = Instant::now();
//! let mut a = end(now, 1, 2, false);
//! let mut b = end(now, 2, 1, true);
//! a.speaker.originate(now, "198.51.100.0/24".parse().unwrap(), LocalRoute::default());
//! while step(now, &mut a, &mut b) || step(now, &mut b, &mut a) {}
//!
//! // The next hop is known once its reachability is.
//! let Some(NextHopWatch::Watch(next_hop)) = b.speaker.poll_next_hop_watch() else { panic!() };
//! b.speaker.set_next_hop(next_hop, NextHopState::Reachable { metric: 0 });
//! let change = b.speaker.poll_route_change().unwrap();
//! assert_eq!(change.prefix, "198.51.100.0/24".parse().unwrap());
//! assert_eq!(change.next_hops[0].address, "192.0.2.1".parse::<Ipv4Addr>().unwrap());
//! ```

// Tests have a clock.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod attributes;
// The shell is where clocks are read and sockets opened.
#[cfg(feature = "driver")]
#[allow(clippy::disallowed_methods)]
pub mod driver;
pub mod message;
pub mod policy;
pub mod rib;
mod session;
pub mod speaker;
pub mod types;
pub mod wire;

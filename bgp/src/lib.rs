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

pub mod attributes;
#[cfg(feature = "driver")]
pub mod driver;
pub mod message;
pub mod policy;
pub mod rib;
mod session;
pub mod speaker;
pub mod types;
pub mod wire;

//! The speaker seen from outside, judged by the RFCs.
//!
//! One agentd (or, with `CONFORMANCE_TARGET=bird`, one BIRD, for comparison) with passive peers of
//! all kinds; the peers are sockets that send bytes. Nothing here uses the library under test. Each
//! test starts its own speaker and runs a list of cases; all that fail are told together.

// Tables of cases are lists of tuples.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::type_complexity)]

mod attributes;
mod endurance;
mod handshake;
mod prefixes;
mod propagation;
mod restart;
mod rules;
mod selection;
mod sessions;
mod transport;
mod world;

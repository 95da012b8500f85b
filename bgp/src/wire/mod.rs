//! The BGP wire format: bytes to validated messages, and messages to bytes.
//!
//! ```text
//!   bytes ─► frame ─► decode ─┬─► open ─► capabilities              (negotiate: two OPENs → Negotiated)
//!                             ├─► update ─► attrs ─► validate ─► typed
//!                             │          └► nlri         └► aspath
//!                             └─► notify, keepalive, route refresh
//!   bytes ◄─ encode (open, attributes once per set, UPDATEs packed full)
//! ```
//!
//! Whatever a peer sends becomes a message, a message with faults the session survives, or the
//! NOTIFICATION that ends it; never a panic, and never work or memory beyond a fixed multiple of
//! the message. Faults are classified here, completely, as RFC 7606 says. `typed` alone names the
//! codec library, and only bytes that passed all checks get there.
//!
//! Deliberately absent: anything that needs to know the neighbour, the network or the table. The
//! first AS of a path, loops, our own address as next hop, and martian prefixes are judged by those
//! who know.

mod aspath;
mod attrs;
mod capabilities;
mod decode;
mod encode;
mod frame;
mod nlri;
pub mod notify;
mod open;
mod reader;
mod typed;
mod update;
mod validate;

pub use decode::Decoder;
pub use encode::{
    EncodedAttributes, TooLong, encode_announce, encode_end_of_rib, encode_keepalive,
    encode_notification, encode_route_refresh, encode_withdraw,
};
pub use frame::frame;
pub use nlri::WirePrefix;
pub use notify::attribute_name;
pub use open::{encode_open, negotiate};
pub use typed::format_extended_community;

/// Octets of the message header (RFC 4271 §4.1).
pub const HEADER_LEN: usize = 19;
/// The largest message before RFC 8654, and of any OPEN and KEEPALIVE.
pub const MAX_MESSAGE: u16 = 4096;
/// The largest message after both sides sent the extended message capability (RFC 8654).
pub const MAX_EXTENDED_MESSAGE: u16 = 65_535;

#[cfg(test)]
mod tests;

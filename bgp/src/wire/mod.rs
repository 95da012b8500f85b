//! The BGP wire format: bytes to validated messages, and messages to bytes.

pub mod decode;
pub mod encode;
pub mod frame;
pub mod notify;
pub mod open;

pub use decode::Decoder;
pub use encode::{
    EncodedAttributes, TooLong, WirePrefix, encode_announce, encode_end_of_rib, encode_keepalive,
    encode_notification, encode_route_refresh, encode_withdraw,
};
pub use frame::frame;
pub use open::{encode_open, negotiate};

/// Octets of the message header (RFC 4271 §4.1).
pub const HEADER_LEN: usize = 19;
/// The largest message before RFC 8654, and of any OPEN and KEEPALIVE.
pub const MAX_MESSAGE: u16 = 4096;
/// The largest message after both sides sent the extended message capability (RFC 8654).
pub const MAX_EXTENDED_MESSAGE: u16 = 65_535;

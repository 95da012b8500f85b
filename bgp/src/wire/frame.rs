//! Cutting messages out of a byte stream (RFC 4271 §4.1 and §6.1).
//!
//! The header is the one part of BGP whose faults leave nothing to save: once the length is wrong,
//! the next message cannot be found. So every fault here is a NOTIFICATION.

use super::{HEADER_LEN, MAX_MESSAGE};
use crate::message::Notification;

/// Message types (RFC 4271 §4.1, RFC 2918).
pub(super) mod kind {
    pub(in crate::wire) const OPEN: u8 = 1;
    pub(in crate::wire) const UPDATE: u8 = 2;
    pub(in crate::wire) const NOTIFICATION: u8 = 3;
    pub(in crate::wire) const KEEPALIVE: u8 = 4;
    pub(in crate::wire) const ROUTE_REFRESH: u8 = 5;
}

/// Looks at the start of `buffer`. `Ok(Some(n))`: the first `n` octets are one whole message with a
/// good header. `Ok(None)`: more octets are needed. `Err`: the header is bad, and this NOTIFICATION
/// says why; nothing after it can be trusted.
///
/// The header is judged as soon as its 19 octets are there, so that a bad length is refused before
/// anybody waits for a body, or makes room for it.
pub fn frame(buffer: &[u8], max_message_size: u16) -> Result<Option<usize>, Notification> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let length = check_header(header, max_message_size)?;
    let length = usize::from(length);
    Ok((buffer.len() >= length).then_some(length))
}

/// The length and the type of a message, when both are good.
fn check_header(header: &[u8; HEADER_LEN], max_message_size: u16) -> Result<u16, Notification> {
    let [marker @ .., high, low, message_type] = header;
    let marker: &[u8; 16] = marker;
    // RFC 4271 §6.1: a marker that is not all ones.
    if u128::from_ne_bytes(*marker) != u128::MAX {
        return Err(Notification::connection_not_synchronized());
    }
    let length = u16::from_be_bytes([*high, *low]);
    // RFC 8654 §3: OPEN and KEEPALIVE never grow.
    let (minimum, maximum) = match *message_type {
        kind::OPEN => (29, MAX_MESSAGE),
        kind::UPDATE => (23, max_message_size),
        kind::NOTIFICATION => (21, max_message_size),
        kind::KEEPALIVE => (19, 19),
        kind::ROUTE_REFRESH => (23, max_message_size),
        _ => (19, max_message_size),
    };
    if length < minimum || length > maximum {
        return Err(Notification::bad_message_length(length));
    }
    if !(kind::OPEN..=kind::ROUTE_REFRESH).contains(message_type) {
        return Err(Notification::bad_message_type(*message_type));
    }
    Ok(length)
}

/// Appends a header whose length is still missing, and returns where it starts.
pub(super) fn begin(out: &mut Vec<u8>, message_type: u8) -> usize {
    let start = out.len();
    let mut header = [0xff; HEADER_LEN];
    header[16] = 0;
    header[17] = 0;
    header[18] = message_type;
    out.extend_from_slice(&header);
    start
}

/// Writes the length of the message that starts at `start` and ends where `out` ends.
pub(super) fn finish(out: &mut [u8], start: usize) {
    let length = u16::try_from(out.len() - start).expect("no message is built over 65,535 octets");
    out[start + 16..start + 18].copy_from_slice(&length.to_be_bytes());
}

/// A header whose length is still missing.
#[cfg(test)]
pub(super) fn begin_for_tests(message_type: u8) -> Vec<u8> {
    let mut out = Vec::new();
    begin(&mut out, message_type);
    out
}

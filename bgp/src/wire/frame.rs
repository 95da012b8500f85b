//! Cutting messages out of a byte stream (RFC 4271 §4.1 and §6.1).

use crate::message::Notification;

/// Looks at the start of `buffer`. `Ok(Some(n))`: the first `n` octets are one whole message with a
/// good header. `Ok(None)`: more octets are needed. `Err`: the header is bad, and this NOTIFICATION
/// says why; nothing after it can be trusted.
pub fn frame(buffer: &[u8], max_message_size: u16) -> Result<Option<usize>, Notification> {
    let _ = (buffer, max_message_size);
    unimplemented!()
}

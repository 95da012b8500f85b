//! Messages from bytes.

use crate::message::{Message, Negotiated, Notification};

/// Decodes the messages of one connection.
#[derive(Debug, Default)]
pub struct Decoder {
    negotiated: Negotiated,
}

impl Decoder {
    /// Before the OPENs were exchanged.
    pub fn new() -> Self {
        Self::default()
    }

    /// What holds from now on. Call it after both OPENs are known and before the first UPDATE.
    pub fn set_negotiated(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
    }

    /// What `frame` is to be called with.
    pub fn max_message_size(&self) -> u16 {
        self.negotiated.max_message_size
    }

    /// Decodes one whole message, header included, as `frame` cut it out.
    pub fn decode(&mut self, message: &[u8]) -> Result<Message, Notification> {
        let _ = message;
        unimplemented!()
    }
}

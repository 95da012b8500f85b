//! Messages from bytes.

use super::{
    HEADER_LEN,
    frame::{self, kind},
    open, typed,
    update::Cache,
};
use crate::message::{Message, Negotiated, Notification, RouteRefresh};

/// Decodes the messages of one connection.
///
/// It remembers the attributes of the last UPDATE: speakers send the prefixes of one attribute set
/// one message after the other, and those messages then share one `Arc` and cost no more than
/// their prefixes.
#[derive(Debug, Default)]
pub struct Decoder {
    negotiated: Negotiated,
    cache: Cache,
}

impl Decoder {
    /// Before the OPENs were exchanged.
    pub fn new() -> Self {
        Self::default()
    }

    /// What holds from now on. Call it after both OPENs are known and before the first UPDATE.
    pub fn set_negotiated(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
        // The same bytes may mean something else now.
        self.cache = Cache::default();
    }

    /// What `frame` is to be called with.
    pub fn max_message_size(&self) -> u16 {
        self.negotiated.max_message_size
    }

    /// Decodes one whole message, header included, as `frame` cut it out.
    ///
    /// `Err` is a session reset. Faults that the session survives (RFC 7606) are in
    /// `Update::faults`. Never panics; work and memory are linear in the length of the message.
    pub fn decode(&mut self, message: &[u8]) -> Result<Message, Notification> {
        let whole = frame::frame(message, self.negotiated.max_message_size)?;
        let (Some((header, body)), true) = (
            message.split_first_chunk::<HEADER_LEN>(),
            whole == Some(message.len()),
        ) else {
            // The caller cut it wrong.
            let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
            return Err(Notification::bad_message_length(length));
        };
        let [.., message_type] = *header;
        match message_type {
            kind::UPDATE => self.cache.decode_update(body, &self.negotiated),
            kind::KEEPALIVE => Ok(Message::Keepalive),
            kind::OPEN => Ok(Message::Open(Box::new(open::decode(body)?))),
            kind::NOTIFICATION => notification(body).map(Message::Notification),
            kind::ROUTE_REFRESH => route_refresh(message, body).map(Message::RouteRefresh),
            other => Err(Notification::bad_message_type(other)),
        }
    }
}

fn notification(body: &[u8]) -> Result<Notification, Notification> {
    match *body {
        [code, subcode, ref data @ ..] => Ok(Notification {
            code,
            subcode,
            data: data.to_vec(),
        }),
        // `frame` refused it already.
        _ => Err(Notification::bad_message_length(0)),
    }
}

fn route_refresh(message: &[u8], body: &[u8]) -> Result<RouteRefresh, Notification> {
    let bad_length =
        || Notification::bad_message_length(u16::try_from(message.len()).unwrap_or(u16::MAX));
    if body.len() != 4 {
        // RFC 7313 §5: begin and end of a refresh have exactly four octets.
        return Err(match body.get(2) {
            Some(1 | 2) => Notification::bad_route_refresh_length(message),
            // A request with a filter (RFC 5291), which we never announce to understand.
            _ => bad_length(),
        });
    }
    typed::route_refresh(body).ok_or_else(bad_length)
}

//! NOTIFICATIONs by name, and in words.
//!
//! The constructors are the only place that writes codes, subcodes and data layouts, so a caller
//! says what happened and never which number stands for it. `describe` goes the other way, for
//! what a peer sent. Codes: RFC 4271 §4.5, RFC 4486, RFC 6608, RFC 7313, RFC 8538, RFC 9003,
//! RFC 9234, RFC 9384.

use std::fmt;

use crate::message::Notification;

/// RFC 9003 §2: at most this many octets of shutdown text.
pub const MAX_SHUTDOWN_TEXT: usize = 255;
/// A NOTIFICATION is never longer than an ordinary message, so its data is at most this long.
pub const MAX_DATA: usize = 4096 - 21;

/// Error codes (RFC 4271 §4.5, RFC 7313).
pub mod code {
    pub const MESSAGE_HEADER: u8 = 1;
    pub const OPEN_MESSAGE: u8 = 2;
    pub const UPDATE_MESSAGE: u8 = 3;
    pub const HOLD_TIMER_EXPIRED: u8 = 4;
    pub const FINITE_STATE_MACHINE: u8 = 5;
    pub const CEASE: u8 = 6;
    pub const ROUTE_REFRESH: u8 = 7;
}

/// Subcodes of Cease (RFC 4486, RFC 8538, RFC 9384).
pub mod cease {
    pub const MAXIMUM_PREFIXES: u8 = 1;
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    pub const PEER_DECONFIGURED: u8 = 3;
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    pub const CONNECTION_REJECTED: u8 = 5;
    pub const OTHER_CONFIGURATION_CHANGE: u8 = 6;
    pub const CONNECTION_COLLISION: u8 = 7;
    pub const OUT_OF_RESOURCES: u8 = 8;
    pub const HARD_RESET: u8 = 9;
    pub const BFD_DOWN: u8 = 10;
}

/// In which state an unexpected message came (RFC 6608).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnexpectedIn {
    OpenSent = 1,
    OpenConfirm = 2,
    Established = 3,
}

impl Notification {
    /// Any code, subcode and data; the data is cut to what a message can carry.
    pub fn new(code: u8, subcode: u8, data: &[u8]) -> Self {
        let data = data.get(..MAX_DATA).unwrap_or(data);
        Self {
            code,
            subcode,
            data: data.to_vec(),
        }
    }

    /// 1/1: the marker is not all ones.
    pub fn connection_not_synchronized() -> Self {
        Self::new(code::MESSAGE_HEADER, 1, &[])
    }

    /// 1/2: the length field, which goes back as data.
    pub fn bad_message_length(length: u16) -> Self {
        Self::new(code::MESSAGE_HEADER, 2, &length.to_be_bytes())
    }

    /// 1/3: the type, which goes back as data.
    pub fn bad_message_type(kind: u8) -> Self {
        Self::new(code::MESSAGE_HEADER, 3, &[kind])
    }

    /// 2/0: an OPEN that cannot be parsed.
    pub fn malformed_open() -> Self {
        Self::new(code::OPEN_MESSAGE, 0, &[])
    }

    /// 2/1; the data is the version we speak.
    pub fn unsupported_version() -> Self {
        Self::new(code::OPEN_MESSAGE, 1, &4u16.to_be_bytes())
    }

    /// 2/2: not the configured number, or 0 (RFC 7607).
    pub fn bad_peer_as() -> Self {
        Self::new(code::OPEN_MESSAGE, 2, &[])
    }

    /// 2/3: 0, or ours on an internal session (RFC 6286).
    pub fn bad_bgp_identifier() -> Self {
        Self::new(code::OPEN_MESSAGE, 3, &[])
    }

    /// 2/4.
    pub fn unsupported_optional_parameter() -> Self {
        Self::new(code::OPEN_MESSAGE, 4, &[])
    }

    /// 2/6: 1 or 2 seconds, or less than we accept.
    pub fn unacceptable_hold_time() -> Self {
        Self::new(code::OPEN_MESSAGE, 6, &[])
    }

    /// 2/7; the data is the capabilities that we require, as they stand in an OPEN (RFC 5492 §5).
    pub fn unsupported_capability(capabilities: &[u8]) -> Self {
        Self::new(code::OPEN_MESSAGE, 7, capabilities)
    }

    /// 2/11 (RFC 9234 §4.2).
    pub fn role_mismatch() -> Self {
        Self::new(code::OPEN_MESSAGE, 11, &[])
    }

    /// 3/1: the attribute list cannot be parsed.
    pub fn malformed_attribute_list() -> Self {
        Self::new(code::UPDATE_MESSAGE, 1, &[])
    }

    /// 3/2; the data is the whole attribute.
    pub fn unrecognized_well_known(attribute: &[u8]) -> Self {
        Self::new(code::UPDATE_MESSAGE, 2, attribute)
    }

    /// 3/9; the data is the whole attribute.
    pub fn optional_attribute_error(attribute: &[u8]) -> Self {
        Self::new(code::UPDATE_MESSAGE, 9, attribute)
    }

    /// 3/10: NLRI or withdrawn routes cannot be parsed.
    pub fn invalid_network_field() -> Self {
        Self::new(code::UPDATE_MESSAGE, 10, &[])
    }

    /// 4/0.
    pub fn hold_timer_expired() -> Self {
        Self::new(code::HOLD_TIMER_EXPIRED, 0, &[])
    }

    /// 5/1 to 5/3; the data is the message type (RFC 6608 §4).
    pub fn unexpected_message(state: UnexpectedIn, message_type: u8) -> Self {
        Self::new(code::FINITE_STATE_MACHINE, state as u8, &[message_type])
    }

    /// 6/1; the data is the family and the bound that was passed (RFC 4486 §4).
    pub fn maximum_prefixes(family: crate::types::Family, bound: u32) -> Self {
        let (afi, safi) = family.afi_safi();
        let mut data = afi.to_be_bytes().to_vec();
        data.push(safi);
        data.extend_from_slice(&bound.to_be_bytes());
        Self::new(code::CEASE, cease::MAXIMUM_PREFIXES, &data)
    }

    /// 6/2 with text for the operator at the other end (RFC 9003); cut at 255 octets, between
    /// characters.
    pub fn administrative_shutdown(text: &str) -> Self {
        Self::new(
            code::CEASE,
            cease::ADMINISTRATIVE_SHUTDOWN,
            &shutdown_text(text),
        )
    }

    /// 6/4 with text for the operator at the other end (RFC 9003).
    pub fn administrative_reset(text: &str) -> Self {
        Self::new(
            code::CEASE,
            cease::ADMINISTRATIVE_RESET,
            &shutdown_text(text),
        )
    }

    /// 6/3.
    pub fn peer_deconfigured() -> Self {
        Self::new(code::CEASE, cease::PEER_DECONFIGURED, &[])
    }

    /// 6/5.
    pub fn connection_rejected() -> Self {
        Self::new(code::CEASE, cease::CONNECTION_REJECTED, &[])
    }

    /// 6/6.
    pub fn other_configuration_change() -> Self {
        Self::new(code::CEASE, cease::OTHER_CONFIGURATION_CHANGE, &[])
    }

    /// 6/7.
    pub fn connection_collision() -> Self {
        Self::new(code::CEASE, cease::CONNECTION_COLLISION, &[])
    }

    /// 6/8.
    pub fn out_of_resources() -> Self {
        Self::new(code::CEASE, cease::OUT_OF_RESOURCES, &[])
    }

    /// 6/9 around another NOTIFICATION: the session is not to be restarted gracefully
    /// (RFC 8538 §3).
    pub fn hard_reset(inner: &Notification) -> Self {
        let mut data = vec![inner.code, inner.subcode];
        data.extend_from_slice(&inner.data);
        Self::new(code::CEASE, cease::HARD_RESET, &data)
    }

    /// 6/10 (RFC 9384).
    pub fn bfd_down() -> Self {
        Self::new(code::CEASE, cease::BFD_DOWN, &[])
    }

    /// 7/1; the data is the whole message (RFC 7313 §5).
    pub fn bad_route_refresh_length(message: &[u8]) -> Self {
        Self::new(code::ROUTE_REFRESH, 1, message)
    }

    /// What a Hard Reset encapsulates (RFC 8538 §3).
    pub fn hard_reset_reason(&self) -> Option<Notification> {
        if (self.code, self.subcode) != (code::CEASE, cease::HARD_RESET) {
            return None;
        }
        let [code, subcode, data @ ..] = self.data.as_slice() else {
            return None;
        };
        Some(Notification::new(*code, *subcode, data))
    }

    /// The text of an administrative shutdown or reset, when there is one that keeps to RFC 9003.
    /// It is a peer's text: show it quoted, as here, with control characters escaped by the caller.
    pub fn shutdown_text(&self) -> Option<&str> {
        if self.code != code::CEASE
            || !matches!(
                self.subcode,
                cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET
            )
        {
            return None;
        }
        let (length, rest) = self.data.split_first()?;
        // RFC 9003 §2: a length that does not match, or text that is not UTF-8, is not shown.
        let text = rest.get(..usize::from(*length))?;
        if text.is_empty() {
            return None;
        }
        std::str::from_utf8(text).ok()
    }

    /// For a person: what the code, subcode and data say. Printable text of bounded length.
    pub fn describe(&self) -> String {
        self.to_string()
    }
}

fn shutdown_text(text: &str) -> Vec<u8> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut end = text.len().min(MAX_SHUTDOWN_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut data = Vec::with_capacity(text.len() + 1);
    data.push(u8::try_from(text.len()).expect("cut at 255 above"));
    data.extend_from_slice(text);
    data
}

/// The words for a code and subcode. Unknown ones are told as numbers by the caller.
fn words(code: u8, subcode: u8) -> (Option<&'static str>, Option<&'static str>) {
    let (code_words, subcodes): (_, &[&str]) = match code {
        code::MESSAGE_HEADER => (
            "message header error",
            &[
                "connection not synchronized",
                "bad message length",
                "bad message type",
            ],
        ),
        code::OPEN_MESSAGE => (
            "OPEN message error",
            &[
                "unsupported version number",
                "bad peer AS",
                "bad BGP identifier",
                "unsupported optional parameter",
                "authentication failure",
                "unacceptable hold time",
                "unsupported capability",
                "",
                "",
                "",
                "role mismatch",
            ],
        ),
        code::UPDATE_MESSAGE => (
            "UPDATE message error",
            &[
                "malformed attribute list",
                "unrecognized well-known attribute",
                "missing well-known attribute",
                "attribute flags error",
                "attribute length error",
                "invalid ORIGIN attribute",
                "AS routing loop",
                "invalid NEXT_HOP attribute",
                "optional attribute error",
                "invalid network field",
                "malformed AS_PATH",
            ],
        ),
        code::HOLD_TIMER_EXPIRED => ("hold timer expired", &[]),
        code::FINITE_STATE_MACHINE => (
            "finite state machine error",
            &[
                "unexpected message in OpenSent",
                "unexpected message in OpenConfirm",
                "unexpected message in Established",
            ],
        ),
        code::CEASE => (
            "cease",
            &[
                "maximum number of prefixes reached",
                "administrative shutdown",
                "peer de-configured",
                "administrative reset",
                "connection rejected",
                "other configuration change",
                "connection collision resolution",
                "out of resources",
                "hard reset",
                "BFD down",
            ],
        ),
        code::ROUTE_REFRESH => ("ROUTE-REFRESH message error", &["invalid message length"]),
        _ => return (None, None),
    };
    let subcode_words = usize::from(subcode)
        .checked_sub(1)
        .and_then(|index| subcodes.get(index))
        .copied()
        .filter(|words| !words.is_empty());
    (Some(code_words), subcode_words)
}

/// The name of an attribute type, for messages to people.
pub fn attribute_name(code: u8) -> Option<&'static str> {
    Some(match code {
        1 => "ORIGIN",
        2 => "AS_PATH",
        3 => "NEXT_HOP",
        4 => "MULTI_EXIT_DISC",
        5 => "LOCAL_PREF",
        6 => "ATOMIC_AGGREGATE",
        7 => "AGGREGATOR",
        8 => "COMMUNITIES",
        9 => "ORIGINATOR_ID",
        10 => "CLUSTER_LIST",
        14 => "MP_REACH_NLRI",
        15 => "MP_UNREACH_NLRI",
        16 => "EXTENDED_COMMUNITIES",
        17 => "AS4_PATH",
        18 => "AS4_AGGREGATOR",
        25 => "IPV6_EXTENDED_COMMUNITIES",
        26 => "AIGP",
        32 => "LARGE_COMMUNITIES",
        35 => "ONLY_TO_CUSTOMER",
        _ => return None,
    })
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code_words, subcode_words) = words(self.code, self.subcode);
        match code_words {
            Some(words) => f.write_str(words)?,
            None => f.write_str("unknown error")?,
        }
        match subcode_words {
            Some(words) => write!(f, ": {words}")?,
            None if self.subcode != 0 => f.write_str(": unknown subcode")?,
            None => {}
        }
        write!(f, " ({}/{})", self.code, self.subcode)?;
        self.fmt_data(f)
    }
}

impl Notification {
    fn fmt_data(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.shutdown_text() {
            return write!(f, ", text {text:?}");
        }
        if let Some(inner) = self.hard_reset_reason() {
            // Not recursive: a peer could nest Hard Resets as deep as a message is long.
            let (code_words, subcode_words) = words(inner.code, inner.subcode);
            return write!(
                f,
                ", because of {}{}{} ({}/{})",
                code_words.unwrap_or("unknown error"),
                if subcode_words.is_some() { ": " } else { "" },
                subcode_words.unwrap_or(""),
                inner.code,
                inner.subcode
            );
        }
        match (self.code, self.subcode, self.data.as_slice()) {
            (_, _, []) => Ok(()),
            (1, 2, &[a, b]) => write!(f, ", length {}", u16::from_be_bytes([a, b])),
            (1, 3, &[kind]) => write!(f, ", type {kind}"),
            (2, 1, &[a, b]) => write!(f, ", version {}", u16::from_be_bytes([a, b])),
            (5, 1..=3, &[kind]) => write!(f, ", message type {kind}"),
            (6, 1, &[afi_high, afi_low, safi, a, b, c, d]) => write!(
                f,
                ", AFI {} SAFI {safi}, bound {}",
                u16::from_be_bytes([afi_high, afi_low]),
                u32::from_be_bytes([a, b, c, d])
            ),
            (3, 2..=6 | 8 | 9, &[_, attribute, ..]) => {
                write!(f, ", attribute {attribute}")?;
                if let Some(name) = attribute_name(attribute) {
                    write!(f, " {name}")?;
                }
                fmt_hex(f, &self.data)
            }
            (_, _, data) => fmt_hex(f, data),
        }
    }
}

/// At most 32 octets: what a peer sends must not fill a log.
fn fmt_hex(f: &mut fmt::Formatter<'_>, data: &[u8]) -> fmt::Result {
    f.write_str(", data ")?;
    for octet in data.iter().take(32) {
        write!(f, "{octet:02x}")?;
    }
    if data.len() > 32 {
        write!(f, "… ({} octets)", data.len())?;
    }
    Ok(())
}

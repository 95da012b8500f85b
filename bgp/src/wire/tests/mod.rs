//! Tests of the wire layer, by subject.

#![allow(clippy::unwrap_used)]

mod golden;
mod hostile;
mod messages;
mod oracle;
mod properties;
mod rfc7606;

use super::*;
use crate::message::{Message, Negotiated, Notification, Update};

/// A whole message around a body.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = frame::begin_for_tests(kind);
    out.extend_from_slice(body);
    frame::finish(&mut out, 0);
    out
}

/// Octets from text: `"ff00 0a"`. Blanks and line ends do not count.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2), "odd number of digits");
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Both families, four-octet numbers, an external peer.
fn external() -> Negotiated {
    Negotiated {
        four_octet_as: true,
        families: [true, true],
        ..Negotiated::default()
    }
}

fn internal() -> Negotiated {
    Negotiated {
        internal: true,
        ..external()
    }
}

fn decode_update(negotiated: &Negotiated, body: &[u8]) -> Result<Update, Notification> {
    let mut decoder = Decoder::new();
    decoder.set_negotiated(negotiated.clone());
    match decoder.decode(&message(2, body))? {
        Message::Update(update) => Ok(update),
        other => panic!("an UPDATE became {other:?}"),
    }
}

/// The body of an UPDATE from its three sections.
fn update_body(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(withdrawn.len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    body.extend_from_slice(withdrawn);
    body.extend_from_slice(&u16::try_from(attributes.len()).unwrap().to_be_bytes());
    body.extend_from_slice(attributes);
    body.extend_from_slice(nlri);
    body
}

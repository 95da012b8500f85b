//! Capabilities of the OPEN message (RFC 5492).
//!
//! A capability we do not know is kept as bytes: it is no fault, and an operator may want to see
//! it. One that we know and whose length is impossible is a malformed OPEN.

use super::reader::Reader;
use crate::{message::Capability, types::Asn};

mod code {
    pub(super) const MULTI_PROTOCOL: u8 = 1;
    pub(super) const ROUTE_REFRESH: u8 = 2;
    pub(super) const EXTENDED_NEXT_HOP: u8 = 5;
    pub(super) const EXTENDED_MESSAGE: u8 = 6;
    pub(super) const ROLE: u8 = 9;
    pub(super) const GRACEFUL_RESTART: u8 = 64;
    pub(super) const FOUR_OCTET_AS: u8 = 65;
    pub(super) const ADD_PATH: u8 = 69;
    pub(super) const ENHANCED_ROUTE_REFRESH: u8 = 70;
    pub(super) const LONG_LIVED_GRACEFUL_RESTART: u8 = 71;
    pub(super) const FQDN: u8 = 73;
}

/// RFC 4724 §3 and RFC 8538 §2.
const RESTARTING: u16 = 0x8000;
const NOTIFICATION: u16 = 0x4000;
const RESTART_TIME: u16 = 0x0fff;
const FORWARDING: u8 = 0x80;

/// Decodes the value of one capabilities parameter. `None`: malformed.
pub(super) fn decode(value: &[u8], capabilities: &mut Vec<Capability>) -> Option<()> {
    let mut reader = Reader::new(value);
    while !reader.is_empty() {
        let code = reader.u8()?;
        let length = reader.u8()?;
        let value = reader.take(usize::from(length))?;
        capabilities.push(decode_one(code, value)?);
    }
    Some(())
}

fn decode_one(code: u8, value: &[u8]) -> Option<Capability> {
    let mut reader = Reader::new(value);
    let capability = match code {
        code::MULTI_PROTOCOL => {
            let &[high, low, _reserved, safi] = value else {
                return None;
            };
            Capability::MultiProtocol {
                afi: u16::from_be_bytes([high, low]),
                safi,
            }
        }
        code::ROUTE_REFRESH => empty(value, Capability::RouteRefresh)?,
        code::EXTENDED_NEXT_HOP => {
            let mut families = Vec::new();
            while !reader.is_empty() {
                families.push((reader.u16()?, reader.u16()?, reader.u16()?));
            }
            Capability::ExtendedNextHop(families)
        }
        code::EXTENDED_MESSAGE => empty(value, Capability::ExtendedMessage)?,
        code::ROLE => {
            let &[role] = value else { return None };
            Capability::Role(role)
        }
        code::GRACEFUL_RESTART => {
            let flags = reader.u16()?;
            let mut families = Vec::new();
            while !reader.is_empty() {
                let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
                families.push((afi, safi, flags & FORWARDING != 0));
            }
            Capability::GracefulRestart {
                restarting: flags & RESTARTING != 0,
                notification: flags & NOTIFICATION != 0,
                restart_time: flags & RESTART_TIME,
                families,
            }
        }
        code::FOUR_OCTET_AS => {
            Capability::FourOctetAs(Asn(u32::from_be_bytes(value.try_into().ok()?)))
        }
        code::ADD_PATH => {
            let mut families = Vec::new();
            while !reader.is_empty() {
                let (afi, safi, mode) = (reader.u16()?, reader.u8()?, reader.u8()?);
                // RFC 7911 §4: any other value is as if the family had not been named.
                if (1..=3).contains(&mode) {
                    families.push((afi, safi, mode));
                }
            }
            Capability::AddPath(families)
        }
        code::ENHANCED_ROUTE_REFRESH => empty(value, Capability::EnhancedRouteRefresh)?,
        code::LONG_LIVED_GRACEFUL_RESTART => {
            let mut families = Vec::new();
            while !reader.is_empty() {
                let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
                let [a, b, c] = reader.array()?;
                families.push((
                    afi,
                    safi,
                    flags & FORWARDING != 0,
                    u32::from_be_bytes([0, a, b, c]),
                ));
            }
            Capability::LongLivedGracefulRestart(families)
        }
        // Names for people only: what does not parse is kept as bytes and not held against the peer.
        code::FQDN => decode_fqdn(value).unwrap_or_else(|| unknown(code, value)),
        _ => unknown(code, value),
    };
    Some(capability)
}

fn unknown(code: u8, value: &[u8]) -> Capability {
    Capability::Unknown {
        code,
        value: value.to_vec(),
    }
}

fn empty(value: &[u8], capability: Capability) -> Option<Capability> {
    value.is_empty().then_some(capability)
}

fn decode_fqdn(value: &[u8]) -> Option<Capability> {
    let mut reader = Reader::new(value);
    let length = reader.u8()?;
    let host = reader.take(usize::from(length))?;
    let length = reader.u8()?;
    let domain = reader.take(usize::from(length))?;
    if !reader.is_empty() {
        return None;
    }
    Some(Capability::Fqdn {
        host: std::str::from_utf8(host).ok()?.to_owned(),
        domain: std::str::from_utf8(domain).ok()?.to_owned(),
    })
}

/// Appends code, length and value. A list longer than a capability can be (255 octets, dozens of
/// families) is cut at its last whole entry.
pub(super) fn encode(out: &mut Vec<u8>, capability: &Capability) {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    let room = |out: &Vec<u8>, entry: usize| out.len() - start - 2 + entry <= 255;
    let code = match capability {
        Capability::MultiProtocol { afi, safi } => {
            out.extend_from_slice(&afi.to_be_bytes());
            out.extend_from_slice(&[0, *safi]);
            code::MULTI_PROTOCOL
        }
        Capability::RouteRefresh => code::ROUTE_REFRESH,
        Capability::ExtendedNextHop(families) => {
            for (afi, safi, next_hop) in families {
                if room(out, 6) {
                    out.extend_from_slice(&afi.to_be_bytes());
                    out.extend_from_slice(&safi.to_be_bytes());
                    out.extend_from_slice(&next_hop.to_be_bytes());
                }
            }
            code::EXTENDED_NEXT_HOP
        }
        Capability::ExtendedMessage => code::EXTENDED_MESSAGE,
        Capability::Role(role) => {
            out.push(*role);
            code::ROLE
        }
        Capability::GracefulRestart {
            restarting,
            notification,
            restart_time,
            families,
        } => {
            let mut flags = *restart_time.min(&RESTART_TIME);
            if *restarting {
                flags |= RESTARTING;
            }
            if *notification {
                flags |= NOTIFICATION;
            }
            out.extend_from_slice(&flags.to_be_bytes());
            for (afi, safi, forwarding) in families {
                if room(out, 4) {
                    out.extend_from_slice(&afi.to_be_bytes());
                    out.extend_from_slice(&[*safi, flag(*forwarding)]);
                }
            }
            code::GRACEFUL_RESTART
        }
        Capability::FourOctetAs(asn) => {
            out.extend_from_slice(&asn.0.to_be_bytes());
            code::FOUR_OCTET_AS
        }
        Capability::AddPath(families) => {
            for (afi, safi, mode) in families {
                if room(out, 4) {
                    out.extend_from_slice(&afi.to_be_bytes());
                    out.extend_from_slice(&[*safi, *mode]);
                }
            }
            code::ADD_PATH
        }
        Capability::EnhancedRouteRefresh => code::ENHANCED_ROUTE_REFRESH,
        Capability::LongLivedGracefulRestart(families) => {
            for (afi, safi, forwarding, stale_time) in families {
                if room(out, 7) {
                    out.extend_from_slice(&afi.to_be_bytes());
                    out.extend_from_slice(&[*safi, flag(*forwarding)]);
                    let [_, rest @ ..] = (*stale_time.min(&0x00ff_ffff)).to_be_bytes();
                    out.extend_from_slice(&rest);
                }
            }
            code::LONG_LIVED_GRACEFUL_RESTART
        }
        Capability::Fqdn { host, domain } => {
            // Two lengths and two names of at most 126 octets stay below 255.
            for name in [host, domain] {
                let mut end = name.len().min(126);
                while !name.is_char_boundary(end) {
                    end -= 1;
                }
                out.push(u8::try_from(end).expect("at most 126"));
                out.extend_from_slice(&name.as_bytes()[..end]);
            }
            code::FQDN
        }
        Capability::Unknown { code, value } => {
            out.extend_from_slice(value.get(..255).unwrap_or(value));
            *code
        }
    };
    out[start] = code;
    out[start + 1] = u8::try_from(out.len() - start - 2).expect("every arm stays within 255");
}

fn flag(forwarding: bool) -> u8 {
    if forwarding { FORWARDING } else { 0 }
}

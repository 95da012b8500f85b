//! OPEN (RFC 4271 §4.2), its optional parameters (RFC 5492, RFC 9072), and what two OPENs agree on.
//!
//! Whether the AS number is the configured one, whether the BGP identifier is our own and whether a
//! required capability is missing is the session's affair: the codec does not know the neighbour.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    HEADER_LEN, MAX_EXTENDED_MESSAGE, MAX_MESSAGE, capabilities,
    frame::{self, kind},
    reader::Reader,
};
use crate::{
    message::{Capability, Negotiated, Notification, Open},
    types::{Asn, Family},
};

const VERSION: u8 = 4;
/// The parameter that carries capabilities (RFC 5492 §4).
const CAPABILITIES: u8 = 2;
/// In place of the first parameter type: the extended format follows (RFC 9072 §2).
const EXTENDED: u8 = 255;
/// What remains of an OPEN for the extended parameters: header, fixed part, extended length.
const MAX_PARAMETERS: usize = MAX_MESSAGE as usize - HEADER_LEN - 10 - 3;

/// Decodes the body of an OPEN.
pub(super) fn decode(body: &[u8]) -> Result<Open, Notification> {
    let mut reader = Reader::new(body);
    let malformed = Notification::malformed_open;
    // RFC 4271 §6.2: the version first, since all that follows depends on it.
    if reader.u8().ok_or_else(malformed)? != VERSION {
        return Err(Notification::unsupported_version());
    }
    let two_octet_asn = reader.u16().ok_or_else(malformed)?;
    let hold_time = reader.u16().ok_or_else(malformed)?;
    let router_id = Ipv4Addr::from(reader.u32().ok_or_else(malformed)?);
    let length = reader.u8().ok_or_else(malformed)?;
    let capabilities = decode_parameters(length, reader.rest())?;

    // RFC 6793 §4.1: the capability's number counts when it is there.
    let asn = capabilities
        .iter()
        .rev()
        .find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        })
        .unwrap_or(Asn(u32::from(two_octet_asn)));
    // RFC 7607 §2: 0 is nobody's number, in either field.
    if asn.0 == 0 || two_octet_asn == 0 {
        return Err(Notification::bad_peer_as());
    }
    // RFC 6286 §2.1.
    if router_id.is_unspecified() {
        return Err(Notification::bad_bgp_identifier());
    }
    // RFC 4271 §6.2.
    if matches!(hold_time, 1 | 2) {
        return Err(Notification::unacceptable_hold_time());
    }
    Ok(Open {
        asn,
        hold_time: Duration::from_secs(u64::from(hold_time)),
        router_id,
        capabilities,
    })
}

fn decode_parameters(length: u8, rest: &[u8]) -> Result<Vec<Capability>, Notification> {
    let mut reader = Reader::new(rest);
    let extended = length != 0 && rest.first() == Some(&EXTENDED);
    let announced = if extended {
        // RFC 9072 §2: the one-octet length is ignored, whatever it says.
        reader.u8();
        usize::from(reader.u16().ok_or_else(Notification::malformed_open)?)
    } else {
        usize::from(length)
    };
    if announced != reader.rest().len() {
        return Err(Notification::malformed_open());
    }
    let mut capabilities = Vec::new();
    while !reader.is_empty() {
        let (parameter, value) =
            next_parameter(&mut reader, extended).ok_or_else(Notification::malformed_open)?;
        // RFC 4271 §6.2: a parameter that is not recognized.
        if parameter != CAPABILITIES {
            return Err(Notification::unsupported_optional_parameter());
        }
        // RFC 5492 §4: there may be several, each with any number of capabilities.
        capabilities::decode(value, &mut capabilities).ok_or_else(Notification::malformed_open)?;
    }
    Ok(capabilities)
}

fn next_parameter<'a>(reader: &mut Reader<'a>, extended: bool) -> Option<(u8, &'a [u8])> {
    let parameter = reader.u8()?;
    let length = if extended {
        usize::from(reader.u16()?)
    } else {
        usize::from(reader.u8()?)
    };
    Some((parameter, reader.take(length)?))
}

/// Appends an OPEN message.
///
/// All capabilities go into one parameter, which is what every speaker understands. Only when they
/// take more than that parameter can hold is the extended format used (RFC 9072). Capabilities
/// beyond what one OPEN can carry are left out.
pub fn encode_open(out: &mut Vec<u8>, open: &Open) {
    let mut parameters = Vec::with_capacity(64);
    let mut one = Vec::with_capacity(32);
    for capability in &open.capabilities {
        one.clear();
        capabilities::encode(&mut one, capability);
        if parameters.len() + one.len() + 3 > MAX_PARAMETERS {
            break;
        }
        parameters.extend_from_slice(&one);
    }

    let start = frame::begin(out, kind::OPEN);
    out.push(VERSION);
    out.extend_from_slice(&open.asn.two_octet().to_be_bytes());
    let hold_time = u16::try_from(open.hold_time.as_secs()).unwrap_or(u16::MAX);
    out.extend_from_slice(&hold_time.to_be_bytes());
    out.extend_from_slice(&open.router_id.octets());
    let length = parameters.len();
    if length == 0 {
        out.push(0);
    } else if let (Ok(whole), Ok(length)) = (u8::try_from(length + 2), u8::try_from(length)) {
        out.extend_from_slice(&[whole, CAPABILITIES, length]);
    } else {
        let length = u16::try_from(length).expect("bounded by MAX_PARAMETERS");
        out.extend_from_slice(&[EXTENDED, EXTENDED]);
        out.extend_from_slice(&(length + 3).to_be_bytes());
        out.push(CAPABILITIES);
        out.extend_from_slice(&length.to_be_bytes());
    }
    out.extend_from_slice(&parameters);
    frame::finish(out, start);
}

/// What holds on a session whose sides sent these two OPENs.
pub fn negotiate(local: &Open, remote: &Open) -> Negotiated {
    let both = |capability: &Capability| local.has(capability) && remote.has(capability);
    let families = Family::ALL.map(|family| local.carries(family) && remote.carries(family));
    let mut add_path_receive = [false; 2];
    let mut add_path_send = [false; 2];
    for family in Family::ALL {
        if !families[family.index()] {
            continue;
        }
        let (ours, theirs) = (add_path(local, family), add_path(remote, family));
        // RFC 7911 §4: each direction on its own, when one side sends and the other receives.
        add_path_receive[family.index()] = ours & 1 != 0 && theirs & 2 != 0;
        add_path_send[family.index()] = ours & 2 != 0 && theirs & 1 != 0;
    }
    Negotiated {
        four_octet_as: has_four_octet_as(local) && has_four_octet_as(remote),
        internal: local.asn == remote.asn,
        families,
        add_path_receive,
        add_path_send,
        extended_next_hop: families[Family::Ipv4Unicast.index()]
            && extended_next_hop(local)
            && extended_next_hop(remote),
        // RFC 8654 §4: only when both sides can receive them.
        max_message_size: if both(&Capability::ExtendedMessage) {
            MAX_EXTENDED_MESSAGE
        } else {
            MAX_MESSAGE
        },
        route_refresh: both(&Capability::RouteRefresh),
        enhanced_route_refresh: both(&Capability::EnhancedRouteRefresh),
        long_lived_sent: local.long_lived_graceful_restart().is_some(),
        long_lived_received: remote.long_lived_graceful_restart().is_some(),
    }
}

fn has_four_octet_as(open: &Open) -> bool {
    open.capabilities
        .iter()
        .any(|capability| matches!(capability, Capability::FourOctetAs(_)))
}

/// Whether IPv4 unicast with an IPv6 next hop is among RFC 8950's tuples.
fn extended_next_hop(open: &Open) -> bool {
    open.capabilities.iter().any(|capability| {
        matches!(capability, Capability::ExtendedNextHop(tuples) if tuples.contains(&(1, 1, 2)))
    })
}

/// RFC 7911 §4: 1 receive, 2 send, 3 both; 0 for a family that is not named.
fn add_path(open: &Open, family: Family) -> u8 {
    let wanted = family.afi_safi();
    open.capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::AddPath(families) => Some(families),
            _ => None,
        })
        .flatten()
        .filter(|(afi, safi, _)| (*afi, *safi) == wanted)
        .fold(0, |modes, (_, _, mode)| modes | mode)
}

//! Messages to bytes. Every function appends whole messages to `out`.
//!
//! Attributes are encoded once for each attribute set and session flavour, then copied into as many
//! UPDATEs as their prefixes need. Attributes stand in ascending order, with MP_REACH_NLRI before
//! all of them (RFC 7606 §5.1), so that equal routes give equal bytes.

use std::net::IpAddr;

use super::{
    HEADER_LEN, aspath,
    aspath::Width,
    attrs::{code, flag},
    frame::{self, kind},
    nlri::{self, WirePrefix},
    notify, typed,
};
use crate::{
    attributes::{Aggregator, Attributes, NextHop, UnknownAttribute},
    message::{Negotiated, Nlri, Notification, RouteRefresh},
    types::{Asn, Family},
};

/// The attributes leave no room for even one prefix in a message of the negotiated size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attributes do not fit into one message")]
pub struct TooLong;

/// Attributes encoded once for sessions with equal parameters, reused for many messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncodedAttributes {
    family: Family,
    /// All but MP_REACH_NLRI.
    bytes: Vec<u8>,
    /// The next hop of MP_REACH_NLRI; `None` where NEXT_HOP in `bytes` says it.
    mp_next_hop: Option<MpNextHop>,
    /// An attribute is longer than its length field can say.
    too_long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MpNextHop {
    octets: [u8; 32],
    length: u8,
}

impl MpNextHop {
    fn new(next_hop: NextHop) -> Self {
        let mut octets = [0; 32];
        let address = match next_hop.address {
            // IPv6 prefixes know no IPv4 next hop; the mapped address is what speakers agree on.
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        octets[..16].copy_from_slice(&address.octets());
        let mut length = 16;
        // RFC 2545 §3.
        if let Some(link_local) = next_hop.link_local {
            octets[16..].copy_from_slice(&link_local.octets());
            length = 32;
        }
        Self { octets, length }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

impl EncodedAttributes {
    /// For NLRI of `family` on a session with these parameters. LOCAL_PREF, ORIGINATOR_ID and
    /// CLUSTER_LIST are left out towards external peers; everything else is sent as it stands.
    /// IPv4 prefixes with an IPv6 next hop take the form of RFC 8950: whether the peer can read it
    /// (`Negotiated::extended_next_hop`) is the caller's to know.
    pub fn new(attributes: &Attributes, negotiated: &Negotiated, family: Family) -> Self {
        let mut writer = Writer {
            out: Vec::with_capacity(64),
            too_long: false,
        };
        let mut unknown = attributes.unknown.iter().peekable();
        let mp_next_hop = match (family, attributes.next_hop.address) {
            (Family::Ipv4Unicast, IpAddr::V4(_)) => None,
            _ => Some(MpNextHop::new(attributes.next_hop)),
        };
        for known in ORDER {
            while let Some(attribute) = unknown.next_if(|attribute| attribute.code < known) {
                writer.unknown(attribute);
            }
            writer.known(known, attributes, negotiated, mp_next_hop.is_none());
        }
        for attribute in unknown {
            writer.unknown(attribute);
        }
        Self {
            family,
            bytes: writer.out,
            mp_next_hop,
            too_long: writer.too_long,
        }
    }

    /// The family of the NLRI these go with.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The octets of the path attributes, MP_REACH_NLRI not among them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What `Writer::known` writes, ascending.
const ORDER: [u8; 15] = [
    code::ORIGIN,
    code::AS_PATH,
    code::NEXT_HOP,
    code::MULTI_EXIT_DISC,
    code::LOCAL_PREF,
    code::ATOMIC_AGGREGATE,
    code::AGGREGATOR,
    code::COMMUNITIES,
    code::ORIGINATOR_ID,
    code::CLUSTER_LIST,
    code::EXTENDED_COMMUNITIES,
    code::AS4_PATH,
    code::AS4_AGGREGATOR,
    code::LARGE_COMMUNITIES,
    code::ONLY_TO_CUSTOMER,
];

const WELL_KNOWN: u8 = flag::TRANSITIVE;
const NON_TRANSITIVE: u8 = flag::OPTIONAL;
const TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;

struct Writer {
    out: Vec<u8>,
    too_long: bool,
}

impl Writer {
    fn known(&mut self, code: u8, attributes: &Attributes, negotiated: &Negotiated, in_body: bool) {
        let width = Width::of(negotiated.four_octet_as);
        // RFC 4271 §5: what somebody before us passed on without knowing it stays Partial.
        let transitive = if attributes.partial.contains(code) {
            TRANSITIVE | flag::PARTIAL
        } else {
            TRANSITIVE
        };
        match code {
            code::ORIGIN => typed::put_origin(&mut self.out, attributes.origin),
            code::AS_PATH => self.attribute(WELL_KNOWN, code, |out| {
                aspath::encode(out, &attributes.as_path, width);
            }),
            code::NEXT_HOP => {
                if let (true, IpAddr::V4(address)) = (in_body, attributes.next_hop.address) {
                    typed::put_next_hop(&mut self.out, address);
                }
            }
            code::MULTI_EXIT_DISC => {
                if let Some(med) = attributes.med {
                    typed::put_med(&mut self.out, med);
                }
            }
            // RFC 4271 §5.1.5: never to an external peer.
            code::LOCAL_PREF if negotiated.internal => {
                if let Some(local_pref) = attributes.local_pref {
                    typed::put_local_pref(&mut self.out, local_pref);
                }
            }
            code::ATOMIC_AGGREGATE if attributes.atomic_aggregate => {
                self.attribute(WELL_KNOWN, code, |_| {});
            }
            code::AGGREGATOR => {
                if let Some(aggregator) = &attributes.aggregator {
                    self.aggregator(transitive, code, aggregator, width);
                }
            }
            code::COMMUNITIES if !attributes.communities.is_empty() => {
                self.attribute(transitive, code, |out| {
                    for community in &attributes.communities {
                        out.extend_from_slice(&community.to_be_bytes());
                    }
                });
            }
            // RFC 4456 §8: non-transitive, and of no meaning outside of the AS.
            code::ORIGINATOR_ID if negotiated.internal => {
                if let Some(id) = attributes.originator_id {
                    typed::put_originator_id(&mut self.out, id);
                }
            }
            code::CLUSTER_LIST if negotiated.internal && !attributes.cluster_list.is_empty() => {
                self.attribute(NON_TRANSITIVE, code, |out| {
                    for id in &attributes.cluster_list {
                        out.extend_from_slice(&id.octets());
                    }
                });
            }
            code::EXTENDED_COMMUNITIES if !attributes.extended_communities.is_empty() => {
                self.attribute(transitive, code, |out| {
                    typed::put_extended_communities(out, &attributes.extended_communities);
                });
            }
            // RFC 6793 §4.2.2: what two octets could not say.
            code::AS4_PATH if width == Width::Two && aspath::needs_as4(&attributes.as_path) => {
                let path = aspath::without_confederation(attributes.as_path.clone());
                self.attribute(transitive, code, |out| {
                    aspath::encode(out, &path, Width::Four);
                });
            }
            code::AS4_AGGREGATOR if width == Width::Two => {
                if let Some(aggregator) = attributes
                    .aggregator
                    .filter(|aggregator| aggregator.asn.0 > u32::from(u16::MAX))
                {
                    self.aggregator(transitive, code, &aggregator, Width::Four);
                }
            }
            code::LARGE_COMMUNITIES if !attributes.large_communities.is_empty() => {
                self.attribute(transitive, code, |out| {
                    typed::put_large_communities(out, &attributes.large_communities);
                });
            }
            code::ONLY_TO_CUSTOMER => {
                if let Some(Asn(asn)) = attributes.only_to_customer {
                    self.attribute(transitive, code, |out| {
                        out.extend_from_slice(&asn.to_be_bytes());
                    });
                }
            }
            _ => {}
        }
    }

    fn aggregator(&mut self, flags: u8, code: u8, aggregator: &Aggregator, width: Width) {
        self.attribute(flags, code, |out| {
            match width {
                Width::Two => out.extend_from_slice(&aggregator.asn.two_octet().to_be_bytes()),
                Width::Four => out.extend_from_slice(&aggregator.asn.0.to_be_bytes()),
            }
            out.extend_from_slice(&aggregator.address.octets());
        });
    }

    /// RFC 4271 §9: who passes on what it does not understand says so with the Partial bit.
    fn unknown(&mut self, attribute: &UnknownAttribute) {
        self.attribute(TRANSITIVE | flag::PARTIAL, attribute.code, |out| {
            out.extend_from_slice(&attribute.value);
        });
    }

    /// Writes an attribute whose value may be of any length.
    fn attribute(&mut self, flags: u8, code: u8, value: impl FnOnce(&mut Vec<u8>)) {
        let out = &mut self.out;
        let start = out.len();
        out.extend_from_slice(&[flags, code, 0]);
        value(out);
        let length = out.len() - start - 3;
        if let Ok(length) = u8::try_from(length) {
            out[start + 2] = length;
        } else if let Ok(length) = u16::try_from(length) {
            out[start] |= flag::EXTENDED_LENGTH;
            let [high, low] = length.to_be_bytes();
            out[start + 2] = high;
            out.insert(start + 3, low);
        } else {
            out.truncate(start);
            self.too_long = true;
        }
    }
}

/// Appends one UPDATE that announces as many of `nlri` as fit, and says how many: at least one, or
/// none when `nlri` is empty, and then nothing is appended. `attributes` must have been made for
/// this family.
pub fn encode_announce<P: WirePrefix>(
    out: &mut Vec<u8>,
    negotiated: &Negotiated,
    attributes: &EncodedAttributes,
    nlri: &[Nlri<P>],
) -> Result<usize, TooLong> {
    debug_assert_eq!(attributes.family, P::FAMILY, "attributes of another family");
    if nlri.is_empty() {
        return Ok(0);
    }
    if attributes.too_long || attributes.family != P::FAMILY {
        return Err(TooLong);
    }
    let add_path = negotiated.add_path_send[P::FAMILY.index()];
    let max = usize::from(negotiated.max_message_size);
    let start = frame::begin(out, kind::UPDATE);
    // No withdrawn routes; the length of the attributes follows below.
    out.extend_from_slice(&[0, 0, 0, 0]);
    let attributes_start = out.len();
    let taken = match &attributes.mp_next_hop {
        None => {
            out.extend_from_slice(&attributes.bytes);
            let room = max.checked_sub(out.len() - start);
            set_u16(out, attributes_start - 2, attributes_start);
            room.map_or(0, |room| nlri::encode(out, nlri, add_path, room))
        }
        Some(next_hop) => {
            begin_mp(out, code::MP_REACH_NLRI, P::FAMILY);
            out.push(next_hop.length);
            out.extend_from_slice(next_hop.as_bytes());
            // Reserved.
            out.push(0);
            let room = max.checked_sub(out.len() - start + attributes.bytes.len());
            let taken = room.map_or(0, |room| nlri::encode(out, nlri, add_path, room));
            finish_mp(out, attributes_start);
            out.extend_from_slice(&attributes.bytes);
            set_u16(out, attributes_start - 2, attributes_start);
            taken
        }
    };
    if taken == 0 {
        out.truncate(start);
        return Err(TooLong);
    }
    frame::finish(out, start);
    Ok(taken)
}

/// Appends one UPDATE that withdraws as many of `nlri` as fit, and says how many (0 only when
/// `nlri` is empty; then nothing is appended).
pub fn encode_withdraw<P: WirePrefix>(
    out: &mut Vec<u8>,
    negotiated: &Negotiated,
    nlri: &[Nlri<P>],
) -> usize {
    if nlri.is_empty() {
        return 0;
    }
    let add_path = negotiated.add_path_send[P::FAMILY.index()];
    let max = usize::from(negotiated.max_message_size);
    let start = frame::begin(out, kind::UPDATE);
    let taken = match P::FAMILY {
        Family::Ipv4Unicast => {
            out.extend_from_slice(&[0, 0]);
            let room = max - HEADER_LEN - 4;
            let nlri_start = out.len();
            let taken = nlri::encode(out, nlri, add_path, room);
            set_u16(out, nlri_start - 2, nlri_start);
            // No attributes.
            out.extend_from_slice(&[0, 0]);
            taken
        }
        Family::Ipv6Unicast => {
            out.extend_from_slice(&[0, 0, 0, 0]);
            let attributes_start = out.len();
            begin_mp(out, code::MP_UNREACH_NLRI, P::FAMILY);
            let room = max - (out.len() - start);
            let taken = nlri::encode(out, nlri, add_path, room);
            finish_mp(out, attributes_start);
            set_u16(out, attributes_start - 2, attributes_start);
            taken
        }
    };
    frame::finish(out, start);
    taken
}

/// Flags, code, length (two octets, filled in by `finish_mp`), AFI and SAFI.
fn begin_mp(out: &mut Vec<u8>, code: u8, family: Family) {
    let (afi, safi) = family.afi_safi();
    let [high, low] = afi.to_be_bytes();
    let flags = flag::OPTIONAL | flag::EXTENDED_LENGTH;
    out.extend_from_slice(&[flags, code, 0, 0, high, low, safi]);
}

fn finish_mp(out: &mut [u8], start: usize) {
    set_u16(out, start + 2, start + 4);
}

/// Writes at `at` how many octets stand from `from` to the end.
fn set_u16(out: &mut [u8], at: usize, from: usize) {
    // What is longer is thrown away by the caller, which found no room.
    let length = u16::try_from(out.len() - from).unwrap_or(u16::MAX);
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

/// Appends the End-of-RIB marker of a family (RFC 4724 §2).
pub fn encode_end_of_rib(out: &mut Vec<u8>, family: Family) {
    let start = frame::begin(out, kind::UPDATE);
    match family {
        Family::Ipv4Unicast => out.extend_from_slice(&[0, 0, 0, 0]),
        Family::Ipv6Unicast => {
            let (afi, safi) = family.afi_safi();
            let [high, low] = afi.to_be_bytes();
            out.extend_from_slice(&[0, 0, 0, 6]);
            out.extend_from_slice(&[flag::OPTIONAL, code::MP_UNREACH_NLRI, 3, high, low, safi]);
        }
    }
    frame::finish(out, start);
}

/// Appends a KEEPALIVE.
pub fn encode_keepalive(out: &mut Vec<u8>) {
    let start = frame::begin(out, kind::KEEPALIVE);
    frame::finish(out, start);
}

/// Appends a NOTIFICATION; its data is cut where the message would be too long.
pub fn encode_notification(out: &mut Vec<u8>, notification: &Notification) {
    let start = frame::begin(out, kind::NOTIFICATION);
    out.extend_from_slice(&[notification.code, notification.subcode]);
    let data = notification.data.as_slice();
    out.extend_from_slice(data.get(..notify::MAX_DATA).unwrap_or(data));
    frame::finish(out, start);
}

/// Appends a ROUTE-REFRESH (RFC 2918, RFC 7313).
pub fn encode_route_refresh(out: &mut Vec<u8>, refresh: &RouteRefresh) {
    let start = frame::begin(out, kind::ROUTE_REFRESH);
    typed::put_route_refresh(out, refresh);
    frame::finish(out, start);
}

//! UPDATE (RFC 4271 §4.3 and §6.3, RFC 4760, RFC 7606).
//!
//! The sections are split by their lengths first. Attributes and prefixes are then judged on their
//! own: bad attributes leave the prefixes readable, so that these can be withdrawn; prefixes that
//! cannot be read leave nothing to rely on and reset the session.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};
use smallvec::SmallVec;

use super::{
    attrs::{Tlv, Walk, code, flag},
    nlri,
    reader::Reader,
    validate::{self, Collected, Faults},
};
use crate::{
    attributes::{Attributes, NextHop},
    message::{Announced, Disposition, Message, Negotiated, NlriList, Notification, Update},
    types::Family,
};

/// The attributes of the last UPDATE that announced and had no fault.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// All attributes but MP_REACH_NLRI, as they came. Empty: nothing is cached, since no UPDATE
    /// without attributes announces anything.
    block: Vec<u8>,
    /// What stands before the prefixes in the value of MP_REACH_NLRI: family and next hop. Empty
    /// for prefixes of the body.
    mp_head: Vec<u8>,
    family: Option<Family>,
    attributes: Option<Arc<Attributes>>,
}

/// MP_REACH_NLRI, taken apart.
struct MpReach<'a> {
    /// `None`: not negotiated, and not looked into.
    known: Option<(Family, NextHop)>,
    /// All before the prefixes.
    head: &'a [u8],
    nlri: &'a [u8],
}

/// What MP_REACH_NLRI announces.
struct Reached<'a> {
    head: &'a [u8],
    family: Family,
    next_hop: NextHop,
    nlri: NlriList,
}

impl Cache {
    /// Decodes the body of an UPDATE.
    #[inline]
    pub(super) fn decode_update(
        &mut self,
        body: &[u8],
        negotiated: &Negotiated,
    ) -> Result<Message, Notification> {
        let (withdrawn, attributes, announced) =
            split(body).ok_or_else(Notification::malformed_attribute_list)?;
        if withdrawn.is_empty() {
            if let Some(hit) = self.lookup(attributes, announced, negotiated) {
                return hit;
            }
            if body == [0, 0, 0, 0] {
                return Ok(Message::Update(end_of_rib(Family::Ipv4Unicast, negotiated)));
            }
        } else if body.len() == withdrawn.len() + 4
            && negotiated.families[Family::Ipv4Unicast.index()]
        {
            // It withdraws, and that is all.
            return body_nlri(withdrawn, negotiated).map(|list| {
                Message::Update(Update {
                    withdrawn: SmallVec::from_buf([list]),
                    announced: SmallVec::new(),
                    end_of_rib: None,
                    faults: Vec::new(),
                })
            });
        }
        self.decode_slowly(withdrawn, attributes, announced, negotiated)
            .map(Message::Update)
    }

    /// An UPDATE that only announces, with the attributes of the last one.
    #[inline(always)]
    fn lookup(
        &self,
        attributes: &[u8],
        announced: &[u8],
        negotiated: &Negotiated,
    ) -> Option<Result<Message, Notification>> {
        let cached = self.attributes.as_ref()?;
        let nlri = match self.family {
            None => {
                if announced.is_empty() || self.block != attributes {
                    return None;
                }
                body_nlri(announced, negotiated)
            }
            Some(family) => {
                if !announced.is_empty() {
                    return None;
                }
                let (tlv, before, after) = find_mp_reach(attributes)?;
                let (first, last) = self.block.split_at_checked(before.len())?;
                let nlri = tlv.value.strip_prefix(self.mp_head.as_slice())?;
                if nlri.is_empty() || first != before || last != after {
                    return None;
                }
                decode_nlri(family, nlri, negotiated)
                    .ok_or_else(|| Notification::optional_attribute_error(tlv.whole))
            }
        };
        Some(nlri.map(|nlri| {
            // Field by field: taking the rest from a default costs as much as the prefix.
            Message::Update(Update {
                withdrawn: SmallVec::new(),
                announced: SmallVec::from_buf([Announced {
                    attributes: Arc::clone(cached),
                    nlri,
                }]),
                end_of_rib: None,
                faults: Vec::new(),
            })
        }))
    }

    #[inline(never)]
    fn decode_slowly(
        &mut self,
        withdrawn: &[u8],
        attributes: &[u8],
        announced: &[u8],
        negotiated: &Negotiated,
    ) -> Result<Update, Notification> {
        let mut collected = validate::collect(attributes, negotiated)?;
        let mut update = Update::default();

        let v4 = negotiated.families[Family::Ipv4Unicast.index()];
        if !withdrawn.is_empty() {
            let list = body_nlri(withdrawn, negotiated)?;
            if v4 {
                update.withdrawn.push(list);
            } else {
                ignored(&mut collected.faults, 0, "withdrawn IPv4 prefixes");
            }
        }
        let mut body = None;
        if !announced.is_empty() {
            let list = body_nlri(announced, negotiated)?;
            if v4 {
                body = Some(list);
            } else {
                ignored(&mut collected.faults, 0, "IPv4 prefixes");
            }
        }
        if let Some(tlv) = collected.mp_unreach {
            let alone = withdrawn.is_empty() && announced.is_empty() && !collected.has_others;
            mp_unreach(tlv, alone, negotiated, &mut collected.faults, &mut update)?;
        }
        let reach = collected
            .mp_reach
            .map(|tlv| mp_reach(tlv, negotiated).map(|reach| (tlv, reach)))
            .transpose()?;
        let mut reached = None;
        if let Some((tlv, reach)) = &reach {
            match reach.known {
                Some((family, next_hop)) => {
                    let nlri = decode_nlri(family, reach.nlri, negotiated)
                        .ok_or_else(|| Notification::optional_attribute_error(tlv.whole))?;
                    if !nlri.is_empty() {
                        reached = Some(Reached {
                            head: reach.head,
                            family,
                            next_hop,
                            nlri,
                        });
                    }
                }
                None => ignored(&mut collected.faults, tlv.code, "prefixes"),
            }
        }

        let announces = body.is_some() || reached.is_some();
        if announces {
            collected.require_mandatory(body.is_some());
        }
        check_next_hops(&mut collected, body.is_some(), reached.as_ref());

        // RFC 7606 §5.2: with attributes in doubt and no reachable prefix in sight, it is not sure
        // that there was none.
        let has_reachable = !announced.is_empty() || reach.is_some_and(|(_, r)| !r.nlri.is_empty());
        if collected.faults.is_withdraw() && collected.has_others && !has_reachable {
            return Err(Notification::malformed_attribute_list());
        }

        update.faults = std::mem::take(&mut collected.faults.list);
        if collected.faults.is_withdraw() || !announces {
            update.withdrawn.extend(body);
            update.withdrawn.extend(reached.map(|reached| reached.nlri));
            return Ok(update);
        }
        let clean = collected.faults.is_empty() && collected.mp_unreach.is_none();
        let body_next_hop = collected.next_hop.map(|a| NextHop::from(IpAddr::V4(a)));
        let first_hop = match (&body, &reached) {
            (Some(_), _) => body_next_hop,
            (None, reached) => reached.as_ref().map(|reached| reached.next_hop),
        };
        // Neither can be missing: that would have been a fault above.
        let made = first_hop.and_then(|next_hop| collected.into_attributes(next_hop));
        let Some(made) = made else {
            update.withdrawn.extend(body);
            update.withdrawn.extend(reached.map(|reached| reached.nlri));
            return Ok(update);
        };
        let made = Arc::new(made);
        if clean {
            self.remember(attributes, body.is_some(), reached.as_ref(), &made);
        }
        let both = body.is_some();
        update.announced.extend(body.map(|nlri| Announced {
            attributes: Arc::clone(&made),
            nlri,
        }));
        update
            .announced
            .extend(reached.map(|Reached { next_hop, nlri, .. }| {
                let attributes = if both {
                    let mut other = Attributes::clone(&made);
                    other.next_hop = next_hop;
                    Arc::new(other)
                } else {
                    made
                };
                Announced { attributes, nlri }
            }));
        Ok(update)
    }

    fn remember(
        &mut self,
        block: &[u8],
        body: bool,
        reached: Option<&Reached<'_>>,
        attributes: &Arc<Attributes>,
    ) {
        self.attributes = None;
        self.block.clear();
        self.mp_head.clear();
        match (body, reached) {
            (true, None) => {
                // An MP_REACH_NLRI without prefixes is not worth a case of its own.
                if find_mp_reach(block).is_some() {
                    return;
                }
                self.block.extend_from_slice(block);
                self.family = None;
            }
            (false, Some(reached)) => {
                let Some((_, before, after)) = find_mp_reach(block) else {
                    return;
                };
                self.block.extend_from_slice(before);
                self.block.extend_from_slice(after);
                self.mp_head.extend_from_slice(reached.head);
                self.family = Some(reached.family);
            }
            _ => return,
        }
        self.attributes = Some(Arc::clone(attributes));
    }
}

/// Withdrawn routes, path attributes, NLRI (RFC 4271 §4.3). `None`: lengths that exceed the message.
#[inline]
fn split(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut reader = Reader::new(body);
    let length = reader.u16()?;
    let withdrawn = reader.take(usize::from(length))?;
    let length = reader.u16()?;
    let attributes = reader.take(usize::from(length))?;
    Some((withdrawn, attributes, reader.rest()))
}

/// The MP_REACH_NLRI of a list with good flags on it, and what stands before and after it. Walks
/// only that far.
#[inline]
fn find_mp_reach(attributes: &[u8]) -> Option<(Tlv<'_>, &[u8], &[u8])> {
    let mut walk = Walk::new(attributes);
    loop {
        let before = attributes.len() - walk.rest().len();
        let tlv = walk.next()?.ok()?;
        if tlv.code == code::MP_REACH_NLRI {
            if tlv.flags & (flag::OPTIONAL | flag::TRANSITIVE) != flag::OPTIONAL {
                return None;
            }
            return Some((tlv, attributes.get(..before)?, walk.rest()));
        }
    }
}

/// RFC 7606 §5.3: prefixes that cannot be read reset the session.
#[inline]
fn body_nlri(bytes: &[u8], negotiated: &Negotiated) -> Result<NlriList, Notification> {
    decode_nlri(Family::Ipv4Unicast, bytes, negotiated)
        .ok_or_else(Notification::invalid_network_field)
}

#[inline]
fn decode_nlri(family: Family, bytes: &[u8], negotiated: &Negotiated) -> Option<NlriList> {
    let add_path = negotiated.add_path_receive[family.index()];
    match family {
        Family::Ipv4Unicast => nlri::decode::<Ipv4Net>(bytes, add_path)
            .ok()
            .map(NlriList::Ipv4),
        Family::Ipv6Unicast => nlri::decode::<Ipv6Net>(bytes, add_path)
            .ok()
            .map(NlriList::Ipv6),
    }
}

fn end_of_rib(family: Family, negotiated: &Negotiated) -> Update {
    let mut update = Update::default();
    if negotiated.families[family.index()] {
        update.end_of_rib = Some(family);
    } else {
        let mut faults = Faults::default();
        ignored(&mut faults, 0, "an End-of-RIB marker");
        update.faults = faults.list;
    }
    update
}

fn ignored(faults: &mut Faults, attribute: u8, what: &str) {
    faults.add(Disposition::Ignored, attribute, || {
        format!("{what} of a family that was not negotiated")
    });
}

/// RFC 4760 §3, RFC 2545 §3, RFC 8950 §3. `Err`: without a good next hop length the prefixes cannot
/// be found (RFC 7606 §7.11).
#[inline]
fn mp_reach<'a>(tlv: Tlv<'a>, negotiated: &Negotiated) -> Result<MpReach<'a>, Notification> {
    let malformed = || Notification::optional_attribute_error(tlv.whole);
    let mut reader = Reader::new(tlv.value);
    let (afi, safi, length) =
        (|| Some((reader.u16()?, reader.u8()?, reader.u8()?)))().ok_or_else(malformed)?;
    let bytes = reader.take(usize::from(length)).ok_or_else(malformed)?;
    // The reserved octet.
    reader.u8().ok_or_else(malformed)?;
    let nlri = reader.rest();
    let (head, _) = tlv
        .value
        .split_at_checked(tlv.value.len() - nlri.len())
        .ok_or_else(malformed)?;
    let family = Family::from_afi_safi(afi, safi).filter(|f| negotiated.families[f.index()]);
    let Some(family) = family else {
        return Ok(MpReach {
            known: None,
            head,
            nlri,
        });
    };
    let next_hop = match (family, bytes.len()) {
        (Family::Ipv4Unicast, 4) => bytes
            .first_chunk::<4>()
            .map(|octets| NextHop::from(IpAddr::V4(Ipv4Addr::from(*octets)))),
        (Family::Ipv4Unicast, 16 | 32) if negotiated.extended_next_hop => v6_next_hop(bytes),
        (Family::Ipv6Unicast, 16 | 32) => v6_next_hop(bytes),
        _ => None,
    }
    .ok_or_else(malformed)?;
    Ok(MpReach {
        known: Some((family, next_hop)),
        head,
        nlri,
    })
}

/// One address, or a global and a link-local one. Peers without a global address put zeros or the
/// link-local address itself in its place: then the link-local one is the next hop.
fn v6_next_hop(bytes: &[u8]) -> Option<NextHop> {
    let (first, rest) = bytes.split_first_chunk::<16>()?;
    let address = Ipv6Addr::from(*first);
    let second = rest
        .first_chunk::<16>()
        .map(|octets| Ipv6Addr::from(*octets))
        .filter(Ipv6Addr::is_unicast_link_local);
    Some(match second {
        Some(link_local) if address.is_unspecified() || address.is_unicast_link_local() => {
            NextHop::from(IpAddr::V6(link_local))
        }
        link_local => NextHop {
            address: IpAddr::V6(address),
            link_local,
            interface: 0,
        },
    })
}

/// RFC 4760 §4, RFC 7606 §7.12. `alone`: there is nothing else in the UPDATE.
fn mp_unreach(
    tlv: Tlv<'_>,
    alone: bool,
    negotiated: &Negotiated,
    faults: &mut Faults,
    update: &mut Update,
) -> Result<(), Notification> {
    let malformed = || Notification::optional_attribute_error(tlv.whole);
    let mut reader = Reader::new(tlv.value);
    let (afi, safi) = (|| Some((reader.u16()?, reader.u8()?)))().ok_or_else(malformed)?;
    let family = Family::from_afi_safi(afi, safi).filter(|f| negotiated.families[f.index()]);
    let Some(family) = family else {
        ignored(faults, tlv.code, "withdrawn prefixes");
        return Ok(());
    };
    let list = decode_nlri(family, reader.rest(), negotiated).ok_or_else(malformed)?;
    if !list.is_empty() {
        update.withdrawn.push(list);
    } else if alone {
        // RFC 4724 §2: nothing but an empty MP_UNREACH_NLRI.
        update.end_of_rib = Some(family);
    }
    Ok(())
}

/// RFC 4271 §6.3: a next hop that can be nobody's address makes its prefixes unusable; the session
/// goes on. Whether it is our own address or on a shared subnet is for those who know the network.
fn check_next_hops(collected: &mut Collected<'_>, body: bool, reached: Option<&Reached<'_>>) {
    // NEXT_HOP beside nothing but MP_REACH_NLRI has no meaning (RFC 4760 §3).
    let in_body = collected.next_hop.filter(|_| body).map(IpAddr::V4);
    let in_mp = reached.map(|reached| reached.next_hop.address);
    for (attribute, address) in [(code::NEXT_HOP, in_body), (code::MP_REACH_NLRI, in_mp)] {
        if let Some(address) = address.filter(|address| !is_host(*address)) {
            collected
                .faults
                .add(Disposition::TreatAsWithdraw, attribute, || {
                    format!("next hop {address}, which is no host's address")
                });
        }
    }
}

/// Whether an address can be that of a host: not 0/8, loopback, multicast or class E, nor what
/// IPv6 has in their place.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !matches!(address.octets(), [0 | 127 | 224..=255, ..]),
        IpAddr::V6(address) => {
            !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
        }
    }
}

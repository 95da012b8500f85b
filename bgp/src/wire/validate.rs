//! RFC 7606: what each attribute must look like, and what becomes of an UPDATE whose attributes do
//! not.
//!
//! One table holds flags, length and disposition of every attribute we know. For each attribute the
//! order of checks is: duplicate, flags, length, value. The strongest disposition found decides
//! about the whole UPDATE (RFC 7606 §3 h); a session reset is an `Err` and ends the walk at once.

use std::net::Ipv4Addr;

use super::{
    aspath::{self, Width},
    attrs::{Overrun, Tlv, Walk, code, flag},
    notify::attribute_name,
    typed,
};
use crate::{
    attributes::{Aggregator, AsPath, Attributes, NextHop, Origin, Partial, UnknownAttribute},
    message::{Disposition, Fault, Negotiated, Notification},
    types::Asn,
};

/// Faults that are told of one UPDATE. A hostile one can hold tens of thousands.
const MAX_FAULTS: usize = 16;

#[derive(Clone, Copy)]
enum Length {
    Any,
    Exactly(usize),
    /// A multiple, and not zero.
    MultipleOf(usize),
    /// Six or eight octets, by the width of AS numbers on the session.
    Aggregator,
}

struct Rule {
    /// Optional and Transitive as they must be.
    flags: u8,
    length: Length,
    /// When the length or the value is wrong.
    disposition: Disposition,
    /// Discarded when it comes from an external peer (RFC 7606 §7.5, §7.9, §7.10).
    internal_only: bool,
}

const WELL_KNOWN: u8 = flag::TRANSITIVE;
const TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;
const NON_TRANSITIVE: u8 = flag::OPTIONAL;

const fn rule(flags: u8, length: Length, disposition: Disposition) -> Option<Rule> {
    Some(Rule {
        flags,
        length,
        disposition,
        internal_only: false,
    })
}

const fn internal(flags: u8, length: Length, disposition: Disposition) -> Option<Rule> {
    Some(Rule {
        flags,
        length,
        disposition,
        internal_only: true,
    })
}

const RULES: [Option<Rule>; 36] = {
    use Disposition::{AttributeDiscard as Discard, TreatAsWithdraw as Withdraw};
    use Length::{Any, Exactly, MultipleOf};
    let mut rules = [const { None }; 36];
    // RFC 7606 §7.1 to §7.12.
    rules[code::ORIGIN as usize] = rule(WELL_KNOWN, Exactly(1), Withdraw);
    rules[code::AS_PATH as usize] = rule(WELL_KNOWN, Any, Withdraw);
    rules[code::NEXT_HOP as usize] = rule(WELL_KNOWN, Exactly(4), Withdraw);
    rules[code::MULTI_EXIT_DISC as usize] = rule(NON_TRANSITIVE, Exactly(4), Withdraw);
    rules[code::LOCAL_PREF as usize] = internal(WELL_KNOWN, Exactly(4), Withdraw);
    rules[code::ATOMIC_AGGREGATE as usize] = rule(WELL_KNOWN, Exactly(0), Discard);
    rules[code::AGGREGATOR as usize] = rule(TRANSITIVE, Length::Aggregator, Discard);
    rules[code::COMMUNITIES as usize] = rule(TRANSITIVE, MultipleOf(4), Withdraw);
    rules[code::ORIGINATOR_ID as usize] = internal(NON_TRANSITIVE, Exactly(4), Withdraw);
    rules[code::CLUSTER_LIST as usize] = internal(NON_TRANSITIVE, MultipleOf(4), Withdraw);
    // Their shape is checked where their prefixes are decoded: its faults are session resets.
    rules[code::MP_REACH_NLRI as usize] = rule(NON_TRANSITIVE, Any, Withdraw);
    rules[code::MP_UNREACH_NLRI as usize] = rule(NON_TRANSITIVE, Any, Withdraw);
    // RFC 7606 §7.14.
    rules[code::EXTENDED_COMMUNITIES as usize] = rule(TRANSITIVE, MultipleOf(8), Withdraw);
    // RFC 6793 §6.
    rules[code::AS4_PATH as usize] = rule(TRANSITIVE, Any, Discard);
    rules[code::AS4_AGGREGATOR as usize] = rule(TRANSITIVE, Exactly(8), Discard);
    // RFC 7606 §7.15; passed on as it is.
    rules[code::IPV6_EXTENDED_COMMUNITIES as usize] = rule(TRANSITIVE, MultipleOf(20), Withdraw);
    // RFC 8092 §6.
    rules[code::LARGE_COMMUNITIES as usize] = rule(TRANSITIVE, MultipleOf(12), Withdraw);
    // RFC 9234 §5.
    rules[code::ONLY_TO_CUSTOMER as usize] = rule(TRANSITIVE, Exactly(4), Withdraw);
    rules
};

/// What was wrong with an UPDATE so far.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) list: Vec<Fault>,
    worst: Option<Disposition>,
}

impl Faults {
    pub(super) fn add(
        &mut self,
        disposition: Disposition,
        attribute: u8,
        text: impl FnOnce() -> String,
    ) {
        self.worst = self.worst.max(Some(disposition));
        if self.list.len() < MAX_FAULTS {
            self.list.push(Fault {
                disposition,
                attribute,
                text: text(),
            });
        }
    }

    pub(super) fn is_withdraw(&self) -> bool {
        self.worst == Some(Disposition::TreatAsWithdraw)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.worst.is_none()
    }
}

/// The attributes of an UPDATE after the walk.
#[derive(Debug, Default)]
pub(super) struct Collected<'a> {
    pub(super) mp_reach: Option<Tlv<'a>>,
    pub(super) mp_unreach: Option<Tlv<'a>>,
    /// There is something besides MP_UNREACH_NLRI.
    pub(super) has_others: bool,
    pub(super) next_hop: Option<Ipv4Addr>,
    pub(super) faults: Faults,
    seen: Seen,
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic_aggregate: bool,
    aggregator: Option<Aggregator>,
    as4_aggregator: Option<Aggregator>,
    communities: Vec<u32>,
    extended_communities: Vec<[u8; 8]>,
    large_communities: Vec<[u32; 3]>,
    originator_id: Option<Ipv4Addr>,
    cluster_list: Vec<Ipv4Addr>,
    only_to_customer: Option<Asn>,
    partial: Partial,
    unknown: Vec<UnknownAttribute>,
}

/// Which type codes have come, one bit for each.
#[derive(Debug, Default)]
struct Seen([u64; 4]);

impl Seen {
    fn contains(&self, code: u8) -> bool {
        self.0[usize::from(code >> 6)] & (1 << (code & 63)) != 0
    }

    /// False when it was there before.
    fn insert(&mut self, code: u8) -> bool {
        let new = !self.contains(code);
        self.0[usize::from(code >> 6)] |= 1 << (code & 63);
        new
    }
}

/// Walks all attributes. `Err` is a session reset.
pub(super) fn collect<'a>(
    attributes: &'a [u8],
    negotiated: &Negotiated,
) -> Result<Collected<'a>, Notification> {
    let mut collected = Collected::default();
    for item in Walk::new(attributes) {
        match item {
            Ok(tlv) => collected.attribute(tlv, negotiated)?,
            // RFC 7606 §4: the NLRI are still found by the total length.
            Err(Overrun) => {
                collected.has_others = true;
                collected.faults.add(Disposition::TreatAsWithdraw, 0, || {
                    "the attribute list ends inside an attribute".into()
                });
            }
        }
    }
    collected.merge_two_octet(negotiated);
    Ok(collected)
}

impl<'a> Collected<'a> {
    fn attribute(&mut self, tlv: Tlv<'a>, negotiated: &Negotiated) -> Result<(), Notification> {
        if !self.seen.insert(tlv.code) {
            // RFC 7606 §3 g.
            if matches!(tlv.code, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) {
                return Err(Notification::malformed_attribute_list());
            }
            self.fault(Disposition::AttributeDiscard, tlv.code, "sent twice");
            return Ok(());
        }
        self.has_others |= tlv.code != code::MP_UNREACH_NLRI;
        let known = RULES.get(usize::from(tlv.code)).and_then(Option::as_ref);
        let Some(rule) = known else {
            return self.unknown(tlv);
        };
        // RFC 7606 §3 c.
        if tlv.flags & (flag::OPTIONAL | flag::TRANSITIVE) != rule.flags {
            let flags = tlv.flags;
            self.faults.add(Disposition::TreatAsWithdraw, tlv.code, || {
                format!("{}: flags 0x{flags:02x}", name(tlv.code))
            });
            // Its prefixes are needed all the same, to be withdrawn.
            match tlv.code {
                code::MP_REACH_NLRI => self.mp_reach = Some(tlv),
                code::MP_UNREACH_NLRI => self.mp_unreach = Some(tlv),
                _ => {}
            }
            return Ok(());
        }
        if rule.internal_only && !negotiated.internal {
            self.fault(
                Disposition::AttributeDiscard,
                tlv.code,
                "from an external peer",
            );
            return Ok(());
        }
        let length = tlv.value.len();
        let length_is_good = match rule.length {
            Length::Any => true,
            Length::Exactly(octets) => length == octets,
            Length::MultipleOf(octets) => length != 0 && length.is_multiple_of(octets),
            Length::Aggregator => length == if negotiated.four_octet_as { 8 } else { 6 },
        };
        if !length_is_good {
            self.faults.add(rule.disposition, tlv.code, || {
                format!("{}: length {length}", name(tlv.code))
            });
            return Ok(());
        }
        match self.value(tlv, negotiated) {
            Ok(()) if rule.flags == TRANSITIVE && tlv.flags & flag::PARTIAL != 0 => {
                self.partial.insert(tlv.code);
            }
            Ok(()) => {}
            Err(reason) => self.fault(rule.disposition, tlv.code, reason),
        }
        Ok(())
    }

    /// An attribute that has the flags and the length it should have.
    fn value(&mut self, tlv: Tlv<'a>, negotiated: &Negotiated) -> Result<(), &'static str> {
        const REFUSED: &str = "not a valid value";
        let value = tlv.value;
        match tlv.code {
            code::ORIGIN => self.origin = Some(typed::origin(value).ok_or("an undefined value")?),
            code::AS_PATH => {
                let path = aspath::decode(value, Width::of(negotiated.four_octet_as))?;
                // RFC 5065 §5: only from inside of the confederation.
                if !negotiated.internal && aspath::has_confederation(&path) {
                    return Err("confederation segments from an external peer");
                }
                self.as_path = Some(path);
            }
            code::NEXT_HOP => self.next_hop = Some(typed::next_hop(value).ok_or(REFUSED)?),
            code::MULTI_EXIT_DISC => self.med = Some(typed::med(value).ok_or(REFUSED)?),
            code::LOCAL_PREF => {
                self.local_pref = Some(typed::local_pref(value).ok_or(REFUSED)?);
            }
            code::ATOMIC_AGGREGATE => self.atomic_aggregate = true,
            code::AGGREGATOR => self.aggregator = Some(aggregator(value)?),
            code::COMMUNITIES => {
                self.communities = typed::communities(value).ok_or(REFUSED)?;
            }
            code::ORIGINATOR_ID => {
                self.originator_id = Some(typed::originator_id(value).ok_or(REFUSED)?);
            }
            code::CLUSTER_LIST => {
                self.cluster_list = typed::cluster_list(value).ok_or(REFUSED)?;
            }
            code::MP_REACH_NLRI => self.mp_reach = Some(tlv),
            code::MP_UNREACH_NLRI => self.mp_unreach = Some(tlv),
            code::EXTENDED_COMMUNITIES => {
                self.extended_communities = typed::extended_communities(value).ok_or(REFUSED)?;
            }
            // RFC 6793 §4.1: they mean nothing between speakers of four octets.
            code::AS4_PATH | code::AS4_AGGREGATOR if negotiated.four_octet_as => {
                return Err("from a speaker of four-octet AS numbers");
            }
            code::AS4_PATH => {
                let path = aspath::decode(value, Width::Four)?;
                if path.is_empty() {
                    return Err("no AS number");
                }
                self.as4_path = Some(aspath::without_confederation(path));
            }
            code::AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator(value)?),
            code::LARGE_COMMUNITIES => {
                let mut communities = typed::large_communities(value).ok_or(REFUSED)?;
                // RFC 8092 §2: duplicates are removed in silence.
                remove_duplicates(&mut communities);
                self.large_communities = communities;
            }
            code::ONLY_TO_CUSTOMER => {
                let octets = value.try_into().map_err(|_| REFUSED)?;
                self.only_to_customer = Some(Asn(u32::from_be_bytes(octets)));
            }
            _ => self.keep(tlv),
        }
        Ok(())
    }

    /// RFC 4271 §6.3 and §9: an attribute that is not in the table.
    fn unknown(&mut self, tlv: Tlv<'_>) -> Result<(), Notification> {
        if tlv.flags & flag::OPTIONAL == 0 {
            return Err(Notification::unrecognized_well_known(tlv.whole));
        }
        if tlv.flags & flag::TRANSITIVE != 0 {
            self.keep(tlv);
        }
        Ok(())
    }

    fn keep(&mut self, tlv: Tlv<'_>) {
        self.unknown.push(UnknownAttribute {
            flags: tlv.flags,
            code: tlv.code,
            value: tlv.value.into(),
        });
    }

    fn fault(&mut self, disposition: Disposition, code: u8, reason: &'static str) {
        self.faults
            .add(disposition, code, || format!("{}: {reason}", name(code)));
    }

    /// RFC 6793 §4.2.3: puts AS_PATH and AS4_PATH, AGGREGATOR and AS4_AGGREGATOR together.
    fn merge_two_octet(&mut self, negotiated: &Negotiated) {
        if negotiated.four_octet_as {
            return;
        }
        match (self.aggregator, self.as4_aggregator) {
            // Somebody aggregated anew who does not know four octets: the AS4 attributes are older.
            (Some(aggregator), Some(_)) if aggregator.asn != Asn::TRANS => self.as4_path = None,
            (Some(_), Some(as4_aggregator)) => self.aggregator = Some(as4_aggregator),
            _ => {}
        }
        if let (Some(path), Some(as4_path)) = (&mut self.as_path, self.as4_path.take()) {
            *path = aspath::merge(std::mem::take(path), as4_path);
        }
    }

    /// RFC 7606 §3 d: what an UPDATE that announces must have. `body`: it announces in its body.
    pub(super) fn require_mandatory(&mut self, body: bool) {
        for code in [code::ORIGIN, code::AS_PATH, code::NEXT_HOP] {
            let required = body || code != code::NEXT_HOP;
            if required && !self.seen.contains(code) {
                self.fault(Disposition::TreatAsWithdraw, code, "missing");
            }
        }
    }

    /// The attributes with a next hop. `None` when one of the mandatory ones is not usable, which
    /// is also a fault.
    pub(super) fn into_attributes(mut self, next_hop: NextHop) -> Option<Attributes> {
        self.unknown.sort_by_key(|attribute| attribute.code);
        Some(Attributes {
            origin: self.origin?,
            as_path: self.as_path?,
            next_hop,
            med: self.med,
            local_pref: self.local_pref,
            atomic_aggregate: self.atomic_aggregate,
            aggregator: self.aggregator,
            communities: self.communities,
            extended_communities: self.extended_communities,
            large_communities: self.large_communities,
            originator_id: self.originator_id,
            cluster_list: self.cluster_list,
            only_to_customer: self.only_to_customer,
            partial: self.partial,
            unknown: self.unknown,
        })
    }
}

/// RFC 7607 §2: the number 0 makes it malformed.
fn aggregator(value: &[u8]) -> Result<Aggregator, &'static str> {
    let (asn, address) = match *value {
        [a, b, c, d, ref address @ ..] if address.len() == 4 => {
            (u32::from_be_bytes([a, b, c, d]), address)
        }
        [a, b, ref address @ ..] if address.len() == 4 => {
            (u32::from(u16::from_be_bytes([a, b])), address)
        }
        _ => return Err("length"),
    };
    if asn == 0 {
        return Err("AS number 0");
    }
    let address: [u8; 4] = address.try_into().map_err(|_| "length")?;
    Ok(Aggregator {
        asn: Asn(asn),
        address: address.into(),
    })
}

/// Keeps the first of each and the order, in n log n.
fn remove_duplicates(communities: &mut Vec<[u32; 3]>) {
    let mut sorted = communities.clone();
    sorted.sort_unstable();
    if sorted.windows(2).all(|pair| pair[0] != pair[1]) {
        return;
    }
    let mut seen = hashbrown::HashSet::with_capacity(communities.len());
    communities.retain(|community| seen.insert(*community));
}

fn name(code: u8) -> String {
    attribute_name(code).map_or_else(|| format!("attribute {code}"), str::to_owned)
}

//! Another decoder as judge: what both accept must mean the same, and neither may take whole what
//! the other would reset the session for.
//!
//! `rustbgpd-wire` was written apart from this crate, so an error in both is unlikely to be the
//! same. Where RFC 7606 leaves a choice the two may differ; those cases are named below.

use std::collections::BTreeSet;

use rustbgpd_wire::{
    Afi, AsPathSegment, ErrorDisposition, PathAttribute, Prefix, Safi, UpdateMessage,
    validate::validate_update_attributes,
};

use super::{
    hostile::{flavours, mutate, seeds},
    *,
};
use crate::{
    attributes::{Attributes, SegmentKind},
    message::{Disposition, NlriList},
};

/// The meaning of an UPDATE, in a form that both can be brought into.
#[derive(Debug, Default, PartialEq, Eq)]
struct Meaning {
    withdrawn: BTreeSet<(u32, String)>,
    announced: BTreeSet<(u32, String)>,
    attributes: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reset,
    Withdraw,
    Accept(Meaning),
    /// About families that only one of the two knows.
    OutOfScope,
}

fn put(to: &mut BTreeSet<(u32, String)>, list: &NlriList) {
    match list {
        NlriList::Ipv4(list) => {
            to.extend(list.iter().map(|n| (n.path_id, n.prefix.to_string())));
        }
        NlriList::Ipv6(list) => {
            to.extend(list.iter().map(|n| (n.path_id, n.prefix.to_string())));
        }
    }
}

fn describe(attributes: &Attributes) -> BTreeSet<String> {
    let mut all = BTreeSet::from([
        format!("origin {}", attributes.origin as u8),
        format!("path {}", attributes.as_path),
    ]);
    all.extend(attributes.med.map(|n| format!("med {n}")));
    all.extend(attributes.local_pref.map(|n| format!("local {n}")));
    all.extend(attributes.originator_id.map(|n| format!("originator {n}")));
    all.extend(attributes.only_to_customer.map(|n| format!("otc {n}")));
    all.extend(attributes.aggregator.map(|a| format!("aggregator {a}")));
    if attributes.atomic_aggregate {
        all.insert("atomic".into());
    }
    for (name, text) in [
        ("communities", format!("{:?}", attributes.communities)),
        ("large", format!("{:?}", attributes.large_communities)),
        ("clusters", format!("{:?}", attributes.cluster_list)),
        (
            "extended",
            format!(
                "{:?}",
                attributes
                    .extended_communities
                    .iter()
                    .map(|raw| u64::from_be_bytes(*raw))
                    .collect::<Vec<_>>()
            ),
        ),
    ] {
        if text != "[]" {
            all.insert(format!("{name} {text}"));
        }
    }
    all
}

fn ours(negotiated: &Negotiated, body: &[u8]) -> Verdict {
    let Ok(update) = decode_update(negotiated, body) else {
        return Verdict::Reset;
    };
    let worst = update.faults.iter().map(|fault| fault.disposition).max();
    if update
        .faults
        .iter()
        .any(|fault| fault.disposition == Disposition::Ignored)
    {
        return Verdict::OutOfScope;
    }
    if worst == Some(Disposition::TreatAsWithdraw) {
        return Verdict::Withdraw;
    }
    let mut meaning = Meaning::default();
    for list in &update.withdrawn {
        put(&mut meaning.withdrawn, list);
    }
    for announced in &update.announced {
        put(&mut meaning.announced, &announced.nlri);
        meaning.attributes = describe(&announced.attributes);
    }
    Verdict::Accept(meaning)
}

fn theirs(negotiated: &Negotiated, body: &[u8]) -> Verdict {
    let mut buffer = bytes::Bytes::copy_from_slice(body);
    let Ok(message) = UpdateMessage::decode(&mut buffer, body.len()) else {
        return Verdict::Reset;
    };
    let add_path = negotiated.add_path_receive[0];
    let families = [(Afi::Ipv4, Safi::Unicast), (Afi::Ipv6, Safi::Unicast)];
    let Ok(parsed) = message.parse_revised(
        negotiated.four_octet_as,
        negotiated.internal,
        add_path,
        if add_path { &families } else { &[] },
    ) else {
        return Verdict::Reset;
    };
    let worst = parsed.malformed.iter().map(|bad| bad.disposition).max();
    match worst {
        Some(ErrorDisposition::SessionReset) => return Verdict::Reset,
        Some(ErrorDisposition::TreatAsWithdraw) => return Verdict::Withdraw,
        _ => {}
    }
    let update = parsed.update;
    let mut meaning = Meaning::default();
    let four = |list: &[rustbgpd_wire::Ipv4NlriEntry]| -> Vec<(u32, String)> {
        list.iter()
            .map(|n| (n.path_id, format!("{}/{}", n.prefix.addr, n.prefix.len)))
            .collect()
    };
    let any = |list: &[rustbgpd_wire::NlriEntry]| -> Vec<(u32, String)> {
        list.iter()
            .map(|n| match n.prefix {
                Prefix::V4(prefix) => (n.path_id, format!("{}/{}", prefix.addr, prefix.len)),
                Prefix::V6(prefix) => (n.path_id, format!("{}/{}", prefix.addr, prefix.len)),
            })
            .collect()
    };
    meaning.withdrawn.extend(four(&update.withdrawn));
    meaning.announced.extend(four(&update.announced));
    let mut all = BTreeSet::new();
    for attribute in &update.attributes {
        let line = match attribute {
            PathAttribute::Origin(origin) => format!("origin {}", *origin as u8),
            PathAttribute::AsPath(path) => format!("path {}", text(path)),
            PathAttribute::Med(n) => format!("med {n}"),
            PathAttribute::LocalPref(n) => format!("local {n}"),
            PathAttribute::OriginatorId(n) => format!("originator {n}"),
            PathAttribute::OnlyToCustomer(n) | PathAttribute::OnlyToCustomerPartial(n) => {
                format!("otc {n}")
            }
            PathAttribute::Aggregator(a) => format!("aggregator {} {}", a.asn, a.router_id),
            PathAttribute::AtomicAggregate => "atomic".into(),
            PathAttribute::Communities(list) | PathAttribute::CommunitiesPartial(list) => {
                format!("communities {list:?}")
            }
            PathAttribute::LargeCommunities(list)
            | PathAttribute::LargeCommunitiesPartial(list) => {
                let list: Vec<_> = list
                    .iter()
                    .map(|l| [l.global_admin, l.local_data1, l.local_data2])
                    .collect();
                format!("large {list:?}")
            }
            PathAttribute::ExtendedCommunities(list)
            | PathAttribute::ExtendedCommunitiesPartial(list) => {
                let list: Vec<_> = list.iter().map(|e| e.as_u64()).collect();
                format!("extended {list:?}")
            }
            PathAttribute::ClusterList(list) => format!("clusters {list:?}"),
            PathAttribute::MpReachNlri(mp) => {
                if mp.safi != Safi::Unicast {
                    return Verdict::OutOfScope;
                }
                meaning.announced.extend(any(&mp.announced));
                continue;
            }
            PathAttribute::MpUnreachNlri(mp) => {
                if mp.safi != Safi::Unicast {
                    return Verdict::OutOfScope;
                }
                meaning.withdrawn.extend(any(&mp.withdrawn));
                continue;
            }
            _ => continue,
        };
        all.insert(line);
    }
    if !meaning.announced.is_empty() {
        // LOCAL_PREF is not demanded here: its absence is the decision process's affair.
        let judged = validate_update_attributes(
            &update.attributes,
            true,
            !update.announced.is_empty(),
            true,
        );
        if judged.is_err() {
            return Verdict::Withdraw;
        }
        meaning.attributes = all;
    }
    Verdict::Accept(meaning)
}

fn text(path: &rustbgpd_wire::AsPath) -> String {
    let segments = path
        .segments
        .iter()
        .map(|segment| {
            let (kind, asns) = match segment {
                AsPathSegment::AsSet(asns) => (SegmentKind::Set, asns),
                AsPathSegment::AsSequence(asns) => (SegmentKind::Sequence, asns),
            };
            crate::attributes::Segment {
                kind,
                asns: asns.iter().copied().map(crate::types::Asn).collect(),
            }
        })
        .collect();
    crate::attributes::AsPath(segments).to_string()
}

// Known differences, where we keep to the letter: an AS4_AGGREGATOR without an AGGREGATOR counts for
// nothing (RFC 6793 §4.2.3), an unknown well-known attribute resets also when nothing is announced
// (RFC 4271 §6.3), class E is no next hop. The other is stricter about the Partial bit, about flags
// of the MP attributes and about confederation segments.
#[test]
fn what_both_decoders_accept_means_the_same() {
    let mut random = fastrand::Rng::with_seed(42);
    let mut compared = 0;
    for negotiated in flavours().iter().filter(|flavour| flavour.internal) {
        let seeds = seeds(negotiated);
        for _ in 0..5_000 {
            let seed = random.usize(..seeds.len());
            let message = mutate(&mut random, &seeds[seed]);
            if message[18] != 2
                || !(23..=usize::from(negotiated.max_message_size)).contains(&message.len())
            {
                continue;
            }
            let body = &message[HEADER_LEN..];
            match (ours(negotiated, body), theirs(negotiated, body)) {
                (Verdict::Accept(mut ours), Verdict::Accept(mut theirs)) => {
                    if !negotiated.four_octet_as {
                        for meaning in [&mut ours, &mut theirs] {
                            meaning
                                .attributes
                                .retain(|line| !line.starts_with("aggregator"));
                        }
                    }
                    assert_eq!(ours, theirs, "{negotiated:?} {body:02x?}");
                    compared += 1;
                }
                (Verdict::Reset, Verdict::Accept(_)) => {
                    let told = decode_update(negotiated, body).unwrap_err();
                    assert_eq!(told.subcode, 2, "{negotiated:?} {body:02x?}");
                }
                _ => {}
            }
        }
    }
    assert!(compared > 2_000, "{compared} compared");
}

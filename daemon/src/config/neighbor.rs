//! Who a `[[bgp.peer]]` is: an address or a range, and which AS.

use std::{net::IpAddr, sync::Arc};

use bgp::{speaker::config::RemoteAs, types::Asn};
use ipnet::IpNet;

use super::{
    Peer, PeerRange,
    document::{Found, Section},
};

/// Most neighbours of one range, and of all together.
const LIMIT: u32 = 10_000;
const ALL: u32 = 50_000;

/// What one section describes.
pub(super) enum Neighbor {
    Peer(Box<Peer>),
    Range(Box<PeerRange>),
}

/// The neighbours read so far.
#[derive(Default)]
pub(super) struct Neighbors {
    pub(super) peers: Vec<Peer>,
    pub(super) ranges: Vec<PeerRange>,
}

impl Neighbors {
    pub(super) fn push(&mut self, neighbor: Neighbor) {
        match neighbor {
            Neighbor::Peer(peer) => self.peers.push(*peer),
            Neighbor::Range(range) => self.ranges.push(*range),
        }
    }

    fn all(&self) -> impl Iterator<Item = (IpNet, &Peer)> {
        let peers = self.peers.iter().map(|peer| (peer.address.into(), peer));
        peers.chain(self.ranges.iter().map(|range| (range.range, &range.peer)))
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.all().any(|(_, peer)| peer.name == name)
    }
}

/// `range` with `limit`; the keys that only fit an address are refused beside it.
pub(super) fn read_range(
    section: &mut Section<'_, '_, '_>,
    listens: bool,
    earlier: &Neighbors,
) -> Option<(IpNet, u32)> {
    let range = section.parsed::<IpNet>("range", "a prefix, such as 10.0.0.0/24");
    let limit = section.integer("limit", 1..=LIMIT);
    let Some(Found { value, span }) = range else {
        if let Some(Found { span, .. }) = limit {
            section.error("limit", Some(span), "needs range");
        }
        return None;
    };
    let reason = if value != value.trunc() {
        Some(format!(
            "\"{value}\" has host bits set; write \"{}\"",
            value.trunc()
        ))
    } else if !listens {
        Some("nobody can connect from it, because bgp.listen is empty".to_owned())
    } else {
        let other = earlier.ranges.iter().find(|other| other.range == value);
        other.map(|other| format!("\"{}\" has the range {value} too", other.peer.name))
    };
    if let Some(reason) = reason {
        section.error("range", Some(span), reason);
    }
    for key in ["address", "port"] {
        if let Some(found) = section.value(key) {
            let reason = "has no meaning for a range: its peers connect, and are not dialled";
            section.error(key, Some(found.span()), reason);
        }
    }
    if let Some(Found { value: false, span }) = section.boolean("passive") {
        let reason = "peers of a range are always passive; remove this key";
        section.error("passive", Some(span), reason);
    }
    let count = limit
        .as_ref()
        .map_or(PeerRange::DEFAULT_LIMIT, |found| found.value);
    let others: u32 = earlier.ranges.iter().map(|range| range.limit).sum();
    if others.saturating_add(count) > ALL {
        let reason = format!("all ranges together may have at most {ALL} peers");
        section.error("limit", limit.map(|found| found.span), reason);
    }
    Some((value.trunc(), count))
}

/// `asn`: a number, several, "external" or "internal".
pub(super) fn read_asn(
    section: &mut Section<'_, '_, '_>,
    own: Option<u32>,
) -> Option<Found<RemoteAs>> {
    let value = section.value("asn");
    let span = value.map(|value| value.span()).unwrap_or_default();
    let found = match value.map(|value| value.get_ref()) {
        Some(value) if value.is_str() => {
            let own = Asn(own.unwrap_or_default());
            section
                .choice("asn", &[("external", true), ("internal", false)])
                .map(|found| match found.value {
                    true => RemoteAs::External,
                    false => RemoteAs::Exactly(own),
                })
        }
        Some(value) if value.is_array() => {
            let list = section.integers("asn", &(1..=u32::MAX)).unwrap_or_default();
            for (index, found) in list.iter().enumerate() {
                if Some(found.value) == own {
                    let reason = format!(
                        "{} is bgp.asn; internal peers need a section of their own",
                        found.value
                    );
                    section.error_at("asn", index, found.span.clone(), reason);
                }
            }
            let list: Arc<[Asn]> = list.iter().map(|found| Asn(found.value)).collect();
            (!list.is_empty()).then_some(RemoteAs::OneOf(list))
        }
        Some(_) | None => section
            .integer("asn", 1..=u32::MAX)
            .map(|found| RemoteAs::Exactly(Asn(found.value))),
    };
    let what = "it is the autonomous system of the peer";
    let value = section.required("asn", found, what)?;
    Some(Found { value, span })
}

/// The kernel asks everybody in a range with a password for signatures, and knows no exception.
pub(super) fn check_password(
    section: &mut Section<'_, '_, '_>,
    prefix: IpNet,
    has_password: bool,
    earlier: &Neighbors,
) {
    if has_password {
        let mut inside = earlier
            .all()
            .filter(|(other, peer)| peer.password.is_none() && prefix.contains(other));
        if let Some((_, peer)) = inside.next() {
            let reason = format!(
                "\"{}\" lies inside and has no password: the kernel would ask it for signatures \
                 too; give it a password_file",
                peer.name
            );
            let span = section.value("password_file").map(|value| value.span());
            section.error("password_file", span, reason);
        }
        return;
    }
    let mut around = earlier.ranges.iter();
    if let Some(range) =
        around.find(|range| range.peer.password.is_some() && range.range.contains(&prefix))
    {
        let reason = format!(
            "is missing: {prefix} lies inside the range of \"{}\", which has a password, and the \
             kernel would ask for signatures here too",
            range.peer.name
        );
        section.error("password_file", None, reason);
    }
}

/// Of which family a neighbour is, for `local_address`.
pub(super) fn check_local_address(
    section: &Section<'_, '_, '_>,
    local: Option<&Found<IpAddr>>,
    place: IpNet,
) {
    if let Some(Found { value, span }) = local
        && value.is_ipv4() != place.addr().is_ipv4()
    {
        let place = match place.prefix_len() == place.max_prefix_len() {
            true => format!("the peer's address, {}", place.addr()),
            false => format!("the range {place}"),
        };
        let reason = format!("{value} is not of the family of {place}");
        section.error("local_address", Some(span.clone()), reason);
    }
}

//! Tables as people see them: in prefix order, page by page, each route with its reason.
//!
//! The tables are hashed; a page is made by one walk that keeps the smallest prefixes after the
//! cursor, so its cost grows with the table, and its memory with the page.

use std::{collections::BinaryHeap, net::IpAddr};

use ipnet::IpNet;

use super::{
    Rib,
    decision::{Candidate, Step},
    family::FamilyRib,
    interned::NO_ATTRIBUTES,
    prefix::Prefix,
    shared::{LOCAL, Shared},
    table::{Path, Table as Routes},
    types::{Ineligible, PeerCounts, Reason, RoutePage, RouteQuery, RouteView, Table},
};
use crate::types::{Family, PeerId};

impl Rib {
    pub fn counts(&self, peer: PeerId, family: Family) -> PeerCounts {
        let Some(slot) = self.shared.slot(peer) else {
            return PeerCounts::default();
        };
        let Some(known) = self.shared.peer(slot) else {
            return PeerCounts::default();
        };
        let mut counts = known.counts[family.index()];
        let sent = match family {
            Family::Ipv4Unicast => {
                let group = self.v4.group(&self.shared, slot);
                group.map(|group| (group.advertised(peer), group.end_of_rib_sent(peer)))
            }
            Family::Ipv6Unicast => {
                let group = self.v6.group(&self.shared, slot);
                group.map(|group| (group.advertised(peer), group.end_of_rib_sent(peer)))
            }
        };
        if let Some((advertised, end_of_rib_sent)) = sent {
            counts.advertised = advertised;
            counts.end_of_rib_sent = end_of_rib_sent;
        }
        counts
    }

    /// Prefixes with at least one path, of a family.
    pub fn prefix_count(&self, family: Family) -> usize {
        match family {
            Family::Ipv4Unicast => self.v4.table.len(),
            Family::Ipv6Unicast => self.v6.table.len(),
        }
    }

    /// A page of a table.
    pub fn routes(&self, query: &RouteQuery) -> RoutePage {
        let mut page = RoutePage::default();
        let limit = query.limit.max(1);
        let mut left = limit;
        let v4 = !matches!(query.after, Some(IpNet::V6(_)));
        if v4 {
            list(&self.v4, &self.shared, query, &mut left, &mut page);
        }
        if page.next.is_none() {
            list(&self.v6, &self.shared, query, &mut left, &mut page);
        }
        page
    }

    /// The longest prefix with a usable path that covers the address.
    pub fn covering(&self, address: IpAddr) -> Option<IpNet> {
        covering(&self.v4, address).or_else(|| covering(&self.v6, address))
    }

    /// What peers sent of the prefixes that cover the address, with what became of it; the longest
    /// first, and at most so many prefixes.
    pub fn received_covering(&self, address: IpAddr, limit: usize) -> Vec<RouteView> {
        let mut views = received_covering(&self.v4, &self.shared, address, limit);
        views.extend(received_covering(&self.v6, &self.shared, address, limit));
        views
    }
}

fn received_covering<K: Prefix>(
    rib: &FamilyRib<K>,
    shared: &Shared,
    address: IpAddr,
    limit: usize,
) -> Vec<RouteView> {
    let mut views = Vec::new();
    let Some(host) = K::from_address(address) else {
        return views;
    };
    let every = Table::AdjRibIn(None);
    (0..=K::MAX_LENGTH)
        .rev()
        .filter_map(|length| rib.table.find(host.truncate(length)))
        .filter(|route| has_rows(rib, shared, every, *route))
        .take(limit)
        .for_each(|route| rows(rib, shared, every, route, &mut views));
    views
}

fn covering<K: Prefix>(rib: &FamilyRib<K>, address: IpAddr) -> Option<IpNet> {
    let host = K::from_address(address)?;
    let lengths = (0..=K::MAX_LENGTH).rev();
    lengths
        .filter(|length| rib.table.count_of_length(*length) > 0)
        .filter_map(|length| rib.table.find(host.truncate(length)))
        .find(|route| rib.table.best(*route).is_some())
        .map(|route| rib.table.routes[route].key.ip_net())
}

/// Adds the prefixes of one family, at most `left`.
fn list<K: Prefix>(
    rib: &FamilyRib<K>,
    shared: &Shared,
    query: &RouteQuery,
    left: &mut usize,
    page: &mut RoutePage,
) {
    let within = match &query.prefix {
        None => None,
        Some(prefix) => match K::from_ip_net(prefix) {
            Some(key) => Some(key),
            None => return,
        },
    };
    let after = query.after.as_ref().and_then(K::from_ip_net);
    // One more than fits tells whether there is another page.
    let mut smallest: BinaryHeap<(K, u32)> = BinaryHeap::with_capacity(*left + 1);
    let table = &rib.table;
    for route in 0..table.routes.end() {
        let record = &table.routes[route];
        let key = record.key;
        let wanted = record.is_live()
            && after.is_none_or(|after| key > after)
            && within.is_none_or(|within| within.covers(key))
            && (smallest.len() <= *left
                || smallest.peek().is_some_and(|(largest, _)| key < *largest))
            && has_rows(rib, shared, query.table, route);
        if wanted {
            smallest.push((key, route));
            if smallest.len() > *left + 1 {
                smallest.pop();
            }
        }
    }
    let mut found = smallest.into_sorted_vec();
    if found.len() > *left {
        found.truncate(*left);
        page.next = found.last().map(|(key, _)| key.ip_net()).or(query.after);
        if found.is_empty() {
            // IPv4 filled the page to the last row: the cursor is its last prefix.
            page.next = page.routes.last().map(|route| route.prefix);
        }
    }
    *left -= found.len();
    for (_, route) in found {
        rows(rib, shared, query.table, route, &mut page.routes);
    }
}

fn has_rows<K: Prefix>(rib: &FamilyRib<K>, shared: &Shared, table: Table, route: u32) -> bool {
    match table {
        Table::LocRib => rib.table.best(route).is_some(),
        Table::AdjRibIn(peer) => rib
            .table
            .paths(route)
            .any(|path| is_from(shared, path, peer)),
        Table::AdjRibOut(peer) => shared
            .slot(peer)
            .and_then(|slot| rib.group(shared, slot))
            .is_some_and(|group| !group.outputs_for(route, peer).is_empty()),
    }
}

fn is_from(shared: &Shared, path: &Path, peer: Option<PeerId>) -> bool {
    path.slot != LOCAL
        && peer.is_none_or(|peer| shared.peer(path.slot).is_some_and(|known| known.id == peer))
}

fn rows<K: Prefix>(
    rib: &FamilyRib<K>,
    shared: &Shared,
    table: Table,
    route: u32,
    out: &mut Vec<RouteView>,
) {
    if let Table::AdjRibOut(peer) = table {
        sent_rows(rib, shared, route, peer, out);
        return;
    }
    let (ranking, equal) = rib.table.ranking(shared, route);
    let prefix = rib.table.routes[route].key.ip_net();
    for (name, path) in (0u32..).zip(rib.table.paths(route)) {
        let rank = ranking.iter().position(|candidate| candidate.path == name);
        let wanted = match table {
            Table::AdjRibIn(peer) => is_from(shared, path, peer),
            _ => rank.is_some(),
        };
        if !wanted {
            continue;
        }
        let reason = reason(shared, path, rank, equal, &ranking);
        let received = matches!(table, Table::AdjRibIn(_)) || path.effective == NO_ATTRIBUTES;
        let id = if received {
            path.received
        } else {
            path.effective
        };
        out.push(RouteView {
            prefix,
            peer: shared.peer(path.slot).map(|peer| peer.id),
            path_id: path.path_id,
            attributes: shared.attributes.get(id).attributes.clone(),
            best: matches!(reason, Reason::Best(_) | Reason::Multipath),
            stale: path.is_stale(),
            received: shared.instant(path.stamp),
            reason,
            discarded: discarded(shared, path),
        });
    }
}

/// Policy and rule by which packets along this path are dropped.
fn discarded(shared: &Shared, path: &Path) -> Option<String> {
    let effective = &shared.attributes.get(path.effective).attributes;
    let rule = path.verdict().explain().ok()?;
    let peer = shared.peer(path.slot)?;
    let policy = &peer.session.import;
    (path.effective != NO_ATTRIBUTES && effective.next_hop.is_discard())
        .then(|| policy.describe(rule))
}

/// Why a path is best or not.
fn reason(
    shared: &Shared,
    path: &Path,
    rank: Option<usize>,
    equal: usize,
    ranking: &[Candidate],
) -> Reason {
    match rank {
        Some(0) => {
            // The step at which the last of the others fell.
            Reason::Best(ranking.get(1).and_then(|next| next.lost))
        }
        Some(rank) if rank < equal && rank < shared.config.multipath => Reason::Multipath,
        Some(rank) => Reason::Lost(ranking[rank].lost.unwrap_or(Step::PathId)),
        None => match path.verdict().explain() {
            Err(why) => Reason::Ineligible(why),
            Ok(_) if path.effective != NO_ATTRIBUTES => {
                Reason::Ineligible(Ineligible::NextHopUnreachable)
            }
            Ok(rule) => {
                let policy = shared.peer(path.slot).map(|peer| &peer.session.import);
                Reason::Rejected(policy.map_or_else(String::new, |policy| policy.describe(rule)))
            }
        },
    }
}

fn sent_rows<K: Prefix>(
    rib: &FamilyRib<K>,
    shared: &Shared,
    route: u32,
    peer: PeerId,
    out: &mut Vec<RouteView>,
) {
    let Some(group) = shared.slot(peer).and_then(|slot| rib.group(shared, slot)) else {
        return;
    };
    let outputs = group.outputs();
    let table: &Routes<K> = &rib.table;
    let policy = &group.parameters.policy;
    for output in group.outputs_for(route, peer) {
        let source = outputs.peer(output);
        let received = outputs.received_path_id(output);
        let path = table.paths(route).find(|path| {
            shared.peer(path.slot).map(|known| known.id) == source
                && received.is_none_or(|id| id == path.path_id)
        });
        out.push(RouteView {
            prefix: table.routes[route].key.ip_net(),
            peer: source,
            path_id: outputs.path_id(output),
            attributes: outputs.attributes(outputs.sent(output)).clone(),
            best: true,
            stale: path.is_some_and(Path::is_stale),
            received: shared.instant(path.map_or(0, |path| path.stamp)),
            reason: Reason::Exported(policy.describe(outputs.rule(output))),
            discarded: path.and_then(|path| discarded(shared, path)),
        });
    }
}

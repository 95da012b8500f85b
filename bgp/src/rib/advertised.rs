//! Why a peer gets a prefix or not: the way of the best path through export, step by step.
//!
//! It asks the same functions as the update groups do, so that the answer is what is or is about to
//! be sent; a test compares the two.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Rib,
    export::{self, ExportParameters, Origin},
    family::FamilyRib,
    outputs::fits,
    prefix::{Prefix, V4, V6},
    shared::{LOCAL, Peer, Shared},
    table::Best,
    types::NotAdvertised,
};
use crate::{policy::RouteFacts, types::PeerId};

impl Rib {
    /// The policy and rule that let the prefix out to this peer, or why it does not get it. It is
    /// about what is to be sent; a part of that may not have been sent yet.
    pub fn advertised(&self, peer: PeerId, prefix: IpNet) -> Result<String, NotAdvertised> {
        if let Some(key) = V4::from_ip_net(&prefix) {
            advertised(&self.v4, &self.shared, peer, key)
        } else if let Some(key) = V6::from_ip_net(&prefix) {
            advertised(&self.v6, &self.shared, peer, key)
        } else {
            Err(NotAdvertised::NoRoute)
        }
    }
}

fn advertised<K: Prefix>(
    rib: &FamilyRib<K>,
    shared: &Shared,
    id: PeerId,
    key: K,
) -> Result<String, NotAdvertised> {
    let slot = shared.slot(id).ok_or(NotAdvertised::NotEstablished)?;
    let to = shared
        .peer(slot)
        .filter(|peer| peer.up)
        .ok_or(NotAdvertised::NotEstablished)?;
    let group = rib.group(shared, slot).ok_or(NotAdvertised::Family)?;
    let parameters = &group.parameters;
    let route = rib.table.find(key).ok_or(NotAdvertised::NoRoute)?;
    let best = rib.table.best(route).ok_or(NotAdvertised::NoRoute)?;
    let Some(most) = parameters.paths else {
        if shared.peer(best.slot).is_some_and(|peer| peer.id == id) {
            return Err(NotAdvertised::LearnedFromIt);
        }
        return way_out(shared, parameters, key, best)?.to(to);
    };
    // RFC 7911: any of the paths will do; why not is said of the best.
    let paths = rib.table.ranked(shared, route);
    let mut why = None;
    let mut left = usize::from(most.get());
    for path in paths {
        let result = way_out(shared, parameters, key, path);
        left -= usize::from(result.is_ok());
        match result.and_then(|way| way.to(to)) {
            Ok(said) => return Ok(said),
            Err(error) => why = why.or(Some(error)),
        }
        if left == 0 {
            break;
        }
    }
    Err(why.unwrap_or(NotAdvertised::NoRoute))
}

/// A path that is let out.
struct Way {
    /// Policy and rule.
    said: String,
    from: Option<PeerId>,
    next_hop: IpAddr,
}

impl Way {
    /// Nobody is told of what he sent himself, nor that he is the next hop.
    fn to(self, peer: &Peer) -> Result<String, NotAdvertised> {
        if self.from == Some(peer.id) {
            Err(NotAdvertised::LearnedFromIt)
        } else if self.next_hop == peer.session.remote_address {
            Err(NotAdvertised::NextHopIsIt)
        } else {
            Ok(self.said)
        }
    }
}

fn way_out<K: Prefix>(
    shared: &Shared,
    parameters: &ExportParameters,
    key: K,
    best: Best,
) -> Result<Way, NotAdvertised> {
    let source = shared.source(best.slot);
    let attributes = &shared.attributes.get(best.effective).attributes;
    let decision = parameters.policy.decide(RouteFacts {
        prefix: &key.ip_net(),
        attributes,
        source,
        within_originated: best.slot == LOCAL,
    });
    let said = parameters.policy.describe(decision.rule);
    let Some(sets) = decision.accept else {
        return Err(NotAdvertised::Rejected(said));
    };
    if let Some(why) = export::withheld(shared, parameters, source, attributes) {
        return Err(why);
    }
    let origin = Origin {
        source,
        router_id: shared
            .peer(best.slot)
            .map_or(shared.config.router_id, |peer| {
                peer.session.remote_router_id
            }),
    };
    let sent = export::attributes(shared, parameters, K::FAMILY, origin, attributes, sets)
        .ok_or(NotAdvertised::NoNextHop)?;
    if !fits::<K>(parameters, &sent) {
        return Err(NotAdvertised::TooLong);
    }
    Ok(Way {
        said,
        from: shared.peer(best.slot).map(|peer| peer.id),
        next_hop: sent.next_hop.address,
    })
}

//! Why a peer gets a prefix or not: the way of the best path through export, step by step.
//!
//! It asks the same functions as the update groups do, so that the answer is what is or is about to
//! be sent; a test compares the two.

use ipnet::IpNet;

use super::{
    Rib,
    export::{self, Origin},
    family::FamilyRib,
    outputs::fits,
    prefix::{Prefix, V4, V6},
    shared::{LOCAL, Shared},
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
    if best.slot == slot {
        return Err(NotAdvertised::LearnedFromIt);
    }
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
    if sent.next_hop.address == to.session.remote_address {
        return Err(NotAdvertised::NextHopIsIt);
    }
    if !fits::<K>(parameters, &sent) {
        return Err(NotAdvertised::TooLong);
    }
    Ok(said)
}

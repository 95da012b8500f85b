//! Who else announces what this speaker originates: the same prefix, or one inside.
//!
//! What was received counts, whatever policy says of it: a policy that rejects such routes is the
//! rule and not the exception. What comes back from ourselves does not count: with our router id
//! as ORIGINATOR_ID, our number in the AS path, or an address of our own as next hop (RFC 4456 §8,
//! RFC 4271 §9.1.2 and §5.1.3).

use ipnet::IpNet;

use super::{
    Rib,
    family::FamilyRib,
    prefix::Prefix,
    shared::{LOCAL, Shared},
    table::Path,
    types::{Claim, Ineligible, PeerKind},
};

/// Claims that are told of one originated prefix.
const PER_PREFIX: usize = 8;

impl Rib {
    /// Every claim, in order of what it concerns.
    pub fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        collect(&self.v4, &self.shared, &mut claims);
        collect(&self.v6, &self.shared, &mut claims);
        claims
    }

    /// As [`claims`](Self::claims), when they may have changed since they were last asked for here.
    pub fn poll_claims(&mut self) -> Option<Vec<Claim>> {
        self.flush();
        let v4 = self.v4.forget_claims();
        let v6 = self.v6.forget_claims();
        (v4 || v6).then(|| self.claims())
    }

    /// Prefixes that are originated and own what lies inside.
    pub fn originated(&self) -> Vec<IpNet> {
        self.v4.owned().chain(self.v6.owned()).collect()
    }
}

impl<K: Prefix> FamilyRib<K> {
    /// Forgets prefixes that nobody announces any more. True: something may have changed.
    fn forget_claims(&mut self) -> bool {
        if !std::mem::take(&mut self.claims_changed) {
            return false;
        }
        let mut claimed = std::mem::take(&mut self.claimed);
        claimed.retain(|key| {
            let learned = |route| self.table.paths(route).any(|path| path.slot != LOCAL);
            self.owner(*key).is_some() && self.table.find(*key).is_some_and(learned)
        });
        self.claimed = claimed;
        true
    }
}

fn collect<K: Prefix>(rib: &FamilyRib<K>, shared: &Shared, claims: &mut Vec<Claim>) {
    let mut found: Vec<Claim> = Vec::new();
    for key in &rib.claimed {
        let (Some(block), Some(route)) = (rib.owner(*key), rib.table.find(*key)) else {
            continue;
        };
        let (block, prefix) = (block.ip_net(), key.ip_net());
        let others = rib.table.paths(route);
        found.extend(others.filter_map(|path| claim(shared, path, block, prefix)));
    }
    found.sort_by_key(|claim| (claim.block, claim.prefix, claim.peer, claim.path_id));
    let mut last = None;
    let mut count = 0;
    found.retain(|claim| {
        count = if last == Some(claim.block) {
            count + 1
        } else {
            1
        };
        last = Some(claim.block);
        count <= PER_PREFIX
    });
    claims.append(&mut found);
}

fn claim(shared: &Shared, path: &Path, block: IpNet, prefix: IpNet) -> Option<Claim> {
    // What is refused for being ours is what this is about.
    let refused = path
        .verdict()
        .explain()
        .err()
        .filter(|why| !matches!(why, Ineligible::InsideOurs | Ineligible::BlackholeOfOurs));
    if path.slot == LOCAL || refused.is_some() {
        return None;
    }
    let peer = shared.peer(path.slot)?;
    let attributes = &shared.attributes.get(path.received).attributes;
    // A session may allow our own number in paths; what it brings is our own all the same.
    let ours = |asn| attributes.as_path.contains(asn);
    if ours(shared.config.asn) || peer.session.local_as.is_some_and(ours) {
        return None;
    }
    let internal = peer.session.kind == PeerKind::Internal;
    Some(Claim {
        block,
        prefix,
        peer: peer.id,
        path_id: path.path_id,
        originator: internal.then(|| {
            let passed_on = attributes.originator_id;
            passed_on.unwrap_or(peer.session.remote_router_id)
        }),
        origin_as: attributes.as_path.origin(),
    })
}

//! The routes of an update group as they are sent, each combination stored once and counted.
//!
//! An output says which Loc-RIB attributes from which peer became which sent attributes. Two
//! outputs may lead to the same sent attributes; then nothing is sent when a route goes from one
//! to the other.

use std::{hash::BuildHasher, net::IpAddr, sync::Arc};

use hashbrown::{HashMap, HashTable};
use smallvec::SmallVec;

use super::{
    arena::{Arena, NONE},
    export::{self, ExportParameters, Origin},
    interned::NO_ATTRIBUTES,
    prefix::Prefix,
    shared::Shared,
    table::Best,
};
use crate::{
    attributes::Attributes,
    message::Nlri,
    policy::RouteFacts,
    types::PeerId,
    wire::{EncodedAttributes, encode_announce},
};

/// Output ids start at 1; 0 stands for "not sent".
pub(super) const NOT_SENT: u32 = 0;

/// Attribute sets that take less than this fit into any message.
const SURELY_FITS: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    effective: u32,
    peer: Option<PeerId>,
    rule: Option<usize>,
    /// Of the path as received; 0 where one path of a prefix is sent.
    path: u32,
}

#[derive(Debug)]
struct Output {
    key: Key,
    references: u32,
    sent: u32,
    /// The identifier that it is sent with (RFC 7911); 0 where there is none.
    path_id: u32,
    next_hop: IpAddr,
    /// Members that must not get it: whom it was learned from, and whose address the next hop is
    /// (RFC 4271 §5.1.3).
    hidden: SmallVec<[PeerId; 2]>,
}

#[derive(Debug)]
struct Sent {
    attributes: Arc<Attributes>,
    references: u32,
    hash: u64,
}

#[derive(Debug)]
pub(super) struct Outputs {
    outputs: Arena<Output>,
    by_key: HashMap<Key, u32, foldhash::fast::RandomState>,
    sent: Arena<Sent>,
    by_content: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    last: Option<(Key, u32)>,
    /// The members of the group, with their addresses.
    members: Vec<(PeerId, IpAddr)>,
}

impl Outputs {
    pub(super) fn new() -> Self {
        let mut outputs = Arena::new();
        // Takes id 0, which means "not sent".
        outputs.insert(Output {
            key: Key {
                effective: NO_ATTRIBUTES,
                peer: None,
                rule: None,
                path: 0,
            },
            references: 1,
            sent: NONE,
            path_id: 0,
            next_hop: IpAddr::from([0; 4]),
            hidden: SmallVec::new(),
        });
        Self {
            outputs,
            by_key: HashMap::default(),
            sent: Arena::new(),
            by_content: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            last: None,
            members: Vec::new(),
        }
    }

    pub(super) fn join(&mut self, peer: PeerId, address: IpAddr) {
        self.members.push((peer, address));
        for id in 1..self.outputs.end() {
            let output = &mut self.outputs[id];
            if output.references > 0
                && (output.key.peer == Some(peer) || output.next_hop == address)
            {
                output.hidden.push(peer);
            }
        }
    }

    pub(super) fn leave(&mut self, peer: PeerId) {
        self.members.retain(|(member, _)| *member != peer);
        for id in 1..self.outputs.end() {
            self.outputs[id].hidden.retain(|hidden| *hidden != peer);
        }
    }

    /// What is to be sent for a path, with a reference; `NOT_SENT` when nothing is.
    pub(super) fn output<K: Prefix>(
        &mut self,
        shared: &mut Shared,
        to: &ExportParameters,
        prefix: K,
        best: Best,
    ) -> u32 {
        let source = shared.source(best.slot);
        let set = shared.attributes.get(best.effective);
        let facts = RouteFacts {
            prefix: &prefix.ip_net(),
            attributes: &set.attributes,
            source,
            within_originated: best.slot == super::shared::LOCAL,
        };
        let decision = to.policy.decide(facts);
        let Some(sets) = decision.accept else {
            return NOT_SENT;
        };
        let peer = shared.peer(best.slot);
        let key = Key {
            effective: best.effective,
            peer: peer.map(|peer| peer.id),
            rule: decision.rule,
            path: to.paths.map_or(0, |_| best.path_id),
        };
        let known = match self.last {
            Some((last, id)) if last == key => Some(id),
            _ => self.by_key.get(&key).copied(),
        };
        if let Some(id) = known {
            self.outputs[id].references += 1;
            self.last = Some((key, id));
            return id;
        }
        if export::withheld(shared, to, source, &set.attributes).is_some() {
            return NOT_SENT;
        }
        let origin = Origin {
            source,
            router_id: peer.map_or(shared.config.router_id, |peer| {
                peer.session.remote_router_id
            }),
        };
        let Some(attributes) =
            export::attributes(shared, to, K::FAMILY, origin, &set.attributes, sets)
        else {
            return NOT_SENT;
        };
        if !fits::<K>(to, &attributes) {
            tracing::warn!(prefix = %prefix.ip_net(), "not sent: its attributes fill a message");
            return NOT_SENT;
        }
        let next_hop = attributes.next_hop.address;
        let hidden = self.members.iter();
        let hidden = hidden
            .filter(|(peer, address)| Some(*peer) == key.peer || *address == next_hop)
            .map(|(peer, _)| *peer)
            .collect();
        let sent = self.intern(attributes);
        shared.attributes.retain(key.effective);
        let path_id = match to.paths {
            None => 0,
            Some(_) => shared.path_ids.acquire((key.peer, key.path)),
        };
        let id = self.outputs.insert(Output {
            key,
            references: 1,
            sent,
            path_id,
            next_hop,
            hidden,
        });
        self.by_key.insert(key, id);
        self.last = Some((key, id));
        id
    }

    fn intern(&mut self, attributes: Attributes) -> u32 {
        let hash = self.hasher.hash_one(&attributes);
        let sent = &self.sent;
        let known = self.by_content.find(hash, |id| {
            let known = &sent[*id];
            known.hash == hash && *known.attributes == attributes
        });
        if let Some(id) = known {
            self.sent[*id].references += 1;
            return *id;
        }
        let attributes = Arc::new(attributes);
        let id = self.sent.insert(Sent {
            attributes,
            references: 1,
            hash,
        });
        let sent = &self.sent;
        self.by_content.insert_unique(hash, id, |id| sent[*id].hash);
        id
    }

    pub(super) fn retain(&mut self, id: u32) {
        if id != NOT_SENT {
            self.outputs[id].references += 1;
        }
    }

    pub(super) fn release(&mut self, shared: &mut Shared, id: u32) {
        if id == NOT_SENT {
            return;
        }
        let output = &mut self.outputs[id];
        output.references -= 1;
        if output.references > 0 {
            return;
        }
        let (key, sent, path_id) = (output.key, output.sent, output.path_id);
        self.by_key.remove(&key);
        if self.last.is_some_and(|(_, last)| last == id) {
            self.last = None;
        }
        self.outputs.remove(id);
        shared.attributes.release(key.effective);
        if path_id != 0 {
            shared.path_ids.release((key.peer, key.path));
        }
        let entry = &mut self.sent[sent];
        entry.references -= 1;
        if entry.references == 0 {
            let hash = entry.hash;
            let found = self.by_content.find_entry(hash, |other| *other == sent);
            found.expect("sent attributes in use are indexed").remove();
            self.sent[sent].attributes = shared.attributes.get(NO_ATTRIBUTES).attributes.clone();
            self.sent.remove(sent);
        }
    }

    /// The id of the attributes as sent; `NONE` for `NOT_SENT`.
    pub(super) fn sent(&self, id: u32) -> u32 {
        self.outputs[id].sent
    }

    pub(super) fn attributes(&self, sent: u32) -> &Arc<Attributes> {
        &self.sent[sent].attributes
    }

    /// The identifier of the path as sent; 0 where one path of a prefix is sent.
    pub(super) fn path_id(&self, id: u32) -> u32 {
        self.outputs[id].path_id
    }

    /// The identifier of the path as received.
    pub(super) fn received_path_id(&self, id: u32) -> Option<u32> {
        let output = &self.outputs[id];
        (output.path_id != 0).then_some(output.key.path)
    }

    /// Members that must not get it.
    pub(super) fn hidden(&self, id: u32) -> &SmallVec<[PeerId; 2]> {
        &self.outputs[id].hidden
    }

    /// Whom it was learned from; `None`: originated here.
    pub(super) fn peer(&self, id: u32) -> Option<PeerId> {
        self.outputs[id].key.peer
    }

    /// The rule of the export policy that let it out.
    pub(super) fn rule(&self, id: u32) -> Option<usize> {
        self.outputs[id].key.rule
    }

    /// Whether this member gets something for this output.
    pub(super) fn is_visible(&self, id: u32, member: PeerId) -> bool {
        id != NOT_SENT && !self.outputs[id].hidden.contains(&member)
    }
}

/// Whether a prefix fits into a message beside these attributes.
pub(super) fn fits<K: Prefix>(to: &ExportParameters, attributes: &Attributes) -> bool {
    let path: usize = attributes
        .as_path
        .0
        .iter()
        .map(|segment| 2 + 4 * segment.asns.len())
        .sum();
    let unknown: usize = attributes
        .unknown
        .iter()
        .map(|unknown| 4 + unknown.value.len())
        .sum();
    // Twice the path: a two-octet session carries it a second time, as AS4_PATH.
    let estimate = 2 * path
        + unknown
        + 4 * attributes.communities.len()
        + 8 * attributes.extended_communities.len()
        + 12 * attributes.large_communities.len()
        + 4 * attributes.cluster_list.len();
    if estimate < SURELY_FITS {
        return true;
    }
    let Some(longest) = K::from_address(match K::FAMILY {
        crate::types::Family::Ipv4Unicast => [0; 4].into(),
        crate::types::Family::Ipv6Unicast => [0; 16].into(),
    }) else {
        return false;
    };
    let encoded = EncodedAttributes::new(attributes, &to.negotiated, K::FAMILY);
    let nlri = [Nlri {
        path_id: 0,
        prefix: longest.net(),
    }];
    encode_announce(&mut Vec::new(), &to.negotiated, &encoded, &nlri).is_ok()
}

//! What the dataplane, the speaker and the fleet report: told to the node, logged, counted.

use std::{collections::HashSet, time::Instant};

use bgp::{
    driver::Update,
    speaker::status::{PeerState, PeerStatus},
};
use dataplane::desired::Event;
use ipnet::IpNet;

use super::{
    super::outbox::{ToDataplane, ToSpeaker},
    Ack, OwnAddresses, Task,
};
use crate::{fleet, ipam::Now, node::claims::ClaimEvent, peers::PeerEvent, telemetry::notify};

impl Task {
    pub(super) fn claim(&self, event: &ClaimEvent) {
        match event {
            ClaimEvent::Began(duplicate) => {
                let claim = &duplicate.claim;
                let (block, prefix) = (&claim.block, &claim.prefix);
                self.metrics.duplicate_claims_seen.inc();
                tracing::error!(
                    %block, %prefix, peer = claim.peer, originator = ?claim.originator,
                    origin_as = ?claim.origin_as.map(|asn| asn.0), unused = duplicate.yields,
                    "another BGP speaker announces a block of this node: two nodes hold it"
                );
            }
            ClaimEvent::Yielded(block) => {
                self.metrics.blocks_yielded.inc();
                tracing::warn!(%block, "the block is unused and given up: another one announces it");
            }
            ClaimEvent::Ended(block) => {
                tracing::info!(%block, "nobody else announces the block any more");
            }
        }
        let blocks: HashSet<IpNet> = self
            .node
            .duplicate_claims()
            .iter()
            .map(|known| known.claim.block)
            .collect();
        self.metrics
            .duplicate_claims
            .set(i64::try_from(blocks.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn dataplane(&mut self, events: Vec<Event>, own_addresses: &OwnAddresses) {
        let now = Now::read();
        let mut next_hops = Vec::new();
        for event in events {
            match event {
                Event::NextHop { via, state } => {
                    next_hops.push((speaker_via(via), next_hop_state(state)));
                }
                Event::Repaired { id, what } => {
                    tracing::warn!(?id, %what, "changed by others, put back");
                }
                Event::NodeAddresses(all) => {
                    let own = own_addresses(&all);
                    tracing::info!(?own, "addresses of this node");
                    self.node.set_own_addresses(own);
                    self.peers.set_addresses(all);
                }
                Event::SharedRepaired { what } => {
                    tracing::warn!(%what, "changed by others, put back");
                }
                Event::FilterRepaired { what } => {
                    tracing::warn!(%what, "nftables changed by others, put back");
                }
                Event::FilterFailed(error) => {
                    tracing::error!(
                        kind = ?error.kind,
                        error = %error.text,
                        "the nftables table is not as it should be: ports, masquerading and source \
                         checks may be missing"
                    );
                }
                Event::FilterProgrammed => {
                    tracing::info!("the nftables table inet agentd stands");
                }
                Event::Failed { id, error } => {
                    tracing::warn!(?id, kind = ?error.kind, error = %error.text, "not in the kernel");
                    self.node.handle_dataplane(now, Event::Failed { id, error });
                }
                Event::Swept { source, deleted } => {
                    tracing::info!(?source, deleted, "stale kernel objects removed");
                    self.node
                        .handle_dataplane(now, Event::Swept { source, deleted });
                }
                event => self.node.handle_dataplane(now, event),
            }
        }
        if let Some(outbox) = &mut self.to_speaker
            && !next_hops.is_empty()
        {
            outbox.put(ToSpeaker::NextHops(next_hops));
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Routes(changes) => {
                let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
                self.metrics.route_changes.inc_by(count);
                self.footprint.handle_routes(Instant::now(), changes.len());
                self.node.handle_routes(changes);
            }
            Update::WatchNextHops { add, remove } => {
                let add = add.into_iter().map(dataplane_via).collect();
                let remove = remove.into_iter().map(dataplane_via).collect();
                self.to_dataplane
                    .put(ToDataplane::WatchNextHops { add, remove });
            }
            Update::Peers(peers) => {
                for peer in peers {
                    self.log_peer(&peer);
                    self.peers.publish(|| PeerEvent::Changed(Box::new(peer)));
                }
                if self.node.is_ready() {
                    notify::status(&self.status_line());
                }
                self.ask_advertised();
            }
            Update::PeersGone(names) => {
                for name in names {
                    self.established.remove(&name);
                    // Who has removed it has said so; of a range they come and go.
                    tracing::debug!(peer = name, "peer is gone");
                    self.peers.publish(|| PeerEvent::Gone(name));
                }
                self.ask_advertised();
            }
            Update::Claims(claims) => self.node.handle_claims(Now::read(), claims),
            Update::FirstSync => {
                tracing::info!("every peer has sent its table, or had time enough");
                self.node.handle_first_sync();
            }
        }
    }

    /// For `systemctl status`, as of the last change of a peer.
    pub(super) fn status_line(&self) -> String {
        let status = self.node.status();
        format!(
            "{} workloads, {} blocks, {} BGP sessions established",
            status.workloads,
            status.blocks,
            self.established.len()
        )
    }

    /// Each session that comes or goes, and each new reason why one does not come.
    fn log_peer(&mut self, peer: &PeerStatus) {
        let (name, address) = (&peer.name, peer.address);
        if let Some(reason) = &peer.news.lost {
            tracing::warn!(peer = name, %address, reason, "session lost");
        }
        if peer.state == PeerState::Established {
            if self.established.insert(name.clone()) || peer.news.established {
                tracing::info!(peer = name, %address, "session established");
            }
            return;
        }
        self.established.remove(name);
        // Strangers that a range lets connect must not fill the log.
        let is_stranger = peer.range.is_some() && peer.counters.established_count == 0;
        if peer.news.reason && !is_stranger {
            tracing::info!(peer = name, %address, reason = peer.reason, "session not established");
        } else if peer.news.lost.is_none() {
            tracing::debug!(peer = name, %address, state = ?peer.state, reason = peer.reason, "session not established");
        }
    }

    pub(super) fn acknowledged(&mut self, ack: Ack) {
        let now = Now::read();
        match ack {
            Ack::Originated(blocks) => {
                for cidr in blocks {
                    self.node.handle_originated(now, cidr);
                }
                self.ask_advertised();
            }
            Ack::Withdrawn(blocks) => {
                for cidr in blocks {
                    self.node.handle_withdrawn(cidr);
                }
            }
            Ack::Advertised(counts) => self.node.handle_advertised(counts),
        }
    }

    pub(super) fn fleet(&mut self, event: fleet::Event) {
        let now = Now::read();
        match event {
            fleet::Event::Acquired { pool, block } => self.node.handle_acquired(now, &pool, block),
            fleet::Event::AcquireFailed { pool, block, why } => {
                self.node.handle_acquire_failed(now, &pool, block, why);
            }
            // Shown by the status; the rest is for others.
            fleet::Event::Lost { .. } | fleet::Event::Nodes(_) | fleet::Event::Reclaim(_) => {}
        }
    }
}

fn speaker_via(via: dataplane::desired::Via) -> bgp::attributes::Via {
    bgp::attributes::Via {
        address: via.address,
        interface: via.interface,
    }
}

fn dataplane_via(via: bgp::attributes::Via) -> dataplane::desired::Via {
    dataplane::desired::Via {
        address: via.address,
        interface: via.interface,
    }
}

fn next_hop_state(state: dataplane::desired::NextHopState) -> bgp::rib::NextHopState {
    match state {
        dataplane::desired::NextHopState::Unreachable => bgp::rib::NextHopState::Unreachable,
        dataplane::desired::NextHopState::Reachable { metric } => {
            bgp::rib::NextHopState::Reachable { metric }
        }
    }
}

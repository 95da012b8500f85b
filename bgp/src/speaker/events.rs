//! One event of one session, and what follows from it.

use std::{sync::Arc, time::Instant};

use super::{Connection, Output, Speaker, peer};
use crate::{
    message::RouteRefresh,
    session::{Action, Context, Packet, Session},
    types::PeerId,
    wire,
};

impl Speaker {
    /// Runs one event of one session and does what follows.
    pub(super) fn with_session<T>(
        &mut self,
        now: Instant,
        peer_id: PeerId,
        event: impl FnOnce(&mut Session, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let peer = self.peers.get_mut(&peer_id)?;
        let mut actions = std::mem::take(&mut self.actions);
        let mut cx = Context {
            now,
            ids: &mut self.connection_ids,
            actions: &mut actions,
        };
        let result = event(&mut peer.session, &mut cx);
        if peer.session.take_state_change(now) {
            self.changed.insert(peer_id);
        }
        for action in actions.drain(..) {
            self.act(peer_id, action);
        }
        self.actions = actions;
        self.note_idle(now, peer_id);
        self.reschedule(peer_id);
        Some(result)
    }

    fn act(&mut self, peer_id: PeerId, action: Action) {
        let Some(peer) = self.peers.get(&peer_id) else {
            return;
        };
        match action {
            Action::Dial(connection) => {
                self.connections.insert(
                    connection,
                    Connection {
                        peer: peer_id,
                        local: None,
                        link: None,
                    },
                );
                self.outputs.push_back(Output::Dial {
                    connection,
                    peer: Arc::clone(&peer.config),
                });
            }
            Action::Close(connection) => {
                self.connections.remove(&connection);
                self.outputs.push_back(Output::Close { connection });
            }
            Action::Send(connection, packet) => {
                let mut octets = Vec::new();
                encode(&mut octets, &packet);
                self.outputs.push_back(Output::Send { connection, octets });
            }
            Action::Negotiated(connection, negotiated) => {
                self.outputs.push_back(Output::Negotiated {
                    connection,
                    negotiated,
                });
            }
            Action::Up(up) => {
                let known = self.connections.get(&up.connection);
                let local = known.and_then(|known| known.local);
                let link = known.and_then(|known| known.link);
                let session = peer::rib_session(&self.config, &peer.config, local, link, *up);
                self.rib.peer_up(peer_id, session);
                self.queue_pull(peer_id);
            }
            Action::Down { keep_stale } => self.rib.peer_down(peer_id, keep_stale),
            Action::MarkStale(family) => self.rib.mark_stale(peer_id, family),
            Action::SweepStale(family) => self.rib.sweep_stale(peer_id, family),
            Action::LongLived(family) => self.rib.mark_long_lived(peer_id, family),
        }
    }

    pub(super) fn queue_pull(&mut self, peer_id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer_id)
            && !peer.queued
            && self.rib.has_pending(peer_id)
        {
            peer.queued = true;
            self.pullable.push_back(peer_id);
        }
    }

    /// An entry that is too early is harmless and cheap: it is corrected when it is reached. So
    /// only an earlier deadline changes the set, and a message that restarts the hold timer does
    /// not.
    pub(super) fn reschedule(&mut self, peer_id: PeerId) {
        let Some(peer) = self.peers.get_mut(&peer_id) else {
            return;
        };
        let forget_at = peer.origin.as_ref().and_then(|origin| origin.forget_at);
        let Some(deadline) = peer.session.deadline().into_iter().chain(forget_at).min() else {
            return;
        };
        match peer.scheduled {
            Some(scheduled) if scheduled <= deadline => {}
            scheduled => {
                if let Some(scheduled) = scheduled {
                    self.deadlines.remove(&(scheduled, peer_id));
                }
                self.deadlines.insert((deadline, peer_id));
                peer.scheduled = Some(deadline);
            }
        }
    }
}

fn encode(out: &mut Vec<u8>, packet: &Packet) {
    match packet {
        Packet::Open(open) => wire::encode_open(out, open),
        Packet::Keepalive => wire::encode_keepalive(out),
        Packet::Notification(notification) => wire::encode_notification(out, notification),
        Packet::RouteRefresh(family) => {
            let (afi, safi) = family.afi_safi();
            let refresh = RouteRefresh {
                afi,
                safi,
                subtype: 0,
            };
            wire::encode_route_refresh(out, &refresh);
        }
    }
}

//! The calls of `RoutingService` that are about peers.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use agentd_proto::v1::{self, watch_peers_response::Kind};
use bgp::{driver::Admin, speaker::SoftReset};
use futures::{Stream, stream};
use tokio::sync::broadcast;
use tonic::Status;

use super::{Context, render_peers as render};
use crate::{
    node::Error,
    peers::{Facts, PeerEvent, WATCH_QUEUE},
};

pub(super) type PeerStream =
    Pin<Box<dyn Stream<Item = Result<v1::WatchPeersResponse, Status>> + Send + 'static>>;

fn named(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid("name", "is required: the name of a peer"));
    }
    Ok(())
}

pub(super) async fn list(context: &Context) -> v1::ListPeersResponse {
    let facts = context.peers.facts();
    let peers = context.network.peers().await;
    let ranges = context.network.ranges().await;
    v1::ListPeersResponse {
        peers: peers
            .iter()
            .map(|peer| render::peer(peer, &facts))
            .collect(),
        ranges: ranges
            .iter()
            .map(|range| render::range(range, &facts))
            .collect(),
    }
}

/// A peer, or else a range.
pub(super) async fn get(context: &Context, name: &str) -> Result<v1::GetPeerResponse, Error> {
    named(name)?;
    let all = list(context).await;
    let unknown = {
        let names = all.peers.iter().map(|peer| peer.name.as_str());
        Error::peer_not_found(
            name,
            names.chain(all.ranges.iter().map(|range| range.name.as_str())),
        )
    };
    let found = v1::GetPeerResponse {
        peer: all.peers.into_iter().find(|peer| peer.name == name),
        range: all.ranges.into_iter().find(|range| range.name == name),
    };
    if found.peer.is_none() && found.range.is_none() {
        return Err(unknown);
    }
    Ok(found)
}

pub(super) async fn add(
    context: &Context,
    request: v1::AddPeerRequest,
) -> Result<v1::AddPeerResponse, Error> {
    let spec = request
        .peer
        .ok_or_else(|| Error::invalid("peer", "is required"))?;
    if spec.name.is_empty() {
        return Err(Error::invalid("peer.name", "is required"));
    }
    let created = context.peers.add(spec).await?;
    Ok(v1::AddPeerResponse { created })
}

pub(super) async fn remove(
    context: &Context,
    request: v1::RemovePeerRequest,
) -> Result<v1::RemovePeerResponse, Error> {
    named(&request.name)?;
    let removed = context.peers.remove(request.name).await?;
    Ok(v1::RemovePeerResponse { removed })
}

pub(super) async fn reset(
    context: &Context,
    request: v1::ResetPeerRequest,
) -> Result<v1::ResetPeerResponse, Error> {
    use v1::reset_peer_request::Mode;
    named(&request.name)?;
    let soft = |receive, send| Admin::ResetSoft(SoftReset { receive, send });
    let how = match Mode::try_from(request.mode) {
        Ok(Mode::Unspecified | Mode::Hard) => Admin::ResetHard,
        Ok(Mode::Soft) => soft(true, true),
        Ok(Mode::SoftIn) => soft(true, false),
        Ok(Mode::SoftOut) => soft(false, true),
        Err(_) => {
            let text = format!("is {}; 1 to 4 are known", request.mode);
            return Err(Error::invalid("mode", text));
        }
    };
    context.peers.reset(request.name, how).await?;
    Ok(v1::ResetPeerResponse {})
}

pub(super) async fn shutdown(
    context: &Context,
    request: v1::ShutdownPeerRequest,
) -> Result<v1::ShutdownPeerResponse, Error> {
    named(&request.name)?;
    context.peers.shutdown(request.name, request.text).await?;
    Ok(v1::ShutdownPeerResponse {})
}

pub(super) async fn enable(
    context: &Context,
    request: v1::EnablePeerRequest,
) -> Result<v1::EnablePeerResponse, Error> {
    named(&request.name)?;
    context.peers.enable(request.name).await?;
    Ok(v1::EnablePeerResponse {})
}

/// The peers as they are, and then what becomes of them. A change between the look and the first
/// event is told twice, and none is missed.
pub(super) async fn watch(context: &Context) -> PeerStream {
    let changes = context.peers.watch();
    let facts = context.peers.facts();
    let peers = context.network.peers().await;
    let mut first: VecDeque<v1::WatchPeersResponse> = peers
        .iter()
        .map(|peer| v1::WatchPeersResponse {
            kind: Kind::Peer.into(),
            name: peer.name.clone(),
            peer: Some(render::peer(peer, &facts)),
        })
        .collect();
    first.push_back(v1::WatchPeersResponse {
        kind: Kind::Synced.into(),
        ..Default::default()
    });
    let context = context.clone();
    Box::pin(stream::unfold(Some((first, changes)), move |state| {
        let context = context.clone();
        async move {
            let (mut first, mut changes) = state?;
            if let Some(response) = first.pop_front() {
                return Some((Ok(response), Some((first, changes))));
            }
            match changes.recv().await {
                Ok(event) => {
                    let response = told(event, &context.peers.facts())?;
                    Some((Ok(response), Some((first, changes))))
                }
                Err(broadcast::error::RecvError::Closed) => None,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let error = Error::WatcherBehind { limit: WATCH_QUEUE };
                    Some((Err(error.into()), None))
                }
            }
        }
    }))
}

/// `None` ends the watch.
fn told(event: PeerEvent, facts: &Arc<Facts>) -> Option<v1::WatchPeersResponse> {
    Some(match event {
        PeerEvent::End => return None,
        PeerEvent::Changed(peer) => v1::WatchPeersResponse {
            kind: Kind::Peer.into(),
            name: peer.name.clone(),
            peer: Some(render::peer(&peer, facts)),
        },
        PeerEvent::Gone(name) => v1::WatchPeersResponse {
            kind: Kind::Gone.into(),
            name,
            peer: None,
        },
    })
}

//! Small tasks that wait in the place of the node's task: they carry its messages to the dataplane
//! and to the speaker, and ask which peers have its blocks.

use std::{collections::HashMap, sync::Arc};

use bgp::{
    rib::LocalRoute,
    speaker::status::{PeerState, RouteQuery, RouteTable},
};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use super::{
    outbox::{ToDataplane, ToSpeaker},
    task::Ack,
};
use crate::api::network::Network;

/// LOCAL_PREF of a block that is in use and that another node announces, too. Others have 100.
const PREFERRED: u32 = 200;

pub(super) async fn to_dataplane(
    dataplane: dataplane::runtime::Handle,
    mut queue: mpsc::Receiver<ToDataplane>,
) {
    while let Some(message) = queue.recv().await {
        let result = match message {
            ToDataplane::Set(objects) => dataplane.set(objects).await,
            ToDataplane::Remove(ids) => dataplane.remove(ids).await,
            ToDataplane::Synced(source) => dataplane.source_synced(source).await,
            ToDataplane::WatchNextHops { add, remove } => {
                dataplane.watch_next_hops(add, remove).await
            }
        };
        // The node's task notices the end of the dataplane by itself.
        if result.is_err() {
            return;
        }
    }
}

pub(super) async fn to_speaker(
    speaker: bgp::driver::Handle,
    mut queue: mpsc::Receiver<ToSpeaker>,
    acks: mpsc::Sender<Ack>,
) {
    while let Some(message) = queue.recv().await {
        let ack = match message {
            ToSpeaker::Originate(blocks) => {
                speaker.originate(blocks.clone()).await;
                Ack::Originated(blocks)
            }
            ToSpeaker::Withdraw(blocks) => {
                speaker.withdraw(blocks.clone()).await;
                Ack::Withdrawn(blocks)
            }
            ToSpeaker::Prefer(block) => {
                let preferred = LocalRoute {
                    local_pref: Some(PREFERRED),
                    ..LocalRoute::default()
                };
                speaker.originate_routes(vec![(block, preferred)]).await;
                continue;
            }
            ToSpeaker::OriginationsSynced => {
                speaker.originations_synced().await;
                continue;
            }
            ToSpeaker::Drain(drain) => {
                speaker.set_drain(drain).await;
                continue;
            }
            ToSpeaker::NextHops(states) => {
                speaker.set_next_hops(states).await;
                continue;
            }
        };
        if acks.send(ack).await.is_err() {
            return;
        }
    }
}

/// Counts the Established peers that have each originated block, whenever asked to.
pub(super) async fn count_advertised(
    network: Arc<dyn Network>,
    mut originated: watch::Receiver<Vec<IpNet>>,
    acks: mpsc::Sender<Ack>,
) {
    while originated.changed().await.is_ok() {
        let blocks = originated.borrow_and_update().clone();
        let mut counts: HashMap<IpNet, u32> = blocks.iter().map(|cidr| (*cidr, 0)).collect();
        let peers = network.peers().await;
        for peer in peers
            .iter()
            .filter(|peer| peer.state == PeerState::Established)
        {
            for (cidr, count) in &mut counts {
                let page = network
                    .routes(RouteQuery {
                        table: RouteTable::AdjRibOut,
                        peer: Some(peer.name.clone()),
                        prefix: Some(*cidr),
                        after: None,
                        limit: 1,
                    })
                    .await;
                if page.routes.iter().any(|route| route.prefix == *cidr) {
                    *count += 1;
                }
            }
        }
        let counts = counts.into_iter().collect();
        if acks.send(Ack::Advertised(counts)).await.is_err() {
            return;
        }
    }
}

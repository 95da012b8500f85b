//! Small tasks that wait in the place of the node's task: they carry its messages to the dataplane
//! and to the speaker, and ask which peers have its blocks.

use std::{collections::HashMap, sync::Arc, time::Duration};

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

/// What a peer is to get waits for its socket, and nothing tells when it has gone out. So while a
/// peer lacks a block, it is counted again after these pauses; then policy must be what keeps it.
const RECOUNT: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// For each block how many Established peers have it, and whether all of them have all.
type Counted = (Vec<(IpNet, u32)>, bool);

/// Counts the Established peers that have each originated block, whenever asked to.
pub(super) async fn count_advertised(
    network: Arc<dyn Network>,
    originated: watch::Receiver<Vec<IpNet>>,
    acks: mpsc::Sender<Ack>,
) {
    let count = |blocks| count_once(network.clone(), blocks);
    count_when_asked(originated, acks, &RECOUNT, count).await;
}

async fn count_when_asked<C>(
    mut originated: watch::Receiver<Vec<IpNet>>,
    acks: mpsc::Sender<Ack>,
    recount: &[Duration],
    count: impl Fn(Vec<IpNet>) -> C,
) where
    C: Future<Output = Counted>,
{
    if originated.changed().await.is_err() {
        return;
    }
    let mut pauses = recount.iter();
    loop {
        let blocks = originated.borrow_and_update().clone();
        let (counts, complete) = count(blocks).await;
        if acks.send(Ack::Advertised(counts)).await.is_err() {
            return;
        }
        let asked = match pauses.next().filter(|_| !complete) {
            None => originated.changed().await,
            Some(pause) => match tokio::time::timeout(*pause, originated.changed()).await {
                Ok(asked) => asked,
                Err(_) => continue,
            },
        };
        if asked.is_err() {
            return;
        }
        pauses = recount.iter();
    }
}

async fn count_once(network: Arc<dyn Network>, blocks: Vec<IpNet>) -> Counted {
    let mut counts: HashMap<IpNet, u32> = blocks.into_iter().map(|cidr| (cidr, 0)).collect();
    let mut complete = true;
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
            } else {
                complete = false;
            }
        }
    }
    (counts.into_iter().collect(), complete)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A peer that gets the block with the count named, and how often it was counted.
    async fn counted(arrives: u32) -> (Vec<u32>, u32) {
        let block: IpNet = "10.244.1.0/26".parse().unwrap();
        let asked = AtomicU32::new(0);
        let (ask, originated) = watch::channel(Vec::new());
        let (acks, mut answers) = mpsc::channel(64);
        ask.send_replace(vec![block]);
        drop(
            tokio::time::timeout(
                Duration::from_millis(300),
                count_when_asked(
                    originated,
                    acks,
                    &[Duration::from_millis(1); 5],
                    |blocks: Vec<IpNet>| {
                        let has = asked.fetch_add(1, Ordering::Relaxed) + 1 >= arrives;
                        std::future::ready((vec![(blocks[0], u32::from(has))], has))
                    },
                ),
            )
            .await,
        );
        let mut told = Vec::new();
        while let Ok(Ack::Advertised(counts)) = answers.try_recv() {
            told.push(counts[0].1);
        }
        (told, asked.into_inner())
    }

    #[tokio::test]
    async fn a_block_that_goes_out_a_moment_later_is_counted_then() {
        assert_eq!(counted(1).await, (vec![1], 1));
        assert_eq!(counted(3).await, (vec![0, 0, 1], 3));
    }

    #[tokio::test]
    async fn a_peer_that_never_gets_a_block_is_not_asked_for_ever() {
        let (told, asked) = counted(u32::MAX).await;
        assert_eq!(asked, 6);
        assert_eq!(told, [0; 6]);
    }
}

//! Takes the whole table of one neighbour, prints it with the attributes, and ends.
//!
//! ```text
//! cargo run -p bgp --features driver --example collect -- OWN_AS OWN_ID PEER_AS PEER_ADDRESS
//! ```

#![allow(clippy::disallowed_methods)]

use std::{error::Error, sync::Arc, time::Duration};

use bgp::{
    driver::{Handle, Update, spawn},
    policy::Policy,
    rib::NextHopState,
    speaker::{
        config::{PeerConfig, SpeakerConfig},
        status::{RouteQuery, RouteTable},
    },
    types::Asn,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [own_as, own_id, peer_as, address] = arguments.as_slice() else {
        return Err("four arguments: OWN_AS OWN_ID PEER_AS PEER_ADDRESS".into());
    };
    let mut config = SpeakerConfig::new(Asn(own_as.parse()?), own_id.parse()?);
    config.first_sync_timeout = Duration::from_secs(60);
    let mut peer = PeerConfig::new("neighbour", address.parse()?, Asn(peer_as.parse()?));
    // Everything is taken, and nothing is sent: this speaker originates nothing.
    peer.import = Arc::new(Policy::all());
    config.peers.push(peer);

    let (handle, mut updates, task) = spawn(config)?;
    handle.originations_synced().await;
    while let Some(update) = updates.next().await {
        match update {
            Update::Peers(peers) => {
                for peer in peers {
                    eprintln!("{}: {:?} {}", peer.address, peer.state, peer.reason);
                }
            }
            Update::WatchNextHops { add, .. } => {
                let reachable = NextHopState::Reachable { metric: 0 };
                let states = add.into_iter().map(|next_hop| (next_hop, reachable));
                handle.set_next_hops(states.collect()).await;
            }
            // The neighbour has sent End-of-RIB, or a minute is over.
            Update::FirstSync => break,
            Update::Routes(_) | Update::PeersGone(_) | Update::Claims(_) => {}
        }
    }
    let count = print(&handle).await;
    eprintln!("{count} routes");
    handle.shutdown("the table is taken").await;
    task.await?;
    Ok(())
}

/// Page by page, so that a large table takes little memory.
async fn print(handle: &Handle) -> usize {
    let mut count = 0;
    let mut after = None;
    loop {
        let page = handle
            .routes(RouteQuery {
                table: RouteTable::AdjRibIn,
                peer: None,
                prefix: None,
                after,
                limit: 1000,
            })
            .await;
        for route in &page.routes {
            count += 1;
            println!(
                "{} via {} path {}",
                route.prefix, route.attributes.next_hop, route.attributes.as_path
            );
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return count,
        }
    }
}

//! Neighbours that change while drivers run, over the loopback device: ranges with TCP MD5, and
//! keys that are exchanged under a session.

#![cfg(feature = "driver")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bgp::{
    driver::{Handle, Updates, spawn},
    speaker::{
        AdminError, Applied,
        config::{ConfigError, Password, PeerConfig, RangeConfig, RemoteAs, SpeakerConfig},
        status::{PeerState, PeerStatus},
    },
    types::Asn,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    handle: Handle,
    /// Kept, because its end would end the speaker.
    _updates: Updates,
}

impl Node {
    fn start(asn: u32, address: [u8; 4], change: impl FnOnce(&mut SpeakerConfig)) -> Self {
        let mut config = SpeakerConfig::new(Asn(asn), Ipv4Addr::from(address));
        change(&mut config);
        let (handle, updates, _) = spawn(config).unwrap();
        Self {
            handle,
            _updates: updates,
        }
    }

    async fn peer(&self, name: &str) -> Option<PeerStatus> {
        let peers = self.handle.peers().await;
        peers.into_iter().find(|peer| peer.name == name)
    }

    async fn until(&self, what: &str, name: &str, condition: impl Fn(Option<&PeerStatus>) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let peer = self.peer(name).await;
            if condition(peer.as_ref()) {
                return;
            }
            assert!(Instant::now() < end, "no {what} of {name}: {peer:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn established(&self, name: &str) {
        let is_up = |peer: &PeerStatus| peer.state == PeerState::Established;
        self.until("session", name, |peer| peer.is_some_and(is_up))
            .await;
    }
}

fn password(text: &str) -> Option<Password> {
    Some(Password::new(text).unwrap())
}

/// Dials `to` from this address.
fn dialer(to: SocketAddr, from: [u8; 4], key: Option<Password>) -> PeerConfig {
    let mut peer = PeerConfig::new("hub", to.ip(), Asn(64512));
    peer.port = to.port();
    peer.local_address = Some(Ipv4Addr::from(from).into());
    peer.password = key;
    peer.timers.hold_time = Duration::from_secs(3);
    peer
}

/// Listens for the range 127.1.0.0/24.
fn hub(key: Option<Password>) -> (Node, SocketAddr) {
    let hub = Node::start(64512, [127, 0, 0, 2], |config| {
        config.listen = vec!["127.0.0.2:0".parse().unwrap()];
        let prefix = "127.1.0.0/24".parse().unwrap();
        let mut range = RangeConfig::new("leaves", prefix, RemoteAs::External);
        range.peer.password = key;
        range.peer.timers.hold_time = Duration::from_secs(3);
        config.ranges.push(range);
    });
    let at = hub.handle.listening()[0];
    (hub, at)
}

fn leaf(number: u8, to: SocketAddr, key: Option<Password>) -> Node {
    let address = [127, 1, 0, number];
    Node::start(64600 + u32::from(number), address, |config| {
        config.peers.push(dialer(to, address, key));
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_a_range_holds_for_all_of_it() {
    let (hub, at) = hub(password("secret"));
    let one = leaf(1, at, password("secret"));
    let two = leaf(2, at, password("secret"));
    let unsigned = leaf(3, at, None);
    let other = leaf(4, at, password("other"));
    one.established("hub").await;
    two.established("hub").await;
    hub.established("leaves:127.1.0.1").await;
    hub.established("leaves:127.1.0.2").await;
    // The kernel answers neither, so nothing has come to the speaker.
    for node in [unsigned, other] {
        let peer = node.peer("hub").await.unwrap();
        assert_ne!(peer.state, PeerState::Established);
    }
    let range = &hub.handle.ranges().await[0];
    assert_eq!(
        (range.accepted, range.refused, range.established),
        (2, 0, 2)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_exchanged_under_sessions_and_holds_for_new_ones() {
    let (hub, at) = hub(password("old"));
    let one = leaf(1, at, password("old"));
    one.established("hub").await;
    hub.established("leaves:127.1.0.1").await;

    let mut peer = dialer(at, [127, 1, 0, 1], password("new"));
    assert_eq!(
        one.handle.update_peer(peer.clone()).await,
        Ok(Applied::Live)
    );
    let prefix = "127.1.0.0/24".parse().unwrap();
    let mut range = RangeConfig::new("leaves", prefix, RemoteAs::External);
    range.peer.password = password("new");
    range.peer.timers.hold_time = Duration::from_secs(3);
    assert_eq!(
        hub.handle.update_range(range.clone()).await,
        Ok(Applied::Live)
    );

    // Keepalives with the new key, for longer than the hold time of 3 s.
    let heard = |peer: &PeerStatus| peer.counters.keepalives_received;
    let before = heard(&one.peer("hub").await.unwrap());
    one.until("keepalives", "hub", |peer| {
        peer.is_some_and(|peer| heard(peer) > before + 4)
    })
    .await;
    for (node, name) in [(&one, "hub"), (&hub, "leaves:127.1.0.1")] {
        let status = node.peer(name).await.unwrap();
        assert_eq!(status.counters.established_count, 1, "{name}");
        assert_eq!(status.counters.dropped_count, 0, "{name}");
    }
    let two = leaf(2, at, password("new"));
    two.established("hub").await;

    // It is on the connection and not only on the listening socket: with a third one on this side
    // alone nothing comes through.
    peer.password = password("third");
    assert_eq!(
        one.handle.update_peer(peer.clone()).await,
        Ok(Applied::Live)
    );
    one.until("loss", "hub", |peer| {
        peer.is_some_and(|peer| peer.counters.dropped_count == 1)
    })
    .await;

    // Taking the key off needs a new session.
    peer.password = None;
    assert_eq!(one.handle.update_peer(peer).await, Ok(Applied::Reset));
    range.peer.password = None;
    assert_eq!(hub.handle.update_range(range).await, Ok(Applied::Reset));
    one.until("second session", "hub", |peer| {
        peer.is_some_and(|peer| peer.counters.established_count == 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_come_and_go_while_the_speaker_runs() {
    let (hub, at) = hub(None);
    let one = leaf(1, at, None);
    one.established("hub").await;
    hub.handle.remove_peer("leaves").await.unwrap();
    assert_eq!(hub.handle.peers().await.len(), 0);
    one.until("loss", "hub", |peer| {
        peer.is_some_and(|peer| peer.counters.dropped_count == 1)
    })
    .await;
    let prefix = "127.1.0.0/16".parse().unwrap();
    let range = RangeConfig::new("wider", prefix, RemoteAs::External);
    hub.handle.add_range(range.clone()).await.unwrap();
    hub.established("wider:127.1.0.1").await;
    assert_eq!(
        hub.handle.add_range(range).await,
        Err(AdminError::Config(ConfigError::DuplicateName(
            "wider".into()
        )))
    );
    assert_eq!(
        hub.handle.remove_peer("leaves").await,
        Err(AdminError::UnknownPeer("leaves".into()))
    );
}

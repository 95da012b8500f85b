//! Two drivers over the loopback device: real sockets, no privileges.

#![cfg(feature = "driver")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bgp::{
    driver::{Admin, Handle, SpawnError, Update, Updates, spawn},
    policy::Policy,
    rib::NextHopState,
    speaker::{
        AdminError,
        config::{Password, PeerConfig, SpeakerConfig},
        status::{PeerState, PeerStatus, RouteQuery, RouteTable},
    },
    types::Asn,
};
use ipnet::{IpNet, Ipv6Net};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a program around the driver would keep.
struct Program {
    handle: Handle,
    updates: Updates,
    routes: BTreeMap<IpNet, usize>,
    peers: BTreeMap<String, PeerStatus>,
    first_sync: bool,
}

impl Program {
    fn start(config: SpeakerConfig) -> Self {
        let (handle, updates, _task) = spawn(config).unwrap();
        Self {
            handle,
            updates,
            routes: BTreeMap::new(),
            peers: BTreeMap::new(),
            first_sync: false,
        }
    }

    /// Handles updates until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waited = timeout(PATIENCE, async {
            while !condition(self) {
                match self.updates.next().await.expect("the speaker has ended") {
                    Update::Routes(changes) => {
                        for change in changes {
                            if change.next_hops.is_empty() {
                                self.routes.remove(&change.prefix);
                            } else {
                                self.routes.insert(change.prefix, change.next_hops.len());
                            }
                        }
                    }
                    Update::WatchNextHops { add, .. } => {
                        let reachable = NextHopState::Reachable { metric: 0 };
                        self.handle
                            .set_next_hops(add.into_iter().map(|hop| (hop, reachable)).collect())
                            .await;
                    }
                    Update::Peers(peers) => {
                        for peer in peers {
                            self.peers.insert(peer.name.clone(), peer);
                        }
                    }
                    Update::PeersGone(names) => {
                        for name in names {
                            self.peers.remove(&name);
                        }
                    }
                    Update::Claims(_) => {}
                    Update::FirstSync => self.first_sync = true,
                }
            }
        })
        .await;
        if waited.is_err() {
            let peers = self.handle.peers().await;
            panic!(
                "no {what} within {PATIENCE:?}: {} routes, {peers:#?}",
                self.routes.len()
            );
        }
    }

    fn is(&self, peer: &str, state: PeerState) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.state == state)
    }
}

fn config(asn: u32, address: &str) -> SpeakerConfig {
    let IpAddr::V4(router_id) = address.parse().unwrap() else {
        panic!("the tests use IPv4");
    };
    let mut config = SpeakerConfig::new(Asn(asn), router_id);
    config.seed = u64::from(asn);
    config.next_hop_self[1] = Some(Ipv6Addr::from((0xfd << 120) + u128::from(asn)).into());
    config
}

fn peer(name: &str, address: &str, asn: u32, local: &str) -> PeerConfig {
    let mut peer = PeerConfig::new(name, address.parse().unwrap(), Asn(asn));
    peer.local_address = Some(local.parse().unwrap());
    peer.import = Arc::new(Policy::all());
    peer.export = Arc::new(Policy::all());
    peer
}

/// A passive speaker on 127.0.0.2 and the configuration of one on 127.0.0.1 that dials it.
fn pair(change: impl Fn(&mut PeerConfig)) -> (Program, SpeakerConfig) {
    let mut passive = config(64513, "127.0.0.2");
    passive.listen = vec!["127.0.0.2:0".parse().unwrap()];
    let mut towards = peer("a", "127.0.0.1", 64512, "127.0.0.2");
    towards.passive = true;
    change(&mut towards);
    passive.peers.push(towards);
    let passive = Program::start(passive);
    let [listening] = passive.handle.listening() else {
        panic!("it listens once");
    };
    let mut active = config(64512, "127.0.0.1");
    let mut towards = peer("b", "127.0.0.2", 64513, "127.0.0.1");
    towards.port = listening.port();
    change(&mut towards);
    active.peers.push(towards);
    (passive, active)
}

/// IPv6, because a loopback address is no next hop and IPv4 sessions would announce one.
fn prefixes(count: u16) -> Vec<IpNet> {
    (0..count)
        .map(|n| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, n, 0, 0, 0, 0, 0);
            Ipv6Net::new(address, 64).unwrap().into()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_comes_up_carries_routes_and_ends_with_a_word() {
    let (mut b, config) = pair(|_| {});
    let mut a = Program::start(config);
    a.handle.originate(prefixes(3000)).await;
    a.handle.originations_synced().await;
    b.handle.originations_synced().await;
    b.until("routes", |b| b.routes.len() == 3000 && b.first_sync)
        .await;
    a.until("session", |a| {
        a.is("b", PeerState::Established) && a.first_sync
    })
    .await;
    let status = &a.handle.peers().await[0];
    assert_eq!(status.hold_time, Some(Duration::from_secs(9)));
    assert_eq!(status.families[1].advertised, 3000);
    assert!(
        status.counters.bytes_sent > 3000 * 9,
        "{:?}",
        status.counters
    );
    let page = b
        .handle
        .routes(RouteQuery {
            table: RouteTable::AdjRibIn,
            peer: Some("a".into()),
            prefix: None,
            after: None,
            limit: 100,
        })
        .await;
    assert_eq!(page.routes.len(), 100);
    assert!(page.next.is_some());
    assert_eq!(page.routes[0].peer.as_deref(), Some("a"));

    a.handle.withdraw(prefixes(2999)).await;
    b.until("withdrawals", |b| b.routes.len() == 1).await;

    let text = Admin::Shutdown {
        text: "maintenance".into(),
    };
    a.handle.admin("b", text).await.unwrap();
    b.until("the end", |b| {
        b.routes.is_empty() && b.is("a", PeerState::Active)
    })
    .await;
    let received = b.handle.peers().await[0].last_notification_received.clone();
    let received = received.expect("a word at the end").notification;
    // A Hard Reset, because both sides could restart gracefully (RFC 8538).
    let inner = received.hard_reset_reason().unwrap();
    assert_eq!((inner.code, inner.subcode), (6, 2));
    assert_eq!(inner.shutdown_text(), Some("maintenance"));
    a.handle.admin("b", Admin::Enable).await.unwrap();
    b.until("the session again", |b| b.routes.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_the_same_password_comes_up() {
    let (mut b, config) = pair(|peer| peer.password = Some(Password::new("secret").unwrap()));
    let mut a = Program::start(config);
    a.until("session", |a| a.is("b", PeerState::Established))
        .await;
    b.until("session", |b| b.is("a", PeerState::Established))
        .await;
    // A third speaker that poses as the first, with another key, gets nowhere.
    let status = &b.handle.peers().await[0];
    assert_eq!(status.counters.established_count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_of_a_peer_that_just_goes_are_kept_until_it_is_back() {
    let (mut b, config) = pair(|_| {});
    let a = Program::start(config.clone());
    a.handle.originate(prefixes(10)).await;
    a.handle.originations_synced().await;
    b.until("routes", |b| b.routes.len() == 10).await;
    // Sessions with graceful restart are just closed.
    a.handle.shutdown("restart").await;
    b.until("loss", |b| b.is("a", PeerState::Active)).await;
    assert_eq!(b.routes.len(), 10);
    let mut again = config;
    again.restarting = Some(bgp::speaker::config::Restarting {
        forwarding_preserved: [true; 2],
    });
    let a = Program::start(again);
    a.handle.originate(prefixes(8)).await;
    a.handle.originations_synced().await;
    // Two went without the others ever being away.
    b.until("resync", |b| {
        assert!(b.routes.len() >= 8, "{} routes left", b.routes.len());
        b.routes.len() == 8
    })
    .await;
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(64512, "127.0.0.1");
    config.listen = vec![taken.local_addr().unwrap()];
    let error = spawn(config).map(|_| ()).unwrap_err();
    assert!(matches!(&error, SpawnError::Listen { address, .. }
        if *address == taken.local_addr().unwrap()));
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1") && text.contains("in use"),
        "{text}"
    );
}

#[tokio::test]
async fn both_wildcards_can_be_listened_on_with_one_port() {
    let mut first = config(64512, "127.0.0.1");
    first.listen = vec!["0.0.0.0:0".parse().unwrap()];
    let (handle, _updates, _task) = spawn(first).unwrap();
    let port = handle.listening()[0].port();
    let mut second = config(64512, "127.0.0.1");
    second.listen = vec![SocketAddr::from(([0u16; 8], port))];
    spawn(second).unwrap();
}

#[tokio::test]
async fn peers_come_and_go() {
    let program = Program::start(config(64512, "127.0.0.1"));
    let peer = peer("x", "127.0.0.9", 1, "127.0.0.1");
    program.handle.add_peer(peer.clone()).await.unwrap();
    assert!(matches!(
        program.handle.add_peer(peer).await,
        Err(AdminError::Config(_))
    ));
    assert_eq!(program.handle.peers().await.len(), 1);
    program.handle.remove_peer("x").await.unwrap();
    assert_eq!(
        program.handle.remove_peer("x").await,
        Err(AdminError::UnknownPeer("x".into()))
    );
    assert!(program.handle.peers().await.is_empty());
}

#[tokio::test]
async fn a_connection_from_a_stranger_is_closed_and_harms_nobody() {
    let (b, _) = pair(|_| {});
    let address = b.handle.listening()[0];
    // From 127.0.0.1, and then from an address that is no peer.
    for source in ["127.0.0.7", "127.0.0.1"] {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let source: IpAddr = source.parse().unwrap();
        socket.bind(SocketAddr::from((source, 0))).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let _ = stream.write_all(&[0; 19]).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        read.expect("the connection is closed").ok();
    }
    let status = &b.handle.peers().await[0];
    let sent = status.last_notification_sent.clone().unwrap().notification;
    assert_eq!((sent.code, sent.subcode), (1, 1));
}

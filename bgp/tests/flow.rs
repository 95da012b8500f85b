//! One speaker from outside, without a driver: what a peer is sent when it takes it slowly, and
//! what it is told when the speaker ends.
#![allow(clippy::disallowed_methods)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    message::{Capability, Message, Negotiated, Notification, Open, RouteRefresh},
    policy::Policy,
    rib::LocalRoute,
    speaker::{
        Output, Speaker,
        config::{PeerConfig, SpeakerConfig},
    },
    types::{Asn, ConnectionId, Family},
    wire,
};
use ipnet::{IpNet, Ipv4Net};

const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A speaker with one passive peer, and what that has received.
struct Bench {
    speaker: Speaker,
    now: Instant,
    connection: ConnectionId,
    decoder: wire::Decoder,
    closed: bool,
}

fn prefix(number: u32) -> IpNet {
    let address = Ipv4Addr::from(0x0a00_0000 + number * 256);
    Ipv4Net::new(address, 24).expect("a good length").into()
}

/// With the N bit, or without; `None`: no graceful restart.
fn graceful_restart(notification: Option<bool>) -> Option<Capability> {
    notification.map(|notification| Capability::GracefulRestart {
        restarting: false,
        notification,
        restart_time: 60,
        families: vec![(1, 1, true)],
    })
}

impl Bench {
    /// Established, with so many routes of its own.
    fn new(routes: u32, capability: Option<Capability>) -> Self {
        let now = Instant::now();
        let mut config = SpeakerConfig::new(Asn(64512), LOCAL);
        let mut peer = PeerConfig::new("peer", REMOTE.into(), Asn(64513));
        peer.passive = true;
        peer.families = vec![Family::Ipv4Unicast];
        peer.import = Arc::new(Policy::all());
        peer.export = Arc::new(Policy::all());
        config.peers.push(peer);
        let mut speaker = Speaker::new(now, config).expect("a valid configuration");
        for number in 0..routes {
            // No two share a message.
            let route = LocalRoute {
                med: Some(number),
                ..LocalRoute::default()
            };
            speaker.originate(now, prefix(number), route);
        }
        speaker.originations_synced(now);
        let address = |address: Ipv4Addr| SocketAddr::from((address, 179));
        let accepted = speaker.handle_accepted(now, address(LOCAL), address(REMOTE));
        let (connection, _) = accepted.expect("a configured peer");
        let mut capabilities = vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::FourOctetAs(Asn(64513)),
        ];
        capabilities.extend(capability);
        let mut bench = Self {
            speaker,
            now,
            connection,
            decoder: wire::Decoder::new(),
            closed: false,
        };
        bench.outputs();
        bench.hears(Message::Open(Box::new(Open {
            asn: Asn(64513),
            hold_time: Duration::from_secs(90),
            router_id: REMOTE,
            capabilities,
        })));
        bench.outputs();
        bench.hears(Message::Keepalive);
        bench
    }

    fn hears(&mut self, message: Message) {
        self.speaker
            .handle_message(self.now, self.connection, Ok(message));
    }

    /// All that is to be done now, as messages and in portions as they are handed over.
    fn outputs(&mut self) -> Vec<Vec<Message>> {
        let mut portions = Vec::new();
        while let Some(output) = self.speaker.poll_output(self.now) {
            match output {
                Output::Send { octets, .. } => {
                    let mut rest = octets.as_slice();
                    let mut messages = Vec::new();
                    while let Some(length) = wire::frame(rest, 4096).expect("well-formed") {
                        let message = self.decoder.decode(&rest[..length]);
                        messages.push(message.expect("well-formed"));
                        rest = &rest[length..];
                    }
                    assert!(rest.is_empty(), "whole messages");
                    portions.push(messages);
                }
                Output::Negotiated { negotiated, .. } => {
                    let negotiated = Negotiated::clone(&negotiated);
                    self.decoder.set_negotiated(negotiated);
                }
                Output::Close { .. } => self.closed = true,
                Output::Dial { .. } => panic!("it is passive"),
            }
        }
        portions
    }

    fn takes_all(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            let portions = self.outputs();
            if portions.is_empty() {
                return all;
            }
            all.extend(portions.into_iter().flatten());
            self.speaker.handle_writable(self.connection);
        }
    }
}

fn ends(messages: &[Message]) -> usize {
    let is_end = |message: &&Message| matches!(message, Message::Update(update) if update.end_of_rib.is_some());
    messages.iter().filter(is_end).count()
}

fn announced(messages: &[Message]) -> usize {
    let count = |message: &Message| match message {
        Message::Update(update) => update.announced.iter().map(|some| some.nlri.len()).sum(),
        _ => 0,
    };
    messages.iter().map(count).sum()
}

fn notifications(messages: &[Message]) -> Vec<&Notification> {
    let found = messages.iter().filter_map(|message| match message {
        Message::Notification(notification) => Some(notification),
        _ => None,
    });
    found.collect()
}

#[test]
fn the_end_of_the_table_is_not_lost_on_a_peer_that_takes_little_at_a_time() {
    const ROUTES: u32 = 20_000;
    const CHANGES: u32 = 10;
    let mut bench = Bench::new(ROUTES, graceful_restart(Some(true)));
    let mut all = Vec::new();
    let mut portions = 0;
    loop {
        let portion = bench.outputs();
        let updates = |messages: &Vec<Message>| announced(messages) + ends(messages) > 0;
        let carrying = portion.iter().filter(|messages| updates(messages)).count();
        assert!(carrying <= 1, "nothing more before it is taken");
        if portion.is_empty() {
            break;
        }
        // Nothing more comes however often it is asked for.
        assert!(bench.outputs().is_empty());
        portions += 1;
        // And the table changes meanwhile.
        if portions <= CHANGES {
            bench.speaker.withdraw(prefix(ROUTES - portions));
        }
        all.extend(portion.into_iter().flatten());
        bench.speaker.handle_writable(bench.connection);
    }
    assert!(portions > 10, "{portions} portions");
    assert_eq!(ends(&all), 1);
    assert!(announced(&all) >= (ROUTES - CHANGES) as usize);
    // A change after the end comes without another one.
    let route = LocalRoute::default();
    bench.speaker.originate(bench.now, prefix(ROUTES), route);
    let later = bench.takes_all();
    assert_eq!((announced(&later), ends(&later)), (1, 0));
}

#[test]
fn a_request_for_everything_is_answered_between_marks() {
    // RFC 7313 §4
    let mut bench = Bench::new(3, None);
    bench.takes_all();
    bench.hears(Message::RouteRefresh(RouteRefresh {
        afi: 1,
        safi: 1,
        subtype: 0,
    }));
    let answer = bench.takes_all();
    let mark = |message: Option<&Message>| match message {
        Some(Message::RouteRefresh(refresh)) => Some(refresh.subtype),
        _ => None,
    };
    assert_eq!(mark(answer.first()), Some(1));
    assert_eq!(mark(answer.last()), Some(2));
    assert_eq!(announced(&answer), 3);
}

#[test]
fn where_a_graceful_restart_is_meant_no_cease_is_sent() {
    // RFC 4724 §4; with the N bit (RFC 8538) a Cease would do, but a close does with everybody.
    for notification in [true, false] {
        let mut bench = Bench::new(1, graceful_restart(Some(notification)));
        bench.takes_all();
        bench.speaker.shutdown(bench.now, "restarting");
        let last = bench.takes_all();
        assert_eq!(notifications(&last), [] as [&Notification; 0]);
        assert!(bench.closed);
    }
    let mut bench = Bench::new(1, None);
    bench.takes_all();
    bench.speaker.shutdown(bench.now, "restarting");
    let last = bench.takes_all();
    let [said] = notifications(&last)[..] else {
        panic!("one word: {last:?}");
    };
    assert_eq!((said.code, said.subcode), (6, 2));
    assert!(said.describe().contains("restarting"));
}

#[test]
fn where_a_peer_is_shut_down_for_good_it_keeps_nothing() {
    // RFC 8538 §3.1: a Hard Reset to whom a Cease alone would not do.
    for (capability, expected) in [
        (graceful_restart(Some(true)), (6, 9)),
        (graceful_restart(Some(false)), (6, 2)),
        (None, (6, 2)),
    ] {
        let mut bench = Bench::new(1, capability);
        bench.takes_all();
        let shut = bench.speaker.shutdown_peer(bench.now, "peer", "for good");
        shut.expect("a known peer");
        let last = bench.takes_all();
        let said = notifications(&last);
        assert_eq!(
            said.iter()
                .map(|said| (said.code, said.subcode))
                .collect::<Vec<_>>(),
            [expected]
        );
    }
}

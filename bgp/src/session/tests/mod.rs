//! The session machine: every event in every state, collisions, time, and random sequences.

#![allow(clippy::unwrap_used)]

mod collision;
mod long_lived;
mod random;
mod restart;
mod table;
mod time;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::*;
use crate::message::{Message, RouteRefresh};

/// Our AS and router id; the peer's are greater, except where a test says otherwise.
const LOCAL: (u32, [u8; 4]) = (64512, [10, 0, 0, 1]);
const REMOTE: (u32, [u8; 4]) = (64513, [10, 0, 0, 2]);

fn settings() -> Settings {
    Settings {
        add_path_receive: false,
        add_path_send: false,
        extended_next_hop: false,
        local_asn: Asn(LOCAL.0),
        router_id: LOCAL.1.into(),
        remote_asn: Asn(REMOTE.0).into(),
        refuse_while_held: false,
        families: [true, true],
        passive: false,
        timers: Timers::default(),
        graceful_restart: None,
        assume_forwarding: false,
        long_lived: None,
        role: None,
        restarting: None,
    }
}

fn remote_open() -> Open {
    Open {
        asn: Asn(REMOTE.0),
        hold_time: Duration::from_secs(90),
        router_id: Ipv4Addr::from(REMOTE.1),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::MultiProtocol { afi: 2, safi: 1 },
            Capability::RouteRefresh,
            Capability::FourOctetAs(Asn(REMOTE.0)),
        ],
    }
}

/// With graceful restart for both families, forwarding kept.
fn restarting_open(notification: bool) -> Open {
    let mut open = remote_open();
    open.capabilities.push(Capability::GracefulRestart {
        restarting: true,
        notification,
        restart_time: 60,
        families: vec![(1, 1, true), (2, 1, true)],
    });
    open
}

fn end_of_rib(family: Family) -> Message {
    Message::Update(Update {
        end_of_rib: Some(family),
        ..Update::default()
    })
}

/// A session with its clock, its connection ids and what it wants done.
#[derive(Debug)]
struct Bench {
    session: Session,
    now: Instant,
    ids: ConnectionIds,
    actions: Vec<Action>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        Self {
            session: Session::new(now, settings, 7),
            now,
            ids: ConnectionIds::default(),
            actions: Vec::new(),
        }
    }

    fn with<T>(&mut self, event: impl FnOnce(&mut Session, &mut Context<'_>) -> T) -> T {
        let mut cx = Context {
            now: self.now,
            ids: &mut self.ids,
            actions: &mut self.actions,
        };
        event(&mut self.session, &mut cx)
    }

    fn started(settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.with(|session, cx| session.start(cx));
        bench
    }

    /// What it wants done since the last call.
    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The connection it dials now.
    fn dialed(&self) -> ConnectionId {
        match &self.session.state {
            State::Trying(Trying {
                outgoing: Outgoing::Dialing { connection, .. },
                ..
            }) => *connection,
            other => panic!("not dialing: {other:?}"),
        }
    }

    fn connect(&mut self) -> ConnectionId {
        let connection = self.dialed();
        self.with(|session, cx| session.connected(cx, connection));
        connection
    }

    fn accept(&mut self) -> Option<ConnectionId> {
        let connection = self.ids.next();
        self.with(|session, cx| session.accepted(cx, connection))
            .then_some(connection)
    }

    fn message(&mut self, connection: ConnectionId, message: Message) -> Received {
        self.with(|session, cx| session.message(cx, connection, Ok(message)))
    }

    fn open(&mut self, connection: ConnectionId, open: Open) {
        self.message(connection, Message::Open(Box::new(open)));
    }

    /// A session that came up over a dialled connection.
    fn established(settings: Settings, open: Open) -> (Self, ConnectionId) {
        let mut bench = Self::started(settings);
        let connection = bench.connect();
        bench.open(connection, open);
        bench.message(connection, Message::Keepalive);
        assert_eq!(bench.session.peer_state(), PeerState::Established);
        bench.take();
        (bench, connection)
    }

    fn advance(&mut self, duration: Duration) {
        self.now += duration;
        self.with(|session, cx| session.timeout(cx));
    }

    /// Lets time pass, doing what is due when it is due.
    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(deadline) = self.session.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.with(|session, cx| session.timeout(cx));
        }
        self.now = end;
    }
}

/// "2/3" for each NOTIFICATION among the actions.
fn notifications(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(_, Packet::Notification(notification)) => {
                Some(format!("{}/{}", notification.code, notification.subcode))
            }
            _ => None,
        })
        .collect()
}

fn closed(actions: &[Action]) -> Vec<ConnectionId> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Close(connection) => Some(*connection),
            _ => None,
        })
        .collect()
}

fn refresh() -> Message {
    Message::RouteRefresh(RouteRefresh {
        afi: 1,
        safi: 1,
        subtype: 0,
    })
}

/// The begin or the end of a refresh (RFC 7313).
fn mark(family: Family, subtype: u8) -> Message {
    let (afi, safi) = family.afi_safi();
    Message::RouteRefresh(RouteRefresh { afi, safi, subtype })
}

fn enhanced(mut open: Open) -> Open {
    open.capabilities.push(Capability::EnhancedRouteRefresh);
    open
}

#[test]
fn several_paths_are_offered_to_be_taken_in_each_family_only_when_configured() {
    // RFC 7911 §4
    let offered = |add_path_receive, families| {
        let settings = Settings {
            add_path_receive,
            families,
            ..settings()
        };
        let open = super::open::local_open(&settings, [false; 2]);
        let mut remote = remote_open();
        remote
            .capabilities
            .push(Capability::AddPath(vec![(1, 1, 3), (2, 1, 2)]));
        crate::wire::negotiate(&open, &remote).add_path_receive
    };
    assert_eq!(offered(false, [true; 2]), [false; 2]);
    assert_eq!(offered(true, [true; 2]), [true; 2]);
    assert_eq!(offered(true, [true, false]), [true, false]);
}

#[test]
fn several_paths_are_sent_only_to_a_peer_that_takes_them() {
    // RFC 7911 §4
    let agreed = |add_path_receive, add_path_send| {
        let settings = Settings {
            add_path_receive,
            add_path_send,
            ..settings()
        };
        let open = super::open::local_open(&settings, [false; 2]);
        let mut remote = remote_open();
        remote
            .capabilities
            .push(Capability::AddPath(vec![(1, 1, 3), (2, 1, 2)]));
        let negotiated = crate::wire::negotiate(&open, &remote);
        (negotiated.add_path_receive, negotiated.add_path_send)
    };
    assert_eq!(agreed(false, false), ([false; 2], [false; 2]));
    assert_eq!(agreed(false, true), ([false; 2], [true, false]));
    assert_eq!(agreed(true, false), ([true; 2], [false; 2]));
    assert_eq!(agreed(true, true), ([true; 2], [true, false]));
}

#[test]
fn ipv6_next_hops_of_ipv4_prefixes_need_both_sides_and_the_family() {
    // RFC 8950 §4
    let agreed = |ours, ipv4, theirs: Vec<(u16, u16, u16)>| {
        let settings = Settings {
            extended_next_hop: ours,
            families: [ipv4, true],
            ..settings()
        };
        let open = super::open::local_open(&settings, [false; 2]);
        let mut remote = remote_open();
        remote
            .capabilities
            .push(Capability::ExtendedNextHop(theirs));
        crate::wire::negotiate(&open, &remote).extended_next_hop
    };
    assert!(agreed(true, true, vec![(1, 1, 2)]));
    assert!(agreed(true, true, vec![(1, 128, 2), (1, 1, 2)]));
    assert!(!agreed(true, true, vec![(1, 128, 2)]));
    assert!(!agreed(false, true, vec![(1, 1, 2)]));
    assert!(!agreed(true, false, vec![(1, 1, 2)]));
}

//! Every event in every state (RFC 4271 §8.2.2). A row says what is sent and which state follows.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Stopped,
    Held,
    Passive,
    Waiting,
    Dialing,
    Delayed,
    OpenSent,
    OpenConfirm,
    Established,
}

const STATES: [From; 9] = [
    From::Stopped,
    From::Held,
    From::Passive,
    From::Waiting,
    From::Dialing,
    From::Delayed,
    From::OpenSent,
    From::OpenConfirm,
    From::Established,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Start,
    Stop,
    Reset,
    Connected,
    Accepted,
    Closed,
    Malformed,
    Open,
    OpenWrongAs,
    OpenNoFamily,
    Update,
    Notification,
    Cease,
    Keepalive,
    Refresh,
    RefreshBegin,
    RefreshEnd,
    Deadline,
    SilentHour,
    Stray,
}

const EVENTS: [Event; 20] = [
    Event::Start,
    Event::Stop,
    Event::Reset,
    Event::Connected,
    Event::Accepted,
    Event::Closed,
    Event::Malformed,
    Event::Open,
    Event::OpenWrongAs,
    Event::OpenNoFamily,
    Event::Update,
    Event::Notification,
    Event::Cease,
    Event::Keepalive,
    Event::Refresh,
    Event::RefreshBegin,
    Event::RefreshEnd,
    Event::Deadline,
    Event::SilentHour,
    Event::Stray,
];

/// A session in that state, and its connection; a stray one where there is none.
fn enter(state: From) -> (Bench, ConnectionId) {
    let stray = ConnectionId(u64::MAX);
    let mut config = settings();
    match state {
        From::Stopped => (Bench::new(config), stray),
        From::Held => {
            let mut bench = Bench::started(config);
            let connection = bench.connect();
            bench.message(connection, Message::Keepalive);
            (bench, connection)
        }
        From::Passive => {
            config.passive = true;
            (Bench::started(config), stray)
        }
        From::Waiting => {
            let mut bench = Bench::started(config);
            let connection = bench.dialed();
            bench.with(|session, cx| session.closed(cx, connection, "refused".into()));
            (bench, connection)
        }
        From::Dialing => {
            let bench = Bench::started(config);
            let connection = bench.dialed();
            (bench, connection)
        }
        From::Delayed => {
            config.timers.open_delay = Duration::from_secs(5);
            let mut bench = Bench::started(config);
            let connection = bench.connect();
            (bench, connection)
        }
        From::OpenSent => {
            let mut bench = Bench::started(config);
            let connection = bench.connect();
            (bench, connection)
        }
        From::OpenConfirm => {
            let mut bench = Bench::started(config);
            let connection = bench.connect();
            bench.open(connection, remote_open());
            (bench, connection)
        }
        From::Established => {
            let (mut bench, connection) = Bench::established(config, enhanced(remote_open()));
            // A refresh is under way, in the other family.
            bench.message(connection, mark(Family::Ipv6Unicast, 1));
            (bench, connection)
        }
    }
}

fn apply(bench: &mut Bench, connection: ConnectionId, event: Event) {
    match event {
        Event::Start => bench.with(|session, cx| session.start(cx)),
        Event::Stop => bench.with(|session, cx| {
            session.stop(cx, Notification::administrative_shutdown(""));
        }),
        Event::Reset => bench.with(|session, cx| {
            session.reset(cx, Notification::administrative_reset(""));
        }),
        Event::Connected => bench.with(|session, cx| session.connected(cx, connection)),
        Event::Accepted => drop(bench.accept()),
        Event::Closed => bench.with(|session, cx| session.closed(cx, connection, "eof".into())),
        Event::Malformed => {
            let error = Err(Notification::connection_not_synchronized());
            bench.with(|session, cx| session.message(cx, connection, error));
        }
        Event::Open => bench.open(connection, remote_open()),
        Event::OpenWrongAs => bench.open(
            connection,
            Open {
                asn: Asn(1),
                ..remote_open()
            },
        ),
        Event::OpenNoFamily => bench.open(
            connection,
            Open {
                capabilities: vec![Capability::MultiProtocol { afi: 25, safi: 65 }],
                ..remote_open()
            },
        ),
        Event::Update => drop(bench.message(connection, Message::Update(Update::default()))),
        Event::Notification => {
            let error = Notification::hold_timer_expired();
            bench.message(connection, Message::Notification(error));
        }
        Event::Cease => {
            let cease = Notification::administrative_reset("");
            bench.message(connection, Message::Notification(cease));
        }
        Event::Keepalive => drop(bench.message(connection, Message::Keepalive)),
        Event::Refresh => drop(bench.message(connection, refresh())),
        Event::RefreshBegin => drop(bench.message(connection, mark(Family::Ipv4Unicast, 1))),
        Event::RefreshEnd => drop(bench.message(connection, mark(Family::Ipv6Unicast, 2))),
        Event::Deadline => {
            if let Some(deadline) = bench.session.deadline() {
                bench.now = deadline;
            }
            bench.with(|session, cx| session.timeout(cx));
        }
        // Late, and all at once, as after a suspended machine.
        Event::SilentHour => bench.advance(Duration::from_secs(3600)),
        Event::Stray => bench.with(|session, cx| {
            let stray = ConnectionId(u64::MAX);
            session.connected(cx, stray);
            session.closed(cx, stray, "eof".into());
            session.message(cx, stray, Ok(Message::Keepalive));
            session.writable(stray);
        }),
    }
}

/// "dial", "open", "keepalive", "1/2", "close", "up", "down", and what becomes of
/// kept routes, then the state.
fn outcome(state: From, event: Event) -> String {
    let (mut bench, connection) = enter(state);
    bench.take();
    apply(&mut bench, connection, event);
    let mut words: Vec<String> = bench
        .take()
        .iter()
        .filter_map(|action| {
            Some(match action {
                Action::Dial(_) => "dial".into(),
                Action::Close(_) => "close".into(),
                Action::Send(_, Packet::Open(_)) => "open".into(),
                Action::Send(_, Packet::Keepalive) => "keepalive".into(),
                Action::Send(_, Packet::RouteRefresh(_)) => "refresh".into(),
                Action::Send(_, Packet::Notification(notification)) => {
                    format!("{}/{}", notification.code, notification.subcode)
                }
                Action::Up(_) => "up".into(),
                Action::Down { .. } => "down".into(),
                Action::MarkStale(family) => format!("mark-{family}"),
                Action::SweepStale(family) => format!("sweep-{family}"),
                Action::LongLived(family) => format!("long-lived-{family}"),
                Action::Negotiated(..) => return None,
            })
        })
        .collect();
    let deadline = bench.session.deadline();
    assert!(
        deadline.is_none_or(|deadline| deadline > bench.now),
        "{state:?} × {event:?}: the deadline lies in the past"
    );
    words.push(match &bench.session.state {
        State::Idle(Idle::Held { .. }) => "Held".into(),
        State::Trying(Trying {
            outgoing: Outgoing::Waiting { .. },
            incoming: None,
        }) => "Waiting".into(),
        _ => format!("{:?}", bench.session.peer_state()),
    });
    words.join(" ")
}

/// The whole table, one line for each pair.
const TABLE: &str = include_str!("table.txt");

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    let mut actual = String::new();
    for state in STATES {
        for event in EVENTS {
            let outcome = outcome(state, event);
            actual += &format!(
                "{:<12} {:<13} {outcome}\n",
                format!("{state:?}"),
                format!("{event:?}")
            );
        }
    }
    assert_eq!(actual, TABLE, "actual table:\n{actual}");
}

//! Timers: hold, keepalive, connect retry, hold in Idle, send hold, DelayOpen.

use super::{timers::Rate, *};

fn keepalives(actions: &[Action]) -> usize {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Send(_, Packet::Keepalive)))
        .count()
}

#[test]
fn the_smaller_hold_time_counts() {
    let (bench, _) = Bench::established(settings(), remote_open());
    let agreement = bench.session.agreement().unwrap();
    assert_eq!(agreement.hold_time, Duration::from_secs(9));
    assert_eq!(agreement.keepalive_interval, Duration::from_secs(3));

    let mut config = settings();
    config.timers.hold_time = Duration::from_secs(240);
    let (bench, _) = Bench::established(config, remote_open());
    assert_eq!(
        bench.session.agreement().unwrap().hold_time,
        Duration::from_secs(90)
    );
}

#[test]
fn silence_for_the_hold_time_ends_the_session_with_4_0_and_not_earlier() {
    let (mut bench, _) = Bench::established(settings(), remote_open());
    bench.run_for(Duration::from_millis(8_999));
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    bench.take();
    bench.run_for(Duration::from_millis(1));
    assert_eq!(notifications(&bench.take()), ["4/0"]);
    assert_eq!(bench.session.peer_state(), PeerState::Idle);
}

#[test]
fn keepalives_go_out_about_three_times_in_a_hold_time_and_keep_the_session() {
    let (mut bench, connection) = Bench::established(settings(), remote_open());
    let mut sent = 0;
    for _ in 0..100 {
        bench.run_for(Duration::from_secs(3));
        bench.session.writable(connection);
        bench.message(connection, Message::Keepalive);
        sent += keepalives(&bench.take());
    }
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    // Every 2.25 to 3 seconds in 300.
    assert!((100..=134).contains(&sent), "{sent} keepalives");
}

#[test]
fn a_hold_time_of_zero_needs_no_keepalives() {
    let mut config = settings();
    config.timers.hold_time = Duration::ZERO;
    let (mut bench, _) = Bench::established(config, remote_open());
    bench.run_for(Duration::from_secs(86_400));
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(keepalives(&bench.take()), 0);
    assert_eq!(bench.session.deadline(), None);
}

#[test]
fn an_open_that_is_not_answered_times_out() {
    let mut bench = Bench::started(settings());
    bench.connect();
    bench.take();
    bench.run_for(Duration::from_secs(239));
    assert_eq!(bench.session.peer_state(), PeerState::OpenSent);
    bench.run_for(Duration::from_secs(1));
    assert_eq!(notifications(&bench.take()), ["4/0"]);
}

#[test]
fn dials_back_off_to_the_maximum_with_jitter() {
    let mut bench = Bench::started(settings());
    let mut waits = Vec::new();
    for _ in 0..8 {
        let dialed = bench.dialed();
        bench.with(|session, cx| session.closed(cx, dialed, "refused".into()));
        let retry_at = bench.session.next_connect_at().unwrap();
        waits.push(retry_at - bench.now);
        bench.now = retry_at;
        bench.with(|session, cx| session.timeout(cx));
    }
    for (wait, limit) in waits
        .iter()
        .zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0])
    {
        let wait = wait.as_secs_f64();
        assert!(
            (limit * 0.75..=limit).contains(&wait),
            "{wait} s instead of {limit} s"
        );
    }
}

#[test]
fn a_peer_that_errs_again_and_again_is_dialled_less_and_less() {
    let mut bench = Bench::started(settings());
    let mut sessions = 0;
    let end = bench.now + Duration::from_secs(3600);
    while bench.now < end {
        if bench.session.peer_state() == PeerState::Connect {
            let connection = bench.connect();
            bench.open(connection, remote_open());
            bench.message(connection, Message::Keepalive);
            sessions += 1;
            let error = Err(Notification::malformed_attribute_list());
            bench.with(|session, cx| session.message(cx, connection, error));
        }
        bench.now = bench.session.deadline().unwrap();
        bench.with(|session, cx| session.timeout(cx));
        bench.take();
    }
    // About 7 while the hold doubles to a minute, then one a minute.
    assert!(
        (55..=90).contains(&sessions),
        "{sessions} sessions in an hour"
    );
}

/// A passive session, and one connection after another that ends in this way as soon as it is
/// Established. Returns how long each had to wait for our OPEN.
fn storm(sessions: u32, end: impl Fn(&mut Bench, ConnectionId)) -> Vec<Duration> {
    let mut config = settings();
    config.passive = true;
    let mut bench = Bench::started(config);
    (0..sessions)
        .map(|_| {
            let came = bench.now;
            let connection = bench.accept().expect("never refused");
            if bench.session.peer_state() != PeerState::OpenSent {
                bench.now = bench.session.deadline().unwrap();
                bench.with(|session, cx| session.timeout(cx));
            }
            assert_eq!(bench.session.peer_state(), PeerState::OpenSent);
            bench.open(connection, remote_open());
            bench.message(connection, Message::Keepalive);
            assert_eq!(bench.session.peer_state(), PeerState::Established);
            bench.take();
            end(&mut bench, connection);
            bench.now - came
        })
        .collect()
}

/// Thousands are served at once, so that a peer that is being tested or repaired notices nothing; a
/// storm that does not end gets two hundred sessions a second.
fn assert_paced(waits: &[Duration]) {
    assert!(waits.iter().take(4_000).all(Duration::is_zero));
    let longest = waits.iter().max().unwrap();
    assert!(*longest <= Duration::from_millis(5), "{longest:?}");
    let all: Duration = waits.iter().sum();
    assert!(all >= Duration::from_secs(75), "{all:?}");
}

#[test]
fn a_peer_that_connects_and_drops_without_error_is_slowed_down_and_never_refused() {
    let waits = storm(20_000, |bench, connection| {
        bench.with(|session, cx| session.closed(cx, connection, "eof".into()));
    });
    assert_paced(&waits);
}

#[test]
fn a_peer_that_errs_without_end_is_slowed_down_and_never_refused() {
    let waits = storm(20_000, |bench, connection| {
        let error = Err(Notification::malformed_attribute_list());
        bench.with(|session, cx| session.message(cx, connection, error));
        assert_eq!(notifications(&bench.take()), ["3/1"]);
    });
    assert_paced(&waits);
}

#[test]
fn what_comes_while_a_connection_is_slowed_down_is_answered_as_ever() {
    let mut config = settings();
    config.passive = true;
    let mut bench = Bench::started(config);
    let err = |bench: &mut Bench, connection| {
        let error = Err(Notification::malformed_attribute_list());
        bench.with(|session, cx| session.message(cx, connection, error));
        bench.take();
    };
    for _ in 0..=Rate::BURST {
        let connection = bench.accept().unwrap();
        bench.open(connection, remote_open());
        bench.message(connection, Message::Keepalive);
        err(&mut bench, connection);
    }
    // An OPEN that came before ours is not lost.
    let connection = bench.accept().unwrap();
    bench.open(connection, remote_open());
    assert_eq!(bench.take(), []);
    bench.run_for(Rate::INTERVAL);
    assert_eq!(bench.session.peer_state(), PeerState::OpenConfirm);
    bench.message(connection, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    err(&mut bench, connection);
    // A fault is answered after our OPEN, and at once.
    let connection = bench.accept().unwrap();
    let error = Err(Notification::bad_message_length(3));
    bench.with(|session, cx| session.message(cx, connection, error));
    let actions = bench.take();
    assert!(
        matches!(actions[0], Action::Send(_, Packet::Open(_))),
        "{actions:?}"
    );
    assert_eq!(notifications(&actions), ["1/2"]);
    // Many of those do not make the next one wait longer.
    for _ in 0..100 {
        let connection = bench.accept().unwrap();
        let error = Err(Notification::bad_message_length(3));
        bench.with(|session, cx| session.message(cx, connection, error));
    }
    assert!(bench.session.returns.wait(bench.now) <= Rate::INTERVAL);
    // One that is gone meanwhile leaves nothing.
    let connection = bench.accept().unwrap();
    bench.with(|session, cx| session.closed(cx, connection, "eof".into()));
    assert_eq!(bench.session.peer_state(), PeerState::Idle);
    assert!(bench.session.parked.is_none());
}

#[test]
fn a_session_that_lasted_clears_the_back_off() {
    let (mut bench, mut connection) = Bench::established(settings(), remote_open());
    for _ in 0..3 {
        let error = Err(Notification::malformed_attribute_list());
        bench.with(|session, cx| session.message(cx, connection, error));
        bench.run_for(Duration::from_secs(60));
        connection = bench.ids.next();
        let accepted = connection;
        assert!(bench.with(|session, cx| session.accepted(cx, accepted)));
        bench.open(connection, remote_open());
        bench.message(connection, Message::Keepalive);
    }
    for _ in 0..10 {
        bench.run_for(Duration::from_secs(2));
        bench.message(connection, Message::Keepalive);
    }
    let error = Err(Notification::malformed_attribute_list());
    bench.with(|session, cx| session.message(cx, connection, error));
    let wait = bench.session.deadline().unwrap() - bench.now;
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
}

/// RFC 9687
#[test]
fn a_peer_that_takes_no_data_is_given_up_after_the_send_hold_time() {
    let mut config = settings();
    config.timers.send_hold = Some(Duration::from_secs(20));
    let (mut bench, connection) = Bench::established(config, remote_open());
    bench.session.writable(connection);
    let now = bench.now;
    bench.session.sent_updates(now, 1, [false; 2]);
    assert_eq!(bench.session.ready_for_updates(), None);
    for _ in 0..9 {
        bench.run_for(Duration::from_secs(2));
        bench.message(connection, Message::Keepalive);
        assert_eq!(bench.session.peer_state(), PeerState::Established);
    }
    bench.run_for(Duration::from_secs(2));
    assert_ne!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(closed(&bench.take()), [connection]);
}

#[test]
fn a_writable_connection_takes_updates_again() {
    let (mut bench, connection) = Bench::established(settings(), remote_open());
    bench.session.writable(connection);
    assert_eq!(bench.session.ready_for_updates(), Some(connection));
    let now = bench.now;
    bench.session.sent_updates(now, 3, [true, false]);
    assert_eq!(bench.session.ready_for_updates(), None);
    bench.session.writable(connection);
    assert_eq!(bench.session.ready_for_updates(), Some(connection));
    assert_eq!(bench.session.counters.updates_sent, 3);
    assert_eq!(bench.session.end_of_ribs().1, [true, false]);
}

#[test]
fn a_delayed_open_goes_out_after_the_delay_or_with_the_peers() {
    let mut config = settings();
    config.timers.open_delay = Duration::from_secs(5);
    let mut bench = Bench::started(config.clone());
    bench.connect();
    bench.take();
    bench.run_for(Duration::from_millis(4_999));
    assert_eq!(bench.take(), []);
    bench.run_for(Duration::from_millis(1));
    assert!(matches!(
        bench.take().as_slice(),
        [Action::Send(_, Packet::Open(_))]
    ));

    let mut bench = Bench::started(config);
    let connection = bench.connect();
    bench.take();
    bench.open(connection, remote_open());
    assert!(matches!(
        bench.take().as_slice(),
        [
            Action::Send(_, Packet::Open(_)),
            Action::Negotiated(..),
            Action::Send(_, Packet::Keepalive)
        ]
    ));
    bench.message(connection, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
}

#[test]
fn an_equal_router_id_is_refused_inside_an_as_and_taken_between_two() {
    let same = Open {
        router_id: LOCAL.1.into(),
        ..remote_open()
    };
    let mut config = settings();
    config.remote_asn = Asn(LOCAL.0).into();
    let mut bench = Bench::started(config);
    let connection = bench.connect();
    bench.take();
    bench.open(
        connection,
        Open {
            asn: Asn(LOCAL.0),
            ..same.clone()
        },
    );
    assert_eq!(notifications(&bench.take()), ["2/3"]);
    // RFC 6286
    Bench::established(settings(), same);
}

#[test]
fn the_last_notification_of_each_direction_is_kept() {
    let (mut bench, connection) = Bench::established(settings(), remote_open());
    let cease = Notification::administrative_shutdown("maintenance");
    bench.message(connection, Message::Notification(cease.clone()));
    let received = bench.session.last_received().unwrap();
    assert_eq!(received.notification, cease);
    assert_eq!(received.at, bench.now);
    assert!(
        bench.session.reason().contains("maintenance"),
        "{}",
        bench.session.reason()
    );
    assert_eq!(bench.session.last_sent(), None);
    bench.run_for(Duration::from_secs(1));
    let connection = bench.connect();
    bench.message(connection, refresh());
    let sent = bench.session.last_sent().unwrap();
    assert_eq!((sent.notification.code, sent.notification.subcode), (5, 1));
}

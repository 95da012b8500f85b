//! Graceful restart (RFC 4724, RFC 8538): as helper, as restarting speaker.

use super::*;

fn config() -> Settings {
    let mut config = settings();
    config.graceful_restart = Some(Duration::from_secs(120));
    config
}

fn down(actions: &[Action]) -> Option<[bool; 2]> {
    actions.iter().find_map(|action| match action {
        Action::Down { keep_stale } => Some(*keep_stale),
        _ => None,
    })
}

fn swept(actions: &[Action]) -> Vec<Family> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::SweepStale(family) => Some(*family),
            _ => None,
        })
        .collect()
}

/// AFI, SAFI and F bit.
type Flags = Vec<(u16, u8, bool)>;

/// The graceful restart capability of the OPEN among the actions.
fn advertised(actions: &[Action]) -> Option<(bool, Flags)> {
    actions.iter().find_map(|action| match action {
        Action::Send(_, Packet::Open(open)) => {
            open.capabilities
                .iter()
                .find_map(|capability| match capability {
                    Capability::GracefulRestart {
                        restarting,
                        families,
                        ..
                    } => Some((*restarting, families.clone())),
                    _ => None,
                })
        }
        _ => None,
    })
}

fn come_back(bench: &mut Bench, open: Open) -> ConnectionId {
    let connection = bench.accept().unwrap();
    bench.open(connection, open);
    bench.message(connection, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    connection
}

#[test]
fn a_lost_connection_keeps_routes_until_the_restart_time() {
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    assert_eq!(down(&bench.take()), Some([true, true]));
    bench.run_for(Duration::from_millis(59_999));
    assert_eq!(swept(&bench.take()), []);
    bench.run_for(Duration::from_millis(1));
    assert_eq!(swept(&bench.take()), Family::ALL);
}

#[test]
fn routes_of_a_peer_without_graceful_restart_go_at_once() {
    let (mut bench, connection) = Bench::established(config(), remote_open());
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    assert_eq!(down(&bench.take()), Some([false, false]));
    // And so with a peer that has it when it is switched off here.
    let (mut bench, connection) = Bench::established(settings(), restarting_open(true));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    assert_eq!(down(&bench.take()), Some([false, false]));
}

#[test]
fn stale_routes_of_a_returned_peer_wait_for_its_end_of_rib() {
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    let connection = come_back(&mut bench, restarting_open(false));
    assert_eq!(swept(&bench.take()), []);
    bench.message(connection, end_of_rib(Family::Ipv4Unicast));
    for _ in 0..200 {
        bench.run_for(Duration::from_secs(2));
        bench.message(connection, Message::Keepalive);
        bench.session.writable(connection);
    }
    // The marker of IPv4 came; IPv6 is swept by its deadline alone.
    assert_eq!(swept(&bench.take()), [Family::Ipv6Unicast]);
}

#[test]
fn stale_routes_go_at_once_where_the_returned_peer_kept_no_forwarding_state() {
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    let mut open = remote_open();
    open.capabilities.push(Capability::GracefulRestart {
        restarting: true,
        notification: false,
        restart_time: 60,
        families: vec![(1, 1, true), (2, 1, false)],
    });
    come_back(&mut bench, open);
    assert_eq!(swept(&bench.take()), [Family::Ipv6Unicast]);
    // And all of them without the capability.
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    come_back(&mut bench, remote_open());
    assert_eq!(swept(&bench.take()), Family::ALL);
}

#[test]
fn what_was_not_refreshed_goes_when_the_peer_restarts_again() {
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    let connection = come_back(&mut bench, restarting_open(false));
    bench.message(connection, end_of_rib(Family::Ipv4Unicast));
    bench.take();
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    let actions = bench.take();
    // Before the session's own routes become stale.
    assert!(
        actions
            .iter()
            .position(|action| *action == Action::SweepStale(Family::Ipv6Unicast))
            < actions
                .iter()
                .position(|action| matches!(action, Action::Down { .. }))
    );
    assert_eq!(down(&actions), Some([true, true]));
}

#[test]
fn a_notification_ends_the_routes_unless_both_sides_keep_them_over_it() {
    for (notification, keep) in [(false, false), (true, true)] {
        let (mut bench, connection) = Bench::established(config(), restarting_open(notification));
        let cease = Notification::administrative_reset("");
        bench.message(connection, Message::Notification(cease));
        assert_eq!(down(&bench.take()), Some([keep; 2]));

        let (mut bench, _) = Bench::established(config(), restarting_open(notification));
        bench.run_for(Duration::from_secs(9));
        let actions = bench.take();
        assert_eq!(notifications(&actions), ["4/0"]);
        assert_eq!(down(&actions), Some([keep; 2]));
    }
    // RFC 8538 §3: a Hard Reset ends them in any case.
    let (mut bench, connection) = Bench::established(config(), restarting_open(true));
    let hard = Notification::hard_reset(&Notification::administrative_shutdown(""));
    bench.message(connection, Message::Notification(hard));
    assert_eq!(down(&bench.take()), Some([false; 2]));
}

#[test]
fn an_administrative_stop_is_a_hard_reset_towards_a_peer_that_would_keep_routes() {
    let (mut bench, _) = Bench::established(config(), restarting_open(true));
    bench.with(|session, cx| session.stop(cx, Notification::administrative_shutdown("x")));
    assert_eq!(notifications(&bench.take()), ["6/9"]);
    let (mut bench, _) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.stop(cx, Notification::administrative_shutdown("x")));
    assert_eq!(notifications(&bench.take()), ["6/2"]);
}

/// RFC 4724 §5
#[test]
fn a_new_connection_of_a_restarted_peer_replaces_the_dead_one_without_a_notification() {
    let (mut bench, old) = Bench::established(config(), restarting_open(false));
    bench.now += Duration::from_secs(5);
    bench.message(old, Message::Keepalive);
    let new = bench.accept().unwrap();
    bench.take();
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    bench.open(new, restarting_open(false));
    let actions = bench.take();
    assert_eq!(closed(&actions), [old]);
    assert_eq!(notifications(&actions), [] as [&str; 0]);
    assert_eq!(down(&actions), Some([true, true]));
    bench.message(new, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(swept(&bench.take()), []);
}

#[test]
fn a_contender_that_says_nothing_good_harms_nobody() {
    let (mut bench, old) = Bench::established(config(), restarting_open(false));
    bench.now += Duration::from_secs(5);
    bench.message(old, Message::Keepalive);
    let new = bench.accept().unwrap();
    bench.take();
    bench.message(new, Message::Keepalive);
    let actions = bench.take();
    assert_eq!(closed(&actions), [new]);
    assert_eq!(notifications(&actions), ["5/1"]);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
}

#[test]
fn a_late_connection_of_a_simultaneous_open_is_no_restart() {
    let (mut bench, _) = Bench::established(config(), restarting_open(false));
    bench.now += Duration::from_millis(20);
    let late = bench.accept().unwrap();
    bench.run_for(Duration::from_secs(1));
    let actions = bench.take();
    assert_eq!(closed(&actions), [late]);
    assert_eq!(notifications(&actions), ["6/7"]);
}

#[test]
fn the_restart_and_forwarding_bits_are_those_of_the_daemon() {
    let both = |v4, v6| vec![(1, 1, v4), (2, 1, v6)];
    let mut bench = Bench::started(config());
    bench.connect();
    assert_eq!(advertised(&bench.take()), Some((false, both(false, false))));

    let mut restarting = config();
    restarting.restarting = Some([true, false]);
    let mut bench = Bench::started(restarting);
    let connection = bench.connect();
    assert_eq!(advertised(&bench.take()), Some((true, both(true, false))));
    bench.open(connection, remote_open());
    bench.message(connection, Message::Keepalive);
    // After a session the forwarding state is that of this run, restart or not.
    bench.session.set_restarting(None);
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    bench.accept();
    assert_eq!(advertised(&bench.take()), Some((false, both(true, true))));
}

#[test]
fn a_peer_that_never_comes_back_leaves_nothing() {
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    bench.with(|session, cx| session.stop(cx, Notification::peer_deconfigured()));
    assert_eq!(swept(&bench.take()), Family::ALL);
    assert_eq!(bench.session.deadline(), None);
}

#[test]
fn an_end_of_rib_that_comes_with_the_end_of_the_stale_time_is_taken_in_either_order() {
    for marker_first in [true, false] {
        let (mut bench, connection) = Bench::established(config(), restarting_open(false));
        bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
        let connection = come_back(&mut bench, restarting_open(false));
        bench.take();
        let end = bench.now + config().timers.stale_time;
        while bench.now + Duration::from_secs(2) < end {
            bench.run_for(Duration::from_secs(2));
            bench.message(connection, Message::Keepalive);
            bench.session.writable(connection);
        }
        bench.take();
        // Both are there when the machine is asked again.
        bench.now = end;
        if marker_first {
            bench.message(connection, end_of_rib(Family::Ipv4Unicast));
            bench.with(|session, cx| session.timeout(cx));
            assert_eq!(swept(&bench.take()), [Family::Ipv6Unicast]);
        } else {
            bench.with(|session, cx| session.timeout(cx));
            bench.message(connection, end_of_rib(Family::Ipv4Unicast));
            assert_eq!(swept(&bench.take()), Family::ALL);
        }
        assert_eq!(bench.session.peer_state(), PeerState::Established);
        // A later loss begins anew.
        bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
        let actions = bench.take();
        assert_eq!((down(&actions), swept(&actions)), (Some([true; 2]), vec![]));
    }
}

#[test]
fn a_return_within_the_last_moment_of_the_restart_time_keeps_the_routes() {
    let (mut bench, connection) = Bench::established(config(), restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    // The OPENs are exchanged in time, and the KEEPALIVE waits in the socket.
    let connection = bench.accept().unwrap();
    bench.open(connection, restarting_open(false));
    bench.take();
    bench.now += Duration::from_secs(60);
    bench.message(connection, Message::Keepalive);
    bench.with(|session, cx| session.timeout(cx));
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    assert_eq!(swept(&bench.take()), []);
}

/// A peer that may be assumed to have kept its forwarding state, back without saying so.
fn returned_afresh(families: Vec<(u16, u8, bool)>) -> (Bench, ConnectionId) {
    let mut assuming = config();
    assuming.assume_forwarding = true;
    let (mut bench, connection) = Bench::established(assuming, restarting_open(false));
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    bench.take();
    let mut open = remote_open();
    open.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 60,
        families,
    });
    let connection = come_back(&mut bench, open);
    (bench, connection)
}

fn live(bench: &mut Bench, connection: ConnectionId, seconds: u64) {
    for _ in 0..seconds {
        bench.run_for(Duration::from_secs(1));
        bench.message(connection, Message::Keepalive);
        bench.session.writable(connection);
    }
}

#[test]
fn routes_of_a_reflector_that_starts_afresh_outlive_its_end_of_rib_for_its_restart_time() {
    let (mut bench, connection) = returned_afresh(vec![(1, 1, false), (2, 1, false)]);
    let actions = bench.take();
    assert_eq!(swept(&actions), []);
    for family in Family::ALL {
        assert!(actions.contains(&Action::MarkStale(family)));
        bench.message(connection, end_of_rib(family));
    }
    live(&mut bench, connection, 59);
    assert_eq!(swept(&bench.take()), []);
    live(&mut bench, connection, 1);
    assert_eq!(swept(&bench.take()), Family::ALL);
    // Only what it lists, and nothing without the capability's families.
    let (mut bench, _) = returned_afresh(vec![(1, 1, false)]);
    assert_eq!(swept(&bench.take()), [Family::Ipv6Unicast]);
    let (mut bench, _) = returned_afresh(vec![]);
    assert_eq!(swept(&bench.take()), Family::ALL);
}

#[test]
fn what_is_kept_on_an_assumption_goes_when_the_peer_is_lost_again() {
    let (mut bench, connection) = returned_afresh(vec![(1, 1, false), (2, 1, true)]);
    bench.take();
    live(&mut bench, connection, 10);
    bench.message(connection, end_of_rib(Family::Ipv6Unicast));
    bench.take();
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
    let actions = bench.take();
    assert_eq!(swept(&actions), [Family::Ipv4Unicast]);
    assert_eq!(down(&actions), Some([true, true]));
}

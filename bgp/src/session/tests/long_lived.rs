//! Long-lived graceful restart (RFC 9494) and the marks of a refresh (RFC 7313), family by family.

use super::*;
use crate::speaker::config::LongLived;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn config() -> Settings {
    let mut config = settings();
    config.graceful_restart = Some(Duration::from_secs(120));
    config.long_lived = Some(LongLived {
        stale_time: 24 * HOUR,
        max_stale_time: 2 * HOUR,
    });
    config
}

/// Restart time 60 s for both families; IPv4 is kept for an hour beyond, IPv6 for a day.
fn open() -> Open {
    with_times(60, vec![(1, 1, true, 3600), (2, 1, true, 86_400)])
}

fn with_times(restart_time: u16, long_lived: Vec<(u16, u8, bool, u32)>) -> Open {
    let mut open = remote_open();
    open.capabilities.push(Capability::GracefulRestart {
        restarting: true,
        notification: false,
        restart_time,
        families: vec![(1, 1, true), (2, 1, true)],
    });
    open.capabilities
        .push(Capability::LongLivedGracefulRestart(long_lived));
    open
}

/// What happened to kept routes, in words, without anything else.
fn story(bench: &mut Bench) -> Vec<String> {
    bench
        .take()
        .iter()
        .filter_map(|action| match action {
            Action::Down { keep_stale } => Some(format!("down {keep_stale:?}")),
            Action::MarkStale(family) => Some(format!("mark {family}")),
            Action::SweepStale(family) => Some(format!("sweep {family}")),
            Action::LongLived(family) => Some(format!("long-lived {family}")),
            _ => None,
        })
        .collect()
}

fn lose(bench: &mut Bench, connection: ConnectionId) {
    bench.with(|session, cx| session.closed(cx, connection, "reset".into()));
}

fn come_back(bench: &mut Bench, open: Open) -> ConnectionId {
    let connection = bench.accept().unwrap();
    bench.open(connection, open);
    bench.message(connection, Message::Keepalive);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
    connection
}

/// Keeps an Established session alive for so long.
fn live(bench: &mut Bench, connection: ConnectionId, time: Duration) {
    let end = bench.now + time;
    while bench.now < end {
        bench.run_for(Duration::from_secs(2).min(end - bench.now));
        bench.message(connection, Message::Keepalive);
        bench.session.writable(connection);
    }
}

fn capability(settings: &Settings) -> Option<Capability> {
    crate::session::open::local_open(settings, [true, false])
        .capabilities
        .into_iter()
        .find(|capability| matches!(capability, Capability::LongLivedGracefulRestart(_)))
}

#[test]
fn the_capability_is_sent_only_when_configured_and_only_beside_graceful_restart() {
    // RFC 9494 §3.1, §4.1, §5
    let times = vec![(1, 1, true, 86_400), (2, 1, false, 86_400)];
    assert_eq!(
        capability(&config()),
        Some(Capability::LongLivedGracefulRestart(times))
    );
    let mut only_understood = config();
    only_understood.long_lived = Some(LongLived {
        stale_time: Duration::ZERO,
        max_stale_time: Duration::ZERO,
    });
    assert_eq!(
        capability(&only_understood),
        Some(Capability::LongLivedGracefulRestart(vec![]))
    );
    let mut off = config();
    off.long_lived = None;
    assert_eq!(capability(&off), None);
    let mut alone = config();
    alone.graceful_restart = None;
    assert_eq!(capability(&alone), None);
}

#[test]
fn after_the_restart_time_routes_are_long_lived_stale_for_the_smaller_time_of_each_family() {
    let (mut bench, connection) = Bench::established(config(), open());
    lose(&mut bench, connection);
    assert_eq!(story(&mut bench), ["down [true, true]"]);
    bench.run_for(MINUTE - Duration::from_millis(1));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    bench.run_for(Duration::from_millis(1));
    assert_eq!(
        story(&mut bench),
        ["long-lived ipv4-unicast", "long-lived ipv6-unicast"]
    );
    bench.run_for(HOUR - Duration::from_millis(1));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    bench.run_for(Duration::from_millis(1));
    assert_eq!(story(&mut bench), ["sweep ipv4-unicast"]);
    // The peer asked for a day; two hours are configured.
    bench.run_for(HOUR);
    assert_eq!(story(&mut bench), ["sweep ipv6-unicast"]);
}

#[test]
fn a_restart_time_of_zero_makes_routes_long_lived_stale_at_once() {
    // RFC 9494 §4.2
    let open = with_times(0, vec![(1, 1, true, 3600)]);
    let (mut bench, connection) = Bench::established(config(), open);
    lose(&mut bench, connection);
    assert_eq!(
        story(&mut bench),
        ["down [true, false]", "long-lived ipv4-unicast"]
    );
}

#[test]
fn a_family_that_only_the_long_lived_capability_lists_has_no_restart_time() {
    // RFC 9494 §4.2
    let mut open = open();
    for capability in &mut open.capabilities {
        if let Capability::GracefulRestart { families, .. } = capability {
            families.truncate(1);
        }
    }
    let (mut bench, connection) = Bench::established(config(), open);
    lose(&mut bench, connection);
    assert_eq!(
        story(&mut bench),
        ["down [true, true]", "long-lived ipv6-unicast"]
    );
}

#[test]
fn without_graceful_restart_or_when_it_is_off_here_the_capability_means_nothing() {
    // RFC 9494 §3.1
    let mut alone = open();
    alone
        .capabilities
        .retain(|capability| !matches!(capability, Capability::GracefulRestart { .. }));
    let (mut bench, connection) = Bench::established(config(), alone);
    lose(&mut bench, connection);
    assert_eq!(story(&mut bench), ["down [false, false]"]);

    let mut off = config();
    off.long_lived = None;
    let (mut bench, connection) = Bench::established(off, open());
    lose(&mut bench, connection);
    bench.run_for(MINUTE);
    assert_eq!(
        story(&mut bench),
        [
            "down [true, true]",
            "sweep ipv4-unicast",
            "sweep ipv6-unicast"
        ]
    );
}

#[test]
fn a_peer_that_returns_late_must_have_kept_its_forwarding_state_family_by_family() {
    // RFC 9494 §4.2: not set, or not listed.
    for long_lived in [
        vec![(1, 1, true, 3600), (2, 1, false, 3600)],
        vec![(1, 1, true, 3600)],
    ] {
        let (mut bench, connection) = Bench::established(config(), open());
        lose(&mut bench, connection);
        bench.run_for(2 * MINUTE);
        bench.take();
        let connection = come_back(&mut bench, with_times(60, long_lived));
        assert_eq!(story(&mut bench), ["sweep ipv6-unicast"]);
        bench.message(connection, end_of_rib(Family::Ipv4Unicast));
        live(&mut bench, connection, HOUR);
        assert_eq!(story(&mut bench), [] as [&str; 0], "the marker ended it");
    }
    // Not at all.
    let (mut bench, connection) = Bench::established(config(), open());
    lose(&mut bench, connection);
    bench.run_for(2 * MINUTE);
    bench.take();
    come_back(&mut bench, restarting_open(false));
    assert_eq!(
        story(&mut bench),
        ["sweep ipv4-unicast", "sweep ipv6-unicast"]
    );
}

#[test]
fn the_stale_time_runs_on_until_the_marker_and_is_over_when_it_is_over() {
    // RFC 9494 §4.2
    let (mut bench, connection) = Bench::established(config(), open());
    lose(&mut bench, connection);
    bench.run_for(31 * MINUTE);
    bench.take();
    let connection = come_back(&mut bench, open());
    live(&mut bench, connection, 29 * MINUTE);
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    live(&mut bench, connection, MINUTE);
    assert_eq!(story(&mut bench), ["sweep ipv4-unicast"]);
    // Lost before the marker: IPv4 has no time left; IPv6 has what is left of its own.
    lose(&mut bench, connection);
    assert_eq!(
        story(&mut bench),
        ["down [false, true]", "long-lived ipv6-unicast"]
    );
    bench.run_for(HOUR - Duration::from_secs(1));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    bench.run_for(Duration::from_secs(1));
    assert_eq!(story(&mut bench), ["sweep ipv6-unicast"]);
}

#[test]
fn a_peer_that_comes_and_goes_without_a_marker_gets_no_new_time() {
    let (mut bench, mut connection) = Bench::established(config(), open());
    lose(&mut bench, connection);
    let lost = bench.now;
    let mut told = Vec::new();
    for _ in 0..200 {
        bench.run_for(Duration::from_secs(20));
        connection = come_back(&mut bench, open());
        live(&mut bench, connection, Duration::from_secs(20));
        lose(&mut bench, connection);
        told.extend(
            story(&mut bench)
                .into_iter()
                .filter(|word| word.contains("ipv4"))
                .map(|word| (bench.now - lost, word)),
        );
    }
    let first = told.first().expect("it becomes long-lived stale");
    assert!(first.1.starts_with("long-lived") && first.0 <= 2 * MINUTE);
    let swept = told.iter().find(|(_, word)| word.starts_with("sweep"));
    let (when, _) = swept.expect("it goes in the end");
    assert!(*when >= HOUR && *when <= HOUR + 3 * MINUTE, "{when:?}");
    // With a marker it starts anew.
    connection = come_back(&mut bench, open());
    bench.message(connection, end_of_rib(Family::Ipv4Unicast));
    bench.take();
    lose(&mut bench, connection);
    bench.run_for(30 * Duration::from_secs(1));
    assert_eq!(
        story(&mut bench)
            .into_iter()
            .filter(|word| word.contains("ipv4") || word.contains("down [true"))
            .count(),
        1
    );
}

#[test]
fn an_administrative_stop_keeps_nothing() {
    let (mut bench, connection) = Bench::established(config(), open());
    lose(&mut bench, connection);
    bench.run_for(2 * MINUTE);
    bench.take();
    bench.with(|session, cx| session.stop(cx, Notification::peer_deconfigured()));
    assert_eq!(
        story(&mut bench),
        ["sweep ipv4-unicast", "sweep ipv6-unicast"]
    );
    assert_eq!(bench.session.deadline(), None);
}

// ---- RFC 7313 ------------------------------------------------------------------------------

#[test]
fn what_is_not_sent_again_between_the_marks_goes() {
    let (mut bench, connection) = Bench::established(settings(), enhanced(remote_open()));
    assert_eq!(
        bench.message(connection, mark(Family::Ipv4Unicast, 1)),
        Received::Nothing
    );
    assert_eq!(story(&mut bench), ["mark ipv4-unicast"]);
    bench.message(connection, mark(Family::Ipv4Unicast, 2));
    assert_eq!(story(&mut bench), ["sweep ipv4-unicast"]);
    // An end without a begin, and a mark nobody knows.
    bench.message(connection, mark(Family::Ipv4Unicast, 2));
    bench.message(connection, mark(Family::Ipv4Unicast, 3));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    assert_eq!(bench.session.peer_state(), PeerState::Established);
}

#[test]
fn a_refresh_without_an_end_has_its_time() {
    let (mut bench, connection) = Bench::established(settings(), enhanced(remote_open()));
    bench.message(connection, mark(Family::Ipv4Unicast, 1));
    bench.take();
    let time = settings().timers.stale_time;
    live(&mut bench, connection, time - Duration::from_secs(1));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    live(&mut bench, connection, Duration::from_secs(1));
    assert_eq!(story(&mut bench), ["sweep ipv4-unicast"]);
}

#[test]
fn marks_of_a_peer_that_did_not_announce_them_mean_nothing() {
    let (mut bench, connection) = Bench::established(settings(), remote_open());
    bench.message(connection, mark(Family::Ipv4Unicast, 1));
    bench.message(connection, mark(Family::Ipv4Unicast, 2));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
}

#[test]
fn a_begin_before_the_end_of_rib_of_a_peer_with_graceful_restart_is_ignored() {
    // RFC 7313 §4
    let (mut bench, connection) = Bench::established(settings(), enhanced(restarting_open(false)));
    bench.message(connection, mark(Family::Ipv4Unicast, 1));
    assert_eq!(story(&mut bench), [] as [&str; 0]);
    bench.message(connection, end_of_rib(Family::Ipv4Unicast));
    bench.message(connection, mark(Family::Ipv4Unicast, 1));
    assert_eq!(story(&mut bench), ["mark ipv4-unicast"]);
}

#[test]
fn a_session_lost_amid_a_refresh_keeps_its_routes_as_any_other() {
    let mut config = settings();
    config.graceful_restart = Some(Duration::from_secs(120));
    let (mut bench, connection) = Bench::established(config, enhanced(restarting_open(false)));
    bench.message(connection, end_of_rib(Family::Ipv4Unicast));
    bench.message(connection, mark(Family::Ipv4Unicast, 1));
    bench.take();
    lose(&mut bench, connection);
    assert_eq!(story(&mut bench), ["down [true, true]"]);
    let connection = come_back(&mut bench, enhanced(restarting_open(false)));
    bench.message(connection, mark(Family::Ipv4Unicast, 2));
    assert_eq!(story(&mut bench), [] as [&str; 0], "that refresh is over");
}

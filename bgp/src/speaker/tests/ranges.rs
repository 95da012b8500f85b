use super::*;
use crate::speaker::config::{ConfigError, Password};

fn bench(limit: usize) -> Bench {
    Bench::new(|config| config.ranges.push(range("leaves", "10.0.0.0/24", limit)))
}

/// Everything that is kept for peers is gone.
#[track_caller]
fn nothing_is_left(bench: &Bench) {
    let speaker = &bench.speaker;
    assert_eq!(speaker.peers.len(), 0);
    assert_eq!(speaker.names.len(), 0);
    assert_eq!(speaker.addresses.len(), 0);
    assert_eq!(speaker.connections.len(), 0);
    assert_eq!(speaker.deadlines.len(), 0);
    assert_eq!(speaker.changed.len(), 0);
    assert!(speaker.ranges.values().all(|range| range.peers.is_empty()));
}

#[test]
fn whoever_connects_from_the_range_becomes_a_peer_with_a_name_of_its_own() {
    let mut bench = bench(10);
    let connection = bench.establish("10.0.0.7", open(REMOTE));
    bench.announce(connection, &["198.51.100.0/24"]);
    let peer = bench.peer("leaves:10.0.0.7").unwrap();
    assert_eq!(peer.state, PeerState::Established);
    assert_eq!(peer.range.as_deref(), Some("leaves"));
    assert_eq!(peer.families[0].received, 1);
    assert!(peer.passive);
    let ranges = bench.speaker.ranges();
    assert_eq!((ranges[0].peers, ranges[0].established), (1, 1));
    assert_eq!(bench.connect("10.0.1.7"), None, "outside of the range");
}

#[test]
fn a_peer_of_a_range_is_forgotten_when_its_session_has_ended() {
    let mut bench = bench(10);
    let connection = bench.establish("10.0.0.7", open(REMOTE));
    bench.announce(connection, &["198.51.100.0/24"]);
    bench.lose(connection);
    assert!(
        bench
            .peer("leaves:10.0.0.7")
            .unwrap()
            .reason
            .contains("connection lost")
    );
    bench.pass(Duration::from_secs(11));
    nothing_is_left(&bench);
}

#[test]
fn a_peer_of_a_range_stays_while_its_routes_are_kept_over_a_restart() {
    let mut bench = bench(1);
    let connection = bench.establish("10.0.0.7", restartable(REMOTE));
    bench.announce(connection, &["198.51.100.0/24"]);
    bench.lose(connection);
    bench.pass(Duration::from_secs(50));
    assert_eq!(bench.received("leaves:10.0.0.7"), 1, "stale, but there");
    assert_eq!(
        bench.connect("10.0.0.8"),
        None,
        "its place is not given away"
    );
    let again = bench.establish("10.0.0.7", restartable(REMOTE));
    bench.announce(again, &["198.51.100.0/24"]);
    assert_eq!(bench.state("leaves:10.0.0.7"), Some(PeerState::Established));
    bench.lose(again);
    bench.pass(Duration::from_secs(75));
    nothing_is_left(&bench);
}

#[test]
fn at_the_limit_sessions_stay_and_others_are_refused_and_counted() {
    let mut bench = bench(2);
    bench.establish("10.0.0.1", open(REMOTE));
    bench.establish("10.0.0.2", open(REMOTE));
    assert_eq!(bench.connect("10.0.0.3"), None);
    let range = &bench.speaker.ranges()[0];
    assert_eq!(
        (range.accepted, range.refused, range.established),
        (2, 1, 2)
    );
    let refused = range.last_refused.clone().unwrap();
    assert_eq!(refused.address, IpAddr::from([10, 0, 0, 3]));
    assert!(refused.why.contains("limit"), "{refused:?}");
}

#[test]
fn a_flood_of_strangers_is_bounded_and_does_not_lock_others_out() {
    let mut config = range("leaves", "10.0.0.0/24", 50);
    config.peer.timers.hold_time = Duration::from_secs(90);
    let mut bench = Bench::new(|speaker| speaker.ranges.push(config));
    let session = bench.establish("10.0.0.1", open(REMOTE));
    for round in 0..40u32 {
        for host in 2..=250 {
            bench.connect(&format!("10.0.0.{host}"));
            assert!(bench.speaker.peers.len() <= 50);
            assert!(bench.speaker.connections.len() <= 50);
            assert!(bench.speaker.deadlines.len() <= 50);
        }
        bench.pass(Duration::from_millis(300));
        if round == 20 {
            // In the middle of it somebody who means it, as soon as handshakes are a second old.
            bench.pass(Duration::from_secs(1));
            bench.establish("10.0.0.251", open(REMOTE));
        }
    }
    assert_eq!(bench.state("leaves:10.0.0.1"), Some(PeerState::Established));
    assert_eq!(
        bench.state("leaves:10.0.0.251"),
        Some(PeerState::Established)
    );
    assert!(!bench.closed.contains(&session));
    // Strangers that never send an OPEN are gone after a while, without anybody pushing.
    bench.pass(Duration::from_secs(30));
    assert_eq!(bench.speaker.peers.len(), 2);
    bench.pass(Duration::from_secs(120));
    nothing_is_left(&bench);
}

#[test]
fn a_neighbour_that_fails_and_comes_back_at_once_is_not_served_in_a_loop() {
    let mut bench = bench(10);
    let mut served = 0;
    for _ in 0..6000 {
        if let Some(connection) = bench.connect("10.0.0.7") {
            served += 1;
            bench.say(connection, Message::Open(Box::new(open(Asn(65000)))));
        }
        bench.pass(Duration::from_millis(10));
    }
    assert!(
        (2..=8).contains(&served),
        "served {served} times in a minute"
    );
}

#[test]
fn the_most_specific_range_counts_and_a_configured_peer_before_any() {
    let mut bench = Bench::new(|config| {
        config.ranges.push(range("wide", "10.0.0.0/8", 10));
        config.ranges.push(range("narrow", "10.0.0.0/24", 10));
        let mut peer = PeerConfig::new("one", "10.0.0.1".parse().unwrap(), REMOTE);
        peer.passive = true;
        config.peers.push(peer);
    });
    for address in ["10.0.0.1", "10.0.0.2", "10.1.0.2"] {
        bench.establish(address, open(REMOTE));
    }
    for name in ["one", "narrow:10.0.0.2", "wide:10.1.0.2"] {
        assert_eq!(bench.state(name), Some(PeerState::Established), "{name}");
    }
}

#[test]
fn a_configured_peer_takes_the_place_of_one_that_came_from_a_range() {
    let mut bench = bench(10);
    let connection = bench.establish("10.0.0.7", open(REMOTE));
    let peer = PeerConfig::new("seven", "10.0.0.7".parse().unwrap(), REMOTE);
    bench.speaker.add_peer(bench.now, peer).unwrap();
    bench.settle();
    assert!(bench.closed.contains(&connection));
    assert_eq!(bench.state("leaves:10.0.0.7"), None);
    bench.establish("10.0.0.7", open(REMOTE));
    assert_eq!(bench.state("seven"), Some(PeerState::Established));
}

#[test]
fn ranges_of_ipv6_take_several_as_numbers_and_tell_interfaces_apart() {
    let mut config = range("any", "2001:db8:7::/64", 10);
    config.peer.asn = RemoteAs::OneOf(Arc::from([Asn(65001), Asn(65002)]));
    let mut bench = Bench::new(|speaker| speaker.ranges.push(config));
    for (address, asn, taken) in [
        ("2001:db8:7::1", 65001, true),
        ("2001:db8:7::2", 65002, true),
        ("2001:db8:7::3", 65003, false),
    ] {
        bench.establish(address, open(Asn(asn)));
        let peer = bench.peer(&format!("any:{address}")).unwrap();
        assert_eq!(peer.state == PeerState::Established, taken, "{asn}");
        assert_eq!(peer.asn, taken.then_some(Asn(asn)));
    }
    let remote: SocketAddr = "[fe80::1%7]:1".parse().unwrap();
    let local: SocketAddr = "[fe80::2%7]:179".parse().unwrap();
    let mut links = range("links", "fe80::/10", 10);
    links.peer.asn = RemoteAs::External;
    bench.speaker.add_range(bench.now, links).unwrap();
    let accepted = bench.speaker.handle_accepted(bench.now, local, remote);
    assert_eq!(accepted.unwrap().1.name, "links:fe80::1%7");
}

#[test]
fn the_number_of_this_speaker_is_not_external() {
    let mut config = range("any", "10.0.0.0/24", 10);
    config.peer.asn = RemoteAs::External;
    let mut bench = Bench::new(|speaker| speaker.ranges.push(config));
    bench.establish("10.0.0.1", open(LOCAL));
    bench.establish("10.0.0.2", open(Asn(4_200_000_000)));
    assert_ne!(bench.state("any:10.0.0.1"), Some(PeerState::Established));
    assert_eq!(bench.state("any:10.0.0.2"), Some(PeerState::Established));
    assert_eq!(bench.notifications[0].1, Notification::bad_peer_as());
}

#[test]
fn a_range_that_is_shut_down_takes_nobody_until_it_is_enabled() {
    let mut bench = bench(10);
    let connection = bench.establish("10.0.0.7", open(REMOTE));
    bench
        .speaker
        .shutdown_peer(bench.now, "leaves", "maintenance")
        .unwrap();
    bench.settle();
    let (to, notification) = bench.notifications.pop().unwrap();
    assert_eq!(
        (to, notification.shutdown_text()),
        (connection, Some("maintenance"))
    );
    assert_eq!(bench.connect("10.0.0.7"), None);
    assert!(bench.speaker.ranges()[0].shutdown);
    nothing_is_left(&bench);
    bench.speaker.enable_peer(bench.now, "leaves").unwrap();
    bench.establish("10.0.0.7", open(REMOTE));
    assert_eq!(bench.state("leaves:10.0.0.7"), Some(PeerState::Established));
}

#[test]
fn a_peer_of_a_range_that_is_shut_down_stays_so_until_it_is_enabled() {
    let mut bench = bench(10);
    bench.establish("10.0.0.7", open(REMOTE));
    bench
        .speaker
        .shutdown_peer(bench.now, "leaves:10.0.0.7", "")
        .unwrap();
    bench.settle();
    bench.pass(Duration::from_secs(600));
    assert_eq!(bench.connect("10.0.0.7"), None);
    bench
        .speaker
        .enable_peer(bench.now, "leaves:10.0.0.7")
        .unwrap();
    bench.establish("10.0.0.7", open(REMOTE));
    assert_eq!(bench.state("leaves:10.0.0.7"), Some(PeerState::Established));
}

#[test]
fn only_what_the_program_has_heard_of_is_told_to_be_gone() {
    let mut bench = bench(10);
    let told = bench.connect("10.0.0.1").unwrap();
    while bench.speaker.poll_changed_peer().is_some() {}
    let untold = bench.connect("10.0.0.2").unwrap();
    bench.lose(told);
    bench.lose(untold);
    bench.pass(Duration::from_secs(11));
    assert_eq!(
        bench.speaker.poll_gone_peer().as_deref(),
        Some("leaves:10.0.0.1")
    );
    assert_eq!(bench.speaker.poll_gone_peer(), None);
}

#[test]
fn with_a_range_the_first_tables_are_waited_for_until_the_deadline() {
    let mut bench = bench(10);
    bench.pass(Duration::from_secs(100));
    assert!(!bench.speaker.poll_first_sync());
    bench.pass(Duration::from_secs(21));
    assert!(bench.speaker.poll_first_sync());
}

#[test]
fn a_peer_without_marker_does_not_make_the_speaker_look_again_and_again() {
    let mut bench = bench(10);
    bench.establish("10.0.0.1", open(REMOTE));
    bench.pass(Duration::from_secs(5));
    let mut looks = 0;
    let end = bench.now + Duration::from_secs(60);
    while let Some(at) = bench.speaker.poll_timeout()
        && at <= end
        && looks < 1000
    {
        looks += 1;
        bench.now = bench.now.max(at);
        bench.speaker.handle_timeout(bench.now);
        bench.settle();
    }
    assert!(looks < 100, "{looks} times in a minute");
}

#[test]
fn ranges_that_cannot_work_are_refused() {
    let check = |change: &dyn Fn(&mut SpeakerConfig)| {
        let mut config = SpeakerConfig::new(LOCAL, [192, 0, 2, 1].into());
        let mut with_key = range("leaves", "10.0.0.0/24", 10);
        with_key.peer.password = Some(Password::new("secret").unwrap());
        config.ranges.push(with_key);
        change(&mut config);
        config.validate()
    };
    assert_eq!(check(&|_| {}), Ok(()));
    let inside = || PeerConfig::new("one", "10.0.0.1".parse().unwrap(), REMOTE);
    assert!(matches!(
        check(&|config| config.peers.push(inside())),
        Err(ConfigError::PasswordOfRange { .. })
    ));
    assert!(matches!(
        check(&|config| config.ranges.push(range("part", "10.0.0.0/25", 1))),
        Err(ConfigError::PasswordOfRange { .. })
    ));
    assert_eq!(
        check(&|config| config.ranges.push(range("all", "10.0.0.0/8", 1))),
        Ok(())
    );
    assert!(matches!(
        check(&|config| config.ranges.push(range("again", "10.0.0.0/24", 1))),
        Err(ConfigError::DuplicateRange(..))
    ));
    assert!(matches!(
        check(&|config| config.ranges.push(range("leaves", "10.1.0.0/24", 1))),
        Err(ConfigError::DuplicateName(_))
    ));
    assert!(matches!(
        check(&|config| config.ranges.push(range("none", "10.1.0.0/24", 0))),
        Err(ConfigError::Peer { .. })
    ));
    assert!(matches!(
        check(&|config| config.ranges.push(range("many", "10.1.0.0/16", 60_000))),
        Err(ConfigError::TooManyPeers(_))
    ));
}

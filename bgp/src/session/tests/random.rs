//! Random sequences of events: what must hold whatever happens.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::speaker::config::LongLived;

#[derive(Clone, Debug)]
enum Step {
    Start,
    Stop,
    Reset,
    Accept,
    /// The dial under way ends well, or not.
    Dialed(bool),
    /// The n-th living connection sends something.
    Open(usize),
    BadOpen(usize),
    Keepalive(usize),
    Update(usize),
    EndOfRib(usize),
    Mark(usize, u8),
    Notification(usize),
    Malformed(usize),
    Drop(usize),
    Writable(usize),
    Wait(u64),
    NextDeadline,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Start),
        1 => Just(Step::Stop),
        1 => Just(Step::Reset),
        6 => Just(Step::Accept),
        8 => any::<bool>().prop_map(Step::Dialed),
        8 => (0..3usize).prop_map(Step::Open),
        1 => (0..3usize).prop_map(Step::BadOpen),
        8 => (0..3usize).prop_map(Step::Keepalive),
        2 => (0..3usize).prop_map(Step::Update),
        2 => (0..3usize).prop_map(Step::EndOfRib),
        2 => (0..3usize, 0..4u8).prop_map(|(index, subtype)| Step::Mark(index, subtype)),
        1 => (0..3usize).prop_map(Step::Notification),
        1 => (0..3usize).prop_map(Step::Malformed),
        3 => (0..3usize).prop_map(Step::Drop),
        3 => (0..3usize).prop_map(Step::Writable),
        4 => (0..20_000u64).prop_map(Step::Wait),
        4 => Just(Step::NextDeadline),
    ]
}

/// What the world outside of the machine knows.
#[derive(Default)]
struct World {
    dialing: Vec<ConnectionId>,
    /// Connections that stand.
    living: Vec<ConnectionId>,
    closed: HashSet<ConnectionId>,
    up: bool,
    /// Families with stale routes, by `Family::index`.
    stale: [bool; 2],
}

impl World {
    fn check(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Dial(connection) => {
                    assert!(self.dialing.is_empty(), "two dials at once");
                    self.dialing.push(connection);
                }
                Action::Close(connection) => {
                    assert!(self.closed.insert(connection), "closed twice");
                    self.dialing.retain(|known| *known != connection);
                    self.living.retain(|known| *known != connection);
                }
                Action::Send(connection, _) | Action::Negotiated(connection, _) => {
                    assert!(
                        self.living.contains(&connection),
                        "sent on a dead connection"
                    );
                }
                Action::Up(up) => {
                    assert!(!std::mem::replace(&mut self.up, true), "up twice");
                    assert!(self.living.contains(&up.connection));
                }
                Action::Down { keep_stale } => {
                    assert!(std::mem::replace(&mut self.up, false), "down while down");
                    self.stale = keep_stale;
                }
                Action::MarkStale(family) => {
                    assert!(self.up, "a refresh without a session");
                    self.stale[family.index()] = true;
                }
                Action::SweepStale(family) => {
                    assert!(
                        std::mem::replace(&mut self.stale[family.index()], false),
                        "nothing to sweep"
                    );
                }
                Action::LongLived(family) => assert!(self.stale[family.index()]),
            }
        }
        // One dialled, one accepted, and one that waits whether it takes the place of either.
        assert!(self.living.len() <= 3, "more than three connections");
    }
}

fn run(config: Settings, open: &Open, steps: &[Step]) {
    let mut bench = Bench::new(config);
    let mut world = World::default();
    for step in steps {
        let pick = |index: &usize| world.living.get(*index).copied();
        match step {
            Step::Start => bench.with(|session, cx| session.start(cx)),
            Step::Stop => {
                bench.with(|session, cx| session.stop(cx, Notification::peer_deconfigured()));
            }
            Step::Reset => {
                bench.with(|session, cx| session.reset(cx, Notification::administrative_reset("")));
            }
            Step::Accept => {
                let connection = bench.ids.next();
                world.living.push(connection);
                if !bench.with(|session, cx| session.accepted(cx, connection)) {
                    world.living.pop();
                }
            }
            Step::Dialed(good) => {
                if let Some(connection) = world.dialing.pop() {
                    if *good {
                        world.living.push(connection);
                        bench.with(|session, cx| session.connected(cx, connection));
                    } else {
                        bench.with(|session, cx| session.closed(cx, connection, "no".into()));
                    }
                }
            }
            Step::Open(index) => {
                if let Some(connection) = pick(index) {
                    bench.open(connection, open.clone());
                }
            }
            Step::BadOpen(index) => {
                if let Some(connection) = pick(index) {
                    bench.open(
                        connection,
                        Open {
                            asn: Asn(1),
                            ..open.clone()
                        },
                    );
                }
            }
            Step::Keepalive(index) => {
                if let Some(connection) = pick(index) {
                    bench.message(connection, Message::Keepalive);
                }
            }
            Step::Update(index) => {
                if let Some(connection) = pick(index) {
                    bench.message(connection, Message::Update(Update::default()));
                }
            }
            Step::EndOfRib(index) => {
                if let Some(connection) = pick(index) {
                    bench.message(connection, end_of_rib(Family::Ipv4Unicast));
                    if bench.session.peer_state() == PeerState::Established {
                        // The RIB does it, but not amid a refresh.
                        world.stale[0] &= bench.session.stale_deadline().is_some();
                    }
                }
            }
            Step::Mark(index, subtype) => {
                if let Some(connection) = pick(index) {
                    bench.message(connection, mark(Family::Ipv4Unicast, *subtype));
                }
            }
            Step::Notification(index) => {
                if let Some(connection) = pick(index) {
                    let cease = Notification::out_of_resources();
                    bench.message(connection, Message::Notification(cease));
                }
            }
            Step::Malformed(index) => {
                if let Some(connection) = pick(index) {
                    let error = Err(Notification::bad_message_length(3));
                    bench.with(|session, cx| session.message(cx, connection, error));
                }
            }
            Step::Drop(index) => {
                if let Some(connection) = pick(index) {
                    bench.with(|session, cx| session.closed(cx, connection, "eof".into()));
                }
            }
            Step::Writable(index) => {
                if let Some(connection) = pick(index) {
                    bench.session.writable(connection);
                }
            }
            Step::Wait(milliseconds) => bench.advance(Duration::from_millis(*milliseconds)),
            Step::NextDeadline => {
                if let Some(deadline) = bench.session.deadline() {
                    bench.now = bench.now.max(deadline);
                    bench.with(|session, cx| session.timeout(cx));
                }
            }
        }
        world.check(bench.take());
        let state = bench.session.peer_state();
        assert_eq!(world.up, state == PeerState::Established);
        assert_eq!(
            bench.session.is_stopped(),
            bench.session.deadline().is_none() && state == PeerState::Idle,
            "Idle ends only by command, or by itself"
        );
        // Otherwise somebody could wait for ever.
        if !bench.session.is_stopped() && !bench.session.settings().passive {
            assert!(bench.session.deadline().is_some());
        }
    }
    // Whatever happened: with a peer that behaves, the session comes up.
    bench.with(|session, cx| session.start(cx));
    world.check(bench.take());
    while let Some(connection) = world.living.pop() {
        bench.with(|session, cx| session.closed(cx, connection, "eof".into()));
        world.closed.insert(connection);
        let actions = bench.take();
        world.check(
            actions
                .into_iter()
                .filter(|action| *action != Action::Close(connection))
                .collect(),
        );
    }
    for _ in 0..20 {
        let connection = match world.dialing.pop() {
            Some(connection) => {
                world.living.push(connection);
                bench.with(|session, cx| session.connected(cx, connection));
                connection
            }
            None => {
                let connection = bench.ids.next();
                world.living.push(connection);
                if !bench.with(|session, cx| session.accepted(cx, connection)) {
                    world.living.pop();
                    bench.advance(Duration::from_secs(60));
                    world.check(bench.take());
                    continue;
                }
                connection
            }
        };
        bench.open(connection, open.clone());
        bench.message(connection, Message::Keepalive);
        world.check(bench.take());
        if world.up {
            return;
        }
    }
    panic!("the session does not come up: {:?}", bench.session);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_breaks_the_machine(
        steps in proptest::collection::vec(step(), 0..60),
        passive in any::<bool>(),
        restart in any::<bool>(),
        notification in any::<bool>(),
        delay in any::<bool>(),
        long_lived in any::<bool>(),
    ) {
        let mut config = settings();
        config.passive = passive;
        if restart {
            config.graceful_restart = Some(Duration::from_secs(120));
        }
        if delay {
            config.timers.open_delay = Duration::from_secs(2);
        }
        let mut open = if restart { restarting_open(notification) } else { remote_open() };
        if long_lived {
            config.long_lived = Some(LongLived {
                stale_time: Duration::from_secs(30),
                max_stale_time: Duration::from_secs(30),
            });
            let asked = vec![(1, 1, true, 20), (2, 1, false, 40)];
            open.capabilities.push(Capability::LongLivedGracefulRestart(asked));
        }
        run(config, &enhanced(open), &steps);
    }
}

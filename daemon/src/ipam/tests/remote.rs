//! Pools whose blocks are agreed on with other nodes.

use super::*;

fn remote() -> (Ipam, Now) {
    let now = Now {
        instant: Instant::now(),
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    };
    let settings = config::Ipam {
        store: config::Store::Etcd,
        ..settings()
    };
    let pools = [pool("p", "10.0.0.0/24", 30, &[])];
    let (ipam, _) = Ipam::recover(now, &pools, &settings, &Recovered::default());
    (ipam, now)
}

/// Does at once what is wanted, and returns what the fleet is asked.
fn act(ipam: &mut Ipam, now: Now) -> Vec<Action> {
    let mut asked = Vec::new();
    while let Some(action) = ipam.poll_action() {
        match action {
            Action::Claim(record) => ipam.block_persisted(record.cidr),
            Action::Program(cidr) => ipam.block_active(now, cidr),
            Action::Release(cidr) => ipam.block_released(cidr),
            Action::Local(_) => {}
            action @ (Action::Acquire(_) | Action::Return(_)) => asked.push(action),
        }
    }
    asked
}

fn wanted(block: Option<&str>) -> Action {
    Action::Acquire(Wanted {
        pool: "p".into(),
        cidr: net("10.0.0.0/24"),
        block_size: 30,
        reserved: Vec::new(),
        block: block.map(net),
    })
}

#[test]
fn a_block_is_asked_for_once_and_used_when_it_comes() {
    let (mut ipam, now) = remote();
    assert_eq!(act(&mut ipam, now), [wanted(None)]);
    let error = ipam.allocate(now, &id("a"), None, &[]).unwrap_err();
    assert!(error.to_string().contains("still under way"), "{error}");
    assert_eq!(act(&mut ipam, now), []);
    ipam.acquired(now, "p", net("10.0.0.8/30"));
    act(&mut ipam, now);
    let allocation = ipam.allocate(now, &id("a"), None, &[]).unwrap();
    assert_eq!(allocation.addresses[0].block, net("10.0.0.8/30"));
    // The next one is asked for before this one is full.
    for name in ["b", "c"] {
        ipam.allocate(now, &id(name), None, &[]).unwrap();
    }
    assert_eq!(act(&mut ipam, now), [wanted(None)]);
}

#[test]
fn what_keeps_a_block_from_coming_is_said() {
    let (mut ipam, now) = remote();
    act(&mut ipam, now);
    ipam.acquire_failed("p", None, Refusal::Unreachable("etcd is away".into()));
    let error = ipam.allocate(now, &id("a"), None, &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("none can be claimed: etcd is away"),
        "{error}"
    );
    ipam.acquire_failed("p", None, Refusal::Full);
    let error = ipam.allocate(now, &id("a"), None, &[]).unwrap_err();
    assert!(matches!(error, Error::Exhausted(_)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("nodes of the fleet hold each of the pool's 64 blocks"),
        "{text}"
    );
    assert!(text.contains("agentctl node list"), "{text}");
    // Until one comes all the same.
    ipam.acquired(now, "p", net("10.0.0.8/30"));
    ipam.allocate(now, &id("a"), None, &[]).unwrap();
}

#[test]
fn a_fixed_address_asks_for_its_block_and_hears_who_has_it() {
    let (mut ipam, now) = remote();
    act(&mut ipam, now);
    let fixed = [ip("10.0.0.5")];
    let error = ipam.allocate(now, &id("a"), None, &fixed).unwrap_err();
    assert!(matches!(error, Error::Waiting { .. }), "{error}");
    assert_eq!(act(&mut ipam, now), [wanted(Some("10.0.0.4/30"))]);
    let block = Some(net("10.0.0.4/30"));
    ipam.acquire_failed("p", block, Refusal::HeldBy("node-2".into()));
    let error = ipam.allocate(now, &id("a"), None, &fixed).unwrap_err();
    assert!(error.to_string().contains("node node-2 holds"), "{error}");
    // Asked again by the next try.
    ipam.allocate(now, &id("a"), None, &fixed).unwrap_err();
    assert_eq!(act(&mut ipam, now), [wanted(Some("10.0.0.4/30"))]);
    ipam.acquired(now, "p", net("10.0.0.4/30"));
    ipam.allocate(now, &id("a"), None, &fixed).unwrap();
}

#[test]
fn an_empty_block_goes_back_to_the_fleet_after_it_is_gone_here() {
    let (mut ipam, mut now) = remote();
    act(&mut ipam, now);
    for block in ["10.0.0.8/30", "10.0.0.16/30", "10.0.0.32/30"] {
        ipam.acquired(now, "p", net(block));
        act(&mut ipam, now);
    }
    let mut returned = Vec::new();
    for _ in 0..100 {
        now.instant += Duration::from_secs(30);
        now.wall += Duration::from_secs(30);
        ipam.handle_timeout(now);
        returned.extend(act(&mut ipam, now));
    }
    assert_eq!(
        returned,
        [
            Action::Return(net("10.0.0.32/30")),
            Action::Return(net("10.0.0.16/30"))
        ]
    );
    // One of a pool that nobody knows goes back at once.
    ipam.acquired(now, "gone", net("10.9.0.0/30"));
    assert_eq!(act(&mut ipam, now), [Action::Return(net("10.9.0.0/30"))]);
}

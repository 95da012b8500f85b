//! Who else announces what is originated here.

use super::*;
use crate::attributes::well_known;

const BLOCK: &str = "10.0.0.0/26";

fn pools() -> Arc<Policy> {
    Arc::new(Policy::import_pools(&[net("10.0.0.0/16")]))
}

/// Peers with the policy that rejects what lies in own blocks, and one block.
fn fixture(sessions: impl IntoIterator<Item = PeerRib>) -> Fixture {
    let sessions = sessions.into_iter().map(|session| PeerRib {
        import: pools(),
        ..session
    });
    let mut fixture = Fixture::with_peers(config(), sessions);
    originate(&mut fixture);
    fixture
}

fn originate(fixture: &mut Fixture) {
    let now = fixture.now;
    fixture
        .rib
        .originate(now, net(BLOCK), LocalRoute::default());
    fixture.settle();
}

fn internal(n: u8) -> PeerRib {
    session(PeerKind::Internal, n)
}

/// Prefix, peer and originator of each claim; `None` when nothing may have changed.
fn news(fixture: &mut Fixture) -> Option<Vec<(String, u32, Option<Ipv4Addr>)>> {
    let claims = fixture.rib.poll_claims()?;
    let list = claims.iter().map(|claim| {
        assert_eq!(claim.block, net(BLOCK));
        (claim.prefix.to_string(), claim.peer.0, claim.originator)
    });
    Some(list.collect())
}

#[test]
fn a_peer_that_announces_an_own_block_or_a_part_of_it_is_told_although_policy_rejects_it() {
    let mut fixture = fixture([internal(31), session(PeerKind::External, 11)]);
    assert_eq!(news(&mut fixture), Some(vec![]));
    assert_eq!(news(&mut fixture), None, "nothing has changed");
    let whole = attributes(&[], "192.0.2.31");
    fixture.update(31, announce(&whole, &[net(BLOCK)]));
    assert!(matches!(
        fixture.reason(Table::AdjRibIn(None), BLOCK, 31),
        Reason::Rejected(_)
    ));
    let sender = Some(Ipv4Addr::new(192, 0, 2, 31));
    let first = (BLOCK.to_owned(), 31, sender);
    assert_eq!(news(&mut fixture), Some(vec![first.clone()]));
    // From outside nobody knows a router id; what covers the block is no claim to it.
    let part = attributes(&[65011], "192.0.2.11");
    let prefixes = [net("10.0.0.7/32"), net("10.0.0.0/24"), net("10.0.0.64/26")];
    fixture.update(11, announce(&part, &prefixes));
    let second = ("10.0.0.7/32".to_owned(), 11, None);
    assert_eq!(news(&mut fixture), Some(vec![first, second.clone()]));
    fixture.update(31, withdraw(&[net(BLOCK)]));
    assert_eq!(news(&mut fixture), Some(vec![second]));
    fixture.rib.peer_down(PeerId(11), [false; 2]);
    assert_eq!(news(&mut fixture), Some(vec![]));
}

#[test]
fn what_comes_back_from_ourselves_is_no_claim() {
    let lenient = PeerRib {
        allow_own_as: 1,
        ..session(PeerKind::External, 12)
    };
    let mut fixture = fixture([internal(31), session(PeerKind::External, 11), lenient]);
    let mut reflected = attributes(&[], "192.0.2.31");
    reflected.originator_id = Some(OUR_ID);
    fixture.update(31, announce(&reflected, &[net(BLOCK)]));
    let around = attributes(&[65011, OUR_AS.0], "192.0.2.11");
    fixture.update(11, announce(&around, &[net(BLOCK)]));
    let allowed = attributes(&[65012, OUR_AS.0], "192.0.2.12");
    fixture.update(12, announce(&allowed, &[net(BLOCK)]));
    assert_eq!(news(&mut fixture), Some(vec![]));
    let ours = attributes(&[], "192.0.2.1");
    fixture.update(31, announce(&ours, &[net(BLOCK)]));
    assert_eq!(news(&mut fixture), Some(vec![]));
    // The same peer, of another originator.
    let mut other = attributes(&[], "192.0.2.41");
    other.originator_id = Some(Ipv4Addr::new(192, 0, 2, 41));
    other.communities = vec![well_known::GRACEFUL_SHUTDOWN];
    fixture.update(31, announce(&other, &[net(BLOCK)]));
    let claim = (BLOCK.to_owned(), 31, other.originator_id);
    assert_eq!(news(&mut fixture), Some(vec![claim]));
}

#[test]
fn a_block_that_is_originated_later_meets_what_was_received_before_whatever_the_policy() {
    for import in [pools(), Arc::new(Policy::all())] {
        let session = PeerRib {
            import,
            ..internal(31)
        };
        let mut fixture = Fixture::with_peers(config(), [session]);
        let there = attributes(&[], "192.0.2.31");
        fixture.update(31, announce(&there, &[net("10.0.0.0/27")]));
        assert_eq!(news(&mut fixture), None);
        originate(&mut fixture);
        let sender = Some(Ipv4Addr::new(192, 0, 2, 31));
        let claim = ("10.0.0.0/27".to_owned(), 31, sender);
        assert_eq!(news(&mut fixture), Some(vec![claim]));
        fixture.rib.withdraw_originated(net(BLOCK));
        fixture.settle();
        assert_eq!(news(&mut fixture), Some(vec![]));
        assert!(fixture.rib.originated().is_empty());
    }
}

#[test]
fn what_is_told_of_one_block_is_bounded() {
    let mut fixture = fixture([internal(31)]);
    let there = attributes(&[], "192.0.2.31");
    let hosts: Vec<IpNet> = (0..64).map(|n| net(&format!("10.0.0.{n}/32"))).collect();
    fixture.update(31, announce(&there, &hosts));
    assert_eq!(news(&mut fixture).unwrap().len(), 8);
}

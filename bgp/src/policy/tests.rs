//! Matches, alterations and the built-in policies.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use super::*;
use crate::attributes::AsPath;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn attributes(asns: &[u32]) -> Attributes {
    let next_hop: IpAddr = "192.0.2.7".parse().unwrap();
    let mut attributes = Attributes::originated(next_hop.into());
    attributes.as_path = AsPath::sequence(asns.iter().copied().map(Asn));
    attributes.communities = vec![100];
    attributes.large_communities = vec![[1, 2, 3]];
    attributes
}

fn holds(condition: Match, prefix: &str, attributes: &Attributes) -> bool {
    let policy = Policy::new("test", vec![Rule::accept("rule", vec![condition])]);
    let facts = RouteFacts {
        prefix: &net(prefix),
        attributes,
        source: Source::External,
        within_originated: false,
    };
    policy.decide(facts).accept.is_some()
}

#[test]
fn prefix_ranges_bound_place_and_length() {
    let range = PrefixRange::between(net("10.0.0.0/8"), 16, 24).unwrap();
    for (prefix, expected) in [
        ("10.0.0.0/8", false),
        ("10.1.0.0/15", false),
        ("10.1.0.0/16", true),
        ("10.1.2.0/24", true),
        ("10.1.2.0/25", false),
        ("11.1.0.0/16", false),
        ("::/16", false),
    ] {
        assert_eq!(range.matches(&net(prefix)), expected, "{prefix}");
    }
    assert!(PrefixRange::exact(net("10.0.0.0/8")).matches(&net("10.0.0.0/8")));
    assert!(!PrefixRange::exact(net("10.0.0.0/8")).matches(&net("10.0.0.0/9")));
    assert!(PrefixRange::or_longer(net("::/0")).matches(&net("2001:db8::1/128")));
    for (min, max) in [(7, 24), (24, 16), (16, 33)] {
        assert_eq!(
            PrefixRange::between(net("10.0.0.0/8"), min, max),
            None,
            "{min} to {max}"
        );
    }
}

#[test]
fn each_match_looks_at_what_it_names() {
    let route = attributes(&[65001, 65002]);
    let path = |condition| Match::AsPath(condition);
    for (condition, expected) in [
        (Match::Community(100), true),
        (Match::Community(101), false),
        (Match::LargeCommunity([1, 2, 3]), true),
        (Match::LargeCommunity([1, 2, 4]), false),
        (Match::Origin(Origin::Igp), true),
        (Match::Origin(Origin::Egp), false),
        (Match::NextHop(net("192.0.2.0/24")), true),
        (Match::NextHop(net("198.51.100.0/24")), false),
        (Match::Source(Source::External), true),
        (Match::Source(Source::Local), false),
        (Match::DefaultRoute, false),
        (Match::WithinOriginated, false),
        (Match::Not(Box::new(Match::DefaultRoute)), true),
        (Match::Any(vec![]), false),
        (Match::All(vec![]), true),
        (
            Match::Any(vec![Match::Community(1), Match::Community(100)]),
            true,
        ),
        (
            Match::All(vec![Match::Community(1), Match::Community(100)]),
            false,
        ),
        (path(AsPathMatch::Empty), false),
        (path(AsPathMatch::From(Asn(65001))), true),
        (path(AsPathMatch::From(Asn(65002))), false),
        (path(AsPathMatch::OriginatedBy(Asn(65002))), true),
        (path(AsPathMatch::OriginatedBy(Asn(65001))), false),
        (path(AsPathMatch::Contains(Asn(65002))), true),
        (path(AsPathMatch::Contains(Asn(65003))), false),
        (path(AsPathMatch::MaxLength(2)), true),
        (path(AsPathMatch::MaxLength(1)), false),
    ] {
        assert_eq!(
            holds(condition.clone(), "10.0.0.0/8", &route),
            expected,
            "{condition:?}"
        );
    }
    assert!(holds(Match::DefaultRoute, "::/0", &route));
    assert!(holds(path(AsPathMatch::Empty), "::/0", &attributes(&[])));
}

#[test]
fn the_first_rule_that_matches_decides_and_what_none_matches_is_rejected() {
    let policy = Policy::new(
        "list",
        vec![
            Rule::reject(
                "bogons",
                vec![Match::Prefix(PrefixList(vec![PrefixRange::or_longer(
                    net("127.0.0.0/8"),
                )]))],
            ),
            Rule::accept(
                "tagged",
                vec![Match::Community(100), Match::Source(Source::External)],
            ),
            Rule::reject("tagged-too", vec![Match::Community(100)]),
        ],
    );
    let tagged = attributes(&[]);
    let untagged = Attributes {
        communities: vec![],
        ..tagged.clone()
    };
    for (prefix, attributes, source, accepted, said) in [
        (
            "127.1.0.0/16",
            &tagged,
            Source::External,
            false,
            "list/bogons",
        ),
        ("10.0.0.0/8", &tagged, Source::External, true, "list/tagged"),
        (
            "10.0.0.0/8",
            &tagged,
            Source::Internal,
            false,
            "list/tagged-too",
        ),
        (
            "10.0.0.0/8",
            &untagged,
            Source::External,
            false,
            "list/no rule matched",
        ),
    ] {
        let facts = RouteFacts {
            prefix: &net(prefix),
            attributes,
            source,
            within_originated: false,
        };
        let decision = policy.decide(facts);
        assert_eq!(decision.accept.is_some(), accepted, "{said}");
        assert_eq!(policy.describe(decision.rule), said);
    }
}

#[test]
fn alterations_apply_in_order() {
    let mut route = attributes(&[65001]);
    let sets = [
        Set::LocalPref(200),
        Set::Med(Some(3)),
        Set::AddCommunity(7),
        Set::AddCommunity(7),
        Set::RemoveCommunity(100),
        Set::AddLargeCommunity([4, 5, 6]),
        Set::RemoveLargeCommunity([1, 2, 3]),
        Set::Prepend(Asn(65000), 2),
        Set::Origin(Origin::Incomplete),
    ];
    apply(&sets, &mut route, Asn(64999));
    assert_eq!((route.local_pref, route.med), (Some(200), Some(3)));
    assert_eq!(route.communities, [7]);
    assert_eq!(route.large_communities, [[4, 5, 6]]);
    assert_eq!(
        route.as_path,
        AsPath::sequence([65000, 65000, 65001].map(Asn))
    );
    assert_eq!(route.origin, Origin::Incomplete);
    apply(
        &[Set::ClearCommunities, Set::Med(None), Set::PrependOwn(1)],
        &mut route,
        Asn(64999),
    );
    assert_eq!(route.as_path.neighbor(), Some(Asn(64999)));
    assert_eq!((route.communities.len(), route.med), (0, None));
}

#[test]
fn only_policies_that_ask_for_it_depend_on_what_is_originated() {
    assert!(Policy::import_pools(&[]).looks_at_originated());
    assert!(!Policy::all().looks_at_originated());
    let negated = Match::Not(Box::new(Match::WithinOriginated));
    for nested in [
        negated,
        Match::Any(vec![Match::DefaultRoute, Match::WithinOriginated]),
        Match::All(vec![Match::WithinOriginated]),
    ] {
        assert!(Policy::new("x", vec![Rule::accept("y", vec![nested])]).looks_at_originated());
    }
}

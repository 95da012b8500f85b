//! Named policies.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use ::bgp::{
    attributes::{AsPath, Attributes, Origin},
    message::{Announced, Negotiated, Nlri, NlriList, Update},
    policy::{RouteFacts, Source, apply},
    rib::{PeerKind, PeerRib, Rib, RibConfig, RouteQuery, Table},
    types::{Asn, PeerId},
};

use super::*;

const HEAD: &str = "[bgp]\nasn = 64512\n[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\n";

fn parse(policies: &str) -> Result<Config, Vec<String>> {
    Config::parse(&format!("{HEAD}{policies}"), Path::new("agentd.toml"))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// A policy with one rule that consists of `line`, in line 10, has exactly this error.
#[track_caller]
fn check(line: &str, key: &str, reason: &str) {
    let text = format!("[[policy]]\nname = \"x\"\n[[policy.rule]]\nname = \"r\"\n{line}\n");
    let expected = format!("agentd.toml:10: policy[0].rule[0]{key}: {reason}");
    assert_eq!(parse(&text).unwrap_err(), [expected], "{line}");
}

/// `10.244.1.0/26` from AS 64513 by way of 64514, tagged, through a policy whose rules are `text`.
fn decide(text: &str, change: impl FnOnce(&mut Attributes)) -> (String, Option<Attributes>) {
    let config = parse(&format!("[[policy]]\nname = \"x\"\n{text}")).unwrap();
    let policy = &config.policies[0];
    let next_hop: std::net::IpAddr = "192.0.2.7".parse().unwrap();
    let mut attributes = Attributes::originated(next_hop.into());
    attributes.as_path = AsPath::sequence([64513, 64514].map(Asn));
    attributes.communities = vec![64513 << 16 | 100];
    attributes.large_communities = vec![[64513, 1, 2]];
    change(&mut attributes);
    let decision = policy.decide(RouteFacts {
        prefix: &"10.244.1.0/26".parse().unwrap(),
        attributes: &attributes,
        source: Source::External,
        within_originated: false,
    });
    let said = policy.describe(decision.rule);
    let accepted = decision.accept.map(|sets| {
        apply(sets, &mut attributes, Asn(64512));
        attributes
    });
    (said, accepted)
}

#[test]
fn every_condition_decides_on_what_it_names() {
    for (condition, expected) in [
        ("prefixes = [\"10.244.1.0/26\"]", true),
        ("prefixes = [\"10.244.1.0/24\"]", false),
        (
            "prefixes = [\"192.0.2.0/24\", \"10.244.0.0/16 le 26\"]",
            true,
        ),
        ("prefixes = [\"10.244.0.0/16 le 25\"]", false),
        ("prefixes = [\"10.244.0.0/16 ge 26\"]", true),
        ("prefixes = [\"10.244.0.0/16 ge 27\"]", false),
        ("prefixes = [\"10.0.0.0/8 ge 20 le 26\"]", true),
        ("prefixes = [\"10.0.0.0/8 ge 20 le 25\"]", false),
        ("prefixes = [\"pools\"]", true),
        ("communities = [\"1:1\", \"64513:100\"]", true),
        ("communities = [\"no-export\"]", false),
        ("large_communities = [\"64513:1:2\"]", true),
        ("large_communities = [\"64513:1:3\"]", false),
        ("next_hops = [\"192.0.2.0/24\"]", true),
        ("next_hops = [\"192.0.2.7\"]", true),
        ("next_hops = [\"192.0.2.8\"]", false),
        ("sources = [\"local\", \"external\"]", true),
        ("sources = [\"internal\", \"client\"]", false),
        ("origins = [\"igp\"]", true),
        ("origins = [\"egp\", \"incomplete\"]", false),
        ("default_route = true", false),
        ("default_route = false", true),
        ("own_block = true", false),
        ("own_block = false", true),
        ("as_path = { contains = [1, 64514] }", true),
        ("as_path = { contains = [1] }", false),
        ("as_path = { neighbors = [64513] }", true),
        ("as_path = { neighbors = [64514] }", false),
        ("as_path = { origins = [64514] }", true),
        ("as_path = { origins = [64513] }", false),
        ("as_path = { min_length = 2, max_length = 2 }", true),
        ("as_path = { min_length = 3 }", false),
        ("as_path = { max_length = 1 }", false),
        // All keys have to hold.
        ("prefixes = [\"pools\"], communities = [\"1:1\"]", false),
    ] {
        let rule = |table: &str| {
            format!(
                "[[policy.rule]]\nname = \"r\"\n{table} = {{ {condition} }}\naction = \"accept\"\n"
            )
        };
        let said = if expected { "x/r" } else { "x/no rule matched" };
        let (matched, accepted) = decide(&rule("match"), |_| {});
        assert_eq!(
            (&*matched, accepted.is_some()),
            (said, expected),
            "{condition}"
        );
        let (_, accepted) = decide(&rule("unless"), |_| {});
        assert_eq!(accepted.is_some(), !expected, "unless {condition}");
    }
}

#[test]
fn the_first_rule_that_applies_decides_and_alters() {
    let text = "[[policy.rule]]\nname = \"drained\"\nmatch = { communities = [\"1:666\"] }\n\
                action = \"reject\"\n[[policy.rule]]\nname = \"rest\"\naction = \"accept\"\n\
                set = { local_pref = 200, med = 5, origin = \"egp\", prepend = 2, \
                remove_communities = [\"64513:100\"], add_communities = [\"64512:1\"], \
                remove_large_communities = [\"64513:1:2\"], add_large_communities = [\"1:2:3\"] }\n";
    let (said, altered) = decide(text, |_| {});
    let altered = altered.unwrap();
    assert_eq!(said, "x/rest");
    assert_eq!((altered.local_pref, altered.med), (Some(200), Some(5)));
    assert_eq!(altered.origin, Origin::Egp);
    assert_eq!(altered.communities, [64512 << 16 | 1]);
    assert_eq!(altered.large_communities, [[1, 2, 3]]);
    let path = [64512, 64512, 64513, 64514].map(Asn);
    assert_eq!(altered.as_path, AsPath::sequence(path));

    let drained = decide(text, |attributes| {
        attributes.communities.push(1 << 16 | 666)
    });
    assert_eq!(drained, ("x/drained".to_owned(), None));

    let text = "[[policy.rule]]\nname = \"r\"\naction = \"accept\"\n\
                set = { clear_communities = true, remove_med = true, add_communities = [\"1:1\"] }\n";
    let (_, altered) = decide(text, |attributes| attributes.med = Some(7));
    let altered = altered.unwrap();
    assert_eq!(
        (altered.communities.as_slice(), altered.med),
        (&[1 << 16 | 1][..], None)
    );
}

#[test]
fn peers_choose_policies_by_name_or_inherit_them() {
    let peers = "[[bgp.peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nasn = 1\n\
                 [[bgp.peer]]\nname = \"b\"\naddress = \"192.0.2.2\"\nasn = 1\nimport = \"pools\"\n\
                 export = \"x\"\n[[policy]]\nname = \"x\"\n[[policy.rule]]\nname = \"r\"\n\
                 action = \"accept\"\n";
    let text = format!("[bgp]\nasn = 64512\nimport = \"x\"\n{peers}");
    let config = Config::parse(&text, Path::new("agentd.toml")).unwrap();
    let policy = config.policies[0].clone();
    let peers = config.bgp.unwrap().peers;
    assert_eq!(peers[0].import, ImportPolicy::Named(policy.clone()));
    assert_eq!(peers[0].export, ExportPolicy::Blocks);
    assert_eq!(peers[1].import, ImportPolicy::Pools);
    assert_eq!(peers[1].export, ExportPolicy::Named(policy));
}

#[test]
fn an_unknown_policy_is_refused_with_those_there_are() {
    let text = "[bgp]\nasn = 1\nimport = \"tor\"\nexport = \"pools\"\n[[policy]]\nname = \"tor-in\"\n\
                [[policy.rule]]\nname = \"r\"\naction = \"accept\"\n";
    let errors = Config::parse(text, Path::new("agentd.toml")).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "agentd.toml:3: bgp.import: there is no policy \"tor\"; known here: pools, all, none and \
         tor-in\n\
         agentd.toml:4: bgp.export: there is no policy \"pools\"; known here: blocks, all, none and \
         tor-in"
    );
}

#[test]
fn a_policy_in_error_is_reported_once_and_not_where_it_is_used() {
    let text = "[bgp]\nasn = 1\nimport = \"x\"\n[[policy]]\nname = \"x\"\n\
                [[policy.rule]]\nname = \"r\"\naction = \"drop\"\n";
    let errors = Config::parse(text, Path::new("agentd.toml")).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "agentd.toml:8: policy[0].rule[0].action: \"drop\" is unknown; accept and reject are allowed"
    );
}

#[test]
fn names_of_policies_and_rules_are_checked() {
    for (text, expected) in [
        (
            "[[policy]]\nname = \"all\"\nrule = [{ name = \"r\", action = \"accept\" }]\n",
            "agentd.toml:7: policy[0].name: \"all\" is the name of a built-in policy",
        ),
        (
            "[[policy]]\nname = \"a b\"\nrule = [{ name = \"r\", action = \"accept\" }]\n",
            "agentd.toml:7: policy[0].name: \"a b\" is not a name of 1 to 63 letters, digits, dots, \
             dashes and underscores",
        ),
        (
            "[[policy]]\nname = \"x\"\n",
            "agentd.toml:6: policy[0].rule: is missing; a policy without rules rejects everything, \
             as \"none\" does",
        ),
        (
            "[[policy]]\nrule = [{ name = \"r\", action = \"accept\" }]\n",
            "agentd.toml:6: policy[0].name: is missing; peers choose a policy by it",
        ),
        (
            "[[policy]]\nname = \"x\"\nrule = [\n{ name = \"r\", action = \"accept\" },\n\
             { name = \"r\", action = \"reject\" }]\n",
            "agentd.toml:10: policy[0].rule[1].name: another rule of this policy is named \"r\"",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), [expected.to_owned()], "{text}");
    }
}

#[test]
fn mistakes_in_a_rule_are_reported_with_line_and_key() {
    for (condition, key, reason) in [
        (
            "prefixes = [\"pools\", \"10.0.0.0/8 le 7\"]",
            "prefixes[1]",
            "\"10.0.0.0/8 le 7\" can match nothing; lengths from 8 to 32 are possible, and ge is \
             not above le",
        ),
        (
            "prefixes = [\"10.0.0.1/8\"]",
            "prefixes[0]",
            "\"10.0.0.1/8\" has host bits set; write \"10.0.0.0/8\"",
        ),
        (
            "prefixes = [\"10.0.0.0/8 eq 9\"]",
            "prefixes[0]",
            "\"10.0.0.0/8 eq 9\" is not \"pools\" or a prefix with bounds on the length, as \
             \"10.0.0.0/8\", \"10.0.0.0/8 le 24\" or \"10.0.0.0/8 ge 16 le 24\"",
        ),
        (
            "prefixes = []",
            "prefixes",
            "is empty; name at least one, or remove this key",
        ),
        (
            "communities = [\"1:65536\"]",
            "communities[0]",
            "\"1:65536\" is not a community, as \"64512:100\" (two numbers up to 65535) or \
             \"no-export\"",
        ),
        (
            "large_communities = [\"1:2\"]",
            "large_communities[0]",
            "\"1:2\" is not a large community, as \"64512:1:2\"",
        ),
        (
            "sources = [\"bgp\"]",
            "sources[0]",
            "\"bgp\" is unknown; local, internal, client and external are allowed",
        ),
        (
            "as_path = { neighbors = [] }",
            "as_path.neighbors",
            "is empty; name at least one, or remove this key",
        ),
        (
            "as_path = { contains = [0] }",
            "as_path.contains[0]",
            "0 is out of range; 1 to 4294967295 are allowed",
        ),
        (
            "as_path = { min_length = 3, max_length = 2 }",
            "as_path.max_length",
            "is less than min_length, 3",
        ),
        (
            "as_path = { neighbor = 1 }",
            "as_path.neighbor",
            "unknown key; known here: contains, max_length, min_length, neighbors and origins",
        ),
    ] {
        for table in ["match", "unless"] {
            let line = format!("{table} = {{ {condition} }}\naction = \"accept\"");
            check(&line, &format!(".{table}.{key}"), reason);
        }
    }
    check(
        "set = { prepend = 33 }\naction = \"accept\"",
        ".set.prepend",
        "33 is out of range; 1 to 32 are allowed",
    );
    check(
        "set = { med = 1, remove_med = true }\naction = \"accept\"",
        ".set.remove_med",
        "excludes med",
    );
    check(
        "set = { med = 1 }\naction = \"reject\"",
        ".set",
        "nothing can be altered in a route that is rejected",
    );
}

/// From the file to what a person sees of a received route.
#[test]
fn the_view_of_received_routes_names_policy_and_rule() {
    let text = "[[policy]]\nname = \"tor-in\"\n[[policy.rule]]\nname = \"drained\"\n\
                match = { communities = [\"64513:666\"] }\naction = \"reject\"\n\
                [[policy.rule]]\nname = \"near\"\nmatch = { prefixes = [\"pools\"] }\n\
                action = \"accept\"\nset = { local_pref = 200 }\n";
    let policy = parse(text).unwrap().policies[0].clone();
    let own = std::net::Ipv4Addr::new(192, 0, 2, 1);
    let other = std::net::Ipv4Addr::new(192, 0, 2, 2);
    let now = std::time::Instant::now();
    let mut rib = Rib::new(RibConfig::new(Asn(64512), own), now);
    let negotiated = Negotiated {
        families: [true; 2],
        ..Negotiated::default()
    };
    let mut peer = PeerRib::new(
        PeerKind::External,
        Asn(64513),
        other,
        other.into(),
        own.into(),
        Arc::new(negotiated),
    );
    peer.import = policy;
    rib.peer_up(PeerId(1), peer);
    let mut attributes = Attributes::originated(IpAddr::V4(other).into());
    attributes.as_path = AsPath::sequence([Asn(64513)]);
    for (prefix, community) in [
        ("10.244.1.0/26", 666),
        ("10.244.2.0/26", 1),
        ("10.0.0.0/8", 1),
    ] {
        attributes.communities = vec![64513 << 16 | community];
        let update = Update {
            announced: [Announced {
                attributes: Arc::new(attributes.clone()),
                nlri: NlriList::Ipv4(vec![Nlri {
                    path_id: 0,
                    prefix: prefix.parse().unwrap(),
                }]),
            }]
            .into_iter()
            .collect(),
            ..Update::default()
        };
        rib.update(now, PeerId(1), &update).unwrap();
    }
    rib.set_next_hop(
        std::net::IpAddr::from(other),
        ::bgp::rib::NextHopState::Reachable { metric: 0 },
    );
    while rib.poll_change().is_some() {}
    let list = |table| {
        let query = RouteQuery {
            table,
            prefix: None,
            after: None,
            limit: 10,
        };
        let routes = rib.routes(&query).routes;
        routes
            .into_iter()
            .map(|route| {
                let local_pref = route.attributes.local_pref;
                format!("{} {} {local_pref:?}", route.prefix, route.reason)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        list(Table::AdjRibIn(Some(PeerId(1)))),
        [
            "10.0.0.0/8 rejected by policy tor-in/no rule matched None",
            "10.244.1.0/26 rejected by policy tor-in/drained None",
            "10.244.2.0/26 best: the only one None",
        ]
    );
    assert_eq!(
        list(Table::LocRib),
        ["10.244.2.0/26 best: the only one Some(200)"]
    );
}

//! Originated prefixes, and options of peers beyond those every peer has.
#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use ::bgp::types::Asn;

use super::{
    tests::{check, parsed},
    *,
};

#[test]
fn originated_prefixes_are_read_with_their_attributes() {
    let text = "[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\n[bgp]\nasn = 1\n\
                [[bgp.originate]]\nprefix = \"192.0.2.0/24\"\nmed = 5\norigin = \"incomplete\"\n\
                communities = [\"1:2\"]\nlarge_communities = [\"1:2:3\"]\n\
                [[bgp.originate]]\nprefix = \"10.244.0.0/16\"\n[[bgp.originate]]\nprefix = \"10.0.0.0/8\"\n";
    let originate = parsed(text).bgp.expect("a section").originate;
    let plain = LocalRoute {
        owns_inside: false,
        ..LocalRoute::default()
    };
    let full = LocalRoute {
        origin: ::bgp::attributes::Origin::Incomplete,
        med: Some(5),
        communities: vec![1 << 16 | 2],
        large_communities: vec![[1, 2, 3]],
        owns_inside: false,
        local_pref: None,
    };
    assert_eq!(
        originate,
        [
            ("192.0.2.0/24".parse().unwrap(), full),
            ("10.244.0.0/16".parse().unwrap(), plain.clone()),
            ("10.0.0.0/8".parse().unwrap(), plain),
        ]
    );
}

#[test]
fn originated_prefixes_may_not_lie_inside_a_pool() {
    let text = |size: u8, more: &str| {
        format!(
            "[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/26\"\nblock_size = {size}\n\
             [bgp]\nasn = 1\n[[bgp.originate]]\n{more}\n"
        )
    };
    let inside = "lies inside the pool \"p\" (10.244.0.0/26); of a pool only blocks are announced, by \
                  themselves";
    for (size, more, expected) in [
        (28, "prefix = \"10.244.0.0/28\"", format!(":8: bgp.originate[0].prefix: 10.244.0.0/28 {inside}")),
        (26, "prefix = \"10.244.0.0/26\"", format!(":8: bgp.originate[0].prefix: 10.244.0.0/26 {inside}")),
        (26, "prefix = \"10.244.0.1/24\"", ":8: bgp.originate[0].prefix: \"10.244.0.1/24\" has host bits set; write \"10.244.0.0/24\"".into()),
        (26, "prefix = \"10.0.0.0/8\"\n[[bgp.originate]]\nprefix = \"10.0.0.0/8\"", ":10: bgp.originate[1].prefix: 10.0.0.0/8 is named twice".into()),
        (26, "med = 1", ":7: bgp.originate[0].prefix: is missing; it is what is announced".into()),
    ] {
        check(&text(size, more), &format!("agentd.toml{expected}"));
    }
}

#[test]
fn limits_and_path_options_of_a_peer_are_checked() {
    let peer = |lines: &str, asn: u32| {
        let text = format!(
            "[bgp]\nasn=64512\n[[bgp.peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nasn = {asn}\n{lines}\n"
        );
        Config::parse(&text, Path::new("agentd.toml"))
            .map(|config| config.bgp.expect("a section").peers[0].clone())
            .map_err(|errors| errors.to_string())
    };
    for (text, receive, send) in [
        ("\"off\"", false, 0),
        ("\"receive\"", true, 0),
        ("\"send\"", false, u16::MAX),
        ("\"both\"", true, u16::MAX),
        ("{ send = 4 }", false, 4),
        ("{ send = \"all\", receive = true }", true, u16::MAX),
        ("{ receive = true }", true, 0),
    ] {
        let peer = peer(&format!("add_path = {text}"), 1).unwrap();
        assert_eq!(
            (peer.add_path_receive, peer.add_path_send),
            (receive, send),
            "{text}"
        );
    }
    for text in [
        "\"yes\"",
        "4",
        "{ send = 0 }",
        "{ send = \"some\" }",
        "{ take = true }",
    ] {
        assert!(peer(&format!("add_path = {text}"), 1).is_err(), "{text}");
    }
    let peer_of = |line| peer(line, 1).unwrap().extended_next_hop;
    assert_eq!(peer_of(""), None);
    assert_eq!(peer_of("extended_next_hop = false"), Some(false));
    let limited = peer("max_prefixes = 1000", 1).unwrap();
    assert_eq!(limited.max_prefixes_warning, Some(800));
    assert_eq!(limited.max_prefixes_restart, None);
    let options = "max_prefixes = 4294967295\nmax_prefixes_warning = 100\n\
                   max_prefixes_restart = \"10m\"\nlocal_as = 64600\nallow_own_as = 2\n\
                   remove_private_as = true";
    let full = peer(options, 1).unwrap();
    assert_eq!(full.max_prefixes_warning, Some(u32::MAX));
    assert_eq!(full.max_prefixes_restart, Some(Duration::from_secs(600)));
    assert_eq!((full.local_as, full.allow_own_as), (Some(64600), 2));
    assert!(full.remove_private_as && !full.next_hop_self);
    assert!(peer("next_hop_self = true", 64512).unwrap().next_hop_self);
    assert!(!full.blackhole && peer("blackhole = true", 1).unwrap().blackhole);
    assert!(peer("blackhole = \"yes\"", 1).is_err());
    for (line, asn, reason) in [
        ("max_prefixes_warning = 50", 1, "needs max_prefixes"),
        ("max_prefixes_restart = \"1m\"", 1, "needs max_prefixes"),
        ("local_as = 64512", 1, "is the same as bgp.asn; remove it"),
        ("local_as = 1", 1, "is the number of the peer itself"),
        ("local_as = 2", 64512, "is for external peers"),
        (
            "allow_own_as = 11",
            1,
            "11 is out of range; 0 to 10 are allowed",
        ),
        ("remove_private_as = true", 64512, "is for external peers"),
        (
            "next_hop_self = true",
            1,
            "is for internal peers; external ones always get this node as next hop",
        ),
    ] {
        let key = line.split(' ').next().unwrap();
        let expected = format!("agentd.toml:7: bgp.peer[0].{key}: {reason}");
        assert_eq!(peer(line, asn).unwrap_err(), expected);
    }
}

/// `[bgp]` of AS 64512 with these sections of peers.
fn with_peers(sections: &str) -> String {
    format!("[bgp]\nasn = 64512\n{sections}")
}

#[test]
fn ranges_are_read_beside_peers_with_all_that_peers_can_have() {
    let text = with_peers(
        "[[bgp.peer]]\nname = \"leaves\"\nrange = \"10.0.0.0/24\"\nasn = [64513, 64514]\n\
         max_prefixes = 10\n\
         [[bgp.peer]]\nname = \"one\"\naddress = \"10.0.0.1\"\nasn = \"external\"\n\
         [[bgp.peer]]\nname = \"own\"\nrange = \"fd00::/64\"\nlimit = 5\nasn = \"internal\"\n",
    );
    let bgp = parsed(&text).bgp.expect("a section");
    let several = RemoteAs::OneOf([Asn(64513), Asn(64514)].into());
    assert_eq!(bgp.peers.len(), 1);
    assert_eq!(bgp.peers[0].asn, RemoteAs::External);
    assert!(!bgp.peers[0].passive);
    let [leaves, own] = &bgp.ranges[..] else {
        panic!("two ranges");
    };
    assert_eq!(leaves.range, "10.0.0.0/24".parse().unwrap());
    assert_eq!((leaves.limit, &leaves.peer.asn), (100, &several));
    assert_eq!(leaves.peer.max_prefixes, Some(10));
    assert!(leaves.peer.passive);
    assert_eq!((own.limit, &own.peer.asn), (5, &Asn(64512).into()));
    let shown = parsed(&text).to_string();
    assert!(
        shown.ends_with("AS 64512, 1 peer, 2 ranges of peers"),
        "{shown}"
    );
}

#[test]
fn ranges_that_cannot_be_meant_are_refused() {
    let first = "[[bgp.peer]]\nname = \"a\"\nasn = 2\nrange = \"10.0.0.0/24\"\n";
    for (more, expected) in [
        (
            "range = \"10.0.1.1/24\"",
            "range: \"10.0.1.1/24\" has host bits set; write \"10.0.1.0/24\"",
        ),
        (
            "range = \"10.0.1.0\"",
            "range: \"10.0.1.0\" is not a prefix, such as 10.0.0.0/24",
        ),
        (
            "range = \"10.0.0.0/24\"",
            "range: \"a\" has the range 10.0.0.0/24 too",
        ),
        (
            "range = \"10.0.1.0/24\"\naddress = \"10.0.1.1\"",
            "address: has no meaning for a range: its peers connect, and are not dialled",
        ),
        (
            "range = \"10.0.1.0/24\"\nport = 1790",
            "port: has no meaning for a range: its peers connect, and are not dialled",
        ),
        (
            "range = \"10.0.1.0/24\"\npassive = false",
            "passive: peers of a range are always passive; remove this key",
        ),
        (
            "range = \"10.0.1.0/24\"\nlocal_address = \"fd00::1\"",
            "local_address: fd00::1 is not of the family of the range 10.0.1.0/24",
        ),
        (
            "range = \"10.0.1.0/24\"\nlimit = 0",
            "limit: 0 is out of range; 1 to 10000 are allowed",
        ),
        ("address = \"10.0.1.1\"\nlimit = 5", "limit: needs range"),
    ] {
        let section = format!("{first}[[bgp.peer]]\nname = \"b\"\nasn = 2\n{more}\n");
        let lines = section.lines().count();
        let line = 2 + if expected.starts_with("range") {
            8
        } else {
            lines
        };
        check(
            &with_peers(&section),
            &format!("agentd.toml:{line}: bgp.peer[1].{expected}"),
        );
    }
    check(
        &with_peers(&format!("listen = []\n{first}")),
        "agentd.toml:7: bgp.peer[0].range: nobody can connect from it, because bgp.listen is empty",
    );
    check(
        &with_peers("[[bgp.peer]]\nname = \"a\"\naddress = \"10.0.0.1\"\nasn = [2, 64512]\n"),
        "agentd.toml:6: bgp.peer[0].asn[1]: 64512 is bgp.asn; internal peers need a section of their own",
    );
    check(
        &with_peers("[[bgp.peer]]\nname = \"a\"\naddress = \"10.0.0.1\"\nasn = \"extern\"\n"),
        "agentd.toml:6: bgp.peer[0].asn: \"extern\" is unknown; external and internal are allowed",
    );
}

#[test]
fn inside_a_range_with_a_password_everybody_has_one() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key"), "secret\n").unwrap();
    let range =
        "[[bgp.peer]]\nname = \"r\"\nasn = 2\nrange = \"10.0.0.0/24\"\npassword_file = \"key\"\n";
    let peer = "[[bgp.peer]]\nname = \"p\"\nasn = 2\naddress = \"10.0.0.1\"\n";
    let file = directory.path().join("agentd.toml");
    let errors = |text: String| match Config::parse(&with_peers(&text), &file) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    };
    for text in [format!("{range}{peer}"), format!("{peer}{range}")] {
        let errors = errors(text);
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains("password_file: "), "{errors}");
        assert!(errors.contains("the kernel would ask"), "{errors}");
    }
    let keyed = format!("{peer}password_file = \"key\"\n{range}");
    assert_eq!(errors(keyed), "");
}

#[test]
fn long_lived_graceful_restart_is_off_unless_it_is_asked_for() {
    let peers = parsed(
        "[bgp]\nasn = 1\nlong_lived_graceful_restart = { stale_time = \"24h\" }\n\
         [[bgp.peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nasn = 1\n\
         [[bgp.peer]]\nname = \"b\"\naddress = \"192.0.2.2\"\nasn = 1\n\
         long_lived_graceful_restart = false\n\
         [[bgp.peer]]\nname = \"c\"\naddress = \"192.0.2.3\"\nasn = 1\n\
         long_lived_graceful_restart = \"aware\"\n",
    )
    .bgp
    .expect("a section")
    .peers;
    let times: Vec<_> = peers
        .iter()
        .map(|peer| {
            let times = peer.long_lived?;
            Some((times.stale_time.as_secs(), times.max_stale_time.as_secs()))
        })
        .collect();
    assert_eq!(times, [Some((86_400, 86_400)), None, Some((0, 0))]);

    let text = |value: &str| format!("[bgp]\nasn = 1\nlong_lived_graceful_restart = {value}\n");
    let key = "agentd.toml:3: bgp.long_lived_graceful_restart";
    for (value, expected) in [
        (
            "true",
            ": expected false, \"aware\" or a table such as { stale_time = \"24h\" }",
        ),
        (
            "\"on\"",
            ": expected false, \"aware\" or a table such as { stale_time = \"24h\" }",
        ),
        (
            "{ }",
            ".stale_time: is missing; there is no time to suggest",
        ),
        (
            "{ stale_time = \"200d\" }",
            ".stale_time: \"200d\" is out of range; 1s to 6months 11days 12h 58m 39s are allowed",
        ),
        (
            "{ stale_time = \"1h\", time = \"1s\" }",
            ".time: unknown key; known here: stale_time",
        ),
    ] {
        check(&text(value), &format!("{key}{expected}"));
    }
}

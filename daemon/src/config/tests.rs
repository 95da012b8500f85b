#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, time::Duration};

use ::bgp::types::Asn;

use super::*;

/// The errors of `text`, one line each.
fn errors(text: &str) -> Vec<String> {
    match Config::parse(text, Path::new("agentd.toml")) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// `text` has exactly this error.
#[track_caller]
pub(super) fn check(text: &str, expected: &str) {
    assert_eq!(errors(text), [expected.to_owned()], "in:\n{text}");
}

#[track_caller]
pub(super) fn parsed(text: &str) -> Config {
    Config::parse(text, Path::new("agentd.toml")).expect("a valid configuration")
}

/// Fails with exactly this error in line 3, behind a valid pool or peer.
#[track_caller]
fn check_pool(line: &str, key: &str, reason: &str) {
    let text = format!("[[pool]]\nname = \"p\"\n{line}\ncidr = \"10.244.0.0/16\"\n");
    check(&text, &format!("agentd.toml:3: pool[0].{key}: {reason}"));
}

#[track_caller]
fn check_peer(line: &str, key: &str, reason: &str) {
    let text = format!(
        "[bgp]\nasn=64512\ncluster_id=\"1.1.1.1\"\n[[bgp.peer]]\nname = \"a\"\n{line}\naddress = \"192.0.2.1\"\nasn = 1\n"
    );
    check(
        &text,
        &format!("agentd.toml:6: bgp.peer[0].{key}: {reason}"),
    );
}

#[test]
fn an_empty_file_is_a_node_without_pools_and_bgp_and_with_every_default() {
    let config = parsed("[node]\nname = \"a\"\n");
    assert_eq!(
        config,
        Config {
            file: "agentd.toml".into(),
            node: Node {
                name: "a".into(),
                address: None,
                address6: None,
                state_dir: "/var/lib/agentd".into(),
                labels: Default::default(),
            },
            api: Api {
                socket: "/run/agentd/agentd.sock".into(),
            },
            pools: Vec::new(),
            bridges: Vec::new(),
            tunnel: Tunnel {
                vni: 4096,
                port: 4789,
                accept: Vec::new(),
            },
            ipam: Ipam {
                cooldown: Duration::from_secs(130),
                claim_ahead: 75,
                release_empty_after: Duration::from_secs(600),
                release_unnamed_after: Duration::from_secs(60),
                store: Store::Local,
                etcd: None,
            },
            bgp: None,
            policies: Vec::new(),
            telemetry: Telemetry {
                metrics_listen: Some("127.0.0.1:9472".parse().expect("an address")),
            },
            log: Log {
                format: LogFormat::Auto,
                level: "info".into(),
            },
        }
    );
}

#[test]
fn a_pool_and_a_peer_get_every_default() {
    let config = parsed(
        "[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\n\
         [[pool]]\nname = \"q\"\ncidr = \"fd00:1::/32\"\n\
         [[pool]]\nname = \"r\"\ncidr = \"10.9.9.0/28\"\n\
         [bgp]\nasn = 64512\n[[bgp.peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nasn = 64513\n",
    );
    let sizes: Vec<u8> = config.pools.iter().map(|pool| pool.block_size).collect();
    assert_eq!(sizes, [26, 122, 28]);
    let bgp = config.bgp.expect("a section");
    assert_eq!(
        bgp.listen,
        ["0.0.0.0:179".parse().unwrap(), "[::]:179".parse().unwrap()]
    );
    assert_eq!(
        bgp.peers,
        [Peer {
            name: "a".into(),
            address: "192.0.2.1".parse().unwrap(),
            port: 179,
            asn: Asn(64513).into(),
            local_address: None,
            passive: false,
            route_reflector_client: false,
            password: None,
            ttl_security: None,
            multihop: None,
            families: vec![Family::Ipv4Unicast, Family::Ipv6Unicast],
            add_path_receive: false,
            add_path_send: 0,
            extended_next_hop: None,
            max_prefixes: None,
            max_prefixes_warning: None,
            max_prefixes_restart: None,
            local_as: None,
            allow_own_as: 0,
            next_hop_self: false,
            remove_private_as: false,
            blackhole: false,
            import: ImportPolicy::Pools,
            export: ExportPolicy::Blocks,
            hold_time: Duration::from_secs(9),
            connect_retry_time: Duration::from_secs(1),
            idle_hold_time: Duration::from_secs(1),
            idle_hold_time_max: Duration::from_secs(60),
            role: None,
            graceful_restart: Some(GracefulRestart {
                restart_time: Duration::from_secs(120),
                assume_forwarding: false,
            }),
            long_lived: None,
        }]
    );
}

#[test]
fn a_peer_inherits_from_bgp_what_it_does_not_say_itself() {
    let config = parsed(
        "[bgp]\nasn = 4294967295\nhold_time = \"90s\"\nimport = \"all\"\ngraceful_restart = false\n\
         [[bgp.peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nasn = 1\n\
         [[bgp.peer]]\nname = \"b\"\naddress = \"192.0.2.2\"\nasn = 1\nhold_time = \"0s\"\n\
         import = \"none\"\ngraceful_restart = { restart_time = \"4095s\" }\n",
    );
    let peers = config.bgp.expect("a section").peers;
    let facts: Vec<_> = peers
        .iter()
        .map(|peer| {
            let restart = peer
                .graceful_restart
                .map(|restart| restart.restart_time.as_secs());
            (peer.hold_time.as_secs(), peer.import.clone(), restart)
        })
        .collect();
    assert_eq!(
        facts,
        [
            (90, ImportPolicy::All, None),
            (0, ImportPolicy::None, Some(4095))
        ]
    );
}

#[test]
fn the_node_is_named_after_the_host_by_default() {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    assert_eq!(parsed("").node.name, host.trim_end());
}

#[test]
fn an_error_names_file_line_key_value_and_what_is_allowed() {
    check(
        "\n\n[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\nblock_size = 19\n",
        "agentd.toml:6: pool[0].block_size: 19 is out of range; IPv4 pools take 20 to 32",
    );
}

#[test]
fn all_errors_come_at_once_in_the_order_of_lines() {
    let text = "[log]\nlevel = \"loud\"\ncolour = true\n[[pool]]\nname = \"\"\ncidr = 7\n[bgp]\n";
    let errors = errors(text);
    let lines: Vec<&str> = errors
        .iter()
        .map(|error| error.split(": ").next().expect("a place"))
        .collect();
    assert_eq!(
        lines,
        [
            "agentd.toml:2",
            "agentd.toml:3",
            "agentd.toml:5",
            "agentd.toml:6",
            "agentd.toml:7"
        ],
        "{errors:#?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_without_a_line() {
    let error = Config::load(Path::new("/nonexistent/agentd.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nonexistent/agentd.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn a_syntax_error_is_reported_alone_with_its_line() {
    let errors = errors("[node]\nname = \"a\nstate_dir = 7\n");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("agentd.toml:2: "), "{errors:?}");
}

#[test]
fn unknown_keys_are_refused_with_the_known_ones() {
    check(
        "[api]\nsockets = \"/x\"\n",
        "agentd.toml:2: api.sockets: unknown key; known here: listen, socket and tls",
    );
    check(
        "[nodes]\nname = \"a\"\n",
        "agentd.toml:1: nodes: unknown key; known here: api, bgp, bridge, ipam, log, node, policy, pool, \
         telemetry and tunnel",
    );
    check(
        "[bgp]\nasn = 1\ngraceful_restart = { time = \"1s\" }\n",
        "agentd.toml:3: bgp.graceful_restart.time: unknown key; known here: assume_forwarding and restart_time",
    );
}

#[test]
fn values_of_a_wrong_type_are_refused() {
    check(
        "[node]\nname = 7\n",
        "agentd.toml:2: node.name: expected a string, found a value of type integer",
    );
    check(
        "node = 7\n",
        "agentd.toml:1: node: expected a table, found a value of type integer",
    );
    check(
        "pool = { name = \"p\" }\n",
        "agentd.toml:1: pool: expected an array of tables, [[pool]], found a value of type table",
    );
    check(
        "[ipam]\nclaim = \"10.0.0.0/24\"\n",
        "agentd.toml:2: ipam.claim: expected an array of strings, found a value of type string",
    );
    check(
        "[ipam]\nclaim_ahead = 1.5\n",
        "agentd.toml:2: ipam.claim_ahead: expected an integer from 1 to 100, found a value of \
         type float",
    );
    check_peer(
        "passive = \"yes\"",
        "passive",
        "expected true or false, found a value of type string",
    );
}

#[test]
fn features_that_do_not_exist_yet_are_refused_and_not_ignored() {
    for (text, key) in [
        ("[api]\nlisten = \"192.0.2.1:7443\"\n", "api.listen"),
        ("[api]\n[api.tls]\ncert = \"x\"\n", "api.tls"),
    ] {
        let errors = errors(text);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(&format!(" {key}: ")), "{errors:?}");
        assert!(errors[0].contains("is not supported yet"), "{errors:?}");
    }
    check_peer("bfd = {}", "bfd", "is not supported yet");
    // Without an address, because it stands for one.
    let peer = "[bgp]\nasn = 1\n[[bgp.peer]]\nname = \"a\"\nasn = 2\n";
    check(
        &format!("{peer}interface = \"eth0\"\n"),
        "agentd.toml:6: bgp.peer[0].interface: is not supported yet",
    );
}

#[test]
fn node_addresses_and_paths_are_checked() {
    check(
        "[node]\naddress = \"fd00::1\"\n",
        "agentd.toml:2: node.address: \"fd00::1\" is not an IPv4 address",
    );
    check(
        "[node]\naddress6 = \"ff02::1\"\n",
        "agentd.toml:2: node.address6: ff02::1 cannot be the address of a node",
    );
    check(
        "[node]\nname = \"two words\"\n",
        "agentd.toml:2: node.name: \"two words\" is not a name of 1 to 253 letters, digits, dots, \
         dashes and underscores",
    );
    check(
        "[node]\nstate_dir = \"state\"\n",
        "agentd.toml:2: node.state_dir: \"state\" is not an absolute path",
    );
    let long = format!("/{}", "x".repeat(107));
    check(
        &format!("[api]\nsocket = \"{long}\"\n"),
        "agentd.toml:2: api.socket: the path has 108 bytes; socket paths take at most 107",
    );
    let pool =
        "[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\n[node]\naddress = \"10.244.0.1\"\n";
    check(
        pool,
        "agentd.toml:3: node.address: 10.244.0.1 lies inside pool \"p\" (10.244.0.0/16); pools are \
         for workloads",
    );
}

#[test]
fn pool_prefixes_are_checked() {
    let pool = |name: &str, cidr: &str| format!("[[pool]]\nname = \"{name}\"\ncidr = \"{cidr}\"\n");
    for (cidr, reason) in [
        (
            "10.244.0.1/16",
            "10.244.0.1/16 has host bits set; did you mean 10.244.0.0/16?",
        ),
        (
            "10.244/16",
            "\"10.244/16\" is not a prefix such as \"10.244.0.0/16\" or \"fd00:10:244::/48\"",
        ),
        (
            "127.1.0.0/16",
            "127.1.0.0/16 cannot be a pool: 127.0.0.0/8 is loopback",
        ),
        (
            "fe80::/64",
            "fe80::/64 cannot be a pool: fe80::/10 is link-local",
        ),
    ] {
        let expected = format!("agentd.toml:3: pool[0].cidr: {reason}");
        check(&pool("p", cidr), &expected);
    }
    check(
        &(pool("p", "10.244.0.0/16") + &pool("q", "10.0.0.0/8")),
        "agentd.toml:6: pool[1].cidr: 10.0.0.0/8 overlaps pool \"p\" (10.244.0.0/16)",
    );
    check(
        &(pool("p", "10.244.0.0/16") + &pool("p", "10.245.0.0/16")),
        "agentd.toml:5: pool[1].name: another pool is named \"p\"; names are unique",
    );
    check(
        "[[pool]]\nname = \"p\"\n",
        "agentd.toml:1: pool[0].cidr: is missing; it is the prefix of the pool",
    );
}

#[test]
fn block_sizes_of_both_families_are_checked() {
    check_pool(
        "block_size = 33",
        "block_size",
        "33 is out of range; IPv4 pools take 20 to 32",
    );
    for size in [20, 32] {
        let text = format!("[[pool]]\nname = \"p\"\nblock_size = {size}\ncidr = \"10.0.0.0/16\"\n");
        assert_eq!(parsed(&text).pools[0].block_size, size);
    }
    for (size, ok) in [(115, false), (116, true), (128, true), (129, false)] {
        let text = format!("[[pool]]\nname = \"p\"\ncidr = \"fd00::/64\"\nblock_size = {size}\n");
        assert_eq!(errors(&text).is_empty(), ok, "{size}");
    }
    check(
        "[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/27\"\nblock_size = 26\n",
        "agentd.toml:4: pool[0].block_size: a /26 block does not fit into the pool, 10.244.0.0/27",
    );
}

#[test]
fn reserved_prefixes_lie_inside_their_pool() {
    check_pool(
        "reserved = [\"10.244.0.0/32\", \"10.245.0.0/32\"]",
        "reserved[1]",
        "10.245.0.0/32 does not lie inside the pool, 10.244.0.0/16",
    );
    check_pool(
        "reserved = [\"10.244.0.1/24\"]",
        "reserved[0]",
        "10.244.0.1/24 has host bits set; did you mean 10.244.0.0/24?",
    );
}

#[test]
fn claim_ranges_are_whole_blocks_of_one_pool_each_and_do_not_overlap() {
    let claim = |claim: &str| {
        format!(
            "[ipam]\nclaim = [{claim}]\n[[pool]]\nname = \"p\"\ncidr = \"10.244.0.0/16\"\n\
             [[pool]]\nname = \"q\"\ncidr = \"fd00::/48\"\n"
        )
    };
    for (ranges, reason) in [
        (
            "\"10.245.0.0/24\"",
            "[0]: 10.245.0.0/24 does not lie inside any pool",
        ),
        (
            "\"10.0.0.0/8\"",
            "[0]: 10.0.0.0/8 does not lie inside any pool",
        ),
        (
            "\"10.244.1.0/27\"",
            "[0]: 10.244.1.0/27 is smaller than a block of pool \"p\", which is a /26",
        ),
        (
            "\"10.244.1.1/24\"",
            "[0]: 10.244.1.1/24 has host bits set; did you mean 10.244.1.0/24?",
        ),
        (
            "\"10.244.1.0/24\", \"10.244.0.0/23\"",
            "[1]: 10.244.0.0/23 overlaps 10.244.1.0/24, which is claimed already",
        ),
    ] {
        check(
            &claim(ranges),
            &format!("agentd.toml:2: ipam.claim{reason}"),
        );
    }
    let config = parsed(&claim(
        "\"fd00::/64\", \"10.244.1.0/26\", \"10.244.9.0/24\"",
    ));
    let claims: Vec<Vec<String>> = config
        .pools
        .iter()
        .map(|pool| pool.claim.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(
        claims,
        [vec!["10.244.1.0/26", "10.244.9.0/24"], vec!["fd00::/64"]]
    );
}

#[test]
fn durations_are_checked() {
    check(
        "[ipam]\ncooldown = \"130\"\n",
        "agentd.toml:2: ipam.cooldown: \"130\" is not a duration; write it as \"130s\" or \"2m\"",
    );
    check(
        "[ipam]\ncooldown = \"0s\"\n",
        "agentd.toml:2: ipam.cooldown: \"0s\" is out of range; 1s to 1day are allowed",
    );
    for time in ["1s", "2500ms"] {
        let errors = errors(&format!("[bgp]\nasn = 1\nhold_time = \"{time}\"\n"));
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].contains("\"0s\", or 3s and more in whole seconds, are allowed"),
            "{errors:?}"
        );
    }
    check(
        "[bgp]\nasn = 1\ngraceful_restart = { restart_time = \"2h\" }\n",
        "agentd.toml:3: bgp.graceful_restart.restart_time: \"2h\" is out of range; 1s to \
         1h 8m 15s are allowed",
    );
}

#[test]
fn autonomous_systems_and_identifiers_are_checked() {
    for asn in ["0", "4294967296", "-1"] {
        check(
            &format!("[bgp]\nasn = {asn}\n"),
            &format!("agentd.toml:2: bgp.asn: {asn} is out of range; 1 to 4294967295 are allowed"),
        );
    }
    check(
        "[bgp]\nlisten = []\n",
        "agentd.toml:1: bgp.asn: is missing; it is the autonomous system of this node",
    );
    check(
        "[bgp]\nasn = 1\nrouter_id = \"0.0.0.0\"\n",
        "agentd.toml:3: bgp.router_id: 0.0.0.0 is not an identifier",
    );
    check(
        "[bgp]\nasn = 1\nlisten = [\"0.0.0.0\"]\n",
        "agentd.toml:3: bgp.listen[0]: \"0.0.0.0\" is not an address with a port, \"IP:PORT\" or \
         \"[IP]:PORT\"",
    );
}

#[test]
fn peers_are_checked() {
    let peer = |name: &str, address: &str, more: &str| {
        format!("[[bgp.peer]]\nname = \"{name}\"\naddress = \"{address}\"\nasn = 1\n{more}")
    };
    let bgp = "[node]\naddress = \"192.0.2.9\"\n[bgp]\nasn = 1\n";
    let two = |first: &str, second: &str| format!("{bgp}{first}{second}");
    check(
        &two(&peer("a", "192.0.2.1", ""), &peer("a", "192.0.2.2", "")),
        "agentd.toml:10: bgp.peer[1].name: another peer is named \"a\"; names are unique",
    );
    check(
        &two(&peer("a", "192.0.2.1", ""), &peer("b", "192.0.2.1", "")),
        "agentd.toml:11: bgp.peer[1].address: peer \"a\" has the address 192.0.2.1 too",
    );
    check(
        &two(&peer("a", "192.0.2.9", ""), ""),
        "agentd.toml:7: bgp.peer[0].address: 192.0.2.9 is the address of this node",
    );
    check(
        &two(&peer("a", "fe80::1", ""), ""),
        "agentd.toml:7: bgp.peer[0].address: fe80::1 needs an interface, and a peer on an \
         interface is not supported yet",
    );
    check(
        &two(&peer("a", "224.0.0.5", ""), ""),
        "agentd.toml:7: bgp.peer[0].address: 224.0.0.5 cannot be the address of a peer",
    );
    check(
        &two(&peer("a", "192.0.2.1", "local_address = \"fd00::1\"\n"), ""),
        "agentd.toml:9: bgp.peer[0].local_address: fd00::1 is not of the family of the peer's \
         address, 192.0.2.1",
    );
    check(
        &two(&peer("a", "192.0.2.1", "multihop = 2\n"), ""),
        "agentd.toml:9: bgp.peer[0].multihop: is for external peers; internal ones may be any \
         number of hops away",
    );
    check(
        &two(
            &peer("a", "192.0.2.1", "route_reflector_client = true\n"),
            "",
        ),
        "agentd.toml:9: bgp.peer[0].route_reflector_client: needs bgp.cluster_id, which makes this \
         node a route reflector",
    );
    check(
        &two("listen = []\n", &peer("a", "192.0.2.1", "passive = true\n")),
        "agentd.toml:10: bgp.peer[0].passive: a passive peer can never connect, because bgp.listen \
         is empty",
    );
    assert_eq!(
        errors("[bgp]\nasn = 1\n[[bgp.peer]]\n"),
        [
            "agentd.toml:3: bgp.peer[0].name: is missing; every peer needs one",
            "agentd.toml:3: bgp.peer[0].address: is missing; it is where the peer is reached",
            "agentd.toml:3: bgp.peer[0].asn: is missing; it is the autonomous system of the peer",
        ]
    );
}

#[test]
fn roles_and_waits_of_a_peer_are_checked() {
    check_peer(
        "role = \"friend\"",
        "role",
        "\"friend\" is none of provider, route-server, route-server-client, customer, peer",
    );
    check_peer(
        "idle_hold_time_max = \"1m\"\nidle_hold_time = \"5m\"",
        "idle_hold_time_max",
        "is less than idle_hold_time, which is \"5m\"",
    );
}

#[test]
fn hops_families_and_limits_of_a_peer_are_checked() {
    check_peer(
        "multihop = 2\nttl_security = 1",
        "multihop",
        "excludes ttl_security; ttl_security = N also allows N hops",
    );
    check_peer(
        "ttl_security = 255",
        "ttl_security",
        "255 is out of range; 1 to 254 are allowed",
    );
    check_peer(
        "port = 0",
        "port",
        "0 is out of range; 1 to 65535 are allowed",
    );
    check_peer(
        "max_prefixes = 0",
        "max_prefixes",
        "0 is out of range; 1 to 4294967295 are allowed",
    );
    check_peer(
        "families = [\"ipv4\"]",
        "families[0]",
        "\"ipv4\" is unknown; ipv4-unicast and ipv6-unicast are allowed",
    );
    check_peer(
        "families = []",
        "families",
        "is empty; ipv4-unicast and ipv6-unicast are allowed",
    );
    check_peer(
        "route_reflector_client = true",
        "route_reflector_client",
        "only a peer of the own autonomous system (bgp.asn) can be a client",
    );
}

#[test]
fn a_password_file_is_read_beside_the_configuration_and_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agentd.toml");
    let text = "[bgp]\nasn = 1\n[[bgp.peer]]\nname = \"a\"\naddress = \"192.0.2.1\"\nasn = 2\n\
                password_file = \"key\"\n";
    let key = directory.path().join("key");
    let load = || Config::parse(text, &file).map(|config| config.bgp.unwrap().peers.remove(0));
    let reason = || {
        let errors = load().unwrap_err();
        let error = errors.iter().next().unwrap().clone();
        assert_eq!(
            (error.line, error.key.as_str()),
            (Some(7), "bgp.peer[0].password_file")
        );
        error.reason
    };
    assert!(reason().ends_with("key cannot be read: No such file or directory (os error 2)"));
    for empty in ["", "\n", "\r\n"] {
        fs::write(&key, empty).unwrap();
        assert!(reason().contains("is empty"), "{}", reason());
    }
    fs::write(&key, "x".repeat(81)).unwrap();
    assert!(
        reason().contains("holds 81 bytes; TCP MD5 keys have at most 80"),
        "{}",
        reason()
    );
    fs::write(&key, " two words \n").unwrap();
    let peer = load().unwrap();
    assert_eq!(peer.password.as_ref().unwrap().as_bytes(), b" two words ");
    assert!(!format!("{peer:?}").contains("words"));
}

#[test]
fn log_and_telemetry_values_are_checked() {
    for level in ["info,bgp=debug", "OFF", "agentd::node=trace, warn"] {
        assert_eq!(
            parsed(&format!("[log]\nlevel = \"{level}\"\n")).log.level,
            level
        );
    }
    for level in ["verbose", "", "=info", "info,"] {
        assert_eq!(
            errors(&format!("[log]\nlevel = \"{level}\"\n")).len(),
            1,
            "{level}"
        );
    }
    check(
        "[log]\nformat = \"xml\"\n",
        "agentd.toml:2: log.format: \"xml\" is unknown; auto, json, text and journald are allowed",
    );
    assert_eq!(
        parsed("[telemetry]\nmetrics_listen = \"off\"\n")
            .telemetry
            .metrics_listen,
        None
    );
    check(
        "[telemetry]\nmetrics_listen = \"9472\"\n",
        "agentd.toml:2: telemetry.metrics_listen: \"9472\" is not an address with a port, \
         \"IP:PORT\", nor \"off\"",
    );
}

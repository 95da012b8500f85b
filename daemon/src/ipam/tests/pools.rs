//! What a pool gives and to whom: limits, ends, selectors, order.

use std::collections::BTreeMap;

use super::*;

fn from(bench: &mut Bench, name: &str, scope: Scope<'_>) -> Result<Vec<IpAddr>, Error> {
    let allocation = bench.ipam.allocate_from(bench.now, &id(name), scope, &[]);
    bench.act();
    let addresses = allocation?.addresses.into_iter();
    Ok(addresses.map(|assigned| assigned.address).collect())
}

#[test]
fn the_address_that_was_free_the_longest_is_given_out_first() {
    let mut bench = Bench::new(&[pool("p", "10.0.0.0/24", 29, &["10.0.0.0/29"])]);
    for name in ["a", "b", "c", "d", "e", "f"] {
        bench.add(name).unwrap();
    }
    // Not in the order of the addresses.
    for name in ["e", "b", "d"] {
        bench.delete(name);
        bench.advance(1);
    }
    bench.advance(130);
    // Those that nobody has had come first, then the longest free.
    let expected = ["10.0.0.6", "10.0.0.7", "10.0.0.4", "10.0.0.1", "10.0.0.3"];
    for (number, expected) in expected.into_iter().enumerate() {
        let got = bench.add(&format!("n{number}")).unwrap();
        assert_eq!(got, [ip(expected)]);
    }
    // One that was asked for by name is no longer in the row.
    for number in [0, 1, 2] {
        bench.delete(&format!("n{number}"));
        bench.advance(1);
    }
    bench.advance(130);
    bench.ask("fixed", None, &["10.0.0.7"]).unwrap();
    assert_eq!(bench.add("x").unwrap(), [ip("10.0.0.6")]);
    assert_eq!(bench.add("y").unwrap(), [ip("10.0.0.4")]);
    assert!(bench.add("z").is_err());
}

#[test]
fn the_ends_of_blocks_are_kept_unused_where_the_pool_says_so() {
    let ends = config::Pool {
        keep_ends_unused: true,
        reserved: vec![net("10.0.0.5/32"), net("10.0.0.6/32")],
        ..pool("p", "10.0.0.0/24", 30, &["10.0.0.0/28"])
    };
    let mut bench = Bench::new(&[ends]);
    let mut got = Vec::new();
    while let Ok(address) = bench.add(&format!("w{}", got.len())) {
        got.extend(address);
    }
    // The second block has nothing left besides its ends: it is not claimed.
    let expected = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.9",
        "10.0.0.10",
        "10.0.0.13",
        "10.0.0.14",
    ];
    assert_eq!(got, expected.map(ip));
    assert_eq!(
        bench.cidrs(),
        ["10.0.0.0/30", "10.0.0.8/30", "10.0.0.12/30"]
    );
    assert_eq!(bench.blocks()[0].reserved, 2);
    let refused = bench.ask("end", None, &["10.0.0.3"]).unwrap_err();
    assert!(
        matches!(refused, Error::AddressReserved { .. }),
        "{refused}"
    );
    assert!(bench.ipam.lookup(bench.now, ip("10.0.0.8")).reserved);
}

#[test]
fn a_node_holds_no_more_blocks_of_a_pool_than_its_limit() {
    let limited = config::Pool {
        max_blocks: Some(2),
        ..pool("p", "10.0.0.0/24", 30, &["10.0.0.0/24"])
    };
    let mut bench = Bench::new(std::slice::from_ref(&limited));
    for number in 0..8 {
        bench.add(&format!("w{number}")).unwrap();
    }
    let refused = bench.add("more").unwrap_err().to_string();
    assert!(
        refused.contains("2 blocks are the most it may hold (max_blocks)")
            && refused.ends_with("a larger max_blocks of the pool than 2"),
        "{refused}"
    );
    let refused = bench.ask("more", None, &["10.0.0.99"]).unwrap_err();
    assert!(
        matches!(refused, Error::BlockLimit { most: 2, .. }),
        "{refused}"
    );

    // Lowered, what is used stays and what is empty goes.
    let less = config::Pool {
        max_blocks: Some(1),
        ..limited
    };
    bench
        .ipam
        .set_pools(bench.now, &[less], &settings())
        .unwrap();
    bench.advance(3600);
    assert_eq!(bench.cidrs().len(), 2);
    for number in 0..4 {
        bench.delete(&format!("w{number}"));
    }
    bench.advance(3600);
    assert_eq!(bench.cidrs(), ["10.0.0.4/30"]);
}

#[test]
fn the_share_at_which_the_next_block_is_claimed_can_be_set() {
    for (percent, used) in [(1, 1), (50, 32), (75, 48), (100, 64)] {
        let settings = config::Ipam {
            claim_ahead: percent,
            ..settings()
        };
        let mut bench = Bench::new(&[v4()]);
        bench.ipam = Ipam::new(bench.now, &[v4()], &settings);
        bench.act();
        for number in 1..=used {
            assert_eq!(bench.cidrs().len(), 1, "{percent} % before {number}");
            bench.add(&format!("w{number}")).unwrap();
        }
        assert_eq!(bench.cidrs().len(), 2, "{percent} % at {used}");
    }
}

#[test]
fn a_request_may_name_one_pool_of_each_family() {
    let other = pool("other", "10.1.0.0/16", 26, &["10.1.0.0/26"]);
    let mut bench = Bench::new(&[v4(), other, v6()]);
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let both = names(&["six", "other"]);
    let got = from(&mut bench, "a", Scope::Pools(&both)).unwrap();
    assert_eq!(got, [ip("10.1.0.0"), ip("fd00:10:244:1::")]);
    let two = names(&["default", "other"]);
    let refused = from(&mut bench, "b", Scope::Pools(&two)).unwrap_err();
    assert!(
        matches!(refused, Error::PoolsOfOneFamily { .. }),
        "{refused}"
    );
    // A fixed address lies in the named pool of its family.
    let fixed = [ip("10.244.1.7")];
    let scope = Scope::Pools(&both);
    let refused = bench.ipam.allocate_from(bench.now, &id("c"), scope, &fixed);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "10.244.1.7 does not lie in pool \"other\" (10.1.0.0/16)"
    );
}

#[test]
fn pools_are_for_the_nodes_and_workloads_that_they_select() {
    let elsewhere = config::Pool {
        node_selector: Some("rack = b".parse().unwrap()),
        for_this_node: false,
        ..pool("elsewhere", "10.1.0.0/16", 26, &["10.1.0.0/26"])
    };
    let storage = config::Pool {
        workload_selector: Some("net = storage".parse().unwrap()),
        ..pool("storage", "10.2.0.0/16", 26, &["10.2.0.0/26"])
    };
    let mut bench = Bench::new(&[elsewhere.clone(), storage.clone()]);
    assert_eq!(bench.cidrs(), ["10.2.0.0/26"], "nothing for other nodes");
    let refused = bench.add("a").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no pool has addresses for this workload on this node (pool \"elsewhere\": is for other nodes: \
         those with rack = b, pool \"storage\": is for workloads with net = storage); add a pool, or \
         name a range of one in ipam.claim"
    );
    let labels = BTreeMap::from([("net".to_owned(), "storage".to_owned())]);
    let got = from(&mut bench, "a", Scope::Labelled(&labels)).unwrap();
    assert_eq!(got, [ip("10.2.0.0")]);
    // Naming it is enough.
    assert_eq!(
        bench.ask("b", Some("storage"), &[]).unwrap(),
        [ip("10.2.0.1")]
    );
    let refused = bench.ask("c", Some("elsewhere"), &[]).unwrap_err();
    assert!(matches!(refused, Error::PoolClosed { .. }), "{refused}");
    let here = config::Pool {
        for_this_node: true,
        ..elsewhere
    };
    bench
        .ipam
        .set_pools(bench.now, &[here, storage], &settings())
        .unwrap();
    bench.act();
    assert_eq!(bench.add("c").unwrap(), [ip("10.1.0.0")]);
}

#[test]
fn a_cool_down_outlives_a_reservation_that_is_lifted() {
    let plain = pool("p", "10.0.0.0/24", 30, &["10.0.0.0/30"]);
    let reserving = config::Pool {
        reserved: vec![net("10.0.0.0/32")],
        ..plain.clone()
    };
    let mut bench = Bench::new(std::slice::from_ref(&plain));
    bench.add("a").unwrap();
    bench.delete("a");
    for pools in [[reserving], [plain]] {
        bench.advance(10);
        bench
            .ipam
            .set_pools(bench.now, &pools, &settings())
            .unwrap();
    }
    assert_eq!(bench.blocks()[0].cooling, 1);
    let refused = bench.ask("b", None, &["10.0.0.0"]).unwrap_err();
    assert!(matches!(refused, Error::AddressCooling { .. }), "{refused}");
}

#![allow(clippy::unwrap_used)]

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

mod model;
mod pools;
mod remote;

use super::*;
use crate::{
    node::view::{BlockState, BlockView, PoolOverride},
    store::record::{CoolingRecord, Record, Recovered},
};

/// An allocator with a clock, whose node does at once what it asks for.
pub(super) struct Bench {
    pub(super) ipam: Ipam,
    pub(super) now: Now,
    pub(super) released: Vec<IpNet>,
}

pub(super) fn pool(name: &str, cidr: &str, block_size: u8, claim: &[&str]) -> config::Pool {
    config::Pool {
        claim: claim.iter().map(|range| range.parse().unwrap()).collect(),
        ..config::Pool::new(name, cidr.parse().unwrap(), block_size)
    }
}

pub(super) fn settings() -> config::Ipam {
    config::Ipam::default()
}

pub(super) fn id(name: &str) -> WorkloadId {
    WorkloadId::new(name).unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Bench {
    pub(super) fn new(pools: &[config::Pool]) -> Self {
        Bench::recover(pools, &Recovered::default()).0
    }

    pub(super) fn recover(pools: &[config::Pool], recovered: &Recovered) -> (Self, Vec<Notice>) {
        let now = Now {
            instant: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        let (ipam, notices) = Ipam::recover(now, pools, &settings(), recovered);
        let mut bench = Bench {
            ipam,
            now,
            released: Vec::new(),
        };
        bench.act();
        (bench, notices)
    }

    pub(super) fn act(&mut self) {
        while let Some(action) = self.ipam.poll_action() {
            match action {
                Action::Acquire(_) | Action::Return(_) => {}
                Action::Local(_) => {}
                Action::Claim(record) => self.ipam.block_persisted(record.cidr),
                Action::Program(cidr) => self.ipam.block_active(self.now, cidr),
                Action::Release(cidr) => {
                    self.released.push(cidr);
                    self.ipam.block_released(cidr);
                }
            }
        }
    }

    pub(super) fn advance(&mut self, seconds: u64) {
        let end = self.now.instant + Duration::from_secs(seconds);
        while let Some(at) = self.ipam.poll_timeout().filter(|at| *at <= end) {
            let step = at.saturating_duration_since(self.now.instant);
            self.now.instant += step;
            self.now.wall += step;
            self.ipam.handle_timeout(self.now);
            self.act();
        }
        let rest = end - self.now.instant;
        self.now.instant += rest;
        self.now.wall += rest;
    }

    pub(super) fn add(&mut self, name: &str) -> Result<Vec<IpAddr>, Error> {
        self.ask(name, None, &[])
    }

    pub(super) fn ask(
        &mut self,
        name: &str,
        pool: Option<&str>,
        fixed: &[&str],
    ) -> Result<Vec<IpAddr>, Error> {
        let fixed: Vec<IpAddr> = fixed.iter().map(|text| ip(text)).collect();
        let allocation = self.ipam.allocate(self.now, &id(name), pool, &fixed);
        self.act();
        Ok(allocation?
            .addresses
            .iter()
            .map(|assigned| assigned.address)
            .collect())
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.ipam.release(self.now, &id(name), None).unwrap();
        self.act();
    }

    pub(super) fn blocks(&mut self) -> Vec<BlockView> {
        self.ipam.blocks(self.now, None)
    }

    pub(super) fn cidrs(&mut self) -> Vec<String> {
        self.blocks()
            .iter()
            .map(|block| block.cidr.to_string())
            .collect()
    }
}

pub(super) fn v4() -> config::Pool {
    pool("default", "10.244.0.0/16", 26, &["10.244.1.0/24"])
}

pub(super) fn v6() -> config::Pool {
    pool("six", "fd00:10:244::/48", 122, &["fd00:10:244:1::/64"])
}

#[test]
fn a_workload_gets_one_address_of_each_family() {
    let mut bench = Bench::new(&[v4(), v6()]);
    assert_eq!(
        bench.add("a").unwrap(),
        [ip("10.244.1.0"), ip("fd00:10:244:1::")]
    );
    assert_eq!(
        bench.add("b").unwrap(),
        [ip("10.244.1.1"), ip("fd00:10:244:1::1")]
    );
}

#[test]
fn one_block_of_every_enabled_pool_is_claimed_at_the_start() {
    let disabled = config::Pool {
        disabled: true,
        ..pool("off", "10.9.0.0/16", 26, &["10.9.0.0/24"])
    };
    let mut bench = Bench::new(&[v4(), v6(), disabled]);
    assert_eq!(bench.cidrs(), ["10.244.1.0/26", "fd00:10:244:1::/122"]);
    assert!(
        bench
            .blocks()
            .iter()
            .all(|block| block.state == BlockState::Active)
    );
}

#[test]
fn the_next_block_is_claimed_when_three_quarters_of_a_block_are_not_free() {
    let mut bench = Bench::new(&[v4()]);
    for index in 0..47 {
        bench.add(&format!("w{index}")).unwrap();
    }
    assert_eq!(bench.cidrs(), ["10.244.1.0/26"]);
    bench.add("w47").unwrap();
    assert_eq!(bench.cidrs(), ["10.244.1.0/26", "10.244.1.64/26"]);
}

#[test]
fn an_empty_block_is_given_back_after_the_grace_period_but_never_the_last() {
    let mut bench = Bench::new(&[v4()]);
    for index in 0..48 {
        bench.add(&format!("w{index}")).unwrap();
    }
    for index in 0..48 {
        bench.delete(&format!("w{index}"));
    }
    // One is empty already; the other cools down for 130 s.
    bench.advance(599);
    assert_eq!(bench.released, []);
    bench.advance(3600);
    assert_eq!(bench.released, [net("10.244.1.64/26")]);
    assert_eq!(bench.cidrs(), ["10.244.1.0/26"]);
}

#[test]
fn an_address_is_not_given_to_another_workload_before_its_cool_down_is_over() {
    let mut bench = Bench::new(&[pool("p", "10.0.0.0/24", 30, &["10.0.0.0/30"])]);
    for name in ["a", "b", "c", "d"] {
        bench.add(name).unwrap();
    }
    bench.delete("b");
    bench.advance(129);
    let error = bench.add("e").unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool \"p\" (10.0.0.0/24) has no free address on this node: 1 block(s) of 4 addresses, 3 in use, 1 cooling \
         down, 0 reserved; no further /30 block is left in its claim range 10.0.0.0/30; what would \
         help: waiting: 1 cooling address(es), the next is free in 1 s, or deleting workloads, or a \
         further range of the pool in ipam.claim"
    );
    bench.advance(1);
    assert_eq!(bench.add("e").unwrap(), [ip("10.0.0.1")]);
}

#[test]
fn addresses_go_round_inside_a_block() {
    let mut bench = Bench::new(&[v4()]);
    let mut seen = Vec::new();
    for index in 0..64 {
        let name = format!("w{index}");
        seen.extend(bench.add(&name).unwrap());
        bench.delete(&name);
        bench.advance(131);
    }
    let expected: Vec<IpAddr> = (0..64)
        .map(|last| IpAddr::from([10, 244, 1, last]))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(bench.add("again").unwrap(), [ip("10.244.1.0")]);
}

#[test]
fn blocks_fill_one_after_the_other_until_nothing_is_left() {
    let mut bench = Bench::new(&[v4()]);
    let mut previous = None;
    for index in 0..256 {
        let address = bench.add(&format!("w{index}")).unwrap()[0];
        assert!(previous < Some(address), "{address} after {previous:?}");
        previous = Some(address);
    }
    assert_eq!(bench.blocks().len(), 4);
    let error = bench.add("one-too-many").unwrap_err();
    let Error::Exhausted(exhausted) = error else {
        panic!("{error}");
    };
    assert_eq!(
        *exhausted,
        Exhausted {
            pool: "default".into(),
            cidr: net("10.244.0.0/16"),
            block_size: 26,
            blocks: 4,
            blocks_leaving: 0,
            in_claim: 4,
            max_blocks: None,
            claim: vec![net("10.244.1.0/24")],
            addresses: 256,
            used: 256,
            cooling: 0,
            reserved: 0,
            remote: false,
            next_free_in: None,
            also: Vec::new(),
        }
    );
}

#[test]
fn a_full_pool_leaves_the_next_of_its_family() {
    let small = pool("small", "10.0.0.0/24", 32, &["10.0.0.0/32"]);
    let mut bench = Bench::new(&[small, v4()]);
    assert_eq!(bench.add("a").unwrap(), [ip("10.0.0.0")]);
    assert_eq!(bench.add("b").unwrap(), [ip("10.244.1.0")]);
    let error = bench.ask("c", Some("small"), &[]).unwrap_err();
    assert!(matches!(error, Error::Exhausted(_)), "{error}");
}

#[test]
fn both_families_or_neither() {
    let six = pool("six", "fd00::/64", 128, &["fd00::1/128"]);
    let mut bench = Bench::new(&[v4(), six]);
    assert_eq!(bench.add("a").unwrap(), [ip("10.244.1.0"), ip("fd00::1")]);
    assert!(matches!(bench.add("b"), Err(Error::Exhausted(_))));
    assert_eq!(bench.blocks()[0].used, 1);
    assert_eq!(
        bench.ask("c", None, &["10.244.1.1"]).unwrap(),
        [ip("10.244.1.1")]
    );
}

#[test]
fn an_add_repeated_changes_nothing() {
    let mut bench = Bench::new(&[v4()]);
    let first = bench.ipam.allocate(bench.now, &id("a"), None, &[]).unwrap();
    let second = bench.ipam.allocate(bench.now, &id("a"), None, &[]).unwrap();
    assert!(first.created && !second.created);
    assert_eq!(
        (first.generation, &first.addresses),
        (second.generation, &second.addresses)
    );
    assert_eq!(second.records, []);
}

#[test]
fn a_late_release_does_not_free_what_a_later_workload_holds() {
    let mut bench = Bench::new(&[v4()]);
    bench.add("a").unwrap();
    let (old, _) = bench.ipam.held(&id("a")).unwrap();
    bench.delete("a");
    bench.add("a").unwrap();
    assert_eq!(bench.ipam.release(bench.now, &id("a"), Some(old)), None);
    let (new, _) = bench.ipam.held(&id("a")).unwrap();
    assert!(new > old);
    assert!(bench.ipam.release(bench.now, &id("a"), Some(new)).is_some());
}

#[test]
fn fixed_addresses_are_refused_with_the_reason() {
    let reserved = config::Pool {
        reserved: vec![net("10.244.1.9/32")],
        ..v4()
    };
    let off = config::Pool {
        disabled: true,
        ..pool("off", "10.9.0.0/16", 26, &["10.9.0.0/24"])
    };
    let mut bench = Bench::new(&[reserved, off, v6()]);
    bench.ask("holder", None, &["10.244.1.7"]).unwrap();
    bench.ask("last", None, &["10.244.1.8"]).unwrap();
    bench.delete("last");
    for (pool, address, reason) in [
        (
            None,
            "10.244.1.7",
            "10.244.1.7 is in use by workload holder",
        ),
        (
            None,
            "10.244.1.8",
            "10.244.1.8 was used by workload last and is cooling down; free again in 130 s",
        ),
        (
            None,
            "10.244.1.9",
            "10.244.1.9 is kept unused by the configuration of pool \"default\"",
        ),
        (
            None,
            "192.0.2.1",
            "192.0.2.1 lies in no pool; configured are: default (10.244.0.0/16), off (10.9.0.0/16), \
             six (fd00:10:244::/48)",
        ),
        (
            None,
            "10.244.9.1",
            "10.244.9.1 lies in block 10.244.9.0/26 of pool \"default\", which this node neither \
             holds nor may claim; its claim ranges there are: 10.244.1.0/24",
        ),
        (
            None,
            "10.9.0.1",
            "pool \"off\" is disabled in the configuration; workloads keep their addresses, new ones get none",
        ),
        (
            Some("six"),
            "10.244.1.3",
            "10.244.1.3 does not lie in pool \"six\" (fd00:10:244::/48)",
        ),
        (
            Some("none"),
            "10.244.1.3",
            "there is no pool \"none\"; configured are: default, off, six",
        ),
    ] {
        let error = bench.ask("new", pool, &[address]).unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
    let error = bench
        .ask("new", None, &["10.244.1.1", "10.244.1.2"])
        .unwrap_err();
    assert_eq!(
        error,
        Error::FamilyTwice {
            address: ip("10.244.1.2")
        }
    );
    assert_eq!(
        bench.blocks()[0].used,
        1,
        "the first of the two is free again"
    );
}

#[test]
fn a_fixed_address_claims_its_block_and_is_back_at_once_for_the_same_workload() {
    let mut bench = Bench::new(&[v4()]);
    assert_eq!(
        bench.ask("a", None, &["10.244.1.200"]).unwrap(),
        [ip("10.244.1.200")]
    );
    assert_eq!(bench.cidrs(), ["10.244.1.0/26", "10.244.1.192/26"]);
    bench.delete("a");
    assert_eq!(
        bench.ask("a", None, &["10.244.1.200"]).unwrap(),
        [ip("10.244.1.200")]
    );
    assert_eq!(bench.blocks()[1].cooling, 0);
}

#[test]
fn records_of_an_allocation_contain_its_block_until_that_is_durable() {
    let now = Bench::new(&[]).now;
    let mut ipam = Ipam::new(now, &[v4()], &settings());
    let puts_block = |allocation: &Allocation| {
        allocation
            .records
            .iter()
            .any(|record| matches!(record, Record::PutBlock(_)))
    };
    let early = ipam.allocate(now, &id("early"), None, &[]).unwrap();
    assert!(puts_block(&early));
    ipam.block_persisted(net("10.244.1.0/26"));
    let late = ipam.allocate(now, &id("late"), None, &[]).unwrap();
    assert!(!puts_block(&late));
}

#[test]
fn a_claim_that_could_not_be_written_is_tried_again() {
    let now = Bench::new(&[]).now;
    let mut ipam = Ipam::new(now, &[v4()], &settings());
    let cidr = net("10.244.1.0/26");
    assert!(matches!(ipam.poll_action(), Some(Action::Claim(record)) if record.cidr == cidr));
    ipam.block_claim_failed(now, cidr);
    assert_eq!(ipam.block_count(), 0, "nothing used it");
    let at = ipam.poll_timeout().unwrap();
    assert_eq!(at - now.instant, Duration::from_secs(5));
    let later = Now {
        instant: at,
        wall: now.wall + Duration::from_secs(5),
    };
    ipam.handle_timeout(later);
    assert!(matches!(ipam.poll_action(), Some(Action::Claim(record)) if record.cidr == cidr));
}

#[test]
fn an_allocation_rolled_back_leaves_the_address_free_at_once() {
    let mut bench = Bench::new(&[pool("p", "10.0.0.0/24", 32, &["10.0.0.0/32"])]);
    let allocation = bench.ipam.allocate(bench.now, &id("a"), None, &[]).unwrap();
    bench.ipam.rollback_allocation(bench.now, &allocation);
    bench.ipam.rollback_allocation(bench.now, &allocation);
    assert_eq!(bench.add("b").unwrap(), [ip("10.0.0.0")]);
    let (generation, _) = bench.ipam.held(&id("b")).unwrap();
    assert!(generation > allocation.generation, "never used again");
}

#[test]
fn a_reserved_range_of_more_blocks_than_can_be_counted_is_jumped_over() {
    let mut six = pool("six", "fd00::/32", 122, &["fd00::/32"]);
    six.reserved = vec![
        net("fd00::/33"),
        net("fd00:0:8000::/122"),
        net("fd00:0:8000::40/128"),
    ];
    let mut bench = Bench::new(&[six]);
    assert_eq!(bench.cidrs(), ["fd00:0:8000::40/122"]);
    assert_eq!(bench.add("a").unwrap(), [ip("fd00:0:8000::41")]);
    let view = &bench.ipam.pools(bench.now)[0];
    assert_eq!(view.blocks_claimable, u64::MAX);
}

#[test]
fn the_last_block_of_the_address_space_can_be_claimed() {
    let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120";
    let end = "fbff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124";
    for range in [all, end] {
        let mut bench = Bench::new(&[pool("end", range, 126, &[range])]);
        let mut count = 0;
        while bench.add(&format!("w{count}")).is_ok() {
            count += 1;
        }
        assert_eq!(count, if range == all { 256 } else { 16 });
    }
}

fn recovered_workload(name: &str, generation: u64, address: &str, block: &str) -> Recovered {
    use crate::{
        node::{WorkloadSpec, spec},
        store::record::WorkloadRecord,
    };
    let now = Bench::new(&[]).now;
    Recovered {
        workloads: vec![WorkloadRecord {
            id: id(name),
            generation,
            spec: std::sync::Arc::new(WorkloadSpec {
                attachment: crate::node::attachment::Attachment::Routed(
                    crate::node::attachment::Inside {
                        namespace: crate::node::attachment::Namespace {
                            name: spec::NamespaceName::path("/run/netns/a").unwrap(),
                            netns: dataplane::desired::Netns {
                                path: "/run/netns/a".into(),
                                device: 4,
                                inode: 7,
                            },
                        },
                        interface: spec::InterfaceName::new("eth0").unwrap(),
                    },
                ),
                pools: Vec::new(),
                owner: None,
                addresses: spec::FixedAddresses::default(),
                mtu: None,
                labels: spec::Labels::default(),
                access: Default::default(),
            }),
            addresses: vec![AssignedAddress {
                address: ip(address),
                pool: "old".into(),
                block: net(block),
            }],
            created_at: now.wall,
        }],
        blocks: vec![BlockRecord {
            cidr: net(block),
            pool: "old".into(),
            claimed_at: now.wall,
        }],
        cooling: Vec::new(),
        generation,
        drained: None,
        pools: Vec::new(),
    }
}

#[test]
fn a_block_without_a_pool_stays_for_its_workloads_and_goes_after_the_last() {
    let recovered = recovered_workload("a", 5, "10.7.0.3", "10.7.0.0/26");
    let (mut bench, notices) = Bench::recover(&[v4()], &recovered);
    assert_eq!(
        notices.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "block 10.7.0.0/26 of pool \"old\" lies in no configured pool; it stays until its last \
          workload is gone"
        ]
    );
    assert_eq!(bench.cidrs(), ["10.7.0.0/26", "10.244.1.0/26"]);
    assert_eq!(bench.add("b").unwrap(), [ip("10.244.1.0")]);
    bench.delete("a");
    bench.advance(4000);
    assert_eq!(bench.released, [net("10.7.0.0/26")]);
}

#[test]
fn a_workload_whose_block_is_not_recorded_gets_it_back() {
    let mut recovered = recovered_workload("a", 5, "10.244.1.70", "10.244.1.64/26");
    recovered.blocks.clear();
    let (mut bench, notices) = Bench::recover(&[v4()], &recovered);
    assert_eq!(
        notices,
        [Notice::BlockMissing {
            address: ip("10.244.1.70"),
            block: net("10.244.1.64/26")
        }]
    );
    assert_eq!(bench.cidrs(), ["10.244.1.64/26"]);
    let error = bench.ask("b", None, &["10.244.1.70"]).unwrap_err();
    assert!(matches!(error, Error::AddressTaken { .. }), "{error}");
}

#[test]
fn another_block_size_applies_to_blocks_claimed_from_then_on() {
    let recovered = recovered_workload("a", 5, "10.244.1.3", "10.244.1.0/28");
    let wide = pool("default", "10.244.0.0/16", 26, &["10.244.1.0/24"]);
    let (mut bench, notices) = Bench::recover(&[wide], &recovered);
    assert_eq!(notices, []);
    // The first /26 would overlap the /28 that is held.
    assert_eq!(bench.cidrs(), ["10.244.1.0/28", "10.244.1.64/26"]);
}

#[test]
fn an_address_that_is_reserved_by_now_stays_in_use_and_is_not_given_out_again() {
    let recovered = recovered_workload("a", 5, "10.0.0.0", "10.0.0.0/31");
    let mut small = pool("p", "10.0.0.0/24", 31, &["10.0.0.0/31"]);
    small.reserved = vec![net("10.0.0.0/32")];
    let (mut bench, _) = Bench::recover(&[small], &recovered);
    let counts = |bench: &mut Bench| {
        let block = &bench.blocks()[0];
        (block.used, block.reserved, block.free)
    };
    assert_eq!(counts(&mut bench), (1, 0, 1));
    bench.delete("a");
    assert_eq!(counts(&mut bench), (0, 1, 1));
    assert_eq!(bench.add("b").unwrap(), [ip("10.0.0.1")]);
    bench.advance(1000);
    assert!(bench.add("c").is_err());
}

#[test]
fn cool_downs_survive_a_restart_and_a_clock_that_is_set() {
    let recovered = |left: i64| {
        let mut recovered = recovered_workload("a", 5, "10.0.0.0", "10.0.0.0/31");
        let wall = Bench::new(&[]).now.wall;
        let until = match u64::try_from(left) {
            Ok(left) => wall + Duration::from_secs(left),
            Err(_) => wall - Duration::from_secs(left.unsigned_abs()),
        };
        recovered.cooling.push(CoolingRecord {
            address: ip("10.0.0.1"),
            until,
            id: id("last"),
            generation: 4,
        });
        recovered
    };
    let pools = [pool("p", "10.0.0.0/24", 31, &["10.0.0.0/31"])];
    // Left at most the cool-down, however far in the future the record says.
    for (left, wait) in [(-5, 0), (60, 60), (1_000_000, 130)] {
        let (mut bench, _) = Bench::recover(&pools, &recovered(left));
        if wait > 0 {
            bench.advance(wait - 1);
            assert!(bench.add("b").is_err(), "{left}");
            bench.advance(1);
        }
        let allocation = bench.ipam.allocate(bench.now, &id("b"), None, &[]).unwrap();
        assert_eq!(allocation.addresses[0].address, ip("10.0.0.1"), "{left}");
        let deleted = Record::DeleteCooling(ip("10.0.0.1"));
        assert!(
            allocation.records.contains(&deleted),
            "the stale record goes along"
        );
    }
}

#[test]
fn an_address_recorded_twice_stays_with_the_first_and_is_reported() {
    let mut recovered = recovered_workload("a", 5, "10.244.1.3", "10.244.1.0/26");
    let mut other = recovered.workloads[0].clone();
    other.id = id("b");
    recovered.workloads.push(other);
    let (bench, notices) = Bench::recover(&[v4()], &recovered);
    let [
        Notice::AddressTwice {
            address,
            holder,
            other,
        },
    ] = notices.as_slice()
    else {
        panic!("{notices:?}");
    };
    assert_eq!(
        (address, holder, other),
        (&ip("10.244.1.3"), &id("a"), &id("b"))
    );
    assert_eq!(bench.ipam.held(&id("b")).unwrap().1, []);
}

#[test]
fn a_lookup_tells_everything_about_an_address() {
    let mut bench = Bench::new(&[v4()]);
    bench.add("a").unwrap();
    bench.add("b").unwrap();
    bench.delete("b");
    let now = bench.now;
    let held = bench.ipam.lookup(now, ip("10.244.1.0"));
    assert_eq!(held.holder, Some(id("a")));
    assert_eq!(held.block.unwrap().cidr, net("10.244.1.0/26"));
    let cooling = bench.ipam.lookup(now, ip("10.244.1.1"));
    assert_eq!(cooling.cooling, Some(Duration::from_secs(130)));
    let elsewhere = bench.ipam.lookup(now, ip("10.244.7.9"));
    assert_eq!(elsewhere.would_be_block, Some(net("10.244.7.0/26")));
    assert_eq!(elsewhere.block, None);
    assert_eq!(bench.ipam.lookup(now, ip("192.0.2.1")), Lookup::default());
}

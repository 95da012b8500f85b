#![allow(clippy::unwrap_used)]

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use super::*;
use crate::{
    node::view::{BlockState, BlockView},
    store::record::Recovered,
};

/// An allocator with a clock, whose node does at once what it asks for.
pub(super) struct Bench {
    pub(super) ipam: Ipam,
    pub(super) now: Now,
    pub(super) released: Vec<IpNet>,
}

pub(super) fn pool(name: &str, cidr: &str, block_size: u8, claim: &[&str]) -> config::Pool {
    config::Pool {
        name: name.into(),
        cidr: cidr.parse().unwrap(),
        block_size,
        disabled: false,
        reserved: Vec::new(),
        claim: claim.iter().map(|range| range.parse().unwrap()).collect(),
    }
}

pub(super) fn settings() -> config::Ipam {
    config::Ipam {
        cooldown: Duration::from_secs(130),
        claim_ahead: 75,
        release_empty_after: Duration::from_secs(600),
    }
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

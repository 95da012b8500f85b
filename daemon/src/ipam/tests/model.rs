//! The allocator against a naive model: sets that are searched whole, and a store that is a map.
//! Restarts happen anywhere, and so do failures of the store.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    node::{
        WorkloadSpec,
        spec::{FixedAddresses, InterfaceName, Labels, NamespaceName},
    },
    store::{disk::Disk, record::WorkloadRecord},
};

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    AddFrom(u8, u8),
    AddFixed(u8, u8),
    /// With the generation it has, less this.
    Release(u8, u64),
    Advance(u64),
    /// From now on the store fails, or works again.
    StoreFails(bool),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..24u8;
    prop_oneof![
        8 => id.clone().prop_map(Step::Add),
        2 => (id.clone(), 0..3u8).prop_map(|(id, pool)| Step::AddFrom(id, pool)),
        4 => (id.clone(), any::<u8>()).prop_map(|(id, address)| Step::AddFixed(id, address)),
        8 => (id, prop_oneof![4 => Just(0), 1 => 1..3u64]).prop_map(|(id, off)| Step::Release(id, off)),
        4 => prop_oneof![1..60u64, 60..400u64, Just(2000)].prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::StoreFails),
        1 => Just(Step::Restart),
    ]
}

/// 16 addresses of IPv4 in blocks of 4, one of them reserved; 8 of IPv6 in blocks of 4; and a
/// second pool of IPv4 with blocks of one address.
fn pools() -> Vec<config::Pool> {
    let mut first = pool("first", "10.0.0.0/24", 30, &["10.0.0.16/28"]);
    first.reserved = vec![net("10.0.0.17/32")];
    let second = pool("second", "10.0.1.0/24", 32, &["10.0.1.0/30"]);
    let six = pool("six", "fd00::/64", 126, &["fd00::10/125"]);
    vec![first, second, six]
}

struct Model {
    bench: Bench,
    failing: bool,
    /// What is durable.
    disk: Disk,
    /// Last use of each address that was ever released: by whom, and when it is free.
    released: BTreeMap<IpAddr, (WorkloadId, Instant)>,
    highest: u64,
}

impl Model {
    fn new() -> Self {
        let now = Now {
            instant: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        let mut model = Model {
            bench: Bench {
                ipam: Ipam::new(now, &pools(), &settings()),
                now,
                released: Vec::new(),
            },
            failing: false,
            disk: Disk::default(),
            released: BTreeMap::new(),
            highest: 0,
        };
        model.act();
        model
    }

    fn persist(&mut self, records: &[Record]) -> bool {
        if self.failing {
            return false;
        }
        let drains = |record: &Record| matches!(record, Record::Drained(_));
        assert!(
            !records.iter().any(drains),
            "the allocator knows nothing of it"
        );
        self.disk.apply(records);
        true
    }

    fn act(&mut self) {
        while let Some(action) = self.bench.ipam.poll_action() {
            match action {
                Action::Acquire(_) | Action::Return(_) => {}
                Action::Local(cidr) => panic!("{cidr} is of no bridge"),
                Action::Claim(record) => {
                    let cidr = record.cidr;
                    if self.persist(&[Record::PutBlock(record)]) {
                        self.bench.ipam.block_persisted(cidr);
                    } else {
                        self.bench.ipam.block_claim_failed(self.bench.now, cidr);
                    }
                }
                Action::Program(cidr) => {
                    assert!(
                        self.disk.blocks.contains_key(&cidr),
                        "{cidr} is not durable"
                    );
                    self.bench.ipam.block_active(self.bench.now, cidr);
                }
                Action::Release(cidr) => {
                    let inside = |address: &IpAddr| cidr.contains(address);
                    assert!(!self.used().keys().any(inside), "{cidr} is in use");
                    // A node that cannot delete the record tries until it can.
                    let failing = std::mem::take(&mut self.failing);
                    self.persist(&[Record::DeleteBlock(cidr)]);
                    self.failing = failing;
                    self.bench.ipam.block_released(cidr);
                }
            }
        }
    }

    fn advance(&mut self, seconds: u64) {
        let end = self.bench.now.instant + Duration::from_secs(seconds);
        loop {
            let next = self.bench.ipam.poll_timeout().filter(|at| *at <= end);
            let step = next
                .unwrap_or(end)
                .saturating_duration_since(self.bench.now.instant);
            self.bench.now.instant += step;
            self.bench.now.wall += step;
            if next.is_none() {
                break;
            }
            self.bench.ipam.handle_timeout(self.bench.now);
            self.act();
        }
    }

    /// Who has which address.
    fn used(&self) -> BTreeMap<IpAddr, WorkloadId> {
        let mut used = BTreeMap::new();
        for record in self.disk.workloads.values() {
            for assigned in &record.addresses {
                let other = used.insert(assigned.address, record.id.clone());
                assert_eq!(other, None, "{} is given out twice", assigned.address);
            }
        }
        used
    }

    fn cooling_for(&self, address: &IpAddr) -> Option<&WorkloadId> {
        let (id, until) = self.released.get(address)?;
        (*until > self.bench.now.instant).then_some(id)
    }

    fn add(&mut self, id: &WorkloadId, pool: Option<&str>, fixed: &[IpAddr]) {
        let now = self.bench.now;
        let before = self.used();
        let known = self.disk.workloads.get(id).cloned();
        let result = self.bench.ipam.allocate(now, id, pool, fixed);
        let allocation = match result {
            Ok(allocation) => allocation,
            Err(error) => {
                assert!(known.is_none(), "a repeated call never fails: {error}");
                self.check_error(id, fixed, &error);
                self.act();
                return;
            }
        };
        assert_eq!(allocation.created, known.is_none());
        if let Some(known) = known {
            assert_eq!(allocation.addresses, known.addresses);
            assert_eq!(allocation.generation, known.generation);
            return;
        }
        assert!(
            allocation.generation > self.highest,
            "generations are never used again"
        );
        self.highest = allocation.generation;
        for assigned in &allocation.addresses {
            let address = assigned.address;
            assert!(!before.contains_key(&address), "{address} is in use");
            assert_ne!(address, ip("10.0.0.17"), "reserved");
            assert!(assigned.block.contains(&address));
            if let Some(last) = self.cooling_for(&address) {
                assert_eq!(
                    (fixed.contains(&address), last),
                    (true, id),
                    "{address} cools down"
                );
            }
        }
        if !fixed.is_empty() {
            let got: Vec<IpAddr> = allocation.addresses.iter().map(|a| a.address).collect();
            assert_eq!(got, fixed);
        } else if pool.is_none() {
            let families: BTreeSet<bool> = allocation
                .addresses
                .iter()
                .map(|a| a.address.is_ipv4())
                .collect();
            assert_eq!(families.len(), 2, "both families or neither");
        }
        let mut records = allocation.records.clone();
        records.push(Record::PutWorkload(workload(id, &allocation, now)));
        if !self.persist(&records) {
            self.bench.ipam.rollback_allocation(now, &allocation);
        }
        for assigned in &allocation.addresses {
            if self.failing {
                continue;
            }
            assert!(
                self.disk.blocks.contains_key(&assigned.block),
                "durable with its block"
            );
            self.released.remove(&assigned.address);
        }
        self.act();
    }

    fn check_error(&mut self, id: &WorkloadId, fixed: &[IpAddr], error: &Error) {
        match error {
            Error::Exhausted(exhausted) => {
                let used = self.used();
                let free = |address: &IpAddr| {
                    !used.contains_key(address)
                        && self.cooling_for(address).is_none()
                        && *address != ip("10.0.0.17")
                };
                let all = match exhausted.pool.as_str() {
                    "first" => net("10.0.0.16/28").hosts_all(),
                    "second" => net("10.0.1.0/30").hosts_all(),
                    _ => net("fd00::10/125").hosts_all(),
                };
                let left: Vec<IpAddr> = all.into_iter().filter(free).collect();
                assert_eq!(left, Vec::<IpAddr>::new(), "{error}");
            }
            Error::AddressTaken { address, holder } => {
                assert_eq!(self.used().get(address), Some(holder));
            }
            Error::AddressCooling { address, last, .. } => {
                assert_eq!(self.cooling_for(address), Some(last));
                assert_ne!(last, id);
            }
            Error::AddressReserved { address, .. } => assert_eq!(*address, ip("10.0.0.17")),
            Error::AddressOutsideClaim { address, .. } => {
                assert!(!net("10.0.0.16/28").contains(address) && fixed.contains(address));
            }
            other => panic!("{other}"),
        }
    }

    fn release(&mut self, id: &WorkloadId, off: u64) {
        let now = self.bench.now;
        let known = self.disk.workloads.get(id).cloned();
        let generation = known.as_ref().map_or(7, |record| record.generation) - off.min(1);
        let release = self.bench.ipam.release(now, id, Some(generation));
        let Some(known) = known.filter(|_| off == 0) else {
            assert_eq!(release, None, "a late or repeated release does nothing");
            return;
        };
        let release = release.expect("it is there");
        assert_eq!(release.addresses, known.addresses);
        let mut records = release.records.clone();
        records.push(Record::DeleteWorkload(id.clone()));
        if self.persist(&records) {
            let until = now.instant + settings().cooldown;
            for assigned in &release.addresses {
                self.released.insert(assigned.address, (id.clone(), until));
            }
        } else {
            assert!(self.bench.ipam.rollback_release(&release));
        }
        self.act();
    }

    fn restart(&mut self) {
        let recovered = self.disk.recovered();
        self.highest = self.disk.generation;
        let (ipam, notices) = Ipam::recover(self.bench.now, &pools(), &settings(), &recovered);
        assert_eq!(notices, []);
        self.bench.ipam = ipam;
        self.act();
    }

    /// The sums the allocator keeps are those of a recount, and it agrees with the store.
    fn check(&mut self) {
        let used = self.used();
        let now = self.bench.now;
        for record in self.disk.workloads.values() {
            let held = self.bench.ipam.held(&record.id).expect("it is stored");
            assert_eq!(held, (record.generation, record.addresses.as_slice()));
        }
        assert_eq!(self.bench.ipam.workloads.len(), self.disk.workloads.len());
        let blocks = self.bench.blocks();
        for block in &blocks {
            let inside = |address: &&IpAddr| block.cidr.contains(*address);
            assert_eq!(block.used, used.keys().filter(inside).count() as u64);
            let cooling = self.released.keys().filter(inside);
            let cooling = cooling
                .filter(|address| self.cooling_for(address).is_some())
                .count();
            assert_eq!(block.cooling, cooling as u64, "{block:?}");
            assert_eq!(
                block.size,
                block.used + block.cooling + block.reserved + block.free
            );
        }
        for (index, view) in self.bench.ipam.pools(now).iter().enumerate() {
            let own = blocks.iter().filter(|block| block.pool == view.name);
            let sum = own.fold((0, 0, 0), |sum, block| {
                (sum.0 + 1, sum.1 + block.size, sum.2 + block.used)
            });
            assert_eq!(
                sum,
                (view.blocks_held, view.addresses_held, view.addresses_used)
            );
            let free: u64 = blocks
                .iter()
                .filter(|b| b.pool == view.name)
                .map(|b| b.free)
                .sum();
            assert_eq!(free, self.bench.ipam.pools[index].totals.free);
        }
        for (address, holder) in &used {
            assert_eq!(
                self.bench.ipam.lookup(now, *address).holder.as_ref(),
                Some(holder)
            );
        }
        let held: BTreeSet<IpNet> = blocks.iter().map(|block| block.cidr).collect();
        let stored: BTreeSet<IpNet> = self.disk.blocks.keys().copied().collect();
        if self.failing {
            // A block that is gone from memory may still be stored, never the other way round.
            assert!(
                used.keys()
                    .all(|a| stored.iter().any(|block| block.contains(a)))
            );
        } else {
            assert!(
                used.keys()
                    .all(|a| held.iter().any(|block| block.contains(a)))
            );
        }
    }
}

trait HostsAll {
    fn hosts_all(&self) -> Vec<IpAddr>;
}

impl HostsAll for IpNet {
    fn hosts_all(&self) -> Vec<IpAddr> {
        let (first, last) = address::bounds(self);
        (first..=last)
            .map(|number| address::from_number(number, self))
            .collect()
    }
}

fn workload(id: &WorkloadId, allocation: &Allocation, now: Now) -> WorkloadRecord {
    WorkloadRecord {
        id: id.clone(),
        generation: allocation.generation,
        spec: std::sync::Arc::new(WorkloadSpec {
            attachment: crate::node::attachment::Attachment::Routed(
                crate::node::attachment::Inside {
                    namespace: crate::node::attachment::Namespace {
                        name: NamespaceName::path("/run/netns/a").unwrap(),
                        netns: dataplane::desired::Netns {
                            path: "/run/netns/a".into(),
                            device: 4,
                            inode: 7,
                        },
                    },
                    interface: InterfaceName::new("eth0").unwrap(),
                },
            ),
            pools: Vec::new(),
            owner: None,
            addresses: FixedAddresses::default(),
            mtu: None,
            labels: Labels::default(),
            access: Default::default(),
        }),
        addresses: allocation.addresses.clone(),
        created_at: now.wall,
    }
}

fn run(steps: &[Step]) {
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Add(name) => model.add(&id(&format!("w{name}")), None, &[]),
            Step::AddFrom(name, pool) => {
                let pool = ["first", "second", "six"][usize::from(*pool)];
                model.add(&id(&format!("w{name}")), Some(pool), &[]);
            }
            Step::AddFixed(name, number) => {
                let fixed = IpAddr::from([10, 0, 0, number % 40]);
                model.add(&id(&format!("w{name}")), None, &[fixed]);
            }
            Step::Release(name, off) => model.release(&id(&format!("w{name}")), *off),
            Step::Advance(seconds) => model.advance(*seconds),
            Step::StoreFails(failing) => model.failing = *failing,
            Step::Restart => model.restart(),
        }
        model.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_allocator_agrees_with_a_naive_model(steps in vec(step(), 1..120)) {
        run(&steps);
    }
}

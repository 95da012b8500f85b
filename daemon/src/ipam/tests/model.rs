//! The allocator against a naive model: sets that are searched whole, and a store that is a map.
//! Restarts happen anywhere, and so do failures of the store, changes of the pools, and what an
//! operator says of one.

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
    /// Other pools; each bit is one thing that differs from the first ones.
    Reload(u8),
    Override(u8, Option<PoolOverride>),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..24u8;
    prop_oneof![
        8 => id.clone().prop_map(Step::Add),
        2 => (id.clone(), 0..4u8).prop_map(|(id, pool)| Step::AddFrom(id, pool)),
        4 => (id.clone(), any::<u8>()).prop_map(|(id, address)| Step::AddFixed(id, address)),
        8 => (id, prop_oneof![4 => Just(0), 1 => 1..3u64]).prop_map(|(id, off)| Step::Release(id, off)),
        4 => prop_oneof![1..60u64, 60..400u64, Just(2000)].prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::StoreFails),
        1 => Just(Step::Restart),
        // Mostly few differences at once.
        2 => prop_oneof![
            Just(0),
            (0..8u32).prop_map(|bit| 1u8 << bit),
            any::<u8>(),
        ].prop_map(Step::Reload),
        1 => (0..4u8, prop_oneof![
            2 => Just(None),
            1 => Just(Some(PoolOverride::Disabled)),
            1 => Just(Some(PoolOverride::Draining)),
        ]).prop_map(|(pool, to)| Step::Override(pool, to)),
    ]
}

/// 16 addresses of IPv4 in blocks of 4, one of them reserved; 8 of IPv6 in blocks of 4; and a
/// second pool of IPv4 with blocks of one address.
fn first_pools() -> Vec<config::Pool> {
    let mut first = pool("first", "10.0.0.0/24", 30, &["10.0.0.16/28"]);
    first.reserved = vec![net("10.0.0.17/32")];
    let second = pool("second", "10.0.1.0/24", 32, &["10.0.1.0/30"]);
    let six = pool("six", "fd00::/64", 126, &["fd00::10/125"]);
    vec![first, second, six]
}

const NAMES: [&str; 4] = ["first", "second", "six", "third"];

fn pools(different: u8) -> Vec<config::Pool> {
    let mut pools = first_pools();
    let is = |bit: u8| different & 1 << bit != 0;
    pools[0].disabled = is(0);
    pools[0].max_blocks = is(1).then_some(2);
    if is(2) {
        // 10.0.0.17 to 10.0.0.22
        let ranges = [
            "10.0.0.17/32",
            "10.0.0.18/31",
            "10.0.0.20/31",
            "10.0.0.22/32",
        ];
        pools[0].reserved = ranges.map(net).to_vec();
    }
    pools[0].keep_ends_unused = is(3);
    if is(4) {
        pools[0].cidr = net("10.0.0.0/25");
    }
    if is(5) {
        pools[2].claim = vec![net("fd00::10/124")];
    }
    if is(6) {
        pools.push(pool("third", "10.0.2.0/24", 31, &["10.0.2.0/30"]));
    }
    if is(7) {
        pools.remove(1);
    }
    pools
}

/// Never given out.
fn is_unused(pool: &config::Pool, block: &IpNet, address: &IpAddr) -> bool {
    let ends = [block.network(), block.broadcast()];
    pool.keep_ends_unused && ends.contains(address)
        || pool.reserved.iter().any(|range| range.contains(address))
}

struct Model {
    bench: Bench,
    pools: Vec<config::Pool>,
    failing: bool,
    /// Claims of before a change of the pools are on their way.
    was_over: bool,
    /// Time has passed since the last step, so that everything due is done.
    settled: bool,
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
                ipam: Ipam::new(now, &pools(0), &settings()),
                now,
                released: Vec::new(),
            },
            pools: pools(0),
            failing: false,
            was_over: false,
            settled: false,
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
                    self.check_claim(&cidr);
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

    /// A block comes from an open pool, and within its limit.
    fn check_claim(&mut self, cidr: &IpNet) {
        // It may have gone again since, with its pool.
        let held = self.bench.blocks();
        let Some(pool) = self.pool_of(cidr).cloned() else {
            return;
        };
        let own = held.iter().filter(|block| pool.cidr.contains(&block.cidr));
        let own = u32::try_from(own.count()).unwrap();
        let asked = held.iter().any(|block| block.cidr == *cidr);
        if let Some(most) = pool.max_blocks
            && asked
            && !self.was_over
        {
            assert!(own <= most, "{own} blocks of {}", pool.name);
        }
    }

    fn pool_of(&self, block: &IpNet) -> Option<&config::Pool> {
        self.pools.iter().find(|pool| pool.cidr.contains(block))
    }

    /// New addresses come from it.
    fn is_open(&self, pool: &config::Pool) -> bool {
        !pool.disabled && !self.disk.pools.contains_key(&pool.name)
    }

    /// What a pool could still give, looked at address by address.
    fn left_in(&mut self, pool: &config::Pool) -> Vec<IpAddr> {
        let used = self.used();
        let blocks = self.bench.blocks();
        let own: Vec<IpNet> = blocks
            .iter()
            .filter(|block| block.pool == pool.name)
            .map(|block| block.cidr)
            .collect();
        let full = |most: u32| u32::try_from(own.len()).unwrap() >= most;
        let mut all: Vec<(IpNet, IpAddr)> = Vec::new();
        for block in &own {
            all.extend(
                block
                    .hosts_all()
                    .into_iter()
                    .map(|address| (*block, address)),
            );
        }
        if !pool.max_blocks.is_some_and(full) {
            for address in pool.claim.iter().flat_map(HostsAll::hosts_all) {
                let block = IpNet::new(address, pool.block_size).unwrap().trunc();
                if !own.iter().any(|held| held.contains(&address)) {
                    all.push((block, address));
                }
            }
        }
        let free = |(block, address): &(IpNet, IpAddr)| {
            !used.contains_key(address)
                && self.cooling_for(address).is_none()
                && !is_unused(pool, block, address)
        };
        let left = all.iter().filter(|place| free(place));
        left.map(|(_, address)| *address).collect()
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
            let from = self.pool_of(&assigned.block).expect("a pool");
            assert!(self.is_open(from), "{} is closed", from.name);
            assert_eq!(from.name, assigned.pool);
            assert!(!is_unused(from, &assigned.block, &address), "{address}");
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
            let open = self.pools.iter().filter(|pool| self.is_open(pool));
            let open: BTreeSet<bool> = open.map(|pool| pool.cidr.addr().is_ipv4()).collect();
            assert_eq!(families, open, "every family there is, or none");
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
                let named = |pool: &&config::Pool| pool.name == exhausted.pool;
                let pool = self.pools.iter().find(named).expect("a pool").clone();
                assert!(self.is_open(&pool));
                assert_eq!(self.left_in(&pool), Vec::<IpAddr>::new(), "{error}");
            }
            Error::PoolClosed { name, .. } => {
                let pool = self.pools.iter().find(|pool| pool.name == *name);
                assert!(!self.is_open(pool.expect("a pool")));
            }
            Error::PoolUnknown { name, .. } => {
                assert!(!self.pools.iter().any(|pool| pool.name == *name));
            }
            Error::NoPool { .. } => {
                assert!(!self.pools.iter().any(|pool| self.is_open(pool)));
            }
            Error::BlockLimit { pool, most, .. } => {
                let held = self.bench.blocks();
                let held = held.iter().filter(|block| block.pool == *pool).count();
                assert!(u32::try_from(held).unwrap() >= *most);
            }
            Error::AddressTaken { address, holder } => {
                assert_eq!(self.used().get(address), Some(holder));
            }
            Error::AddressCooling { address, last, .. } => {
                assert_eq!(self.cooling_for(address), Some(last));
                assert_ne!(last, id);
            }
            Error::AddressReserved { address, .. } => {
                let pool = self
                    .pool_of(&IpNet::from(*address))
                    .expect("a pool")
                    .clone();
                let held = self.bench.blocks();
                let held = held.iter().find(|block| block.cidr.contains(address));
                let would = IpNet::new(*address, pool.block_size).unwrap().trunc();
                let block = held.map_or(would, |block| block.cidr);
                assert!(is_unused(&pool, &block, address));
            }
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
        let (ipam, notices) = Ipam::recover(self.bench.now, &self.pools, &settings(), &recovered);
        for notice in notices {
            match notice {
                // Its last cool-down is not over.
                Notice::BlockWithoutPool { block, .. } if self.pool_of(&block).is_none() => {}
                other => panic!("{other}"),
            }
        }
        self.bench.ipam = ipam;
        self.act();
    }

    fn reload(&mut self, different: u8) {
        let wanted = pools(different);
        let stranded: BTreeSet<WorkloadId> = self
            .disk
            .workloads
            .values()
            .filter(|record| {
                let homeless = |assigned: &AssignedAddress| {
                    !wanted
                        .iter()
                        .any(|pool| pool.cidr.contains(&assigned.block))
                };
                record.addresses.iter().any(homeless)
            })
            .map(|record| record.id.clone())
            .collect();
        let now = self.bench.now;
        match self.bench.ipam.set_pools(now, &wanted, &settings()) {
            Ok(records) => {
                assert_eq!(stranded, BTreeSet::new());
                self.pools = wanted;
                // The node writes them as soon as it can.
                self.disk.apply(&records);
            }
            Err(refused) => {
                let named = refused.into_iter().flat_map(|pool| pool.workloads);
                let named: BTreeSet<WorkloadId> = named.map(|(id, _)| id).collect();
                assert_eq!(named, stranded);
            }
        }
        self.was_over = true;
        self.act();
        self.was_over = false;
    }

    fn override_pool(&mut self, name: &str, to: Option<PoolOverride>) {
        if self.bench.ipam.pool_override(name).is_err() {
            assert!(!self.pools.iter().any(|pool| pool.name == name));
            return;
        }
        if self.persist(&[Record::PoolOverride(name.to_owned(), to)]) {
            self.bench.ipam.override_pool(self.bench.now, name, to);
        }
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
            let pool = self.pool_of(&block.cidr);
            let unused =
                |address: &IpAddr| pool.is_some_and(|pool| is_unused(pool, &block.cidr, address));
            let cooling = cooling
                .filter(|address| self.cooling_for(address).is_some() && !unused(address))
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
        for block in &blocks {
            let leaving = match self.pool_of(&block.cidr) {
                Some(pool) => self.disk.pools.get(&pool.name) == Some(&PoolOverride::Draining),
                None => true,
            };
            if leaving && !self.failing && self.settled {
                assert!(block.used + block.cooling > 0, "{block:?} could go");
            }
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
                let pool = NAMES[usize::from(*pool)];
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
            Step::Reload(different) => model.reload(*different),
            Step::Override(pool, to) => model.override_pool(NAMES[usize::from(*pool)], *to),
        }
        model.settled = matches!(step, Step::Advance(seconds) if *seconds > 5) && !model.failing;
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

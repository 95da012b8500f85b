//! The core against a kernel of this file, which does as nftables does: a transaction is carried out
//! whole or not at all.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use proptest::prelude::*;

use super::{
    Entry, Event, Filter, Op, Output, Snapshot, Tables,
    elements::{self, Key},
    table::{CHAINS, Family, SetName},
};
use crate::{
    desired::{Access, FilterSettings, Protocol, PublishedPort},
    kernel::OpError,
};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn settings() -> FilterSettings {
    FilterSettings {
        inside: nets(&["10.244.0.0/16", "fd00:244::/48"]),
        masquerade: nets(&["10.244.0.0/16"]),
        bridged: Vec::new(),
    }
}

fn tcp(host_port: u16, container_port: u16) -> PublishedPort {
    PublishedPort {
        protocol: Protocol::Tcp,
        host_address: None,
        host_port,
        container_port,
    }
}

fn access(ports: &[PublishedPort], allowed: &[&str]) -> Access {
    Access {
        ports: ports.to_vec(),
        allowed: nets(allowed),
    }
}

fn addresses(host: u8) -> Vec<IpAddr> {
    vec![
        IpAddr::from([10, 244, 0, host]),
        format!("fd00:244::{host:x}").parse().unwrap(),
    ]
}

/// A kernel with the two tables.
#[derive(Default)]
struct Kernel {
    table: Option<Table>,
    bridge: Option<Table>,
    writes: usize,
    /// Answers to the next requests, one each.
    faults: Vec<Option<i32>>,
}

#[derive(Clone, Default)]
struct Table {
    sets: BTreeSet<SetName>,
    /// Chains, and whether their rules are right.
    chains: Vec<(&'static str, usize)>,
    elements: super::Sets,
}

impl Kernel {
    fn fault(&mut self) -> Result<(), OpError> {
        let fault = if self.faults.is_empty() {
            None
        } else {
            self.faults.remove(0)
        };
        match fault {
            Some(errno) => Err(OpError {
                errno,
                text: "injected".into(),
            }),
            None => Ok(()),
        }
    }

    fn read(&mut self) -> Result<Box<Snapshot>, OpError> {
        self.fault()?;
        let mut snapshot = Snapshot::default();
        snapshot.tables.inet = self.table.is_some();
        snapshot.tables.bridge = self.bridge.is_some();
        for (family, table) in [(Family::Inet, &self.table), (Family::Bridge, &self.bridge)] {
            if let Some(table) = table {
                Self::look(family, table, &mut snapshot);
            }
        }
        Ok(Box::new(snapshot))
    }

    fn look(family: Family, table: &Table, snapshot: &mut Snapshot) {
        for set in SetName::ALL
            .into_iter()
            .filter(|set| set.family() == family)
        {
            snapshot.sets[set.index()] = table.elements[set.index()].clone();
            if !table.sets.contains(&set) {
                snapshot
                    .wrong
                    .push(format!("set {} was deleted", set.name()));
            }
        }
        for chain in CHAINS.iter().filter(|chain| chain.family == family) {
            match table.chains.iter().find(|(name, _)| *name == chain.name) {
                None => snapshot
                    .wrong
                    .push(format!("chain {} was deleted", chain.name)),
                Some((_, rules)) if *rules != chain.rules.len() => {
                    snapshot.wrong_rules.push(chain.name);
                }
                Some(_) => {}
            }
        }
    }

    fn commit(&mut self, ops: &[Op]) -> Result<(), OpError> {
        self.fault()?;
        self.writes += 1;
        let mut after = (self.table.clone(), self.bridge.clone());
        for op in ops {
            apply(&mut after, op)?;
        }
        (self.table, self.bridge) = after;
        Ok(())
    }
}

fn refuse<T>(errno: i32) -> Result<T, OpError> {
    Err(OpError {
        errno,
        text: "refused".into(),
    })
}

fn apply(state: &mut (Option<Table>, Option<Table>), op: &Op) -> Result<(), OpError> {
    let state = match op.family() {
        Family::Inet => &mut state.0,
        Family::Bridge => &mut state.1,
    };
    const ENOENT: i32 = 2;
    const EEXIST: i32 = 17;
    match op {
        Op::DeleteTable(_) if state.take().is_none() => return refuse(ENOENT),
        Op::DeleteTable(_) => return Ok(()),
        Op::CreateTable(_) if state.is_some() => return refuse(EEXIST),
        Op::CreateTable(_) => {
            *state = Some(Table::default());
            return Ok(());
        }
        _ => {}
    }
    let Some(table) = state else {
        return refuse(ENOENT);
    };
    match op {
        Op::DeleteTable(_) | Op::CreateTable(_) => {}
        Op::CreateSet(set) => {
            table.sets.insert(*set);
        }
        Op::CreateChain(chain) => table.chains.push((chain, 0)),
        Op::AddRules(chain) | Op::FlushChain(chain) => {
            let Some(there) = table.chains.iter_mut().find(|(name, _)| name == chain) else {
                return refuse(ENOENT);
            };
            there.1 = match op {
                Op::AddRules(_) => {
                    let spec = CHAINS.iter().find(|spec| spec.name == *chain).unwrap();
                    there.1 + spec.rules.len()
                }
                _ => 0,
            };
        }
        Op::FlushSet(set) if table.sets.contains(set) => table.elements[set.index()].clear(),
        Op::AddElements(set, list) if table.sets.contains(set) => {
            for (key, data) in list {
                let there = table.elements[set.index()].insert(key.clone(), data.clone());
                if there.is_some_and(|there| there != *data) {
                    return refuse(EEXIST);
                }
            }
        }
        Op::DeleteElements(set, list) if table.sets.contains(set) => {
            for key in list {
                if table.elements[set.index()].remove(key).is_none() {
                    return refuse(ENOENT);
                }
            }
        }
        _ => return refuse(ENOENT),
    }
    Ok(())
}

struct World {
    filter: Filter,
    kernel: Kernel,
    now: Instant,
    events: Vec<Event>,
    commits: Vec<Vec<Op>>,
}

impl World {
    fn new() -> Self {
        Self {
            filter: Filter::new(),
            kernel: Kernel::default(),
            now: Instant::now(),
            events: Vec::new(),
            commits: Vec::new(),
        }
    }

    fn with_settings() -> Self {
        let mut world = Self::new();
        world.filter.set_settings(settings());
        world.filter.synced();
        world
    }

    fn set(&mut self, id: &str, host: u8, access: &Access) {
        let interface = format!("agt{id}");
        self.filter
            .set_workload(&id.into(), Entry::Own(&interface), &addresses(host), access);
    }

    fn remove(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        self.filter.remove_workload(&id);
        self.filter.routes_removed(&id);
    }

    /// One output; whether there was one.
    fn one(&mut self) -> bool {
        let Some(output) = self.filter.poll_output() else {
            return false;
        };
        match output {
            Output::Read(id) => {
                let snapshot = self.kernel.read();
                self.filter.handle_snapshot(self.now, id, snapshot);
            }
            Output::Commit(id, ops) => {
                let result = self.kernel.commit(&ops);
                self.commits.push(ops);
                self.filter.handle_committed(self.now, id, result);
            }
            Output::Flush(id, _) => self.filter.handle_flushed(id),
            Output::Event(event) => self.events.push(event),
        }
        true
    }

    /// Until nothing is left to do but to look again in some minutes.
    fn settle(&mut self) -> Vec<Event> {
        for _ in 0..10_000 {
            if self.one() {
                continue;
            }
            match self.filter.poll_timeout() {
                Some(at) if at < self.now + Duration::from_secs(60) => {
                    self.now = at.max(self.now + Duration::from_millis(1));
                    self.filter.handle_timeout(self.now);
                }
                _ => return std::mem::take(&mut self.events),
            }
        }
        panic!("it never settles");
    }

    fn check(&mut self) {
        assert_eq!(self.kernel.bridge.is_some(), self.filter.tables().bridge);
        let tables = [
            (Family::Inet, &self.kernel.table),
            (Family::Bridge, &self.kernel.bridge),
        ];
        for (family, table) in tables {
            match table {
                Some(table) => self.check_table(family, table),
                None => assert_eq!(family, Family::Bridge),
            }
        }
        let writes = self.kernel.writes;
        self.filter.handle_change(None, Tables::default());
        self.settle();
        assert_eq!(self.kernel.writes, writes, "a second pass plans nothing");
    }

    fn check_table(&self, family: Family, table: &Table) {
        let own = SetName::ALL.into_iter();
        for set in own.filter(|set| set.family() == family) {
            assert_eq!(
                table.elements[set.index()],
                self.filter.wanted[set.index()],
                "{set:?}"
            );
        }
        for chain in CHAINS.iter().filter(|chain| chain.family == family) {
            let there = table.chains.iter().find(|(name, _)| *name == chain.name);
            assert_eq!(there, Some(&(chain.name, chain.rules.len())));
        }
    }
}

#[test]
fn without_settings_nothing_is_read_or_written() {
    let mut world = World::new();
    world.set("a", 1, &access(&[tcp(80, 80)], &[]));
    assert!(!world.filter.is_pending("a"));
    world.filter.synced();
    assert!(world.settle().is_empty());
    assert_eq!(world.kernel.writes, 0);
    world.remove("a");
    world.settle();
}

#[test]
fn the_table_is_made_in_one_transaction_and_then_only_elements_are_written() {
    let mut world = World::with_settings();
    assert_eq!(world.settle(), [Event::Programmed]);
    assert_eq!(world.kernel.writes, 1);
    world.set("a", 1, &access(&[tcp(8080, 80)], &["192.0.2.0/24"]));
    assert!(world.filter.is_pending("a"));
    assert_eq!(world.settle(), [Event::Standing("a".into())]);
    assert_eq!(world.kernel.writes, 2);
    assert!(
        world.commits[1]
            .iter()
            .all(|op| matches!(op, Op::AddElements(..)))
    );
    world.check();
    world.remove("a");
    assert_eq!(world.settle(), [Event::Gone("a".into())]);
    assert!(
        world.commits[2]
            .iter()
            .all(|op| matches!(op, Op::DeleteElements(..)))
    );
    world.check();
}

#[test]
fn a_plain_workload_writes_nothing() {
    let mut world = World::with_settings();
    world.settle();
    world.set("a", 1, &Access::default());
    assert!(!world.filter.is_pending("a"));
    world.remove("a");
    assert!(world.settle().is_empty());
    assert_eq!(world.kernel.writes, 1);
}

#[test]
fn what_leaves_while_connections_are_forgotten_goes_together() {
    let mut world = World::with_settings();
    world.settle();
    for host in 1..=5 {
        world.set(&host.to_string(), host, &Access::default());
    }
    world.remove("1");
    let Some(Output::Flush(first, addresses)) = world.filter.poll_output() else {
        panic!("connections are forgotten");
    };
    assert_eq!(addresses, super::tests::addresses(1));
    for host in 2..=5 {
        world.remove(&host.to_string());
    }
    assert_eq!(world.filter.poll_output(), None);
    world.filter.handle_flushed(first);
    let Some(Output::Flush(_, addresses)) = world.filter.poll_output() else {
        panic!("connections are forgotten");
    };
    assert_eq!(addresses.len(), 8);
}

#[test]
fn a_restart_with_unchanged_state_writes_nothing() {
    let mut world = World::with_settings();
    world.set("a", 1, &access(&[tcp(8080, 80)], &[]));
    world.settle();
    let writes = world.kernel.writes;

    world.filter = Filter::new();
    world.filter.set_settings(settings());
    assert!(world.settle().is_empty(), "until all is known");
    world.set("a", 1, &access(&[tcp(8080, 80)], &[]));
    world.filter.synced();
    assert_eq!(
        world.settle(),
        [Event::Programmed, Event::Standing("a".into())]
    );
    assert_eq!(world.kernel.writes, writes);
}

#[test]
fn what_an_earlier_run_left_behind_is_removed_and_what_is_missing_added_at_once() {
    let mut world = World::with_settings();
    world.set("old", 1, &access(&[tcp(8080, 80)], &[]));
    world.settle();
    let writes = world.kernel.writes;
    world.filter = Filter::new();
    world.filter.set_settings(settings());
    world.set("new", 2, &access(&[tcp(8080, 81)], &[]));
    world.filter.synced();
    world.settle();
    assert_eq!(world.kernel.writes, writes + 1);
    world.check();
}

#[test]
fn a_port_moves_between_workloads_in_one_transaction() {
    let mut world = World::with_settings();
    world.set("a", 1, &access(&[tcp(8080, 80)], &[]));
    world.settle();
    let writes = world.kernel.writes;
    world.remove("a");
    world.set("b", 2, &access(&[tcp(8080, 80)], &[]));
    let events = world.settle();
    assert!(events.contains(&Event::Gone("a".into())));
    assert!(events.contains(&Event::Standing("b".into())));
    assert_eq!(world.kernel.writes, writes + 1);
    world.check();
}

#[test]
fn a_change_that_was_never_heard_is_found_after_some_minutes() {
    let mut world = World::with_settings();
    world.set("a", 1, &access(&[tcp(80, 80)], &[]));
    world.settle();
    world.kernel.table.as_mut().unwrap().chains[0].1 = 1;
    assert_eq!(world.settle(), []);
    world.now = world.filter.poll_timeout().unwrap();
    world.filter.handle_timeout(world.now);
    let what = "rules of chain source were changed".to_owned();
    assert_eq!(world.settle(), [Event::Repaired { what }]);
    world.check();
}

#[test]
fn there_is_a_table_for_bridges_as_long_as_there_are_bridges() {
    let mut world = World::with_settings();
    world.settle();
    assert!(world.kernel.bridge.is_none());
    let bridge = |world: &mut World| {
        world
            .filter
            .set_bridge("apps0".into(), nets(&["172.30.0.0/24"]));
        let port = Entry::Port {
            bridge: "apps0",
            port: "agt0",
            mac: [2, 0, 0, 0, 0, 1],
        };
        let id: Arc<str> = "a".into();
        world
            .filter
            .set_workload(&id, port, &addresses(1), &access(&[], &["192.0.2.0/24"]));
    };
    bridge(&mut world);
    let stands = Event::Standing("a".into());
    assert_eq!(world.settle(), [stands], "nobody else did anything");
    let elements = |world: &World, set: SetName| {
        let table = world.kernel.bridge.as_ref().unwrap();
        table.elements[set.index()].len()
    };
    assert_eq!(elements(&world, SetName::MemberMac), 1);
    assert_eq!(elements(&world, SetName::Member4), 2);
    // Its own, and the link-local one.
    assert_eq!(elements(&world, SetName::Member6), 2);

    // A restart with unchanged wishes.
    let kernel = std::mem::take(&mut world.kernel);
    let mut world = World::with_settings();
    world.kernel = kernel;
    world.kernel.writes = 0;
    bridge(&mut world);
    world.settle();
    assert_eq!(world.kernel.writes, 0);

    world.kernel.bridge = None;
    world.filter.handle_change(None, Tables::default());
    let what = "table bridge agentd was deleted".to_owned();
    assert_eq!(world.settle(), [Event::Repaired { what }]);
    assert_eq!(elements(&world, SetName::MemberMac), 1);

    world.remove("a");
    world.filter.remove_bridge("apps0");
    assert_eq!(world.settle(), [Event::Gone("a".into())]);
    assert!(world.kernel.bridge.is_none());
    world.check();
}

#[test]
fn changes_by_others_are_repaired_and_named() {
    let mut world = World::with_settings();
    world.set("a", 1, &access(&[tcp(8080, 80)], &[]));
    world.settle();
    let repaired = |world: &mut World, expected: &str| {
        world
            .filter
            .handle_change(Some("nft, process 1".to_owned()), Tables::default());
        let events = world.settle();
        let what = format!("{expected} (by nft, process 1)");
        assert_eq!(events, [Event::Repaired { what }]);
        world.check();
    };
    world.kernel.table = None;
    repaired(&mut world, "table inet agentd was deleted");
    world.kernel.table.as_mut().unwrap().chains[0].1 = 1;
    repaired(&mut world, "rules of chain source were changed");
    world.kernel.table.as_mut().unwrap().elements[SetName::AnyPorts4.index()].clear();
    repaired(
        &mut world,
        "set any-ports4: 1 elements were deleted, 0 added",
    );
    world
        .kernel
        .table
        .as_mut()
        .unwrap()
        .sets
        .remove(&SetName::Inside4);
    repaired(&mut world, "set inside4 was deleted");
    assert_eq!(world.filter.counts().repairs, 4);
    // Nothing of ours.
    world.filter.handle_change(None, Tables::default());
    assert!(world.settle().is_empty());
}

#[test]
fn a_deleted_table_is_made_anew_before_anything_is_read() {
    let mut world = World::with_settings();
    world.set("a", 5, &access(&[tcp(8080, 80)], &[]));
    world.settle();
    let before = world.kernel.table.clone().unwrap().elements;
    let deleted = Tables {
        inet: true,
        bridge: true,
    };
    for there in [false, true] {
        if !there {
            world.kernel.table = None;
        }
        let by = Some("nft, process 1".to_owned());
        world.filter.handle_change(by, deleted);
        let Some(Output::Commit(id, ops)) = world.filter.poll_output() else {
            panic!("it reads first");
        };
        // What was heard late may be over: then the kernel refuses, and it is read.
        let result = world.kernel.commit(&ops);
        assert_eq!(result.is_err(), there);
        world.filter.handle_committed(world.now, id, result);
        assert!(!world.filter.is_right(), "it was not read back");
        world.settle();
        assert_eq!(world.kernel.table.as_ref().unwrap().elements, before);
        assert!(world.filter.is_right());
    }
    assert_eq!(world.filter.counts().repairs, 1);
}

#[test]
fn a_refused_transaction_is_told_to_those_who_wait_and_tried_again() {
    let mut world = World::with_settings();
    world.settle();
    world.set("a", 1, &access(&[tcp(8080, 80)], &[]));
    // Commit, read, commit: the first failure leads to a look, the second is told.
    world.kernel.faults = vec![Some(12), None, Some(12)];
    let events = world.settle();
    assert!(matches!(events[0], Event::Failed(_)));
    assert!(matches!(&events[1], Event::StandingFailed(id, _) if **id == *"a"));
    assert!(events.contains(&Event::Programmed));
    assert!(events.contains(&Event::Standing("a".into())));
    world.check();
}

#[test]
fn a_bridge_is_inside_and_masqueraded_towards_everything_else() {
    let mut world = World::with_settings();
    world.settle();
    let subnets = nets(&["172.30.0.0/24"]);
    world.filter.set_settings(FilterSettings {
        bridged: subnets.clone(),
        ..settings()
    });
    world.filter.set_bridge("br-web".into(), subnets);
    world.settle();
    world.check();
    let wanted = |world: &World, set: SetName| world.filter.wanted[set.index()].clone();
    assert_eq!(
        wanted(&world, SetName::Bridged4),
        elements::ranges(nets(&["172.30.0.0/24"]))
    );
    assert_eq!(
        wanted(&world, SetName::Inside4),
        elements::ranges(nets(&["10.244.0.0/16", "172.30.0.0/24"]))
    );
    assert!(wanted(&world, SetName::Interfaces).contains_key(&elements::interface("br-web")));
    world.filter.remove_bridge("br-web");
    world.settle();
    world.check();
    assert_eq!(
        wanted(&world, SetName::Inside4),
        elements::ranges(nets(&["10.244.0.0/16"]))
    );
}

#[test]
fn ranges_are_merged_and_end_behind_their_last_address() {
    let bytes = |text: &str| match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let check = |prefixes: &[&str], expected: &[(&str, bool)]| {
        let found: Vec<Key> = elements::ranges(nets(prefixes)).into_keys().collect();
        let expected: Vec<Key> = expected
            .iter()
            .map(|(first, end)| Key {
                first: bytes(first),
                last: Vec::new(),
                end: *end,
            })
            .collect();
        assert_eq!(found, expected, "{prefixes:?}");
    };
    check(&["10.0.0.0/24"], &[("10.0.0.0", false), ("10.0.1.0", true)]);
    check(
        &["10.0.1.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.2.0/24"],
        &[("10.0.0.0", false), ("10.0.3.0", true)],
    );
    check(
        &["10.0.0.0/8", "10.1.0.0/16"],
        &[("10.0.0.0", false), ("11.0.0.0", true)],
    );
    check(&["240.0.0.0/4"], &[("240.0.0.0", false)]);
    check(&["fd00::/64"], &[("fd00::", false), ("fd00:0:0:1::", true)]);
}

#[derive(Clone, Debug)]
enum Act {
    Set(u8, Vec<u16>, bool),
    Remove(u8),
    Bridge(bool),
    Break(u8),
    Step(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..6_u8, prop::collection::vec(1..9_u16, 0..3), any::<bool>())
            .prop_map(|(id, ports, allowed)| Act::Set(id, ports, allowed)),
        2 => (0..6_u8).prop_map(Act::Remove),
        1 => any::<bool>().prop_map(Act::Bridge),
        2 => (0..6_u8).prop_map(Act::Break),
        4 => (1..6_u8).prop_map(Act::Step),
    ]
}

/// What somebody else may do.
fn damage(table: &mut Option<Table>, how: u8) {
    let Some(there) = table else {
        return;
    };
    match how {
        0 => *table = None,
        1 => there.chains.clear(),
        2 => there
            .chains
            .iter_mut()
            .take(1)
            .for_each(|chain| chain.1 += 1),
        3 => there.elements = super::Sets::default(),
        4 if there.sets.contains(&SetName::AnyPorts4) => {
            there.elements[SetName::AnyPorts4.index()]
                .insert(elements::interface("foreign"), vec![1]);
        }
        _ => {
            there.sets.remove(&SetName::Hairpin4);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// From any state, through any finite faults, it comes to what is wanted.
    #[test]
    fn it_converges(
        acts in prop::collection::vec(act(), 1..40),
        faults in prop::collection::vec(
            prop::option::weighted(0.3, prop::sample::select(vec![1, 2, 4, 11, 12, 17, 105])),
            0..20,
        ),
    ) {
        let mut world = World::with_settings();
        world.kernel.faults = faults;
        let mut alive = BTreeSet::new();
        for act in acts {
            match act {
                Act::Set(id, ports, allowed) => {
                    // Ports of their own: conflicts are refused before they come here.
                    let ports: Vec<_> = ports
                        .iter()
                        .map(|port| tcp(u16::from(id) * 100 + port, 80 + port))
                        .collect();
                    let allowed: &[&str] = if allowed { &["192.0.2.1/32"] } else { &[] };
                    let access = access(&ports, allowed);
                    match id % 2 {
                        0 => world.set(&id.to_string(), id, &access),
                        _ => {
                            let name: Arc<str> = id.to_string().into();
                            let entry = Entry::Port {
                                bridge: "br0",
                                port: &format!("agt{id}"),
                                mac: [2, 0, 0, 0, 0, id],
                            };
                            world.filter.set_workload(&name, entry, &addresses(id), &access);
                        }
                    }
                    alive.insert(id);
                }
                Act::Remove(id) => {
                    world.remove(&id.to_string());
                    alive.remove(&id);
                }
                Act::Bridge(true) => world
                    .filter
                    .set_bridge("br0".into(), nets(&["172.30.0.0/24", "fd01::/64"])),
                Act::Bridge(false) => world.filter.remove_bridge("br0"),
                Act::Break(how) => {
                    damage(&mut world.kernel.table, how);
                    damage(&mut world.kernel.bridge, how / 2);
                    // What was heard of may be over already.
                    let late = how % 3 == 0;
                    let deleted = Tables {
                        inet: late || world.kernel.table.is_none(),
                        bridge: late || world.kernel.bridge.is_none(),
                    };
                    world.filter.handle_change(None, deleted);
                }
                Act::Step(count) => {
                    for _ in 0..count {
                        world.one();
                    }
                }
            }
        }
        world.settle();
        world.check();
        for id in alive {
            prop_assert!(!world.filter.is_pending(&id.to_string()));
        }
        prop_assert!(world.filter.is_right());
    }
}

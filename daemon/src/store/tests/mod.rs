#![allow(clippy::unwrap_used)]

mod child;
mod power;
mod upgrade;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

use super::*;
use crate::node::{
    WorkloadId, WorkloadSpec,
    spec::{FixedAddresses, InterfaceName, Labels, Mtu, NamespaceName},
    view::{AssignedAddress, PoolOverride},
};

fn time(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + milliseconds)
}

fn published(host_address: Option<&str>, host_port: u16) -> dataplane::desired::PublishedPort {
    dataplane::desired::PublishedPort {
        protocol: dataplane::desired::Protocol::Udp,
        host_address: host_address.map(|address| address.parse().unwrap()),
        host_port,
        container_port: 80,
    }
}

fn workload(name: &str, generation: u64) -> WorkloadRecord {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    WorkloadRecord {
        id: WorkloadId::new(name).unwrap(),
        generation,
        spec: Arc::new(WorkloadSpec {
            attachment: crate::node::attachment::Attachment::Routed(
                crate::node::attachment::Inside {
                    namespace: crate::node::attachment::Namespace {
                        name: NamespaceName::path("/run/netns/a").unwrap(),
                        netns: dataplane::desired::Netns {
                            path: "/run/netns/a".into(),
                            device: 4,
                            inode: 4_026_532_000,
                        },
                    },
                    interface: InterfaceName::new("eth0").unwrap(),
                },
            ),
            pools: vec!["default".to_owned(), "six".to_owned()],
            addresses: FixedAddresses::new(vec!["10.244.1.7".parse().unwrap()]).unwrap(),
            mtu: Some(Mtu::new(1400).unwrap()),
            labels: Labels::new(labels).unwrap(),
            access: crate::node::access::AccessSpec::new(
                vec![published(None, 8080), published(Some("2001:db8::1"), 53)],
                vec!["192.0.2.0/24".parse().unwrap()],
            )
            .unwrap(),
            owner: Some(crate::node::spec::Owner::new("nomad").unwrap()),
        }),
        addresses: vec![
            AssignedAddress {
                address: "10.244.1.7".parse().unwrap(),
                pool: "default".to_owned(),
                block: "10.244.1.0/26".parse().unwrap(),
            },
            AssignedAddress {
                address: "fd00::7".parse().unwrap(),
                pool: "six".to_owned(),
                block: "fd00::/122".parse().unwrap(),
            },
        ],
        created_at: time(5),
    }
}

fn block(cidr: &str) -> BlockRecord {
    BlockRecord {
        cidr: cidr.parse().unwrap(),
        pool: "default".to_owned(),
        claimed_at: time(1),
    }
}

fn cooling(address: &str) -> CoolingRecord {
    CoolingRecord {
        address: address.parse().unwrap(),
        until: time(130_000),
        id: WorkloadId::new("old").unwrap(),
        generation: 3,
    }
}

/// Submits and waits.
fn store_all(store: &Store, completions: &mut Completions, records: Vec<Record>) {
    store.submit(records, 1).unwrap();
    let completion = completions.blocking_next().unwrap();
    assert_eq!(
        completion,
        Completion {
            token: 1,
            result: Ok(())
        }
    );
}

#[test]
fn what_was_stored_is_recovered() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut completions, recovered) = Store::open(directory.path()).unwrap();
    assert_eq!(recovered, Recovered::default());
    store_all(
        &store,
        &mut completions,
        vec![
            Record::Generation(9),
            Record::Drained(Some(time(77))),
            Record::PoolOverride("a".to_owned(), Some(PoolOverride::Disabled)),
            Record::PoolOverride("b".to_owned(), Some(PoolOverride::Draining)),
            Record::PoolOverride("gone".to_owned(), Some(PoolOverride::Draining)),
            Record::PutBlock(block("fd00::/122")),
            Record::PutBlock(block("10.244.1.64/26")),
            Record::PutBlock(block("10.244.1.0/26")),
            Record::PutWorkload(workload("b", 9)),
            Record::PutWorkload(workload("a", 8)),
            Record::PutWorkload(workload("gone", 7)),
            Record::PutCooling(cooling("10.244.1.9")),
            Record::PutCooling(cooling("10.244.1.8")),
        ],
    );
    store_all(
        &store,
        &mut completions,
        vec![
            Record::DeleteWorkload(WorkloadId::new("gone").unwrap()),
            Record::DeleteWorkload(WorkloadId::new("never").unwrap()),
            Record::DeleteBlock("10.244.1.64/26".parse::<IpNet>().unwrap()),
            Record::DeleteCooling("10.244.1.8".parse::<IpAddr>().unwrap()),
            Record::PoolOverride("gone".to_owned(), None),
        ],
    );
    drop(store);
    let (_store, _, recovered) = Store::open(directory.path()).unwrap();
    assert_eq!(
        recovered,
        Recovered {
            workloads: vec![workload("a", 8), workload("b", 9)],
            blocks: vec![block("10.244.1.0/26"), block("fd00::/122")],
            cooling: vec![cooling("10.244.1.9")],
            generation: 9,
            drained: Some(time(77)),
            pools: vec![
                ("a".to_owned(), PoolOverride::Disabled),
                ("b".to_owned(), PoolOverride::Draining),
            ],
        }
    );
}

#[test]
fn the_generation_counter_never_goes_backwards() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut completions, _) = Store::open(directory.path()).unwrap();
    store_all(
        &store,
        &mut completions,
        vec![Record::Generation(7), Record::Generation(5)],
    );
    store_all(&store, &mut completions, vec![Record::Generation(6)]);
    drop(store);
    let (_store, _, recovered) = Store::open(directory.path()).unwrap();
    assert_eq!(recovered.generation, 7);
}

#[test]
fn submissions_that_wait_share_a_commit_and_complete_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut completions, _) = Store::open(directory.path()).unwrap();
    for token in 0..1000 {
        let records = vec![Record::PutWorkload(workload(&format!("w{token}"), token))];
        store.submit(records, token).unwrap();
    }
    for token in 0..1000 {
        let completion = completions.blocking_next().unwrap();
        assert_eq!(
            completion,
            Completion {
                token,
                result: Ok(())
            }
        );
    }
    let statistics = store.statistics();
    assert_eq!(statistics.submissions, 1000);
    assert!(statistics.commits < 250, "{statistics:?}");
}

#[test]
fn a_queue_that_is_full_refuses_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _completions, _) = Store::open(directory.path()).unwrap();
    let mut refused = false;
    for token in 0..20 * QUEUE_LENGTH as u64 {
        refused |= store.submit(vec![Record::Generation(token)], token) == Err(SubmitError::Full);
    }
    assert!(refused);
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _completions, _) = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "another agentd (pid {}) uses the state directory {}",
            std::process::id(),
            directory.path().display()
        )
    );
    drop(store);
    Store::open(directory.path()).expect("the first is gone");
}

#[test]
fn the_directory_is_made_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("a/b");
    let (_store, _, _) = Store::open(&directory).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("state.redb")), 0o600);
    assert_eq!(mode(&directory.join("lock")), 0o600);
}

/// A state directory with something in it, closed.
fn filled() -> (tempfile::TempDir, Recovered) {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut completions, _) = Store::open(directory.path()).unwrap();
    for generation in 1..=40 {
        let records = vec![
            Record::Generation(generation),
            Record::PutWorkload(workload(&format!("w{generation}"), generation)),
            Record::PutBlock(block(&format!("10.{generation}.0.0/26"))),
        ];
        store_all(&store, &mut completions, records);
    }
    drop(store);
    let (store, _, recovered) = Store::open(directory.path()).unwrap();
    drop(store);
    (directory, recovered)
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    for content in ["", "something else entirely", "redb\x1A\x0A"] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state.redb");
        std::fs::write(&file, content).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), content.as_bytes());
    }
}

#[test]
fn a_database_of_somebody_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.redb");
    drop(redb::Database::create(&file).unwrap());
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

#[test]
fn a_newer_schema_is_refused() {
    let (directory, _) = filled();
    let file = directory.path().join("state.redb");
    let database = redb::Database::open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction
        .open_table(meta)
        .unwrap()
        .insert("schema", 3)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Store::open(directory.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} has schema version 3 (written by agentd {}), and this agentd knows versions up to \
             2; use the agentd that wrote it, or a newer one",
            file.display(),
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn a_damaged_file_is_refused_and_left_alone_or_still_says_the_same() {
    let (directory, intact) = filled();
    let file = directory.path().join("state.redb");
    let original = std::fs::read(&file).unwrap();
    let pages = original.len() / 4096;
    let mut refused = 0;
    for page in 0..pages {
        for offset in [17, 1031] {
            let at = page * 4096 + offset;
            // What was never written carries nothing.
            if original[at] == 0 && original[at + 1] == 0 {
                continue;
            }
            let mut damaged = original.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&file, &damaged).unwrap();
            match Store::open(directory.path()) {
                Ok((_, _, recovered)) => assert_eq!(recovered, intact, "byte {at}"),
                Err(error) => {
                    assert!(!matches!(error, StoreError::InUse { .. }), "{error}");
                    assert!(
                        std::fs::read(&file).unwrap() == damaged,
                        "byte {at}: {error}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(
        refused > 3,
        "only {refused} damages were found in {pages} pages"
    );
}

#[test]
fn a_truncated_file_is_refused_and_left_alone() {
    let (directory, _) = filled();
    let file = directory.path().join("state.redb");
    let original = std::fs::read(&file).unwrap();
    for length in [9, 100, 4096, original.len() / 2] {
        std::fs::write(&file, &original[..length]).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(
            matches!(error, StoreError::Corrupt { .. }),
            "{length}: {error}"
        );
        assert!(
            std::fs::read(&file).unwrap() == original[..length],
            "{length}"
        );
    }
}

#[test]
fn a_database_that_was_not_finished_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("state.redb.new"), "half").unwrap();
    let (_store, _, recovered) = Store::open(directory.path()).unwrap();
    assert_eq!(recovered, Recovered::default());
    assert!(!directory.path().join("state.redb.new").exists());
}

#[test]
fn a_batch_that_was_reported_as_failed_but_reached_the_disk_is_taken_back() {
    let (directory, before) = filled();
    let (mut files, _) = file::Files::open(directory.path()).unwrap();
    let undo = files.write_with_undo(&[
        Record::Generation(99),
        Record::PutWorkload(workload("w1", 90)),
        Record::PutWorkload(workload("w1", 91)),
        Record::PutWorkload(workload("new", 92)),
        Record::DeleteWorkload(WorkloadId::new("w2").unwrap()),
        Record::DeleteBlock(before.blocks[0].cidr),
        Record::PutBlock(block("10.99.0.0/26")),
        Record::PutCooling(cooling("10.1.1.1")),
        Record::DeleteCooling("10.1.1.1".parse().unwrap()),
    ]);
    files.doubt_last(undo);
    files
        .write([Record::PutBlock(block("10.98.0.0/26"))].iter())
        .unwrap();
    drop(files);
    let (_store, _, mut recovered) = Store::open(directory.path()).unwrap();
    assert_eq!(recovered.generation, 99);
    recovered.generation = before.generation;
    recovered
        .blocks
        .retain(|record| record.cidr != block("10.98.0.0/26").cidr);
    assert_eq!(recovered, before);
}

#[test]
fn the_lock_of_a_process_that_is_going_away_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path()).unwrap();
    let goes_away = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(first);
    });
    let second = Store::open(directory.path());
    goes_away.join().unwrap();
    assert!(second.is_ok(), "{second:?}");
}

#[test]
fn every_way_to_be_attached_is_read_back_as_it_was_written() {
    use crate::node::attachment::{Attachment, Mac, Tap};
    let routed = workload("a", 1);
    let Attachment::Routed(inside) = routed.spec.attachment.clone() else {
        panic!("{routed:?}");
    };
    let by_pid = crate::node::attachment::Namespace {
        name: NamespaceName::pid(42).unwrap(),
        ..inside.namespace.clone()
    };
    let tap = Tap {
        name: Some(InterfaceName::new("vm0").unwrap()),
        owner: Some(0),
        group: Some(1000),
        multi_queue: true,
        mac: Some(Mac::new([2, 0, 0, 0, 0, 1]).unwrap()),
    };
    for attachment in [
        Attachment::Routed(inside.clone()),
        Attachment::Tap(tap),
        Attachment::Tap(Tap::default()),
        Attachment::Bridged {
            inside,
            bridge: "apps0".to_owned(),
        },
        Attachment::Shared {
            with: WorkloadId::new("b").unwrap(),
        },
        Attachment::Host,
        Attachment::None(by_pid),
    ] {
        let mut record = routed.clone();
        record.spec = Arc::new(WorkloadSpec {
            attachment,
            ..(*routed.spec).clone()
        });
        let bytes = super::codec::encode_workload(&record);
        assert_eq!(super::codec::decode_workload("a", &bytes).unwrap(), record);
    }
}

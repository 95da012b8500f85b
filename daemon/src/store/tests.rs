#![allow(clippy::unwrap_used)]

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
    view::AssignedAddress,
};

fn time(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + milliseconds)
}

fn workload(name: &str, generation: u64) -> WorkloadRecord {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    WorkloadRecord {
        id: WorkloadId::new(name).unwrap(),
        generation,
        spec: Arc::new(WorkloadSpec {
            namespace: NamespaceName::path("/run/netns/a").unwrap(),
            netns: dataplane::desired::Netns {
                path: "/run/netns/a".into(),
                device: 4,
                inode: 4_026_532_000,
            },
            interface: InterfaceName::new("eth0").unwrap(),
            pool: Some("default".to_owned()),
            addresses: FixedAddresses::new(vec!["10.244.1.7".parse().unwrap()]).unwrap(),
            mtu: Some(Mtu::new(1400).unwrap()),
            labels: Labels::new(labels).unwrap(),
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
        }
    );
}

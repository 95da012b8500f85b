//! A state file of an older agent.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::*;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const WORKLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workloads");
const BLOCKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("blocks");
const COOLING: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("cooling");

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(pair).collect()
}

/// A state directory as the agent of schema version 1 left it.
fn old() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::create(directory.path().join("state.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        let mut workloads = transaction.open_table(WORKLOADS).unwrap();
        let mut blocks = transaction.open_table(BLOCKS).unwrap();
        let mut cooling = transaction.open_table(COOLING).unwrap();
        for line in include_str!("schema-1.rows").lines() {
            if line.starts_with('#') {
                continue;
            }
            let [table, key, value] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            match table {
                "meta" => drop(meta.insert(key, value.parse::<u64>().unwrap()).unwrap()),
                "workloads" => drop(workloads.insert(key, &*bytes(value)).unwrap()),
                "blocks" => drop(blocks.insert(&*bytes(key), &*bytes(value)).unwrap()),
                "cooling" => drop(cooling.insert(&*bytes(key), &*bytes(value)).unwrap()),
                other => panic!("{other}"),
            }
        }
    }
    transaction.commit().unwrap();
    directory
}

fn schema(file: &std::path::Path) -> u64 {
    let database = Database::open(file).unwrap();
    let transaction = database.begin_read().unwrap();
    let meta = transaction.open_table(META).unwrap();
    meta.get("schema").unwrap().unwrap().value()
}

fn check_recovered(recovered: &Recovered) {
    assert_eq!(recovered.generation, 7);
    let [workload] = recovered.workloads.as_slice() else {
        panic!("{recovered:?}");
    };
    assert_eq!(workload.id.as_str(), "web-1");
    assert_eq!(workload.addresses[0].address.to_string(), "10.244.1.7");
    assert_eq!(workload.spec.mtu.map(Mtu::get), Some(1400));
    assert_eq!(workload.created_at, time(5));
    assert_eq!(
        recovered.blocks,
        [BlockRecord {
            claimed_at: time(1),
            ..block("10.244.1.0/26")
        }]
    );
    assert_eq!(recovered.cooling[0].address.to_string(), "10.244.1.6");
    assert_eq!(recovered.cooling[0].until, time(900));
}

#[test]
fn a_file_of_the_first_schema_is_brought_up_to_date_and_a_copy_of_it_kept() {
    let directory = old();
    let file = directory.path().join("state.redb");
    let (store, mut completions, recovered) = Store::open(directory.path()).unwrap();
    check_recovered(&recovered);
    // It is used from now on as any other.
    let more = Record::PutWorkload(workload("web-2", 8));
    store_all(&store, &mut completions, vec![more]);
    drop(store);
    assert_eq!(schema(&file), 2);
    let copy = directory.path().join("state.redb.schema-1");
    let kept = Database::open(&copy).unwrap();
    let rows = kept.begin_read().unwrap().open_table(WORKLOADS).unwrap();
    assert_eq!(rows.iter().unwrap().count(), 1, "as it was before");
    drop((rows, kept));
    let (_store, _, again) = Store::open(directory.path()).unwrap();
    assert_eq!(again.workloads.len(), 2);
    // The copy can be put back for the older agent.
    assert_eq!(schema(&copy), 1);
}

#[test]
fn an_upgrade_that_cannot_keep_a_copy_is_not_begun() {
    let directory = old();
    let file = directory.path().join("state.redb");
    let in_the_way = directory.path().join("state.redb.schema-1");
    std::fs::create_dir_all(in_the_way.join("full")).unwrap();
    let error = Store::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("copied before its upgrade"), "{error}");
    assert_eq!(schema(&file), 1, "the older agent can still read it");
    std::fs::remove_dir_all(&in_the_way).unwrap();
    let (_store, _, recovered) = Store::open(directory.path()).unwrap();
    check_recovered(&recovered);
}

#[test]
fn the_file_says_which_agent_wrote_it() {
    let (directory, _) = filled();
    let file = directory.path().join("state.redb");
    let about = TableDefinition::<&str, &str>::new("about");
    let database = Database::open(&file).unwrap();
    let transaction = database.begin_read().unwrap();
    let table = transaction.open_table(about).unwrap();
    let version = table.get("agentd").unwrap().unwrap().value().to_owned();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert_eq!(table.iter().unwrap().count(), 1);
}

//! When a node that is not alive is due to be reclaimed, and when a missing one is forgotten.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use crate::fleet::{
    keys::{Keys, NodeRecord},
    ops::{Change, KeyValue},
    registry::Registry,
};

const AFTER: Duration = Duration::from_secs(600);

fn key(key: String, value: String) -> KeyValue {
    KeyValue {
        key,
        value,
        created: 1,
        modified: 1,
    }
}

fn node(keys: &Keys, name: &str) -> KeyValue {
    let record = NodeRecord {
        identity: format!("id-{name}"),
        address: None,
        address6: None,
        asn: None,
        labels: Default::default(),
        version: String::new(),
    };
    key(keys.node(name), serde_json::to_string(&record).unwrap())
}

fn live(keys: &Keys, name: &str) -> KeyValue {
    key(keys.live(name), format!("id-{name}"))
}

/// Two nodes, of which `b` is alive.
fn seen(now: Instant, keys: &Keys, after: Option<Duration>) -> Registry {
    let mut registry = Registry::new(after, 0);
    let list = [node(keys, "a"), node(keys, "b"), live(keys, "b")];
    assert!(registry.listed(now, keys, &list));
    registry
}

#[test]
fn a_node_is_due_once_it_was_dead_for_the_configured_time_without_interruption() {
    let (start, keys) = (Instant::now(), Keys::new("/f"));
    let mut registry = seen(start, &keys, Some(AFTER));
    let just_before = AFTER - Duration::from_secs(1);
    assert!(registry.due(start + just_before).is_empty());
    assert_eq!(registry.timeout(), Some(start + AFTER));
    // It comes back for a moment: the time begins anew.
    let back = start + just_before;
    registry.changed(back, &keys, vec![Change::Put(live(&keys, "a"))]);
    assert!(registry.due(start + 2 * AFTER).is_empty());
    registry.changed(back, &keys, vec![Change::Delete(keys.live("a"))]);
    assert!(registry.due(back + just_before).is_empty());
    assert_eq!(registry.due(back + AFTER), ["a"]);
    // And is named again only after a minute: somebody may still announce its blocks.
    let minute = Duration::from_secs(60);
    assert!(registry.due(back + AFTER + minute / 2).is_empty());
    assert_eq!(registry.due(back + AFTER + minute), ["a"]);
    // Until it is removed.
    registry.changed(back + AFTER, &keys, vec![Change::Delete(keys.node("a"))]);
    assert!(registry.due(back + 3 * AFTER).is_empty());
    assert_eq!(registry.timeout(), None);
}

#[test]
fn while_the_store_is_away_nobody_counts_as_dead() {
    let (start, keys) = (Instant::now(), Keys::new("/f"));
    let mut registry = seen(start, &keys, Some(AFTER));
    registry.is_blind();
    assert!(registry.due(start + 2 * AFTER).is_empty());
    // Seen again: the whole time counts from there, however long it was away.
    let again = start + 2 * AFTER;
    let list = [node(&keys, "a"), node(&keys, "b")];
    registry.listed(again, &keys, &list);
    assert!(
        registry
            .due(again + AFTER - Duration::from_secs(1))
            .is_empty()
    );
    assert_eq!(registry.due(again + AFTER), ["a", "b"]);
}

#[test]
fn without_a_configured_time_only_an_operator_removes_a_node() {
    let (start, keys) = (Instant::now(), Keys::new("/f"));
    let mut registry = seen(start, &keys, None);
    assert!(registry.due(start + 1_000 * AFTER).is_empty());
    assert_eq!(registry.timeout(), None);
}

#[test]
fn a_node_that_a_fresh_list_lacks_is_kept_for_a_while() {
    let (start, keys) = (Instant::now(), Keys::new("/f"));
    let mut registry = seen(start, &keys, None);
    assert!(!registry.listed(start, &keys, &[live(&keys, "b")]));
    assert!(!registry.expire(start + Duration::from_secs(299)));
    assert_eq!(registry.counts(), (2, 1));
    // It registers again in time: nothing has happened.
    registry.changed(start, &keys, vec![Change::Put(node(&keys, "b"))]);
    assert!(registry.expire(start + Duration::from_secs(300)));
    let names: Vec<_> = registry
        .members()
        .into_iter()
        .map(|node| node.name)
        .collect();
    assert_eq!(names, ["b"]);
}

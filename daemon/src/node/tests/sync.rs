//! Clients that state all their workloads.

use std::time::Duration;

use super::{
    super::{
        Error, WaitFor, WorkloadSpec,
        attachment::Attachment,
        spec::Owner,
        sync::{SYNCS, SyncEvent, SyncId},
    },
    world::{World, attached, id, spec},
};

const GRACE: Duration = Duration::from_secs(10);

fn owner(name: &str) -> Owner {
    Owner::new(name).unwrap()
}

fn of(name: &str) -> WorkloadSpec {
    WorkloadSpec {
        owner: Some(owner(name)),
        ..spec()
    }
}

fn add(world: &mut World, name: &str, spec: WorkloadSpec) {
    world.add(name, spec, WaitFor::Programmed);
    world.settle();
}

fn begin(world: &mut World, name: &str) -> SyncId {
    world.sync(|node, _| node.handle_sync_begin(owner(name), None).unwrap())
}

fn name(world: &mut World, sync: SyncId, workload: &str) -> bool {
    world.sync(|node, _| node.handle_sync_name(sync, &id(workload)))
}

/// Named and unnamed.
fn complete(world: &mut World, sync: SyncId) -> (u64, u64) {
    let summary = world.sync(|node, now| node.handle_sync_complete(now, sync).unwrap());
    assert_eq!(summary.grace, GRACE);
    (summary.named, summary.unnamed)
}

/// Time passes, and everything that waits is done.
fn pass(world: &mut World, time: Duration) {
    world.pass(time);
    world.settle();
}

fn names(world: &World) -> Vec<String> {
    let views = world.node.workloads();
    views.iter().map(|view| view.id.to_string()).collect()
}

#[test]
fn what_a_whole_set_does_not_name_is_released_after_the_grace_period() {
    let mut world = World::new();
    for workload in ["a", "b", "c"] {
        add(&mut world, workload, of("nomad"));
    }
    let sync = begin(&mut world, "nomad");
    assert!(name(&mut world, sync, "a"));
    // An add is a name, too.
    add(&mut world, "b", of("nomad"));
    assert!(!name(&mut world, sync, "never"));
    assert_eq!(complete(&mut world, sync), (2, 1));
    let view = world.node.workload(&id("c")).unwrap();
    assert!(view.release_at.is_some());
    assert!(world.node.workload(&id("a")).unwrap().release_at.is_none());
    pass(&mut world, GRACE - Duration::from_millis(1));
    assert_eq!(names(&world), ["a", "b", "c"]);
    world.acknowledged.remove(&id("c"));
    pass(&mut world, Duration::from_millis(1));
    assert_eq!(names(&world), ["a", "b"]);
    let generation = view.generation;
    let released = SyncEvent::Released {
        id: id("c"),
        generation,
    };
    assert_eq!(world.synced, [(sync, released)]);
    pass(&mut world, Duration::from_secs(3600));
    assert_eq!(names(&world), ["a", "b"]);
    world.check_quiet();
}

#[test]
fn only_workloads_of_the_same_owner_are_released() {
    let mut world = World::new();
    add(&mut world, "mine", of("nomad"));
    add(&mut world, "theirs", of("slurm"));
    add(&mut world, "nobodys", spec());
    let sync = begin(&mut world, "nomad");
    assert!(!name(&mut world, sync, "theirs"), "it has another owner");
    assert_eq!(complete(&mut world, sync), (0, 1));
    world.acknowledged.remove(&id("mine"));
    pass(&mut world, GRACE);
    assert_eq!(names(&world), ["nobodys", "theirs"]);
    // Nor can an add take one over.
    let taken = world.add("theirs", of("nomad"), WaitFor::Programmed);
    assert!(
        matches!(world.add_error(taken), Error::OtherSpec { field, .. } if field == "owner"),
        "{:?}",
        world.add_error(taken)
    );
    world.check_quiet();
}

#[test]
fn a_stream_that_breaks_before_its_end_releases_nothing() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    add(&mut world, "b", of("nomad"));
    let sync = begin(&mut world, "nomad");
    name(&mut world, sync, "a");
    world.sync(|node, _| node.handle_sync_end(sync));
    pass(&mut world, Duration::from_secs(3600));
    assert_eq!(names(&world), ["a", "b"]);
    world.check_quiet();
}

#[test]
fn a_set_that_is_begun_anew_takes_back_what_the_last_one_left_out() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    let first = begin(&mut world, "nomad");
    assert_eq!(complete(&mut world, first), (0, 1));
    pass(&mut world, GRACE / 2);
    let second = begin(&mut world, "nomad");
    assert_eq!(world.synced, [(first, SyncEvent::Replaced)]);
    let ended = world.sync(|node, now| node.handle_sync_complete(now, first));
    assert_eq!(ended, Err(Error::SyncReplaced));
    assert!(world.node.workload(&id("a")).unwrap().release_at.is_none());
    // It breaks: nothing is released, although the first set was whole.
    world.sync(|node, _| node.handle_sync_end(second));
    pass(&mut world, Duration::from_secs(3600));
    assert_eq!(names(&world), ["a"]);
    world.check_quiet();
}

#[test]
fn whoever_is_named_in_the_grace_period_stays() {
    let mut world = World::new();
    for workload in ["a", "b", "c"] {
        add(&mut world, workload, of("nomad"));
    }
    let sync = begin(&mut world, "nomad");
    assert_eq!(complete(&mut world, sync), (0, 3));
    // By a message, by an add, and by an add that is refused.
    name(&mut world, sync, "a");
    add(&mut world, "b", of("nomad"));
    let other = WorkloadSpec {
        pools: vec!["six".to_owned()],
        ..of("nomad")
    };
    let refused = world.add("c", other, WaitFor::Programmed);
    assert!(matches!(world.add_error(refused), Error::OtherSpec { .. }));
    pass(&mut world, Duration::from_secs(3600));
    assert_eq!(names(&world), ["a", "b", "c"]);
    world.check_quiet();
}

#[test]
fn a_stream_that_ends_after_its_whole_set_changes_nothing() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    let sync = begin(&mut world, "nomad");
    complete(&mut world, sync);
    world.sync(|node, _| node.handle_sync_end(sync));
    world.acknowledged.remove(&id("a"));
    pass(&mut world, GRACE);
    assert_eq!(names(&world), [""; 0]);
    assert_eq!(world.synced, [], "nobody is there to be told");
    world.check_quiet();
}

#[test]
fn after_a_restart_nothing_is_released_before_the_next_whole_set() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    let sync = begin(&mut world, "nomad");
    complete(&mut world, sync);
    world.crash(usize::MAX);
    world.settle();
    pass(&mut world, Duration::from_secs(3600));
    assert_eq!(names(&world), ["a"]);
    let sync = begin(&mut world, "nomad");
    assert_eq!(complete(&mut world, sync), (0, 1), "its owner is stored");
    world.acknowledged.remove(&id("a"));
    pass(&mut world, GRACE);
    assert_eq!(names(&world), [""; 0]);
    world.check_quiet();
}

#[test]
fn a_release_that_the_store_refuses_is_tried_again() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    let sync = begin(&mut world, "nomad");
    complete(&mut world, sync);
    world.acknowledged.remove(&id("a"));
    world.pass(GRACE);
    assert_eq!(world.store_waits(), 1);
    world.store_answers(true);
    world.settle();
    assert_eq!(names(&world), ["a"]);
    pass(&mut world, Duration::from_secs(2));
    assert_eq!(names(&world), [""; 0]);
    world.check_quiet();
}

#[test]
fn a_workload_whose_namespace_is_shared_goes_after_those_that_share_it() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    let inside = WorkloadSpec {
        owner: Some(owner("nomad")),
        ..attached(Attachment::Shared { with: id("a") })
    };
    add(&mut world, "sidecar", inside);
    let sync = begin(&mut world, "nomad");
    assert_eq!(complete(&mut world, sync), (0, 2));
    world.acknowledged.clear();
    pass(&mut world, GRACE);
    assert_eq!(names(&world), ["a"]);
    pass(&mut world, Duration::from_secs(2));
    assert_eq!(names(&world), [""; 0]);
    world.check_quiet();
}

#[test]
fn a_workload_added_anew_is_not_released_for_the_one_before() {
    let mut world = World::new();
    add(&mut world, "a", of("nomad"));
    let sync = begin(&mut world, "nomad");
    complete(&mut world, sync);
    world.delete("a", None);
    world.settle();
    add(&mut world, "a", of("nomad"));
    pass(&mut world, Duration::from_secs(3600));
    assert_eq!(names(&world), ["a"]);
    world.check_quiet();
}

#[test]
fn streams_are_bounded() {
    let mut world = World::new();
    for number in 0..SYNCS {
        begin(&mut world, &format!("client-{number}"));
    }
    let more = world.sync(|node, _| node.handle_sync_begin(owner("more"), None));
    assert_eq!(more, Err(Error::Busy { limit: SYNCS }));
    begin(&mut world, "client-0");
}

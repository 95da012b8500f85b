//! Every order of a few events, and a crash at every step of longer runs. After each the node
//! settles, and disk, kernel, speaker and allocator tell the same story: no address twice, nothing
//! leaked, nothing without an owner.

use dataplane::desired::FailureKind;

use super::world::{World, fixed, spec};
use crate::node::WaitFor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Any address; the first one is 10.0.0.0.
    AddA,
    DeleteA,
    /// Wants 10.0.0.0.
    AddB,
    DeleteB,
    Stored,
    NotStored,
    Programmed,
    Refused,
    /// With nothing of what was on its way to the disk, or all of it.
    Crash,
    CrashAfterWrites,
}

const STEPS: [Step; 10] = [
    Step::AddA,
    Step::DeleteA,
    Step::AddB,
    Step::DeleteB,
    Step::Stored,
    Step::NotStored,
    Step::Programmed,
    Step::Refused,
    Step::Crash,
    Step::CrashAfterWrites,
];

fn take(world: &mut World, step: Step) {
    match step {
        Step::AddA => {
            world.add("a", spec(), WaitFor::Programmed);
        }
        Step::DeleteA => {
            world.delete("a", None);
        }
        Step::AddB => {
            world.add("b", fixed("10.0.0.0"), WaitFor::Programmed);
        }
        Step::DeleteB => {
            world.delete("b", None);
        }
        Step::Stored => world.store_answers(false),
        Step::NotStored => world.store_answers(true),
        Step::Programmed => world.kernel_answers(0, None),
        Step::Refused => world.kernel_answers(0, Some(FailureKind::Kernel)),
        Step::Crash => world.crash(0),
        Step::CrashAfterWrites => world.crash(world.store_waits()),
    }
}

/// Settles, and once more after a crash.
fn check(mut world: World, steps: &[Step]) {
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.settle();
        // What was refused is asked again after a while.
        world.pass(std::time::Duration::from_secs(6));
        world.settle();
        world.check_quiet();
        world.crash(0);
        world.settle();
        world.check_quiet();
    }));
    if let Err(panic) = run {
        eprintln!("after {steps:?}");
        std::panic::resume_unwind(panic);
    }
}

fn every_order_of(depth: u32, before: &[Step]) {
    let count = STEPS.len().pow(depth);
    for number in 0..count {
        let mut rest = number;
        let steps: Vec<Step> = (0..depth)
            .map(|_| {
                let step = STEPS[rest % STEPS.len()];
                rest /= STEPS.len();
                step
            })
            .collect();
        // Two answers of nothing, or a delete of nothing, lead nowhere new.
        if before.is_empty() && !matches!(steps[0], Step::AddA | Step::AddB) {
            continue;
        }
        let mut world = World::new();
        for step in before {
            take(&mut world, *step);
        }
        if !before.is_empty() {
            world.settle();
        }
        for step in &steps {
            take(&mut world, *step);
        }
        check(world, &steps);
    }
}

#[test]
fn every_order_of_four_events_of_a_fresh_node_ends_well() {
    every_order_of(4, &[]);
}

#[test]
fn every_order_of_events_around_a_workload_that_stands_ends_well() {
    every_order_of(3, &[Step::AddA]);
}

/// Adds and deletes of four workloads, with answers in between in any order.
fn run(seed: u64, steps: usize) -> World {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    for _ in 0..steps {
        let name = ["a", "b", "c", "d"][rng.usize(..4)];
        match rng.u8(..10) {
            0..3 => {
                world.add(name, spec(), WaitFor::Programmed);
            }
            3..5 => {
                world.delete(name, None);
            }
            5..7 => world.store_answers(rng.u8(..8) == 0),
            7..9 => {
                let refused = rng.u8(..8) == 0;
                world.kernel_answers(rng.usize(..16), refused.then_some(FailureKind::Kernel));
            }
            _ => world.speaker_answers(),
        }
    }
    world
}

#[test]
fn a_crash_at_every_step_of_many_runs_loses_nothing_leaks_nothing_and_gives_nothing_twice() {
    const SEEDS: u64 = 30;
    const LENGTH: usize = 40;
    for seed in 0..SEEDS {
        for at in 0..LENGTH {
            let waits = run(seed, at).store_waits();
            // Of what was on its way to the disk nothing, a part, or all had arrived.
            let mut written = vec![0, waits / 2, waits];
            written.dedup();
            for written in written {
                let mut world = run(seed, at);
                world.crash(written);
                world.settle();
                let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    world.check_quiet();
                }));
                if let Err(panic) = checked {
                    eprintln!("seed {seed}, crash at {at} with {written} written");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

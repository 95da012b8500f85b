//! Every kind of kernel object comes back after it was deleted or altered, and the witness of the
//! benchmark sees it. How fast is the benchmark's affair; this is no idle machine.

use anyhow::{Context as _, ensure};
use integration::bench::{repair, scale, spoilings};
use integration::lab;

#[test]
fn every_kind_of_object_is_repaired_counted_and_named() {
    lab::run(|lab| {
        let scene = spoilings::scene(lab)?;
        let agent = &scene.nodes.a;
        let counted = |kind: &str| -> anyhow::Result<u64> {
            let dataplane = agent.client().status()?.dataplane.unwrap_or_default();
            Ok(dataplane.repaired.get(kind).copied().unwrap_or(0))
        };
        let process = agent.process()?;
        let mut failed = Vec::new();
        for spoiling in &scene.spoilings {
            repair::settle(lab, &scene)?;
            let before = counted(spoiling.kind)?;
            let logged = process.log_text().len();
            let what = format!("{}, {}", spoiling.object, spoiling.how);
            match repair::measure(spoiling).context(what.clone()) {
                Ok(time) => println!("{what}: {time:?}"),
                Err(error) => {
                    failed.push(format!("{error:#}"));
                    continue;
                }
            }
            lab.wait_for(&format!("{what}: counted and told"), lab::PATIENCE, || {
                let after = counted(spoiling.kind)?;
                ensure!(after > before, "{before} before, {after} after");
                let log = process.log_text();
                let log = log.get(logged..).unwrap_or_default();
                let told = |line: &str| {
                    line.contains("changed by others") && line.contains(&spoiling.said)
                };
                ensure!(
                    log.lines().any(told),
                    "no {:?} in the log:\n{log}",
                    spoiling.said
                );
                Ok(())
            })
            .unwrap_or_else(|error| failed.push(format!("{error:#}")));
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    });
}

#[test]
fn a_hundred_workloads_outlive_a_restart_and_deletes_do_not_stop_adds() {
    lab::run(|lab| {
        let figures = scale::run(lab, 100, 60, 20)?;
        println!("{figures:?}");
        ensure!(figures.adds.len() == 100 && figures.adds_amid_deletes.len() == 20);
        Ok(())
    });
}

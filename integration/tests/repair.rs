//! Every kind of kernel object comes back after it was deleted or altered, and the witness of the
//! benchmark sees it. How fast is the benchmark's affair; this is no idle machine.

use anyhow::{Context as _, ensure};
use integration::bench::{repair, scale};
use integration::lab;

#[test]
fn every_kind_of_object_is_repaired_and_the_repair_is_counted() {
    lab::run(|lab| {
        let scene = repair::scene(lab)?;
        // Those of the nftables table have a counter of their own, among the metrics, and are told in
        // the log.
        let repairs = || -> anyhow::Result<u64> {
            let status = scene.nodes.a.client().status()?;
            let log = scene.nodes.a.process()?.log_text();
            let tables = log.matches("nftables changed by others, put back").count() as u64;
            Ok(status.dataplane.unwrap_or_default().repairs + tables)
        };
        let mut failed = Vec::new();
        for spoiling in &scene.spoilings {
            repair::settle(lab, &scene)?;
            let before = repairs()?;
            let what = format!("{}, {}", spoiling.object, spoiling.how);
            match repair::measure(spoiling).context(what.clone()) {
                Ok(time) => println!("{what}: {time:?}"),
                Err(error) => {
                    failed.push(format!("{error:#}"));
                    continue;
                }
            }
            lab.wait_for(&format!("{what}: counted"), lab::PATIENCE, || {
                let after = repairs()?;
                ensure!(after > before, "{before} before, {after} after");
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

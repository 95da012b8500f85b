//! Every kind of kernel object comes back after it was deleted or altered, and the witness of the
//! benchmark sees it. How fast is the benchmark's affair; this is no idle machine.

use anyhow::{Context as _, ensure};
use integration::bench::{repair, scale, spoilings};
use integration::lab::{self, two_nodes::TwoNodes};

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
fn a_foreign_object_on_our_key_is_shown_as_a_conflict_and_never_touched() {
    lab::run(|lab| {
        let mut nodes = TwoNodes::prepare(lab)?;
        nodes.a.config_mut().extra = "[tunnel]\naccept = [\"vxlan\"]".to_owned();
        let host = nodes.a.namespace().clone();
        // Where a learned route and a tunnel device are to stand.
        host.show("ip route add 10.244.2.0/26 via 192.168.26.1")?;
        host.show("ip link add agentd.vxlan type vxlan id 77 dstport 4790 local 192.168.26.11")?;
        let theirs = || -> anyhow::Result<String> {
            Ok(host.show("ip route show 10.244.2.0/26")?
                + &host.show("ip -details -oneline link show agentd.vxlan")?)
        };
        let before = theirs()?;
        nodes.a.start()?;
        nodes.b.start()?;
        lab.wait_for("both conflicts are shown", lab::PATIENCE, || {
            let text = nodes.a.agentctl(&["status"])?;
            let conflicts: Vec<&str> = text
                .lines()
                .filter(|line| line.contains("conflict: "))
                .collect();
            for what in ["10.244.2.0/26", "agentd.vxlan"] {
                ensure!(
                    conflicts.iter().any(|line| line.contains(what)),
                    "{what}: {text}"
                );
            }
            Ok(())
        })?;
        // It is tried again meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(500));
        ensure!(theirs()? == before, "{before} {}", theirs()?);
        host.show("ip route delete 10.244.2.0/26")?;
        host.show("ip link delete agentd.vxlan")?;
        lab.wait_for("ours stand once they are gone", lab::PATIENCE, || {
            let text = nodes.a.agentctl(&["status"])?;
            ensure!(!text.contains("conflict: "), "{text}");
            let now = theirs()?;
            ensure!(
                now.contains("nhid") && now.contains("agentd:tunnel"),
                "{now}"
            );
            Ok(())
        })
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

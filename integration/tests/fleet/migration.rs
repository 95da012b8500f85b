//! From one store to the other with workloads running.

use std::process::Command;

use anyhow::{Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::fleet::Fleet;
use integration::lab::{self, binaries, ping};

/// `agentd --migrate-store`, as an operator runs it: whether it succeeded, and what it said.
fn migrate(agent: &Agent) -> Result<(bool, String)> {
    let file = agent.write_config()?;
    let mut command: Command = agent.namespace().command(binaries::find("agentd")?);
    let output = command
        .arg("--migrate-store")
        .arg("--config")
        .arg(file)
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn a_node_moves_to_etcd_and_back_while_its_workload_is_pinged() {
    lab::run(|lab| {
        let fleet = Fleet::start(lab, 1, false)?;
        let local = |number: u8| {
            let mut config = fleet.config(number);
            config.ipam = String::new();
            config.claim = vec!["10.244.9.0/28".to_owned()];
            config.bgp = String::new();
            config
        };
        let mut a = fleet.agent(1, local(1))?;
        a.start()?;
        let one = a.workload("one")?;
        let two = a.workload("two")?;
        let pings = ping::Endless::start(lab, &one.namespace, two.ipv4()?)?;
        let before = a.client().blocks()?;

        // Not by a mere change of the configuration.
        a.terminate()?;
        a.config_mut().ipam = fleet.store("");
        a.config_mut().bgp = "mesh = true".to_owned();
        let process = a.launch()?;
        lab.wait_for("it refuses to start", lab::PATIENCE, || {
            ensure!(!process.is_running());
            ensure!(
                process.log_text().contains("--migrate-store"),
                "{}",
                process.log_text()
            );
            Ok::<_, anyhow::Error>(())
        })?;

        // Another node has one of the blocks: nothing is changed.
        let taken = "/agentd/v1/blocks/4/0af40900/030";
        let owner = r#"{"node":"node-7","identity":"x","claim":"y"}"#;
        fleet.etcd.ctl(&["put", taken, owner])?;
        let (done, text) = migrate(&a)?;
        ensure!(!done && text.contains("is held by node node-7"), "{text}");
        ensure!(fleet.etcd.keys("/agentd/v1/owned/")?.is_empty());
        fleet.etcd.ctl(&["del", taken])?;

        let (done, text) = migrate(&a)?;
        ensure!(done, "{text}");
        ensure!(fleet.etcd.keys("/agentd/v1/owned/node-1/")?.len() == before.len());
        // Once more changes nothing.
        let (done, text) = migrate(&a)?;
        ensure!(done && text.contains("already"), "{text}");
        a.start()?;
        fleet.wait_store(&a, true)?;
        let cidrs = |blocks: &[agentd_proto::v1::Block]| {
            blocks
                .iter()
                .map(|block| block.cidr.clone())
                .collect::<Vec<_>>()
        };
        ensure!(cidrs(&a.client().blocks()?).starts_with(&cidrs(&before)));
        a.workload("three")?;

        // And back: only with ranges that have all its blocks.
        a.terminate()?;
        a.config_mut().ipam = fleet
            .store("")
            .replace("store = \"etcd\"", "store = \"local\"");
        a.config_mut().bgp = String::new();
        a.config_mut().claim = vec!["10.244.200.0/28".to_owned()];
        let (done, text) = migrate(&a)?;
        ensure!(
            !done && text.contains("lies in no range of ipam.claim"),
            "{text}"
        );
        a.config_mut().claim = vec!["10.244.0.0/16".to_owned()];
        let (done, text) = migrate(&a)?;
        ensure!(done, "{text}");
        a.start()?;
        a.workload("four")?;
        ensure!(a.client().workloads()?.len() == 4);
        let report = pings.finish(lab)?;
        ensure!(report.lost() == 0 && report.sent > 5, "{report:?}");
        Ok(())
    });
}

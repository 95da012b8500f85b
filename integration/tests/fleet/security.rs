//! TLS and passwords.

use anyhow::{Result, ensure};
use integration::lab::agent::Agent;
use integration::lab::etcd::Certificates;
use integration::lab::fleet::Fleet;
use integration::lab::{self, Lab, PATIENCE};

/// Waits until the status of the agent says this of the store.
fn wait_said(lab: &Lab, agent: &Agent, text: &str) -> Result<()> {
    lab.wait_for(&format!("status says {text:?}"), PATIENCE, || {
        let said = agent.agentctl(&["status"])?;
        ensure!(said.contains(text), "{said}");
        Ok::<_, anyhow::Error>(())
    })
}

#[test]
fn a_wrong_password_or_authority_is_said_tried_again_and_put_right_without_a_restart() {
    lab::run(|lab| {
        let fleet = Fleet::start(lab, 1, true)?;
        fleet.etcd.require_password("secret")?;
        let password = lab.write_file("password", "wrong\n")?;
        let others = Certificates::make(lab, "other-tls", &["192.168.27.1".to_owned()])?;
        let files = fleet.etcd.certificates().expect("with TLS");
        let ca = lab.write_file("ca.pem", &std::fs::read_to_string(&others.ca)?)?;
        let mut config = fleet.config(1);
        let login = format!("username = \"agentd\"\npassword_file = {password:?}");
        config.ipam = fleet
            .store(&login)
            .replace(&format!("ca = {:?}", files.ca), &format!("ca = {ca:?}"));
        let agent = fleet.agent(1, config)?;
        agent.start()?;
        wait_said(lab, &agent, "invalid peer certificate")?;
        let namespace = lab.namespace("early")?;
        let refused = agent
            .client()
            .add(lab::workload::request("early", &namespace));
        ensure!(
            format!("{refused:?}").contains("invalid peer certificate"),
            "{refused:?}"
        );

        std::fs::copy(&files.ca, &ca)?;
        wait_said(lab, &agent, "authentication failed")?;
        std::fs::write(&password, "secret\n")?;
        fleet.wait_store(&agent, true)?;
        agent.workload("late")?;
        ensure!(!fleet.etcd.keys("/agentd/v1/owned/node-1/")?.is_empty());
        Ok(())
    });
}

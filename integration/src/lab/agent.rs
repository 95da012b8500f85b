//! One agentd inside a namespace: its configuration, its process through several lives, its API.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::client::Client;
use super::config::AgentConfig;
use super::netns::Netns;
use super::process::Process;
use super::workload::Workload;
use super::{Lab, PATIENCE, binaries, lock};

#[derive(Debug)]
pub struct Agent {
    lab: Lab,
    namespace: Netns,
    directory: PathBuf,
    config: AgentConfig,
    // A mutex and no channel: tests take the handle out to look at or end the process.
    process: Mutex<Option<Arc<Process>>>,
    client: Client,
}

impl Agent {
    /// Writes the configuration; does not start yet.
    pub fn new(lab: &Lab, namespace: &Netns, config: AgentConfig) -> Result<Self> {
        let directory = lab.directory().join(&config.name);
        std::fs::create_dir_all(&directory)?;
        let client = Client::new(&directory.join("agentd.sock"))?;
        let agent = Self {
            lab: lab.clone(),
            namespace: namespace.clone(),
            directory,
            config,
            process: Mutex::default(),
            client,
        };
        let agentctl = binaries::find("agentctl")?;
        for command in [
            "status",
            "workload list",
            "block list",
            "peer list",
            "route list",
        ] {
            let mut words = vec![
                agentctl.to_string_lossy().into_owned(),
                "--socket".into(),
                agent.socket().to_string_lossy().into_owned(),
            ];
            words.extend(command.split(' ').map(String::from));
            lab.dump_command(namespace, words);
        }
        Ok(agent)
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// Where its configuration, state and socket are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("agentd.sock")
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The configuration of the next start.
    pub fn config_mut(&mut self) -> &mut AgentConfig {
        &mut self.config
    }

    /// The running, or last, process.
    pub fn process(&self) -> Result<Arc<Process>> {
        lock(&self.process)
            .clone()
            .with_context(|| format!("{} was never started", self.name()))
    }

    /// Writes the configuration file and returns its path.
    pub fn write_config(&self) -> Result<PathBuf> {
        self.lab.write_file(
            &format!("{}/agentd.toml", self.name()),
            &self.config.toml(&self.directory),
        )
    }

    /// Starts the program without waiting for anything.
    pub fn launch(&self) -> Result<Arc<Process>> {
        let file = self.write_config()?;
        let program = binaries::find("agentd")?;
        let process = self.lab.spawn(
            &self.namespace,
            self.name(),
            [program.as_os_str(), "--config".as_ref(), file.as_os_str()],
        )?;
        *lock(&self.process) = Some(Arc::clone(&process));
        Ok(process)
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        let process = self.launch()?;
        self.lab
            .wait_for(&format!("{} is ready", self.name()), PATIENCE, || {
                ensure!(
                    process.is_running(),
                    "it has ended:\n{}",
                    process.log_text()
                );
                let status = self.client.status()?;
                ensure!(status.ready, "waiting for {:?}", status.waiting_for);
                Ok(())
            })
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        let process = self.process()?;
        ensure!(process.is_running(), "{} had ended before", self.name());
        process.kill();
        Ok(())
    }

    /// SIGTERM, and the status it ended with.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.process()?.end(Signal::SIGTERM, PATIENCE)
    }

    /// Waits until `count` peers are established.
    pub fn wait_peers(&self, count: u64) -> Result<()> {
        let what = format!("{} has {count} established peers", self.name());
        self.lab.wait_for(&what, PATIENCE, || {
            let status = self.client.status()?;
            ensure!(
                status.peers_established == count,
                "{} are",
                status.peers_established
            );
            Ok(())
        })
    }

    /// Runs agentctl against this agent.
    pub fn agentctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.namespace.command(binaries::find("agentctl")?);
        command.arg("--socket").arg(self.socket()).args(arguments);
        super::netns::run(&mut command)
    }

    /// Exit status and whole output of agentctl.
    pub fn agentctl_result(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = self.namespace.command(binaries::find("agentctl")?);
        let output = command
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok((output.status.code(), text))
    }

    /// Output of agentctl, which must exit with this status and say this.
    pub fn agentctl_expecting(&self, arguments: &[&str], code: i32, word: &str) -> Result<String> {
        let (status, text) = self.agentctl_result(arguments)?;
        ensure!(
            status == Some(code) && text.contains(word),
            "agentctl {arguments:?}: {status:?}, wanted {code} and {word:?}:\n{text}"
        );
        Ok(text)
    }

    /// Makes a namespace and adds it as a workload with an address of each family.
    pub fn workload(&self, id: &str) -> Result<Workload> {
        Workload::add(&self.lab, self, id)
    }
}

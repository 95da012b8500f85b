//! A real BIRD 2 inside a namespace.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::config::BirdConfig;
use super::netns::Netns;
use super::process::Process;
use super::{Lab, PATIENCE};

#[derive(Debug)]
pub struct Bird {
    lab: Lab,
    name: String,
    namespace: Netns,
    control: PathBuf,
    process: Arc<Process>,
}

impl Bird {
    /// Starts BIRD and waits until it answers.
    pub fn start(lab: &Lab, namespace: &Netns, name: &str, config: &BirdConfig) -> Result<Self> {
        let file = lab.write_file(&format!("{name}.conf"), &config.text())?;
        let control = lab.directory().join(format!("{name}.ctl"));
        let process = lab.spawn(
            namespace,
            name,
            [
                "bird".as_ref(),
                "-f".as_ref(),
                "-c".as_ref(),
                file.as_os_str(),
                "-s".as_ref(),
                control.as_os_str(),
            ],
        )?;
        for command in ["show protocols all", "show route all"] {
            lab.dump_command(
                namespace,
                ["birdc", "-s", &control.to_string_lossy(), command],
            );
        }
        let bird = Self {
            lab: lab.clone(),
            name: name.to_owned(),
            namespace: namespace.clone(),
            control,
            process,
        };
        bird.lab
            .wait_for(&format!("{name} answers birdc"), PATIENCE, || {
                ensure!(bird.process.is_running(), "{}", bird.process.log_text());
                bird.birdc("show status")
            })?;
        Ok(bird)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Reads a new configuration.
    pub fn configure(&self, config: &BirdConfig) -> Result<()> {
        self.lab
            .write_file(&format!("{}.conf", self.name), &config.text())?;
        self.birdc("configure").map(drop)
    }

    /// The answer to a command, without the greeting.
    pub fn birdc(&self, command: &str) -> Result<String> {
        let control = self.control.to_string_lossy();
        let mut words = vec!["birdc", "-s", &control];
        words.extend(command.split(' '));
        let answer = self.namespace.output(words)?;
        Ok(answer
            .lines()
            .filter(|line| !line.starts_with("BIRD ") && !line.starts_with("Access restricted"))
            .collect::<Vec<_>>()
            .join("\n"))
    }

    pub fn is_established(&self, protocol: &str) -> Result<bool> {
        Ok(self
            .birdc(&format!("show protocols {protocol}"))?
            .contains("Established"))
    }

    /// Waits for a session.
    pub fn wait_established(&self, protocol: &str) -> Result<()> {
        self.lab.wait_until(
            &format!("{}: session {protocol} is established", self.name),
            PATIENCE,
            || self.is_established(protocol).unwrap_or(false),
        )
    }

    /// The prefixes in BIRD's tables, sorted, without repetition.
    pub fn prefixes(&self) -> Result<Vec<String>> {
        let text = self.birdc("show route")?;
        let mut prefixes: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| word.contains('/'))
            .map(String::from)
            .collect();
        prefixes.sort();
        prefixes.dedup();
        Ok(prefixes)
    }

    /// What a peer sent since its session began: announced and withdrawn routes of all channels,
    /// counted before any filter.
    pub fn updates_received(&self, protocol: &str) -> Result<u64> {
        let text = self.birdc(&format!("show protocols all {protocol}"))?;
        let mut sum = 0;
        let mut lines = 0;
        for line in text.lines() {
            let line = line.trim();
            if let Some(rest) = line
                .strip_prefix("Import updates:")
                .or_else(|| line.strip_prefix("Import withdraws:"))
            {
                lines += 1;
                let count = rest.split_whitespace().next().context("empty counter")?;
                sum += count.parse::<u64>().with_context(|| line.to_owned())?;
            }
        }
        anyhow::ensure!(lines > 0, "no counters in:\n{text}");
        Ok(sum)
    }
}

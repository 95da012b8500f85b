//! Pings: a few and their result, or an endless one that is asked for its losses at the end.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::netns::Netns;
use super::process::Process;
use super::{Lab, PATIENCE};

/// Counts of one run of `ping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub sent: u32,
    pub received: u32,
}

impl Report {
    pub fn lost(self) -> u32 {
        self.sent.saturating_sub(self.received)
    }

    /// The summary that `ping` prints at its end.
    pub fn parse(text: &str) -> Result<Self> {
        // "20 packets transmitted, 20 received, 0% packet loss, time 19ms"
        let line = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .with_context(|| format!("no summary of ping in: {text}"))?;
        let mut numbers = line
            .split(", ")
            .map(|part| part.split(' ').next().unwrap_or_default());
        let mut number = || -> Result<u32> {
            numbers
                .next()
                .and_then(|word| word.parse().ok())
                .with_context(|| line.to_owned())
        };
        Ok(Self {
            sent: number()?,
            received: number()?,
        })
    }
}

/// Sends `count` echo requests, 20 in a second.
pub fn ping(from: &Netns, to: IpAddr, count: u32) -> Result<Report> {
    let output = from
        .command("ping")
        .args(["-n", "-q", "-i", "0.05", "-W", "1", "-c"])
        .arg(count.to_string())
        .arg(to.to_string())
        .output()
        .context("cannot run ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    Report::parse(&text).with_context(|| errors.into_owned())
}

/// Sends `count` echo requests and demands every answer.
pub fn ping_all(from: &Netns, to: IpAddr, count: u32) -> Result<()> {
    let report = ping(from, to, count)?;
    ensure!(
        report.sent == count && report.lost() == 0,
        "{} → {to}: {report:?}",
        from.name()
    );
    Ok(())
}

/// A ping that goes on until it is finished.
#[derive(Debug)]
pub struct Endless(Arc<Process>);

impl Endless {
    pub fn start(lab: &Lab, from: &Netns, to: IpAddr) -> Result<Self> {
        let name = format!("ping-{}-{to}", from.name());
        let to = to.to_string();
        let process = lab.spawn(from, &name, ["ping", "-n", "-i", "0.05", "-W", "1", &to])?;
        let endless = Self(process);
        lab.wait_until(&format!("first answer of {name}"), PATIENCE, || {
            endless.answers() > 0
        })?;
        Ok(endless)
    }

    /// Answers so far.
    pub fn answers(&self) -> usize {
        self.0.log_text().matches("bytes from").count()
    }

    /// Ends it right after an answer, so that no request is still on its way.
    pub fn finish(self, lab: &Lab) -> Result<Report> {
        let so_far = self.answers();
        lab.wait_until("one more answer", PATIENCE, || self.answers() > so_far)?;
        self.0.end(Signal::SIGINT, PATIENCE)?;
        Report::parse(&self.0.log_text())
    }
}

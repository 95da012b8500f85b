//! Pings: a few and their result, or an endless one that is asked for its losses at the end.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
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

    /// From the line of each answer; they are numbered from 1.
    fn up_to_the_last_answer(text: &str) -> Result<Self> {
        // "64 bytes from 10.244.1.2: icmp_seq=7 ttl=62 time=0.064 ms"
        let answered: BTreeSet<u32> = text
            .lines()
            .filter(|line| line.contains("bytes from"))
            .filter_map(|line| line.split("icmp_seq=").nth(1)?.split(' ').next())
            .filter_map(|number| number.parse().ok())
            .collect();
        let last = answered.last().with_context(|| text.to_owned())?;
        Ok(Self {
            sent: *last,
            received: u32::try_from(answered.len())?,
        })
    }
}

/// Seconds that an answer may take. A machine that stands still for a second loses no packet.
const DEADLINE: &str = "5";

/// Sends `count` echo requests, 20 in a second.
pub fn ping(from: &Netns, to: IpAddr, count: u32) -> Result<Report> {
    let output = from
        .command("ping")
        .args(["-n", "-q", "-i", "0.05", "-W", DEADLINE, "-c"])
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
    if report.sent == count && report.lost() == 0 {
        return Ok(());
    }
    let again = ping(from, to, count)?;
    let family = if to.is_ipv4() { "-4" } else { "-6" };
    let state = ["-s link", "address", "neighbour", "route"]
        .map(|what| {
            let words = format!("ip {family} {what}");
            from.show(&words).unwrap_or_else(|error| error.to_string())
        })
        .join("\n");
    bail!(
        "{} → {to}: {report:?}, and right after that {again:?}\n{state}",
        from.name()
    )
}

/// A ping that goes on until it is finished.
#[derive(Debug)]
pub struct Endless(Arc<Process>);

impl Endless {
    /// 20 requests in a second.
    pub fn start(lab: &Lab, from: &Netns, to: IpAddr) -> Result<Self> {
        Self::every(lab, from, to, "0.05")
    }

    /// 200 requests in a second.
    pub fn dense(lab: &Lab, from: &Netns, to: IpAddr) -> Result<Self> {
        Self::every(lab, from, to, "0.005")
    }

    fn every(lab: &Lab, from: &Netns, to: IpAddr, seconds: &str) -> Result<Self> {
        let name = format!("ping-{}-{to}", from.name());
        let to = to.to_string();
        let command = ["ping", "-n", "-i", seconds, "-W", DEADLINE, &to];
        let process = lab.spawn(from, &name, command)?;
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

    /// Ends it after one more answer. A request that is then still on its way was not lost, so only
    /// those before the last answer count.
    pub fn finish(self, lab: &Lab) -> Result<Report> {
        let so_far = self.answers();
        lab.wait_until("one more answer", PATIENCE, || self.answers() > so_far)?;
        self.0.end(Signal::SIGINT, PATIENCE)?;
        Report::up_to_the_last_answer(&self.0.log_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_after_the_last_answer_is_not_lost_and_one_between_answers_is() {
        let text = "64 bytes from 10.244.1.2: icmp_seq=1 ttl=62 time=0.1 ms\n\
            64 bytes from 10.244.1.2: icmp_seq=3 ttl=62 time=0.1 ms\n\
            64 bytes from 10.244.1.2: icmp_seq=3 ttl=62 time=0.2 ms (DUP!)\n\
            4 packets transmitted, 2 received, +1 duplicates, 50% packet loss, time 4ms\n";
        let report = Report::up_to_the_last_answer(text).expect("there are answers");
        assert_eq!((report.sent, report.received, report.lost()), (3, 2, 1));
        let report = Report::parse(text).expect("there is a summary");
        assert_eq!((report.sent, report.received, report.lost()), (4, 2, 2));
    }
}

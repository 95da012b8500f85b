//! The lab itself: what it makes works, and nothing of it stays behind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use integration::lab::bird::Bird;
use integration::lab::config::{BirdConfig, BirdPeer};
use integration::lab::monitor::{BgpCapture, KernelMonitor};
use integration::lab::netns::names as namespaces;
use integration::lab::wait::wait_for;
use integration::lab::{self, Lab, PATIENCE, ping};

fn runs(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn bird(number: u8, asn: u32, other: u8, other_asn: u32) -> BirdConfig {
    BirdConfig {
        router_id: format!("10.9.0.{number}"),
        address: format!("10.9.0.{number}"),
        address6: format!("fd00:9::{number}"),
        asn,
        peers: vec![BirdPeer {
            name: "neighbour".into(),
            address: format!("10.9.0.{other}"),
            asn: other_asn,
            extra: String::new(),
            families: vec!["ipv4", "ipv6"],
        }],
        extra: format!("protocol static {{ ipv4; route 10.{number}.0.0/26 blackhole; }}"),
    }
}

#[test]
fn two_birds_on_a_bridge_exchange_their_prefixes_before_witnesses() {
    lab::run(|lab| {
        let middle = lab.namespace("middle")?;
        lab.bridge(&middle, "br0")?;
        let mut ends = Vec::new();
        for number in [1, 2] {
            let end = lab.namespace(&format!("end{number}"))?;
            lab.bridge_port((&middle, "br0"), &format!("p{number}"), (&end, "eth0"))?;
            lab.address(&end, "eth0", &format!("10.9.0.{number}/24"))?;
            lab.address(&end, "eth0", &format!("fd00:9::{number}/64"))?;
            ends.push(end);
        }
        let [left, right] = ends.as_slice() else {
            anyhow::bail!("two ends were made");
        };
        ping::ping_all(left, "10.9.0.2".parse()?, 3)?;
        ping::ping_all(left, "fd00:9::2".parse()?, 3)?;
        let missing = ping::ping(left, "10.9.0.77".parse()?, 2)?;
        ensure!(missing.lost() == 2, "{missing:?}");

        let monitor = KernelMonitor::start(lab, left, &["route"])?;
        left.ip(["route", "add", "blackhole", "192.0.2.0/24"])?;
        lab.wait_until("the monitor tells the new route", PATIENCE, || {
            monitor
                .changes()
                .iter()
                .any(|line| line.contains("192.0.2.0/24"))
        })?;

        let capture = BgpCapture::start(lab, left, "eth0")?;
        let one = Bird::start(lab, left, "one", &bird(1, 65001, 2, 65002))?;
        let two = Bird::start(lab, right, "two", &bird(2, 65002, 1, 65001))?;
        one.wait_established("neighbour")?;
        lab.wait_until("two has the prefix of one", PATIENCE, || {
            two.prefixes()
                .is_ok_and(|prefixes| prefixes.contains(&"10.1.0.0/26".to_owned()))
        })?;
        ensure!(two.updates_received("neighbour")? == 1);
        lab.wait_until("tcpdump saw an UPDATE", PATIENCE, || {
            capture.count("Update Message") > 0
        })?;
        Ok(())
    });
}

#[test]
fn a_panic_takes_the_lab_down() {
    let mut prefix = String::new();
    let mut pid = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        lab::run(|lab| {
            prefix = lab.prefix().to_owned();
            let namespace = lab.namespace("x")?;
            pid = lab.spawn(&namespace, "sleep", ["sleep", "1000"])?.pid();
            assert!(runs(pid));
            panic!("as a failing test does");
        });
    }));
    assert!(outcome.is_err());
    assert!(!prefix.is_empty() && pid > 0);
    assert_eq!(namespaces(&prefix), [""; 0]);
    assert!(!runs(pid));
}

#[test]
fn a_wait_that_fails_names_what_it_waited_for_and_the_last_answer() {
    let error = wait_for("the impossible", std::time::Duration::ZERO, || {
        Err::<(), _>("not yet")
    });
    let text = format!("{:#}", error.expect_err("it never holds"));
    assert!(
        text.contains("the impossible") && text.contains("not yet"),
        "{text}"
    );
}

/// The variable that turns the next test into the owner that will be killed.
const OWNER_FILE: &str = "LAB_TEST_OWNER_FILE";

#[test]
fn a_lab_whose_owner_is_killed_is_cleaned_up() -> Result<()> {
    if let Some(file) = std::env::var_os(OWNER_FILE) {
        let lab = Lab::new()?;
        let namespace = lab.namespace("x")?;
        let process = lab.spawn(&namespace, "sleep", ["sleep", "1000"])?;
        std::fs::write(file, format!("{} {}", lab.prefix(), process.pid()))?;
        loop {
            std::thread::park();
        }
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("owner");
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_lab_whose_owner_is_killed_is_cleaned_up"])
        .env(OWNER_FILE, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let (prefix, pid) = wait_for("the owner has made its lab", PATIENCE, || {
        let text = std::fs::read_to_string(&file)?;
        let (prefix, pid) = text.split_once(' ').context("incomplete")?;
        anyhow::Ok((prefix.to_owned(), pid.parse::<i32>()?))
    })?;
    assert_eq!(namespaces(&prefix).len(), 1);
    owner.kill()?;
    owner.wait()?;
    wait_for("its lab is gone", PATIENCE, || {
        ensure!(namespaces(&prefix).is_empty(), "{:?}", namespaces(&prefix));
        ensure!(!runs(pid), "pid {pid} runs");
        Ok(())
    })
}

//! A store in a process of its own, to be killed, or to run out of space.
//!
//! The child is this test binary, told to run one test that does nothing without its environment
//! variable.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;

const DIRECTORY: &str = "AGENTD_TEST_STORE_DIRECTORY";
/// A shell command that makes room.
const RELIEF: &str = "AGENTD_TEST_STORE_RELIEF";

/// Runs `test` of this file in a process of its own, started by a shell script that ends in
/// `exec "$@"`.
fn spawn(test: &str, script: &str, directory: &Path, relief: &str) -> Child {
    Command::new("sh")
        .args(["-ec", script, "sh"])
        .arg(env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("store::tests::child::{test}"),
            "--nocapture",
        ])
        .env(DIRECTORY, directory)
        .env(RELIEF, relief)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The directory, in a child.
fn directory() -> Option<PathBuf> {
    env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Says something to the parent.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A line of its own: the test harness writes to the same place.
    writeln!(out, "\nsaid: {text}").unwrap();
    out.flush().unwrap();
}

/// What the child said until it ended.
fn listen(child: &mut Child) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok);
    said.filter_map(|line| line.strip_prefix("said: ").map(str::to_owned))
        .collect()
}

/// The changes of operation `number`: one of each kind.
pub(super) fn operation(number: u64) -> Vec<Record> {
    let octets = u32::try_from(number).unwrap().to_be_bytes();
    let address = IpAddr::from([10, octets[1], octets[2], octets[3]]);
    vec![
        Record::Generation(number),
        Record::PutWorkload(workload(&format!("w{number:08}"), number)),
        Record::PutBlock(block(&format!("{address}/32"))),
        Record::PutCooling(CoolingRecord {
            address,
            ..cooling("10.0.0.0")
        }),
    ]
}

#[test]
fn writes_until_killed() {
    let Some(directory) = directory() else { return };
    let (store, mut completions, recovered) = Store::open(&directory).unwrap();
    let mut next = recovered.generation + 1;
    for _ in 0..8 {
        store.submit(operation(next), next).unwrap();
        next += 1;
    }
    loop {
        let completion = completions.blocking_next().unwrap();
        completion.result.unwrap();
        say(&completion.token.to_string());
        store.submit(operation(next), next).unwrap();
        next += 1;
    }
}

#[test]
fn after_a_kill_at_any_time_everything_acknowledged_is_there_and_nothing_in_part() {
    let directory = tempfile::tempdir().unwrap();
    let mut highest = 0;
    for round in 0..12u64 {
        let mut child = spawn("writes_until_killed", "exec \"$@\"", directory.path(), "");
        let pause = 20 + (round * 37) % 90;
        // Not a wait for something: the moment of the kill is what varies.
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        let said = listen(&mut child);
        child.wait().unwrap();
        let acknowledged = said
            .iter()
            .filter_map(|text| text.parse::<u64>().ok())
            .max();
        highest = highest.max(acknowledged.unwrap_or(0));

        let (store, _, recovered) = Store::open(directory.path()).unwrap();
        drop(store);
        let count = recovered.generation;
        assert!(
            count >= highest,
            "{highest} was acknowledged, {count} is stored"
        );
        let expected: Vec<WorkloadRecord> = (1..=count)
            .map(|number| workload(&format!("w{number:08}"), number))
            .collect();
        assert_eq!(recovered.workloads, expected, "a prefix of the history");
        assert_eq!(recovered.blocks.len() as u64, count);
        assert_eq!(recovered.cooling.len() as u64, count);
        highest = count;
    }
    assert!(
        highest > 20,
        "only {highest} operations: nothing was tested"
    );
}

/// A workload that takes about 20 kB.
fn large(number: u64) -> Record {
    let labels: BTreeMap<String, String> = (0..64)
        .map(|key| (format!("label-{key}"), "x".repeat(255)))
        .collect();
    let mut record = workload(&format!("w{number:08}"), number);
    let spec = Arc::make_mut(&mut record.spec);
    spec.labels = Labels::new(labels).unwrap();
    Record::PutWorkload(record)
}

#[test]
fn fills_the_disk() {
    let Some(directory) = directory() else { return };
    let (store, mut completions, _) = Store::open(&directory).unwrap();
    let mut submit = |number: u64| {
        store
            .submit(vec![Record::Generation(number), large(number)], number)
            .unwrap();
        completions.blocking_next().unwrap().result
    };
    let mut number = 1;
    let error = loop {
        match submit(number) {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 5000, "the disk never gets full");
    };
    say(&format!("error {error}"));
    let full = PersistError::DiskFull {
        file: directory.join("state.redb"),
    };
    assert_eq!(error, full);
    // Again, and again no half-done state.
    assert_eq!(submit(number), Err(full));
    let relief = env::var(RELIEF).unwrap();
    let relieved = Command::new("sh").args(["-c", &relief]).status().unwrap();
    assert!(relieved.success());
    let statistics = store.statistics();
    assert_eq!(
        (statistics.submissions, statistics.failed_commits),
        (number - 1, 2)
    );
    // The failed one is not stored by the success of a later one.
    submit(number + 1).unwrap();
    drop(store);
    let (_store, _, recovered) = Store::open(&directory).unwrap();
    let found: Vec<u64> = recovered
        .workloads
        .iter()
        .map(|record| record.generation)
        .collect();
    let expected: Vec<u64> = (1..number).chain([number + 1]).collect();
    assert_eq!(found, expected);
    say("all is well");
}

#[track_caller]
fn check_full(script: &str, directory: &Path, relief: &str) {
    let mut child = spawn("fills_the_disk", script, directory, relief);
    let said = listen(&mut child);
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("error no space left for "), "{said:?}");
    assert_eq!(said[1], "all is well");
}

#[test]
fn a_limit_on_the_file_fails_the_change_and_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    // In units of 512 bytes. Without the trap the signal would end the child.
    let script = "trap '' XFSZ; ulimit -S -f 6000; exec \"$@\"";
    check_full(
        script,
        directory.path(),
        "prlimit --pid $PPID --fsize=unlimited:",
    );
}

#[test]
fn a_full_disk_fails_the_change_and_leaves_what_was_there() {
    if !nix::unistd::geteuid().is_root() {
        // Mounting needs root; the limit on the file size tests the same without.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // A mount of a namespace of its own, gone with the child.
    let script = format!(
        "mount -t tmpfs -o size=6m none {0}; head -c 2000000 /dev/zero > {0}/ballast; exec \"$@\"",
        directory.path().display()
    );
    let script = format!("exec unshare -m sh -ec '{script}' sh \"$@\"");
    let relief = format!("rm {}/ballast", directory.path().display());
    check_full(&script, directory.path(), &relief);
}

//! What bad input gets: a clear error, and nothing half-done.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use agentd_proto::v1;
use anyhow::{Context as _, Result, bail, ensure};
use integration::lab::agent::Agent;
use integration::lab::config::{Peer, Pool};
use integration::lab::workload::request;
use integration::lab::{self, Lab, PATIENCE, binaries, single};
use tonic::{Code, Status};

/// Everything a failed add could leave behind: links, addresses, routes, neighbours, records.
fn traces(agent: &Agent) -> Result<String> {
    let namespace = agent.namespace();
    let mut text = String::new();
    for command in [
        "ip -brief link",
        "ip -brief address",
        "ip route",
        "ip -6 route",
        "ip neighbour show nud permanent",
    ] {
        text += &namespace.show(command)?;
    }
    for workload in agent.client().workloads()? {
        text += &workload.id;
    }
    for block in agent.client().blocks()? {
        text += &format!("{} {} {}\n", block.cidr, block.used, block.free);
    }
    Ok(text)
}

fn add(agent: &Agent, request: v1::AddWorkloadRequest) -> Result<v1::Workload, Status> {
    agent
        .client()
        .add(request)?
        .workload
        .ok_or_else(|| Status::internal("no workload"))
}

/// Expects an add to be refused with one of these codes and a text that contains `word`, and to
/// leave nothing.
fn refused(
    agent: &Agent,
    what: &str,
    request: v1::AddWorkloadRequest,
    codes: &[Code],
    word: &str,
) -> Result<()> {
    let before = traces(agent)?;
    let status = match agent.client().add(request) {
        Ok(answer) => bail!("{what}: accepted: {answer:?}"),
        Err(status) => status,
    };
    ensure!(codes.contains(&status.code()), "{what}: {status:?}");
    ensure!(
        status.message().contains(word),
        "{what}: no {word:?} in {:?}",
        status.message()
    );
    let after = traces(agent)?;
    ensure!(
        before == after,
        "{what} left something:\n{before}\n---\n{after}"
    );
    Ok(())
}

#[test]
fn adds_that_cannot_be_done_are_refused_and_leave_nothing() {
    lab::run(|lab| {
        let mut config = single::config();
        config.pools.push(Pool::new("tiny", "10.99.0.0/29", 29));
        config.claim.push("10.99.0.0/29".into());
        let agent = single::prepare(lab, config)?;
        agent.start()?;
        let namespace = lab.namespace("w")?;
        let good = add(&agent, request("good", &namespace))?;

        let mut bad = request("bad", &namespace);
        bad.namespace = Some(v1::add_workload_request::Namespace::Netns(
            "/run/netns/there-is-none".into(),
        ));
        refused(
            &agent,
            "no such namespace",
            bad,
            &[Code::NotFound],
            "there-is-none",
        )?;

        let file = lab.write_file("not-a-namespace", "")?;
        let mut bad = request("bad", &namespace);
        bad.namespace = Some(v1::add_workload_request::Namespace::Netns(
            file.to_string_lossy().into_owned(),
        ));
        refused(
            &agent,
            "a file that is no namespace",
            bad,
            &[
                Code::InvalidArgument,
                Code::NotFound,
                Code::FailedPrecondition,
            ],
            "not-a-namespace",
        )?;

        let mut bad = request("bad", &namespace);
        bad.namespace = None;
        refused(
            &agent,
            "no namespace given",
            bad,
            &[Code::InvalidArgument],
            "netns",
        )?;

        let bad = request("white space", &namespace);
        refused(
            &agent,
            "a malformed id",
            bad,
            &[Code::InvalidArgument],
            "id",
        )?;

        let mut bad = request("good", &namespace);
        bad.mtu = 1400;
        refused(
            &agent,
            "same id, other specification",
            bad,
            &[Code::AlreadyExists],
            "good",
        )?;

        let mut bad = request("bad", &namespace);
        bad.interface_name = "eth7".into();
        refused(
            &agent,
            "namespace attached already",
            bad,
            &[Code::FailedPrecondition],
            "by workload good",
        )?;

        let occupied = lab.namespace("occupied")?;
        lab.link((&occupied, "eth0"), (&occupied, "eth1"))?;
        refused(
            &agent,
            "interface name in use",
            request("bad", &occupied),
            &[Code::FailedPrecondition],
            "eth0",
        )?;

        let free = lab.namespace("free")?;
        let taken = good
            .addresses
            .first()
            .context("no address")?
            .address
            .clone();
        let mut bad = request("bad", &free);
        bad.addresses = vec![taken.clone()];
        refused(&agent, "address taken", bad, &[Code::AlreadyExists], &taken)?;

        let mut bad = request("bad", &free);
        bad.addresses = vec!["192.0.2.1".into()];
        refused(
            &agent,
            "address outside the pools",
            bad,
            &[
                Code::InvalidArgument,
                Code::NotFound,
                Code::FailedPrecondition,
            ],
            "192.0.2.1",
        )?;

        let mut bad = request("bad", &free);
        bad.pool = "nowhere".into();
        refused(&agent, "no such pool", bad, &[Code::NotFound], "nowhere")?;

        let missing = agent.client().get("nobody");
        ensure!(
            missing.as_ref().is_err_and(|s| s.code() == Code::NotFound),
            "{missing:?}"
        );
        ensure!(!agent.client().delete("nobody")?);

        fill_the_tiny_pool(lab, &agent)?;
        a_fixed_address_is_given(lab, &agent)?;
        Ok(())
    });
}

fn fill_the_tiny_pool(lab: &Lab, agent: &Agent) -> Result<()> {
    let mut given = 0;
    loop {
        let namespace = lab.namespace(&format!("tiny{given}"))?;
        let mut tiny = request(&format!("tiny-{given}"), &namespace);
        tiny.pool = "tiny".into();
        if given == 8 {
            return refused(
                agent,
                "a full pool",
                tiny,
                &[Code::ResourceExhausted],
                "tiny",
            );
        }
        let workload = add(agent, tiny)?;
        ensure!(workload.addresses.len() == 1, "{workload:?}");
        given += 1;
    }
}

fn a_fixed_address_is_given(lab: &Lab, agent: &Agent) -> Result<()> {
    let namespace = lab.namespace("fixed")?;
    let mut fixed = request("fixed", &namespace);
    fixed.addresses = vec!["10.244.1.33".into()];
    let workload = add(agent, fixed)?;
    ensure!(
        workload.addresses.len() == 1 && workload.addresses[0].address == "10.244.1.33",
        "{workload:?}"
    );
    let node: IpAddr = lab::two_nodes::node_address(1).0.parse()?;
    lab::ping::ping_all(&namespace, node, 2)
}

/// Starts a program that must end by itself, unsuccessfully, and say one of these words.
fn ends_with(agent: &Agent, what: &str, words: &[&str]) -> Result<String> {
    let process = agent.launch()?;
    let status = process.wait(PATIENCE).with_context(|| what.to_owned())?;
    let text = process.log_text();
    ensure!(!status.success(), "{what}: {status}\n{text}");
    for word in words {
        ensure!(text.contains(word), "{what}: no {word:?} in:\n{text}");
    }
    Ok(text)
}

#[test]
fn a_second_agent_a_used_port_and_a_broken_store_are_told_at_the_start() {
    lab::run(|lab| {
        let node = single::node_namespace(lab)?;
        let first = Agent::new(lab, &node, single::config())?;
        first.start()?;
        let state = first.directory().join("state");

        // The same state directory from a namespace where no port is in use.
        let elsewhere = lab.namespace("elsewhere")?;
        let mut config = single::config();
        config.name = "same-state".into();
        let second = Agent::new(lab, &elsewhere, config)?;
        std::os::unix::fs::symlink(&state, second.directory().join("state"))?;
        ends_with(&second, "a second agent on one state directory", &["state"])?;

        let mut config = single::config();
        config.name = "same-port".into();
        config.extra = "[telemetry]\nmetrics_listen = \"127.0.0.1:9473\"".into();
        let second = Agent::new(lab, &node, config)?;
        ends_with(&second, "BGP port in use", &["179", "in use"])?;

        ensure!(
            first.process()?.is_running(),
            "the first agent was disturbed"
        );
        first.client().status()?;

        // Unreadable state: refused, and not overwritten.
        ensure!(first.terminate()?.success());
        let mut broken = Vec::new();
        for entry in fs::read_dir(&state)? {
            let path = entry?.path();
            let is_database = path.extension().is_some_and(|e| e == "redb");
            if is_database {
                fs::write(
                    &path,
                    "this is no database, and long enough to be looked at\n".repeat(500),
                )?;
                broken.push(path);
            }
        }
        ensure!(!broken.is_empty(), "no state file in {}", state.display());
        ends_with(&first, "a broken store", &[&state.to_string_lossy()])?;
        for path in broken {
            ensure!(fs::read(&path)?.starts_with(b"this is no database"));
        }
        Ok(())
    });
}

#[test]
fn without_the_capability_the_agent_says_which_one() {
    lab::run(|lab| {
        let agent = single::prepare(lab, single::config())?;
        let file = agent.write_config()?;
        let program = binaries::find("agentd")?;
        let process = lab.spawn(
            agent.namespace(),
            "powerless",
            [
                "setpriv".as_ref(),
                "--bounding-set=-net_admin".as_ref(),
                "--inh-caps=-net_admin".as_ref(),
                program.as_os_str(),
                "--config".as_ref(),
                file.as_os_str(),
            ],
        )?;
        let status = process.wait(PATIENCE)?;
        ensure!(!status.success());
        ensure!(
            process.log_text().contains("CAP_NET_ADMIN"),
            "{}",
            process.log_text()
        );
        Ok(())
    });
}

/// Runs `agentd --check` on a configuration.
fn check(directory: &std::path::Path, text: &str) -> Result<(Option<i32>, String)> {
    let file = directory.join("agentd.toml");
    fs::write(&file, text)?;
    let output = Command::new(binaries::find("agentd")?)
        .arg("--config")
        .arg(&file)
        .arg("--check")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    Ok((output.status.code(), said.into_owned()))
}

#[test]
fn check_names_file_line_key_and_reason_of_every_error() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut config = single::config();
    config.peers = vec![Peer::new("rr", "192.168.26.1", 64512)];
    let good = config.toml(directory.path());
    let (code, said) = check(directory.path(), &good)?;
    ensure!(code == Some(0), "a good configuration: {code:?}\n{said}");

    // What is replaced in the good file, and words the complaint must have.
    let cases: [(&str, &str, &[&str]); 10] = [
        ("asn = 64512", "asn = 0", &["asn"]),
        ("asn = 64512", "asn = \"many\"", &["asn"]),
        ("asn = 64512", "", &["asn"]),
        (
            "[ipam]",
            "[ipam]\nclaims = [\"10.244.1.0/24\"]",
            &["claims"],
        ),
        ("block_size = 26", "block_size = 33", &["block_size", "32"]),
        ("10.244.0.0/16", "10.244.0.1/16", &["cidr"]),
        (
            "\"10.244.1.0/24\"",
            "\"10.99.0.0/24\"",
            &["claim", "10.99.0.0/24"],
        ),
        (
            "address = \"192.168.26.1\"",
            "address = \"rr.example\"",
            &["address"],
        ),
        ("[ipam]", "[ipam]\nstore = \"paper\"", &["store", "paper"]),
        ("[bgp]", "[bgp]\nhold_time = \"1s\"", &["hold_time"]),
    ];
    for (from, to, words) in cases {
        ensure!(good.contains(from), "no {from:?} in:\n{good}");
        let bad = good.replacen(from, to, 1);
        let line = 1 + good
            .lines()
            .position(|line| line.contains(from))
            .context("line")?;
        let (code, said) = check(directory.path(), &bad)?;
        ensure!(code == Some(2), "{to:?}: exit {code:?}\n{said}");
        ensure!(said.contains("agentd.toml"), "{to:?}: no file in {said}");
        // An added line is the one after, and a missing key is told at its table.
        let lines = [line, line + 1, line.saturating_sub(1)];
        ensure!(
            lines
                .iter()
                .any(|line| said.contains(&format!(":{line}"))
                    || said.contains(&format!("line {line}"))),
            "{to:?}: no line of {lines:?} in {said}"
        );
        for word in words {
            ensure!(said.contains(word), "{to:?}: no {word:?} in {said}");
        }
    }

    let two = good.replacen("asn = 64512", "asn = 0", 1).replacen(
        "block_size = 26",
        "block_size = 33",
        1,
    );
    let (_, said) = check(directory.path(), &two)?;
    ensure!(
        said.contains("asn") && said.contains("block_size"),
        "only one error: {said}"
    );

    let missing = Command::new(binaries::find("agentd")?)
        .args(["--check", "--config", "/nowhere/agentd.toml"])
        .output()?;
    ensure!(missing.status.code() == Some(2));
    ensure!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/agentd.toml"));
    Ok(())
}

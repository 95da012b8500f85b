//! The demo: two nodes with a BIRD between them, workloads on both, and a look at all of it.
//!
//! `demo` runs and tears down, `demo --keep` leaves the lab running, `demo --down` ends a kept
//! one. `./dev demo` builds everything and calls this.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use integration::lab::agent::Agent;
use integration::lab::ping::{self, Endless};
use integration::lab::two_nodes::TwoNodes;
use integration::lab::workload::Workload;
use integration::lab::{Guard, Lab, PATIENCE, binaries, netns, tear_down_released};
use nix::sys::signal::{SigSet, Signal};

/// What is known of a kept demo: the lab's prefix and its directory, one per line.
const KEPT: &str = "/run/agentd-demo";

/// Two agentd nodes with a BIRD 2 route reflector between them, on this machine.
#[derive(Parser)]
struct Arguments {
    /// Leave the lab running.
    #[arg(long)]
    keep: bool,
    /// Tear down a lab that was left running.
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\x1b[1;31merror:\x1b[0m {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.down {
        return down();
    }
    if Path::new(KEPT).exists() {
        bail!("a demo is running; `./dev down` ends it");
    }
    // Before any thread is made: all of them must leave these to the guard.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;

    let before = host_state()?;
    let lab = if arguments.keep {
        Lab::new_kept()?
    } else {
        Lab::new()?
    };
    guard(lab.guard(), signals);
    let steps = Steps::new();
    let shown = show(&lab, &steps);
    if let Err(error) = shown {
        eprintln!("{}", lab.dump());
        lab.tear_down();
        return Err(error);
    }
    if arguments.keep {
        return keep(lab);
    }
    steps.say("tear down");
    let prefix = lab.prefix().to_owned();
    lab.tear_down();
    let after = host_state()?;
    // Others may change what is theirs meanwhile; what is new and looks like ours is a fault.
    let marks = [prefix.as_str(), "agt", "10.244.", "fd10:244:"];
    let left: Vec<_> = after
        .lines()
        .filter(|line| !before.contains(line) && marks.iter().any(|mark| line.contains(mark)))
        .collect();
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    println!("no namespace, link or route of it is left on this machine");
    steps.say("done: all pings were answered");
    Ok(())
}

/// Ends the lab in order on Control-C and SIGTERM.
fn guard(lab: Guard, signals: SigSet) {
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: tearing down");
            lab.tear_down();
            std::process::exit(128 + signal as i32);
        }
    });
}

/// What must be the same before and after.
fn host_state() -> Result<String> {
    let mut text = String::new();
    for arguments in [
        ["netns", "list"].as_slice(),
        &["-brief", "link"],
        &["route"],
        &["-6", "route"],
    ] {
        text += &netns::run(std::process::Command::new("ip").args(arguments))?;
    }
    Ok(text)
}

struct Steps(Instant);

impl Steps {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn say(&self, text: &str) {
        println!(
            "\n\x1b[1m==> [{:5.1}s] {text}\x1b[0m",
            self.0.elapsed().as_secs_f32()
        );
    }
}

/// Prints a command as one would type it, and its output.
fn command(prompt: &str, line: &str, output: &str) {
    println!("\x1b[36m{prompt}$\x1b[0m {line}");
    for line in output.trim_end().lines() {
        println!("    {line}");
    }
}

fn agentctl(agent: &Agent, line: &str) -> Result<()> {
    let output = agent.agentctl(&line.split(' ').collect::<Vec<_>>())?;
    command(agent.name(), &format!("agentctl {line}"), &output);
    Ok(())
}

fn show(lab: &Lab, steps: &Steps) -> Result<()> {
    steps.say("two nodes on one link, and a BIRD 2 route reflector: AS 64512, IPv4 and IPv6");
    let nodes = TwoNodes::start(lab)?;
    for agent in [&nodes.a, &nodes.b] {
        agentctl(agent, "status")?;
    }

    steps.say("three workloads on each node, each in a network namespace of its own");
    let mut workloads = Vec::new();
    for (agent, letter) in [(&nodes.a, 'a'), (&nodes.b, 'b')] {
        let mut own = Vec::new();
        for number in 1..=3 {
            own.push(add(lab, agent, &format!("{letter}{number}"))?);
        }
        workloads.push(own);
    }
    let [on_a, on_b] = workloads.as_slice() else {
        bail!("there are two nodes");
    };

    steps.say("pings from every workload of one node to every one of the other, both families");
    let mut lost = 0;
    for (from, to) in [(on_a, on_b), (on_b, on_a)] {
        for source in from {
            lost += ping_row(source, to)?;
        }
    }
    ensure!(lost == 0, "{lost} pings were lost");
    println!("    0 % loss");

    steps.say("what agentctl tells");
    for agent in [&nodes.a, &nodes.b] {
        for line in ["workload list", "block list", "peer list", "route list"] {
            agentctl(agent, line)?;
        }
    }
    agentctl(&nodes.a, &format!("explain {}", first(on_b)?.ipv4()?))?;

    steps.say("what the kernels have");
    for agent in [&nodes.a, &nodes.b] {
        for family in ["-4", "-6"] {
            let output = agent.namespace().ip_route(family)?;
            command(agent.name(), &format!("ip {family} route"), &output);
        }
    }

    steps.say("what BIRD has: one block per node and family, no host route");
    command(
        "rr",
        "birdc show route",
        &nodes.reflector.birdc("show route")?,
    );

    steps.say("kill -9 of agentd on node-a while a workload of it is talking, and a start");
    let talk = Endless::start(lab, &first(on_a)?.namespace, first(on_b)?.ipv4()?)?;
    nodes.a.kill()?;
    nodes.a.start()?;
    nodes.wait_converged()?;
    lab.wait_until("two seconds of pings", PATIENCE, || talk.answers() >= 40)?;
    let report = talk.finish(lab)?;
    println!("    {} pings sent, {} lost", report.sent, report.lost());
    ensure!(report.lost() == 0, "{report:?}");
    agentctl(&nodes.a, "workload list")
}

fn first(workloads: &[Workload]) -> Result<&Workload> {
    workloads.first().context("no workload")
}

/// Adds a workload as an operator does.
fn add(lab: &Lab, agent: &Agent, id: &str) -> Result<Workload> {
    let namespace = lab.namespace(id)?;
    let line = format!("workload add {id} --netns {}", namespace.path().display());
    agentctl(agent, &line)?;
    let answer = agent.client().get(id)?;
    Ok(Workload {
        id: id.to_owned(),
        namespace,
        answer,
    })
}

/// Pings all addresses of `to`, prints one line, and returns how many were lost.
fn ping_row(source: &Workload, to: &[Workload]) -> Result<u32> {
    let mut line = format!("    {} →", source.id);
    let mut lost = 0;
    for target in to {
        for address in target.addresses() {
            let report = ping::ping(&source.namespace, address, 5)?;
            lost += report.lost();
            write!(line, "  {address} {}/{}", report.received, report.sent)?;
        }
    }
    println!("{line}");
    Ok(lost)
}

/// Leaves the lab running and says how to look around.
fn keep(lab: Lab) -> Result<()> {
    let prefix = lab.prefix().to_owned();
    let directory = lab.directory().to_owned();
    fs::write(KEPT, format!("{prefix}\n{}\n", directory.display()))
        .with_context(|| format!("cannot write {KEPT}"))?;
    lab.release();
    let agentctl = binaries::find("agentctl")?;
    let (agentctl, directory) = (agentctl.display(), directory.display());
    println!(
        "
The lab goes on. Look around:

  ip netns                                            # {prefix}-node-a, -node-b, -rr, and the workloads
  {agentctl} --socket {directory}/node-a/agentd.sock status
  ip netns exec {prefix}-node-a ip route
  ip netns exec {prefix}-a1 ping -c 3 10.244.2.1
  birdc -s {directory}/bird.ctl show route
  tail -f {directory}/node-a.log

End it:

  ./dev down"
    );
    Ok(())
}

/// Ends a kept demo.
fn down() -> Result<()> {
    let Ok(text) = fs::read_to_string(KEPT) else {
        println!("no demo is running");
        return Ok(());
    };
    let mut lines = text.lines();
    let (Some(prefix), Some(directory)) = (lines.next(), lines.next()) else {
        bail!("{KEPT} is not of a demo");
    };
    tear_down_released(prefix, &PathBuf::from(directory))?;
    fs::remove_file(KEPT)?;
    println!("the demo is gone");
    Ok(())
}

//! `agentctl`: operation and diagnostics over the agent's gRPC API.
//!
//! Each command module asks the API and renders the answer twice: as a table for people, and as
//! JSON for programs. JSON is the canonical protobuf mapping of the API's own messages, so that what
//! a script reads is documented in the `.proto` files and nowhere else.
//!
//! Exit status: 0, 1 (the operation failed), 2 (usage), 3 (the agent cannot be reached).

mod block;
mod client;
mod drain;
mod explain;
mod ipam;
mod node;
mod output;
mod peer;
mod peer_show;
mod route;
mod status;
mod sync;
mod time;
mod workload;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use client::Client;
pub use client::Error;
use output::Output;

/// Operate and question agentd, the node-level routing daemon.
#[derive(Debug, Parser)]
#[command(
    name = "agentctl",
    version,
    about = "Operate and question agentd, the node-level routing daemon",
    after_help = "Examples:\n  \
        agentctl status\n  \
        agentctl workload add web-1 --netns /run/netns/web-1\n  \
        agentctl route list --table kernel\n  \
        agentctl explain 10.244.2.7\n\n\
        Exit status: 0 success, 1 the operation failed, 2 wrong usage, 3 agentd cannot be reached."
)]
pub struct Cli {
    /// Unix socket of the agent
    #[arg(
        long,
        global = true,
        env = "AGENTD_SOCKET",
        value_name = "PATH",
        default_value = "/run/agentd/agentd.sock"
    )]
    socket: PathBuf,

    /// Table for people, or JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how the agent is and what it waits for
    Status,
    /// Take the node out of the network: announce its blocks as a last resort, then withdraw them
    Drain(drain::Arguments),
    /// Announce the blocks of the node again
    Undrain,
    /// Look at the nodes of the fleet's store, and take one out that is gone
    #[command(subcommand)]
    Node(node::Command),
    /// Add, delete and look at workloads
    #[command(subcommand)]
    Workload(workload::Command),
    /// Look at the address blocks this node holds, and give them back
    #[command(subcommand)]
    Block(block::BlockCommand),
    /// Check that records, kernel and BGP agree; show who has which address
    #[command(subcommand)]
    Ipam(ipam::Command),
    /// Look at the address pools
    #[command(subcommand)]
    Pool(block::PoolCommand),
    /// Look at BGP peers, add and remove them, shut them down and reset them
    #[command(subcommand)]
    Peer(peer::Command),
    /// Look at routes: best, received, sent, or in the kernel
    #[command(subcommand)]
    Route(route::Command),
    /// Read the configuration again and apply what can change without a restart
    Reload,
    /// Tell how packets to an address go from here, and if they do not, why
    Explain(explain::Arguments),
}

/// Runs one command to its end.
pub async fn run(cli: Cli) -> ExitCode {
    match execute(cli).await {
        Ok(code) => code,
        // The reader went away (`agentctl … | head`): nobody is left to tell.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("agentctl: {error}");
            for hint in error.hints() {
                eprintln!("  {hint}");
            }
            ExitCode::from(error.exit_status())
        }
    }
}

async fn execute(cli: Cli) -> Result<ExitCode, Error> {
    let client = Client::connect(&cli.socket).await?;
    let mut out = Output::new(cli.output == Format::Json);
    match cli.command {
        Command::Status => status::run(&client, &mut out).await?,
        Command::Drain(arguments) => drain::drain(arguments, &client, &mut out).await?,
        Command::Undrain => drain::undrain(&client, &mut out).await?,
        Command::Node(command) => node::run(command, &client, &mut out).await?,
        Command::Workload(command) => workload::run(command, &client, &mut out).await?,
        Command::Block(command) => block::run_block(command, &client, &mut out).await?,
        Command::Ipam(command) => return ipam::run(command, &client, &mut out).await,
        Command::Pool(command) => block::run_pool(command, &client, &mut out).await?,
        Command::Peer(command) => peer::run(command, &client, &mut out).await?,
        Command::Reload => peer::reload(&client, &mut out).await?,
        Command::Route(command) => route::run(command, &client, &mut out).await?,
        Command::Explain(arguments) => {
            return explain::run(arguments, &client, &mut out).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

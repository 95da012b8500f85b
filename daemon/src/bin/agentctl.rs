//! `agentctl`: see [`agentd::ctl`].

use std::process::ExitCode;

use agentd::ctl;
use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ctl::run(ctl::Cli::parse()).await
}

//! `agentctl explain`: every fact about an address, in the order a packet would meet it.

use std::{net::IpAddr, process::ExitCode};

use agentd_proto::v1::{ExplainRequest, explain_step::Status};
use clap::Args;

use super::{
    client::{Client, Error},
    output::{Output, printable},
};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Address of either family
    address: IpAddr,
}

/// Exit status 1 when there is no way to the address, so that scripts can ask.
pub async fn run(
    arguments: Arguments,
    client: &Client,
    out: &mut Output,
) -> Result<ExitCode, Error> {
    let request = ExplainRequest {
        address: arguments.address.to_string(),
    };
    let response = client.routing().explain(request).await?.into_inner();
    if out.is_json() {
        out.json("ExplainResponse", &response)?;
    } else {
        let width = response
            .steps
            .iter()
            .map(|step| step.subject.chars().count())
            .max()
            .unwrap_or(0);
        for step in &response.steps {
            let mark = match step.status() {
                Status::Unspecified | Status::Info => ' ',
                Status::Ok => '✓',
                Status::Warning => '!',
                Status::Problem => '✗',
            };
            let mut lines = step.text.lines();
            let first = printable(lines.next().unwrap_or_default());
            out.line(format!("{mark} {:<width$}  {first}", step.subject))?;
            for line in lines {
                out.line(format!("  {:<width$}  {}", "", printable(line)))?;
            }
        }
        out.line(format!("→ {}", printable(&response.summary)))?;
    }
    Ok(if response.reachable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

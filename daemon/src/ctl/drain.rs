//! `agentctl drain` and `agentctl undrain`.

use std::time::Duration;

use agentd_proto::v1::{DrainRequest, DrainState, GetStatusRequest, UndrainRequest};
use clap::Args;

use super::{
    client::{Client, Error},
    output::Output,
    time,
};

/// How often the agent is asked whether everything is withdrawn.
const ASK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Seconds between the announcement as a last resort and the withdrawal, up to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u16).range(0..=3600))]
    timeout: u16,
    /// Return when it has begun; `agentctl status` tells when everything is withdrawn
    #[arg(long)]
    no_wait: bool,
}

pub async fn drain(arguments: Arguments, client: &Client, out: &mut Output) -> Result<(), Error> {
    let request = DrainRequest {
        timeout: Some(prost_types::Duration {
            seconds: arguments.timeout.into(),
            nanos: 0,
        }),
    };
    let mut response = client.node().drain(request).await?.into_inner();
    if !arguments.no_wait {
        while response.state() == DrainState::Leaving {
            tokio::time::sleep(ASK).await;
            let status = client.node().get_status(GetStatusRequest {}).await?;
            let status = status.into_inner();
            response.set_state(status.drain_state());
            response.withdrawn_at = status.withdrawn_at;
        }
    }
    if out.is_json() {
        return out.json("DrainResponse", &response);
    }
    out.line(state(response.state(), response.withdrawn_at.as_ref()))
}

pub async fn undrain(client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client.node().undrain(UndrainRequest {}).await?.into_inner();
    if out.is_json() {
        return out.json("UndrainResponse", &response);
    }
    out.line("the blocks of this node are announced again")
}

/// For a person; empty when the node is not drained.
pub fn state(state: DrainState, withdrawn_at: Option<&prost_types::Timestamp>) -> String {
    match state {
        DrainState::Unspecified | DrainState::None => String::new(),
        DrainState::Leaving => format!(
            "leaving: announced as a last resort, withdrawn {}",
            time::moment(withdrawn_at)
        ),
        DrainState::Drained => "drained: nothing is announced".to_owned(),
    }
}

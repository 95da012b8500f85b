//! `agentctl workload sync`: states all workloads of an owner from a file.
//!
//! The file is read whole before anything is sent: half a set would have the other half released.

use std::{io::Read as _, path::Path, time::Duration};

use agentd_proto::v1::{
    AddWorkloadRequest, SyncBegin, SyncComplete, SyncWorkloadsRequest, SyncWorkloadsResponse,
    sync_workloads_request::Message, sync_workloads_response::Kind,
};
use clap::Args;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    client::{Client, Error},
    output::{Output, from_json, printable},
};

/// Messages on their way to the agent.
const QUEUE: usize = 64;

#[derive(Debug, Args)]
pub struct Arguments {
    /// One AddWorkloadRequest as JSON in each line, such as {"id": "a", "netns": "/run/netns/a"};
    /// "-" reads standard input
    file: std::path::PathBuf,
    /// Whose workloads these are: only those of this owner are released
    #[arg(long, value_name = "NAME")]
    owner: String,
    /// How long workloads that are not in the file stay; by default as the agent is configured
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// Wait until they are released
    #[arg(long)]
    wait: bool,
}

fn read(file: &Path) -> Result<Vec<AddWorkloadRequest>, Error> {
    let mut text = String::new();
    let result = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    result.map_err(|error| Error::Usage(format!("{}: {error}", file.display())))?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            from_json("AddWorkloadRequest", line)
                .map_err(|error| Error::Usage(format!("{}:{}: {error}", file.display(), index + 1)))
        })
        .collect()
}

fn messages(arguments: &Arguments, workloads: Vec<AddWorkloadRequest>) -> Vec<Message> {
    let begin = SyncBegin {
        owner: arguments.owner.clone(),
        grace: arguments
            .grace
            .and_then(|grace| prost_types::Duration::try_from(grace).ok()),
    };
    let mut messages = vec![Message::Begin(begin)];
    messages.extend(workloads.into_iter().map(Message::Workload));
    messages.push(Message::Complete(SyncComplete {}));
    messages
}

pub async fn run(arguments: Arguments, client: &Client, out: &mut Output) -> Result<(), Error> {
    let workloads = read(&arguments.file)?;
    let ids: Vec<String> = workloads.iter().map(|one| one.id.clone()).collect();
    let messages = messages(&arguments, workloads);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(async move {
        for (message, sequence) in messages.into_iter().zip(1..) {
            let request = SyncWorkloadsRequest {
                sequence,
                message: Some(message),
            };
            if sender.send(request).await.is_err() {
                return None;
            }
        }
        // While it is kept, the stream stays open.
        Some(sender)
    });
    let mut stream = client
        .workload()
        .sync_workloads(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let mut counts = Counts::default();
    let mut open = Some(sending);
    while let Some(response) = stream.message().await? {
        if out.is_json() {
            out.json_line("SyncWorkloadsResponse", &response)?;
        }
        counts.take(&response, &ids, out)?;
        if counts.is_done(ids.len(), arguments.wait) && open.is_some() {
            // Ends the stream from this side.
            drop(open.take());
        }
    }
    counts.finish(ids.len(), out)
}

#[derive(Debug, Default)]
struct Counts {
    created: u64,
    standing: u64,
    failed: usize,
    released: u64,
    synced: Option<SyncWorkloadsResponse>,
    answered: usize,
}

impl Counts {
    fn take(
        &mut self,
        response: &SyncWorkloadsResponse,
        ids: &[String],
        out: &mut Output,
    ) -> Result<(), Error> {
        match response.kind() {
            Kind::Standing => {
                self.answered += 1;
                self.standing += 1;
                self.created += u64::from(response.created);
            }
            Kind::Failed => {
                self.answered += 1;
                self.failed += 1;
                let error = response.error.clone().unwrap_or_default();
                // The first message is begin.
                let place = usize::try_from(response.sequence).ok();
                let id = place.and_then(|place| ids.get(place.checked_sub(2)?));
                let id = id.map_or("", String::as_str);
                if !out.is_json() {
                    out.line(format!("{}: {}", printable(id), printable(&error.message)))?;
                }
            }
            Kind::Synced => self.synced = Some(response.clone()),
            Kind::Released => {
                self.released += 1;
                let id = response.workload.clone().unwrap_or_default().id;
                if !out.is_json() {
                    out.line(format!("{} released", printable(&id)))?;
                }
            }
            Kind::Unspecified | Kind::Begun | Kind::Kept | Kind::Deleted => {}
        }
        Ok(())
    }

    fn is_done(&self, sent: usize, wait: bool) -> bool {
        let Some(synced) = &self.synced else {
            return false;
        };
        self.answered >= sent && (!wait || self.released >= synced.unnamed)
    }

    fn finish(&self, sent: usize, out: &mut Output) -> Result<(), Error> {
        let Some(synced) = &self.synced else {
            let text = "the stream ended before the whole set was stated; nothing is released";
            return Err(Status::aborted(text).into());
        };
        if !out.is_json() {
            let grace = synced.grace.unwrap_or_default();
            let grace = Duration::try_from(grace).unwrap_or_default();
            let rest = match (synced.unnamed, self.released) {
                (0, _) => "nothing else is of this owner".to_owned(),
                (unnamed, released) if released >= unnamed => {
                    format!("{released} not in the file, released")
                }
                (unnamed, _) => format!(
                    "{unnamed} not in the file, released in {}",
                    humantime::format_duration(grace)
                ),
            };
            out.line(format!(
                "{} workload(s) stand, {} of them new; {rest}",
                self.standing, self.created
            ))?;
        }
        match self.failed {
            0 => Ok(()),
            failed => {
                let text = format!("{failed} of {sent} workload(s) could not be had");
                Err(Status::aborted(text).into())
            }
        }
    }
}

//! `SyncWorkloads`: a client states all its workloads, then every change.
//!
//! Messages go to the node's task in their order; their answers come when each is done, at most
//! [`IN_FLIGHT`] being on their way. A client that sends faster is held back by HTTP/2's flow control,
//! so a stream of any length costs a fixed amount of memory.

use std::{pin::Pin, time::Duration};

use agentd_proto::v1::{self, sync_workloads_request::Message, sync_workloads_response::Kind};
use futures::{
    Stream,
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt as _},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{error::status, parse, render, workload::Workloads};
use crate::node::{
    Error, WaitFor,
    handle::{Sync, SyncPending},
    spec::{Owner, WorkloadId},
    sync::SyncEvent,
};

/// Messages of one stream that may wait for their answers.
const IN_FLIGHT: usize = 128;
/// Answers that may wait for the client to read them.
const ANSWERS: usize = 64;
/// Longest grace period.
const GRACE_MAX: Duration = Duration::from_secs(86_400);

pub(super) type SyncStream =
    Pin<Box<dyn Stream<Item = Result<v1::SyncWorkloadsResponse, Status>> + Send + 'static>>;

type Answer = BoxFuture<'static, v1::SyncWorkloadsResponse>;

/// Serves the stream in a task of its own.
pub(super) fn serve(
    workloads: Workloads,
    requests: Streaming<v1::SyncWorkloadsRequest>,
) -> SyncStream {
    let (answers, stream) = mpsc::channel(ANSWERS);
    tokio::spawn(async move {
        if let Err(status) = run(&workloads, requests, &answers).await {
            // It fails only when the client has gone.
            let _ = answers.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

fn answer(sequence: u64, kind: Kind) -> v1::SyncWorkloadsResponse {
    v1::SyncWorkloadsResponse {
        sequence,
        kind: kind.into(),
        ..Default::default()
    }
}

fn failed(sequence: u64, error: &Error) -> v1::SyncWorkloadsResponse {
    v1::SyncWorkloadsResponse {
        error: Some(super::error::described(error)),
        ..answer(sequence, Kind::Failed)
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// The first message.
async fn begin(
    workloads: &Workloads,
    requests: &mut Streaming<v1::SyncWorkloadsRequest>,
) -> Result<Option<(u64, Owner, Sync)>, Status> {
    let Some(first) = requests.message().await? else {
        return Ok(None);
    };
    let Some(Message::Begin(begin)) = first.message else {
        return Err(Error::invalid("message", "must be begin in the first message").into());
    };
    let Some(owner) = parse::owner("begin.owner", &begin.owner)? else {
        return Err(Error::invalid("begin.owner", "is required").into());
    };
    let grace = match begin.grace {
        None => None,
        Some(grace) => Some(
            Duration::try_from(grace)
                .ok()
                .filter(|grace| *grace <= GRACE_MAX)
                .ok_or_else(|| Error::invalid("begin.grace", "is not between 0 and 24 h"))?,
        ),
    };
    let sync = workloads.0.node.sync(owner.clone(), grace).await?;
    Ok(Some((first.sequence, owner, sync)))
}

async fn run(
    workloads: &Workloads,
    mut requests: Streaming<v1::SyncWorkloadsRequest>,
    out: &mpsc::Sender<Result<v1::SyncWorkloadsResponse, Status>>,
) -> Result<(), Status> {
    let Some((sequence, owner, mut sync)) = begin(workloads, &mut requests).await? else {
        return Ok(());
    };
    tracing::info!(%owner, "a client states its workloads");
    let mut answers: FuturesUnordered<Answer> = FuturesUnordered::new();
    answers.push(Box::pin(async move { answer(sequence, Kind::Begun) }));
    let mut open = true;
    while open || !answers.is_empty() {
        tokio::select! {
            message = requests.message(), if open && answers.len() < IN_FLIGHT => match message? {
                Some(message) => {
                    let answer = take(workloads, &owner, &sync, message).await?;
                    answers.push(answer);
                }
                None => open = false,
            },
            Some(answer) = answers.next() => {
                if out.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
            event = sync.events.recv() => match event {
                Some(SyncEvent::Released { id, generation }) => {
                    tracing::info!(%owner, workload = %id, "released: its owner does not name it");
                    let released = v1::SyncWorkloadsResponse {
                        workload: Some(v1::Workload {
                            id: id.to_string(),
                            generation,
                            ..Default::default()
                        }),
                        ..answer(0, Kind::Released)
                    };
                    if out.send(Ok(released)).await.is_err() {
                        return Ok(());
                    }
                }
                Some(SyncEvent::Replaced) => return Err(Error::SyncReplaced.into()),
                // Too slow, or the agent stops.
                None => return Err(Error::Stopping.into()),
            },
            () = out.closed() => return Ok(()),
        }
    }
    Ok(())
}

/// Hands a message to the node's task. The error ends the stream; what is wrong with the message
/// itself is its answer.
async fn take(
    workloads: &Workloads,
    owner: &Owner,
    sync: &Sync,
    message: v1::SyncWorkloadsRequest,
) -> Result<Answer, Status> {
    let sequence = message.sequence;
    let now = |answer: v1::SyncWorkloadsResponse| -> Answer { Box::pin(async move { answer }) };
    let result = match message.message {
        Some(Message::Workload(request)) => add(workloads, owner, sync, sequence, request).await,
        Some(Message::Delete(request)) => delete(workloads, owner, sync, sequence, &request).await,
        Some(Message::Keep(id)) => keep(sync, sequence, &id).await,
        Some(Message::Complete(v1::SyncComplete {})) => complete(owner, sync, sequence).await,
        Some(Message::Begin(_)) => Err(Error::invalid("message", "is begin a second time")),
        None => Err(Error::invalid("message", "is missing")),
    };
    match result {
        Ok(answer) => Ok(answer),
        Err(Error::Stopping) => Err(Error::Stopping.into()),
        Err(error) => Ok(now(failed(sequence, &error))),
    }
}

async fn add(
    workloads: &Workloads,
    owner: &Owner,
    sync: &Sync,
    sequence: u64,
    mut request: v1::AddWorkloadRequest,
) -> Result<Answer, Error> {
    // Named, whatever becomes of the rest.
    let id = parse::workload_id(&request.id)?;
    sync.name(id.clone()).await?;
    if request.owner.is_empty() {
        owner.as_str().clone_into(&mut request.owner);
    } else if request.owner != owner.as_str() {
        let text = format!("is {:?}; this stream is that of {owner}", request.owner);
        return Err(Error::invalid("workload.owner", text));
    }
    let asked = workloads.parsed(request).await?;
    if asked.wait_for != WaitFor::Programmed {
        let text = "cannot be ADVERTISED in a stream; watch the workloads";
        return Err(Error::invalid("workload.wait_for", text));
    }
    let added = sync.add(asked.id, asked.spec, asked.listening).await?;
    let metrics = workloads.0.metrics.clone();
    Ok(Box::pin(async move {
        let (result, took) = added.answer().await;
        metrics.operation_finished("add", code(&result), took);
        match result {
            Ok(added) => v1::SyncWorkloadsResponse {
                workload: Some(render::workload(&added.workload)),
                created: added.created,
                ..answer(sequence, Kind::Standing)
            },
            Err(error) => failed(sequence, &error),
        }
    }))
}

async fn delete(
    workloads: &Workloads,
    owner: &Owner,
    sync: &Sync,
    sequence: u64,
    request: &v1::DeleteWorkloadRequest,
) -> Result<Answer, Error> {
    let id = parse::workload_id(&request.id)?;
    let generation = (request.generation != 0).then_some(request.generation);
    let deleted: SyncPending<bool> = sync.delete(owner.clone(), id, generation).await?;
    let metrics = workloads.0.metrics.clone();
    Ok(Box::pin(async move {
        let (result, took) = deleted.answer().await;
        metrics.operation_finished("delete", code(&result), took);
        match result {
            Ok(deleted) => v1::SyncWorkloadsResponse {
                deleted,
                ..answer(sequence, Kind::Deleted)
            },
            Err(error) => failed(sequence, &error),
        }
    }))
}

async fn keep(sync: &Sync, sequence: u64, id: &str) -> Result<Answer, Error> {
    let id: WorkloadId = parse::workload_id(id)?;
    if !sync.name(id.clone()).await? {
        return Err(Error::WorkloadNotFound(id));
    }
    Ok(Box::pin(async move { answer(sequence, Kind::Kept) }))
}

async fn complete(owner: &Owner, sync: &Sync, sequence: u64) -> Result<Answer, Error> {
    let summary = sync.complete().await?;
    tracing::info!(
        %owner,
        named = summary.named,
        unnamed = summary.unnamed,
        grace = ?summary.grace,
        "a client has stated its workloads; those unnamed are released after the grace period"
    );
    Ok(Box::pin(async move {
        v1::SyncWorkloadsResponse {
            named: summary.named,
            unnamed: summary.unnamed,
            grace: duration(summary.grace),
            ..answer(sequence, Kind::Synced)
        }
    }))
}

fn code<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "OK",
        Err(error) => super::error::code_name(status(error).code()),
    }
}

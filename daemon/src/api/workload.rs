//! `WorkloadService`.

use std::{
    pin::Pin,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use agentd_proto::v1::{self, workload_service_server::WorkloadService};
use dataplane::{
    desired::Protocol,
    linux::listeners::{Listener, listeners},
};
use futures::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Context, error::status, parse, render, sync::SyncStream};
use crate::node::{
    Error, WaitFor, WorkloadId, WorkloadSpec,
    handle::{WATCH_QUEUE, Watch},
};

#[derive(Clone, Debug)]
pub(super) struct Workloads(pub(super) Context);

/// An add with all that was looked up for it.
pub(super) struct Asked {
    pub(super) id: WorkloadId,
    pub(super) spec: WorkloadSpec,
    /// Programs of the node on ports that it publishes.
    pub(super) listening: Vec<Listener>,
    pub(super) wait_for: WaitFor,
}

/// Most workloads have no ports, and nobody is asked. Ports are not kept from workloads because the
/// kernel does not tell.
fn listening(ports: &[(Protocol, u16)]) -> Vec<Listener> {
    if ports.is_empty() {
        return Vec::new();
    }
    listeners(ports).unwrap_or_else(|error| {
        tracing::warn!(%error, "ports are published without a look at who listens on them");
        Vec::new()
    })
}

type WatchStream =
    Pin<Box<dyn Stream<Item = Result<v1::WatchWorkloadsResponse, Status>> + Send + 'static>>;

impl Workloads {
    async fn add(
        &self,
        request: Request<v1::AddWorkloadRequest>,
    ) -> Result<v1::AddWorkloadResponse, Error> {
        // Counted from here: what follows takes time as well.
        let deadline = deadline(request.metadata()).map(|left| tokio::time::Instant::now() + left);
        let Asked {
            id,
            spec,
            listening,
            wait_for,
        } = self.parsed(request.into_inner()).await?;
        let add = self.0.node.add(id.clone(), spec, listening, wait_for);
        let added = match (wait_for, deadline) {
            // The caller's deadline would end the call anyhow; ending it a little earlier lets
            // the answer say that the workload stays.
            (WaitFor::Advertised, Some(deadline)) => tokio::time::timeout_at(deadline, add)
                .await
                .map_err(|_| Error::NotAdvertised(id))??,
            _ => add.await?,
        };
        Ok(v1::AddWorkloadResponse {
            workload: Some(render::workload(&added.workload)),
            created: added.created,
        })
    }

    /// The request with what only the system knows: its namespace, and who listens on its ports.
    pub(super) async fn parsed(&self, request: v1::AddWorkloadRequest) -> Result<Asked, Error> {
        let parsed = parse::add(request)?;
        let ports: Vec<_> = parsed
            .access
            .ports()
            .iter()
            .map(|port| (port.protocol, port.host_port))
            .collect();
        let look = move || Ok::<_, Error>((parsed.attachment.find()?, listening(&ports)));
        let (attachment, listening) =
            tokio::task::spawn_blocking(look)
                .await
                .map_err(|error| Error::Unavailable {
                    part: "namespace lookup",
                    text: error.to_string(),
                })??;
        let spec = WorkloadSpec {
            attachment,
            pools: parsed.pools,
            addresses: parsed.addresses,
            mtu: parsed.mtu,
            labels: parsed.labels,
            access: parsed.access,
            owner: parsed.owner,
        };
        Ok(Asked {
            id: parsed.id,
            spec,
            listening,
            wait_for: parsed.wait_for,
        })
    }

    async fn delete(
        &self,
        request: v1::DeleteWorkloadRequest,
    ) -> Result<v1::DeleteWorkloadResponse, Error> {
        let id = parse::workload_id(&request.id)?;
        let generation = (request.generation != 0).then_some(request.generation);
        let deleted = self.0.node.delete(id, generation).await?;
        Ok(v1::DeleteWorkloadResponse { deleted })
    }

    /// Counts the call, logs it, and maps its error.
    fn finish<T>(
        &self,
        operation: &'static str,
        id: &str,
        started: Instant,
        result: Result<T, Error>,
    ) -> Result<Response<T>, Status> {
        let took = started.elapsed();
        let (result, code) = match result {
            Ok(value) => {
                tracing::debug!(operation, workload = id, ?took, "done");
                (Ok(Response::new(value)), "OK")
            }
            Err(error) => {
                let status = status(&error);
                tracing::info!(operation, workload = id, ?took, code = ?status.code(), %error, "failed");
                let code = super::error::code_name(status.code());
                (Err(status), code)
            }
        };
        self.0.metrics.operation_finished(operation, code, took);
        result
    }
}

/// The most that an answer gets of the time of its call.
const MOST_ROOM: Duration = Duration::from_millis(250);

/// What is left for the call, less room to answer. The header is ASCII digits and a unit (gRPC over
/// HTTP/2, "Timeout").
fn deadline(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u32 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(3600).checked_mul(value)?,
        "M" => Duration::from_secs(60).checked_mul(value)?,
        "S" => Duration::from_secs(value.into()),
        "m" => Duration::from_millis(value.into()),
        "u" => Duration::from_micros(value.into()),
        "n" => Duration::from_nanos(value.into()),
        _ => return None,
    };
    Some(timeout - (timeout / 10).min(MOST_ROOM))
}

#[tonic::async_trait]
impl WorkloadService for Workloads {
    async fn add_workload(
        &self,
        request: Request<v1::AddWorkloadRequest>,
    ) -> Result<Response<v1::AddWorkloadResponse>, Status> {
        let started = Instant::now();
        let id = request.get_ref().id.chars().take(253).collect::<String>();
        let result = self.add(request).await;
        self.finish("add", &id, started, result)
    }

    async fn delete_workload(
        &self,
        request: Request<v1::DeleteWorkloadRequest>,
    ) -> Result<Response<v1::DeleteWorkloadResponse>, Status> {
        let started = Instant::now();
        let id = request.get_ref().id.chars().take(253).collect::<String>();
        let result = self.delete(request.into_inner()).await;
        self.finish("delete", &id, started, result)
    }

    async fn get_workload(
        &self,
        request: Request<v1::GetWorkloadRequest>,
    ) -> Result<Response<v1::GetWorkloadResponse>, Status> {
        let id = parse::workload_id(&request.into_inner().id)?;
        let view = self.0.node.get(id).await?;
        Ok(Response::new(v1::GetWorkloadResponse {
            workload: Some(render::workload(&view)),
        }))
    }

    async fn list_workloads(
        &self,
        _request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let views = self.0.node.list().await?;
        Ok(Response::new(v1::ListWorkloadsResponse {
            workloads: views.iter().map(render::workload).collect(),
        }))
    }

    type SyncWorkloadsStream = SyncStream;

    async fn sync_workloads(
        &self,
        request: Request<Streaming<v1::SyncWorkloadsRequest>>,
    ) -> Result<Response<SyncStream>, Status> {
        let stream = super::sync::serve(self.clone(), request.into_inner());
        Ok(Response::new(stream))
    }

    type WatchWorkloadsStream = WatchStream;

    async fn watch_workloads(
        &self,
        _request: Request<v1::WatchWorkloadsRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let watch = self.0.node.watch().await?;
        Ok(Response::new(Box::pin(watch_stream(watch))))
    }
}

/// Snapshot, SYNCED, changes; then the error when the watcher was too slow.
fn watch_stream(
    watch: Watch,
) -> impl Stream<Item = Result<v1::WatchWorkloadsResponse, Status>> + Send + 'static {
    use v1::watch_workloads_response::Kind;

    let Watch {
        snapshot,
        cursor,
        changes,
        overflowed,
    } = watch;
    let upserts = snapshot.into_iter().map(move |view| {
        Ok(v1::WatchWorkloadsResponse {
            kind: Kind::Upsert.into(),
            workload: Some(render::workload(&view)),
            cursor,
        })
    });
    let synced = Ok(v1::WatchWorkloadsResponse {
        kind: Kind::Synced.into(),
        workload: None,
        cursor,
    });
    let changes = stream::unfold(Some(changes), move |state| {
        let overflowed = overflowed.clone();
        async move {
            let mut changes = state?;
            match changes.recv().await {
                Some(event) => Some((Ok(render::watch_event(&event)), Some(changes))),
                None if overflowed.load(Ordering::Acquire) => Some((
                    Err(status(&Error::WatcherBehind { limit: WATCH_QUEUE })),
                    None,
                )),
                None => Some((Err(status(&Error::Stopping)), None)),
            }
        }
    });
    stream::iter(upserts)
        .chain(stream::once(async move { synced }))
        .chain(changes)
}

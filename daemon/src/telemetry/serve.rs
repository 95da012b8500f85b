//! HTTP for monitoring: `/metrics` in the OpenMetrics text format, `/healthz` for probes.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use super::metrics::Metrics;

/// Reads what is only counted when somebody looks.
#[tonic::async_trait]
pub trait Refresh: Send + Sync + 'static {
    async fn refresh(&self, metrics: &Metrics);
}

#[derive(Clone)]
pub struct Context {
    pub metrics: Arc<Metrics>,
    pub refresh: Arc<dyn Refresh>,
    /// Written by the node's loop, read by `/healthz`.
    pub ready: Arc<AtomicBool>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("[telemetry] metrics_listen = \"{address}\": {source}; choose another port, or \"off\"")]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Binds at once, so that a port in use is an error of the start; serves until the future ends.
pub async fn bind(address: SocketAddr) -> Result<tokio::net::TcpListener, ListenError> {
    tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })
}

pub async fn serve(
    listener: tokio::net::TcpListener,
    context: Context,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(context))
        .with_graceful_shutdown(stop)
        .await
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(context)
}

async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    context.refresh.refresh(&context.metrics).await;
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        context.metrics.encode(),
    )
}

async fn healthz(State(context): State<Context>) -> impl IntoResponse {
    if context.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

//! The connection to the agent, and what can go wrong with it, told so that a person can act.

use std::{
    io,
    path::{Path, PathBuf},
};

use agentd_proto::v1::{
    ipam_service_client::IpamServiceClient, node_service_client::NodeServiceClient,
    routing_service_client::RoutingServiceClient, workload_service_client::WorkloadServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("cannot reach agentd at {}: {source}", path.display())]
    Unreachable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The agent answered with an error.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// An argument that only this program can judge.
    #[error("{0}")]
    Usage(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::Refused(Box::new(status))
    }
}

impl Error {
    /// 1 the operation failed, 2 usage, 3 agent unreachable.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Refused(status) if connection_lost(status) => 3,
            Error::Refused(_) | Error::Output(_) => 1,
            Error::Usage(_) => 2,
            Error::Unreachable { .. } => 3,
        }
    }

    /// Lines that say what to do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Error::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    vec!["the socket is for root and members of the group agentd".into()]
                }
                io::ErrorKind::NotFound => vec![
                    "is agentd running (systemctl status agentd)? Another socket is named with \
                     --socket or AGENTD_SOCKET"
                        .into(),
                ],
                _ => vec!["is agentd running (systemctl status agentd)?".into()],
            },
            Error::Refused(status) if connection_lost(status) => {
                vec!["the connection to agentd was lost; what became of the call is unknown".into()]
            }
            Error::Refused(status) => status
                .get_error_details()
                .bad_request()
                .map(|request| {
                    request
                        .field_violations
                        .iter()
                        // The message of a single violation says the same already.
                        .filter(|violation| !status.message().contains(&violation.description))
                        .map(|violation| format!("{}: {}", violation.field, violation.description))
                        .collect()
                })
                .unwrap_or_default(),
            Error::Usage(_) | Error::Output(_) => Vec::new(),
        }
    }
}

/// A transport error, as opposed to a status that the agent sent.
fn connection_lost(status: &Status) -> bool {
    std::error::Error::source(status)
        .is_some_and(|source| source.downcast_ref::<tonic::transport::Error>().is_some())
}

/// One connection, shared by the clients of all services.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable {
            path: socket.to_owned(),
            source,
        };
        // The first connection is made here and not by the channel, because a channel hides the
        // operating system's reason behind "transport error".
        let first = UnixStream::connect(socket).await.map_err(unreachable)?;
        let mut first = Some(first);
        let path = socket.to_owned();
        let channel = Endpoint::from_static("http://agentd.local")
            .connect_with_connector(tower::service_fn(move |_| {
                let first = first.take();
                let path = path.clone();
                async move {
                    let stream = match first {
                        Some(stream) => stream,
                        None => UnixStream::connect(path).await?,
                    };
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }
            }))
            .await
            .map_err(|error| unreachable(io::Error::other(error)))?;
        Ok(Self { channel })
    }

    pub fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub fn workload(&self) -> WorkloadServiceClient<Channel> {
        WorkloadServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn ipam(&self) -> IpamServiceClient<Channel> {
        IpamServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn routing(&self) -> RoutingServiceClient<Channel> {
        RoutingServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }
}

//! Requests to etcd. One connection to one member at a time; after a failure the next one is tried.
//!
//! A request has less than two seconds: so long takes the election of a new leader, and what waits
//! longer than that waits for something that is gone. Files (certificates, keys, the password) are
//! read at every connect.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{
    Certificate, Client, Compare as EtcdCompare, CompareOp, ConnectOptions, DeleteOptions, Error,
    EventType, GetOptions, Identity, PutOptions, TlsOptions, Txn as EtcdTxn, TxnOp, TxnOpResponse,
    TxnResponse, WatchOptions,
};
use tokio::sync::mpsc;

use super::ops::{
    Answer, Change, Compare, Failure, KeyValue, Op, OpAnswer, Request, Txn, TxnAnswer, WatchEvent,
};
use crate::config;

/// For one request, and for the connect before it.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// When a connection that says nothing is tried, and how long that may take.
const PING: Duration = Duration::from_secs(3);

/// Cheap to clone; all clones share the connection.
#[derive(Clone)]
pub struct Etcd {
    config: Arc<config::Etcd>,
    // Requests that are under way at once share a connection, so no channel will do. Held only to
    // copy the client out or in.
    current: Arc<Mutex<Current>>,
}

struct Current {
    client: Option<Client>,
    /// Grows with every connection.
    generation: u64,
    /// Which member is next.
    member: usize,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("endpoints", &self.config.endpoints)
            .finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects nowhere yet. `seed` chooses the first member.
    pub fn new(config: config::Etcd, seed: u64) -> Self {
        let members = u64::try_from(config.endpoints.len()).unwrap_or(1).max(1);
        let current = Current {
            client: None,
            generation: 0,
            member: usize::try_from(seed % members).unwrap_or(0),
        };
        Etcd {
            config: Arc::new(config),
            current: Arc::new(Mutex::new(current)),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and waits for less than two seconds.
    pub async fn ask(&self, request: Request) -> Result<Answer, Failure> {
        let (client, generation, member) = self.client().await?;
        let answer = tokio::time::timeout(TIMEOUT, execute(client, request)).await;
        let text = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("no answer within {} ms", TIMEOUT.as_millis()),
        };
        self.leave(generation);
        Err(Failure(format!("{member}: {text}")))
    }

    /// As [`ask`](Self::ask), for a transaction.
    pub async fn txn(&self, txn: Txn) -> Result<TxnAnswer, Failure> {
        match self.ask(Request::Txn(txn)).await? {
            Answer::Txn(answer) => Ok(answer),
            Answer::Lease(_) | Answer::LeaseGone => {
                Err(Failure("etcd answered with a lease".to_owned()))
            }
        }
    }

    async fn client(&self) -> Result<(Client, u64, String), Failure> {
        let (client, generation, member) = {
            let current = self.current();
            (current.client.clone(), current.generation, current.member)
        };
        let endpoint = self
            .config
            .endpoints
            .get(member)
            .cloned()
            .unwrap_or_default();
        if let Some(client) = client {
            return Ok((client, generation, endpoint));
        }
        let connected = tokio::time::timeout(TIMEOUT, self.connect(&endpoint)).await;
        let text = match connected {
            Ok(Ok(client)) => {
                let mut current = self.current();
                current.generation += 1;
                current.client = Some(client.clone());
                current.member = member;
                return Ok((client, current.generation, endpoint));
            }
            Ok(Err(text)) => text,
            Err(_) => format!("no connection within {} ms", TIMEOUT.as_millis()),
        };
        let mut current = self.current();
        if current.client.is_none() && current.member == member {
            current.member = (member + 1) % self.config.endpoints.len().max(1);
        }
        Err(Failure(format!("{endpoint}: {text}")))
    }

    async fn connect(&self, endpoint: &str) -> Result<Client, String> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(TIMEOUT)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let read = |path: &std::path::Path| {
            std::fs::read(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        if let Some((username, file)) = &self.config.login {
            let password = read(file)?;
            let password = String::from_utf8_lossy(&password);
            options = options.with_user(username, password.trim_end_matches(['\r', '\n']));
        }
        if let Some(files) = &self.config.tls {
            let mut tls = TlsOptions::new();
            if let Some(ca) = &files.ca {
                tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
            }
            if let Some((cert, key)) = &files.identity {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        Client::connect([endpoint], Some(options))
            .await
            .map_err(|error| describe(&error))
    }

    /// The next request goes to the next member.
    fn leave(&self, generation: u64) {
        let mut current = self.current();
        if current.generation == generation && current.client.take().is_some() {
            current.member = (current.member + 1) % self.config.endpoints.len().max(1);
        }
    }

    /// Watches keys until it ends, which it says. Whoever reads the events slowly makes the watch
    /// slow, and with that perhaps compacted, and nothing else.
    pub async fn watch(
        &self,
        from: String,
        to: String,
        revision: i64,
        events: mpsc::Sender<WatchEvent>,
    ) {
        let end = match self.follow(from, to, revision, &events).await {
            Ok(event) => event,
            Err(Failure(text)) => WatchEvent::Ended(text),
        };
        // Nobody reads it any more when another watch has taken its place.
        let _ = events.send(end).await;
    }

    async fn follow(
        &self,
        from: String,
        to: String,
        revision: i64,
        events: &mpsc::Sender<WatchEvent>,
    ) -> Result<WatchEvent, Failure> {
        let (client, generation, member) = self.client().await?;
        let failed = |text: String| {
            self.leave(generation);
            Failure(format!("{member}: {text}"))
        };
        let options = WatchOptions::new()
            .with_range(to)
            .with_start_revision(revision);
        let mut watch = client.watch_client();
        let opened = tokio::time::timeout(TIMEOUT, watch.watch(from, Some(options))).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(describe(&error))),
            Err(_) => return Err(failed("no answer to a watch".to_owned())),
        };
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(WatchEvent::Ended("the watch has ended".to_owned())),
                Err(error) => return Err(failed(describe(&error))),
            };
            if message.compact_revision() != 0 {
                return Ok(WatchEvent::Compacted);
            }
            if message.canceled() {
                return Ok(WatchEvent::Ended(message.cancel_reason().to_owned()));
            }
            let changes: Vec<Change> = message
                .events()
                .iter()
                .filter_map(|event| {
                    let key = key_value(event.kv()?);
                    Some(match event.event_type() {
                        EventType::Put => Change::Put(key),
                        EventType::Delete => Change::Delete(key.key),
                    })
                })
                .collect();
            if !changes.is_empty() && events.send(WatchEvent::Changes(changes)).await.is_err() {
                return Ok(WatchEvent::Ended(String::new()));
            }
        }
    }
}

async fn execute(client: Client, request: Request) -> Result<Answer, Error> {
    match request {
        Request::Txn(txn) => {
            let response = client.kv_client().txn(etcd_txn(txn)).await?;
            Ok(Answer::Txn(answer(&response)))
        }
        Request::Grant(seconds) => {
            let response = client.lease_client().grant(seconds, None).await?;
            Ok(Answer::Lease(response.id()))
        }
        Request::KeepAlive(lease) => match client.lease_client().keep_alive(lease).await {
            Ok(_) => Ok(Answer::Lease(lease)),
            Err(Error::LeaseKeepAliveError(_)) => Ok(Answer::LeaseGone),
            Err(error) => Err(error),
        },
    }
}

fn etcd_txn(txn: Txn) -> EtcdTxn {
    let when: Vec<EtcdCompare> = txn.when.into_iter().map(compare).collect();
    let then: Vec<TxnOp> = txn.then.into_iter().map(operation).collect();
    let otherwise: Vec<TxnOp> = txn.otherwise.into_iter().map(operation).collect();
    EtcdTxn::new().when(when).and_then(then).or_else(otherwise)
}

fn compare(compare: Compare) -> EtcdCompare {
    match compare {
        Compare::Absent(key) => EtcdCompare::create_revision(key, CompareOp::Equal, 0),
        Compare::NoneIn(from, to) => {
            EtcdCompare::create_revision(from, CompareOp::Equal, 0).with_range(to)
        }
        Compare::Created(key, revision) => {
            EtcdCompare::create_revision(key, CompareOp::Equal, revision)
        }
        Compare::Modified(key, revision) => {
            EtcdCompare::mod_revision(key, CompareOp::Equal, revision)
        }
    }
}

fn operation(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease));
            TxnOp::put(key, value, options)
        }
        Op::Delete(key) => TxnOp::delete(key, None::<DeleteOptions>),
        Op::Get(key) => TxnOp::get(key, None),
        Op::List {
            from,
            to,
            limit,
            keys_only,
        } => {
            let mut options = GetOptions::new().with_range(to).with_limit(limit);
            if keys_only {
                options = options.with_keys_only();
            }
            TxnOp::get(from, Some(options))
        }
        Op::Txn(txn) => TxnOp::txn(etcd_txn(txn)),
    }
}

fn answer(response: &TxnResponse) -> TxnAnswer {
    let answers = response.op_responses().into_iter().map(|op| match op {
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) => OpAnswer::Done,
        TxnOpResponse::Get(got) => OpAnswer::Keys {
            keys: got.kvs().iter().map(key_value).collect(),
            more: got.more(),
        },
        TxnOpResponse::Txn(inner) => OpAnswer::Txn(answer(&inner)),
    });
    TxnAnswer {
        succeeded: response.succeeded(),
        revision: response.header().map_or(0, |header| header.revision()),
        answers: answers.collect(),
    }
}

fn key_value(key: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        key: String::from_utf8_lossy(key.key()).into_owned(),
        value: String::from_utf8_lossy(key.value()).into_owned(),
        created: key.create_revision(),
        modified: key.mod_revision(),
    }
}

/// With every cause: the outermost error of a failed handshake says only "transport error".
fn describe(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut source = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(error) => std::error::Error::source(error),
        _ => None,
    };
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

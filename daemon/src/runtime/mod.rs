//! Starts the parts of the agent, connects them, and stops them.
//!
//! ```text
//!   config ─► store (locked) ─► API socket ─► dataplane ─► first dump ─► speaker ─► node's task ─► API
//! ```
//!
//! The order is the one in which a start can fail: nothing is written to the kernel, and no peer is
//! contacted, before the state is open, no other agent runs, and all ports are taken.

mod carry;
mod fleet;
mod footprint;
mod outbox;
mod scrape;
pub(crate) mod setup;
mod task;

use std::{
    io,
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, UNIX_EPOCH},
};

use bgp::{
    driver::SpawnError,
    speaker::config::{ConfigError, Restarting},
    types::Family,
};
use dataplane::{
    desired::{Event, Object},
    kernel::Target,
    linux::OpenError,
};
use ipnet::IpNet;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use self::{
    outbox::Outbox,
    task::{End, Inputs, Task},
};
use crate::{
    api::{self, network::Live, network::Network, socket},
    config::Config,
    ipam::Now,
    node::{Drain, Node, handle::NodeHandle},
    peers::{Manager, PeersHandle, SavedError, log_reload},
    store::{Recovered, Store, StoreError},
    telemetry::{
        metrics::Metrics,
        notify,
        serve::{self, ListenError},
    },
    tunnels,
};

/// How long the kernel's first dump may take.
const FIRST_DUMP: Duration = Duration::from_secs(30);
/// How long open API calls may go on after the node's task has ended.
const API_GRACE: Duration = Duration::from_secs(2);

/// Why the agent did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    #[error(transparent)]
    Kernel(#[from] OpenError),
    #[error("the kernel's links, addresses and routes could not be read within {} s", FIRST_DUMP.as_secs())]
    NoDump,
    #[error("{0}; bgp.listen and bgp.peer say where and with whom BGP is spoken")]
    Speaker(SpawnError),
    #[error("the BGP configuration cannot be used: {0}")]
    SpeakerConfig(#[from] ConfigError),
    #[error(
        "there is no router id: set bgp.router_id or node.address (its default, the source address \
         of the route to the first IPv4 peer, could not be found: no peer has an IPv4 address, or \
         no route leads to one)"
    )]
    NoRouterId,
    #[error(transparent)]
    Metrics(#[from] ListenError),
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    #[error("the {0} has ended unexpectedly; what it did before is in the log")]
    Lost(&'static str),
}

impl StartError {
    /// Exit status of the process; `agentd --help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::NoRouterId | StartError::SpeakerConfig(_) => 2,
            StartError::Store(StoreError::InUse { .. })
            | StartError::Socket(socket::SocketError::InUse { .. }) => 3,
            StartError::Socket(_) | StartError::Speaker(_) | StartError::Metrics(_) => 4,
            StartError::Kernel(OpenError::Capability { .. }) => 5,
            StartError::Store(_) | StartError::Saved(_) | StartError::Fleet(_) => 6,
            StartError::Kernel(_)
            | StartError::NoDump
            | StartError::Signals(_)
            | StartError::Lost(_) => 1,
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
/// `text`: what the configuration file holds.
pub async fn run(mut config: Config, text: String) -> Result<(), StartError> {
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let (store, completions, recovered) = Store::open(&config.node.state_dir)?;
    let mut manager = Manager::recover(&mut config, text)?;
    let local = fleet::recover(&config, &recovered)?;
    let api_socket = socket::bind(&config.api.socket)?;
    let metrics_listener = match config.telemetry.metrics_listen {
        Some(address) => Some(serve::bind(address).await?),
        None => None,
    };
    let identity = Arc::new(setup::identity(&config)?);
    if let Some(local) = &local {
        let addresses = [
            identity.address.map(IpAddr::V4),
            identity.address6.map(IpAddr::V6),
        ];
        manager.remember_mesh(&identity.name, addresses, local.members());
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = identity.name,
        address = ?identity.address,
        address6 = ?identity.address6,
        workloads = recovered.workloads.len(),
        blocks = recovered.blocks.len(),
        "starting"
    );

    let underlay: Vec<IpAddr> = identity
        .address
        .map(IpAddr::V4)
        .into_iter()
        .chain(identity.address6.map(IpAddr::V6))
        .collect();
    let (dataplane, mut events, dataplane_task) =
        dataplane::runtime::spawn(dataplane::reconcile::Config {
            underlay: underlay.clone(),
            resilient: config.bgp.as_ref().and_then(|bgp| bgp.resilient_hashing),
            seed: u64::from(std::process::id()),
            ..Default::default()
        })?;
    // Before workloads are known: their ports wait for the table.
    dataplane
        .set_filter(setup::filter(&config))
        .await
        .map_err(|_| StartError::Lost("dataplane"))?;
    let wanted = tunnels::desired(&config, &identity);
    // An end of the dataplane shows below.
    let _ = dataplane.set(vec![Object::Tunnels(Box::new(wanted))]).await;
    let early = first_dump(&mut events).await?;

    let pools: Vec<IpNet> = config.pools.iter().map(|pool| pool.cidr).collect();
    let next_hop6 = tunnels::next_hop6(&identity, &config.pools);
    let (speaker, updates) = match (&config.bgp, identity.router_id) {
        (Some(bgp), Some(router_id)) => {
            let restarting = restarting(&dataplane, &recovered).await;
            let mut config = setup::speaker(bgp, &pools, router_id, restarting)?;
            manager.mark_shutdowns(&mut config);
            for peer in manager.mesh_peers() {
                config
                    .peers
                    .push(setup::peer(peer, manager.import_pools())?);
            }
            // From the first message on.
            config.drain = Drain::recovered(Now::read(), recovered.drained).announce();
            // So that one session carries the blocks of both families.
            config.next_hop_self = [identity.address.map(IpAddr::V4), next_hop6];
            let (handle, updates, task) =
                bgp::driver::spawn(config).map_err(StartError::Speaker)?;
            // Its end closes `updates`, and with that ends the agent; this says why.
            tokio::spawn(async move {
                if let Err(error) = task.await {
                    tracing::error!(%error, "the BGP speaker has failed");
                }
            });
            (Some(handle), Some(updates))
        }
        _ => (None, None),
    };

    let now = Now::read();
    let started = identity
        .started_at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let metrics = Arc::new(Metrics::new(i64::try_from(started).unwrap_or(0)));
    let (mut node, notices) =
        Node::recover(now, &config.pools, &config.bridges, &config.ipam, recovered);
    node.set_own_addresses(underlay);
    if let (Some(bgp), Some(router_id)) = (&config.bgp, identity.router_id) {
        node.set_bgp_identity(router_id, bgp.asn);
    }
    if config.bgp.as_ref().is_some_and(|bgp| !bgp.install_routes) {
        node.leave_routes_out();
    }
    for notice in notices {
        tracing::warn!("recovered state: {notice}");
    }
    for event in early {
        if let Event::NodeAddresses(all) = &event {
            node.set_own_addresses(setup::own_addresses(&config, all));
        }
        node.handle_dataplane(now, event);
    }

    let (handle, requests) = NodeHandle::new();
    let network: Arc<dyn Network> = Arc::new(Live {
        bgp: speaker.clone(),
        dataplane: dataplane.clone(),
    });
    let (peers, ends) = PeersHandle::new();
    manager.node = Some(handle.clone());
    manager.tunnels = Some(tunnels::Live {
        dataplane: dataplane.clone(),
        identity: identity.clone(),
    });
    let fleet = local
        .as_ref()
        .and_then(|local| fleet::spawn(&config, &identity, local, &node));
    tokio::spawn(manager.run(speaker.clone(), ends));
    // Kept open: without a store nothing ever comes.
    let (to_node, from_fleet) = mpsc::channel(64);
    let _to_node = to_node.clone();
    let (fleet, told) = fleet.unzip();
    if let (Some(handle), Some(told), Some(local)) = (fleet.clone(), told, local) {
        let carrier = fleet::Carrier {
            handle,
            local,
            directory: config.node.state_dir.clone(),
            peers: peers.clone(),
            network: network.clone(),
            to_node,
        };
        tokio::spawn(carrier.run(told));
    }
    let context = api::Context {
        node: handle,
        network: network.clone(),
        peers: peers.clone(),
        identity: identity.clone(),
        metrics: metrics.clone(),
        fleet: fleet.clone(),
    };
    let (stop, stopped) = watch::channel(false);
    let (health, server) = api::server(
        api_socket.listener,
        context.clone(),
        until_true(stopped.clone()),
    )
    .await;
    let mut server = tokio::spawn(server);
    let ready = Arc::new(AtomicBool::new(false));
    if let Some(listener) = metrics_listener {
        let context = serve::Context {
            metrics: metrics.clone(),
            ready: ready.clone(),
            refresh: Arc::new(scrape::Scrape(context)),
        };
        tokio::spawn(serve::serve(listener, context, until_true(stopped.clone())));
    }

    let (to_dataplane, dataplane_queue) = Outbox::new();
    tokio::spawn(carry::to_dataplane(dataplane.clone(), dataplane_queue));
    let (acks, acks_queue) = mpsc::channel(64);
    let (originated, originated_changes) = watch::channel(Vec::new());
    let to_speaker = speaker.clone().map(|speaker| {
        let (outbox, queue) = Outbox::new();
        tokio::spawn(carry::to_speaker(speaker, queue, acks.clone()));
        outbox
    });
    tokio::spawn(carry::count_advertised(network, originated_changes, acks));

    let task = Task::new(
        node,
        store,
        to_dataplane,
        to_speaker,
        originated,
        health.clone(),
        ready.clone(),
        metrics,
        peers.clone(),
        fleet,
    );
    let inputs = Inputs {
        requests,
        completions,
        events,
        updates,
        acks: acks_queue,
        fleet: from_fleet,
        stop: stopped,
        own_addresses: Box::new(move |all| setup::own_addresses(&config, all)),
    };
    let mut task = tokio::spawn(task.run(inputs));
    let end = loop {
        tokio::select! {
            end = &mut task => break end,
            signal = signals.next() => match signal {
                Signal::Stop(name) => {
                    tracing::info!(signal = name, "stopping");
                    notify::stopping("stopping");
                    break stop_task(&stop, &health, task).await;
                }
                Signal::Reload => reload(&peers).await,
            },
        }
    };
    // The node's task has ended: its store is closed, everything acknowledged is durable. What is
    // in the kernel stays, so that workloads go on.
    stop.send_replace(true);
    if tokio::time::timeout(API_GRACE, &mut server).await.is_err() {
        server.abort();
    }
    if let Some(speaker) = speaker {
        speaker.shutdown("agentd is stopping").await;
    }
    dataplane.shutdown().await;
    let _ = tokio::time::timeout(API_GRACE, dataplane_task).await;
    drop(api_socket.guard);
    match end {
        Ok(End::Stopped) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(End::Lost(part)) => Err(StartError::Lost(part)),
        Err(error) => {
            tracing::error!(%error, "the node's task has failed");
            Err(StartError::Lost("node's task"))
        }
    }
}

async fn stop_task(
    stop: &watch::Sender<bool>,
    health: &api::Health,
    task: JoinHandle<End>,
) -> Result<End, tokio::task::JoinError> {
    health.stopping().await;
    stop.send_replace(true);
    task.await
}

async fn until_true(mut flag: watch::Receiver<bool>) {
    // An error means that the sender is gone, which also is the end.
    let _ = flag.wait_for(|flag| *flag).await;
}

/// Waits for the first dump. What else is reported meanwhile is kept.
async fn first_dump(events: &mut dataplane::runtime::Events) -> Result<Vec<Event>, StartError> {
    let mut early = Vec::new();
    let wait = async {
        while !early.contains(&Event::Started) {
            match events.next().await {
                Some(more) => early.extend(more),
                None => return Err(StartError::Lost("dataplane")),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(FIRST_DUMP, wait).await {
        Ok(result) => result.map(|()| early),
        Err(_) => Err(StartError::NoDump),
    }
}

/// Whether peers may still use routes of an earlier run, and for which families the kernel proves
/// that forwarding went on (RFC 4724 §4.1): the blackhole of each own block still stands.
async fn restarting(
    dataplane: &dataplane::runtime::Handle,
    recovered: &Recovered,
) -> Option<Restarting> {
    if recovered.blocks.is_empty() {
        return None;
    }
    let mut forwarding_preserved = [false; 2];
    for family in Family::ALL {
        let mut blocks = recovered
            .blocks
            .iter()
            .map(|block| block.cidr)
            .filter(|cidr| Family::of(cidr.addr()) == family)
            // A block of one address has no blackhole that could prove anything.
            .filter(|cidr| cidr.prefix_len() < cidr.max_prefix_len())
            .peekable();
        let mut preserved = blocks.peek().is_some();
        for cidr in blocks {
            let routes = dataplane.routes(Some(cidr), None, 1).await;
            preserved &= routes.is_ok_and(|routes| {
                routes
                    .first()
                    .is_some_and(|route| route.prefix == cidr && route.target == Target::Blackhole)
            });
        }
        forwarding_preserved[family.index()] = preserved;
    }
    Some(Restarting {
        forwarding_preserved,
    })
}

/// Reads the configuration again, applies what can change, and says the rest in the log.
async fn reload(peers: &PeersHandle) {
    notify::reloading();
    match peers.reload().await {
        Ok(result) => log_reload(&result),
        Err(error) => tracing::error!("reload: {error}"),
    }
    notify::ready("running");
}

enum Signal {
    Stop(&'static str),
    Reload,
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}

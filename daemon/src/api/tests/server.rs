//! A server with a node core whose store, kernel and speaker always say yes, and a network that is
//! made up.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bgp::{
    attributes::Attributes,
    rib::Reason,
    speaker::status::{PeerState, PeerStatus, Route, RoutePage, RouteQuery, RouteTable},
    types::{Asn, PeerId},
};
use dataplane::{
    desired::{Detail, Event, ObjectId, Source},
    kernel::Target,
    reconcile::{Hop, KernelRoute, Lookup, NextHopView, Status as DataplaneStatus},
    runtime::FilterStatus,
};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    api::{Context, Health, Identity, network::Network, socket},
    config,
    ipam::Now,
    node::{
        Caller, Error, Node, Output, Reply,
        handle::{Added, NodeHandle, Request, SyncRequest, Watcher},
    },
    telemetry::metrics::Metrics,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// One Established peer, one learned route, one kernel route for it.
struct MadeUp;

impl MadeUp {
    fn route() -> Route {
        let next_hop: IpAddr = "192.0.2.2".parse().unwrap();
        Route {
            prefix: net("10.0.0.64/26"),
            path_id: 0,
            peer: Some("tor".to_owned()),
            attributes: Arc::new(Attributes::originated(next_hop.into())),
            best: true,
            stale: false,
            reason: Reason::Best(None),
            received_at: Instant::now(),
            discarded: None,
        }
    }

    fn kernel_route(index: u8) -> KernelRoute {
        KernelRoute {
            prefix: net(&format!("10.0.{index}.64/26")),
            protocol: 71,
            metric: 0,
            target: Target::NextHop { id: 1 },
            hops: vec![Hop {
                interface: "eth9".to_owned(),
                index: 9,
                gateway: Some("192.0.2.2".parse().unwrap()),
                weight: 1,
                endpoint: None,
            }],
            own: true,
        }
    }
}

#[tonic::async_trait]
impl Network for MadeUp {
    async fn peers(&self) -> Vec<PeerStatus> {
        let address = "192.0.2.2".parse().unwrap();
        vec![PeerStatus {
            asn: Some(Asn(65001)),
            local_asn: Asn(65000),
            state: PeerState::Established,
            hold_time: Some(Duration::from_secs(9)),
            keepalive_interval: Some(Duration::from_secs(3)),
            ..PeerStatus::idle(PeerId(1), "tor", address, Instant::now())
        }]
    }

    async fn routes(&self, query: RouteQuery) -> RoutePage {
        let mut route = Self::route();
        if query.table == RouteTable::AdjRibOut {
            route.prefix = net("10.0.0.0/26");
            route.peer = None;
        }
        let inside = query
            .prefix
            .is_none_or(|within| within.contains(&route.prefix));
        RoutePage {
            routes: if inside { vec![route] } else { Vec::new() },
            next: None,
        }
    }

    async fn why_not_advertised(&self, _: &str, _: IpNet) -> Option<String> {
        None
    }

    async fn dataplane(&self) -> Result<DataplaneStatus, Error> {
        Ok(DataplaneStatus {
            objects: 7,
            learned_routes: 1,
            ..Default::default()
        })
    }

    async fn filter(&self) -> Result<FilterStatus, Error> {
        Ok(FilterStatus::default())
    }

    async fn kernel_routes(
        &self,
        _within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Result<Vec<KernelRoute>, Error> {
        // Three pages of a table whose routes differ in the third octet.
        let start = match after {
            None => 0,
            Some(IpNet::V4(prefix)) => usize::from(prefix.addr().octets()[2]) + 1,
            Some(IpNet::V6(_)) => unreachable!("only IPv4 is made up"),
        };
        let end = (start + limit).min(200);
        Ok((start..end)
            .map(|index| Self::kernel_route(u8::try_from(index).unwrap()))
            .collect())
    }

    async fn lookup(&self, address: IpAddr) -> Result<Lookup, Error> {
        let route = Self::kernel_route(0);
        Ok(Lookup {
            route: route.prefix.contains(&address).then_some(route),
            ..Default::default()
        })
    }

    async fn next_hops(&self) -> Result<Vec<NextHopView>, Error> {
        Ok(Vec::new())
    }
}

/// Answers requests by a node core to which everything succeeds at once.
async fn obliging(mut requests: mpsc::Receiver<Request>) {
    let pools = [config::Pool {
        reserved: vec![net("10.0.0.0/32")],
        claim: vec![net("10.0.0.0/26")],
        ..config::Pool::new("default", net("10.0.0.0/24"), 26)
    }];
    let settings = config::Ipam::default();
    let (mut node, _) = Node::recover(Now::read(), &pools, &[], &settings, Default::default());
    node.handle_dataplane(Now::read(), Event::Started);
    let mut watchers: Vec<Watcher> = Vec::new();
    let mut adds = Vec::new();
    let mut deletes = Vec::new();
    let mut drains = VecDeque::new();
    let mut syncs = HashMap::new();
    let mut pools_asked = VecDeque::new();
    let mut releases = VecDeque::new();
    loop {
        let now = Now::read();
        while let Some(output) = node.poll_output() {
            match output {
                Output::Acquire(_) | Output::Return(_) => {}
                Output::Persist { token, .. } => node.handle_persisted(now, token, Ok(())),
                Output::Set(objects) => {
                    for id in objects.iter().map(|object| object.id()) {
                        let detail = Detail {
                            host_interface: "agt0".to_owned(),
                            host_ifindex: 7,
                            mtu: 1500,
                        };
                        node.handle_dataplane(now, Event::Programmed { id, detail });
                    }
                }
                Output::Remove(ids) => {
                    for id in ids {
                        if !matches!(id, ObjectId::Route(_)) {
                            node.handle_dataplane(now, Event::Removed { id });
                        }
                    }
                }
                Output::Synced(source) => {
                    if source != Source::Bgp {
                        node.handle_dataplane(now, Event::Swept { source, deleted: 0 });
                    }
                }
                Output::Originate(cidr) => node.handle_originated(now, cidr),
                Output::Withdraw(cidr) => node.handle_withdrawn(cidr),
                Output::OriginationsSynced
                | Output::Drain(_)
                | Output::Prefer(_)
                | Output::Claim(_) => {}
                Output::Publish(event) => watchers.retain(|watcher| watcher.send(&event)),
                Output::Reply {
                    reply: Reply::Drain(result),
                    ..
                } => {
                    let reply: oneshot::Sender<_> = drains.pop_front().unwrap();
                    drop(reply.send(result));
                }
                Output::Reply {
                    reply: Reply::BlockReleased(result),
                    ..
                } => {
                    let reply: oneshot::Sender<_> = releases.pop_front().unwrap();
                    drop(reply.send(result));
                }
                Output::Reply {
                    reply: Reply::Pool(result),
                    ..
                } => {
                    let reply: oneshot::Sender<_> = pools_asked.pop_front().unwrap();
                    drop(reply.send(result.map(|users| *users)));
                }
                Output::Reply {
                    caller: Caller::NOBODY,
                    ..
                } => {}
                Output::Sync { id, event } => {
                    let client: &mpsc::Sender<_> = &syncs[&id];
                    let _ = client.try_send(event);
                }
                Output::Reply { caller, reply } => answer(caller, reply, &mut adds, &mut deletes),
            }
        }
        let Some(request) = requests.recv().await else {
            return;
        };
        match request {
            Request::Add {
                id,
                spec,
                listening,
                wait,
                reply,
            } => {
                let caller = Caller(u64::try_from(adds.len()).unwrap() * 2);
                adds.push(Some(reply));
                node.handle_add(now, caller, id, spec, listening, wait);
            }
            Request::Delete {
                id,
                generation,
                reply,
            } => {
                let caller = Caller(u64::try_from(deletes.len()).unwrap() * 2 + 1);
                deletes.push(Some(reply));
                node.handle_delete(now, caller, id, generation);
            }
            Request::Drain(timeout, reply) => {
                drains.push_back(reply);
                node.handle_drain(now, Caller(u64::MAX - 1), timeout);
            }
            Request::Undrain(reply) => {
                drains.push_back(reply);
                node.handle_undrain(Caller(u64::MAX - 1));
            }
            Request::SetPools {
                pools,
                settings,
                reply,
            } => drop(reply.send(node.set_pools(now, &pools, &settings))),
            Request::PoolState { name, to, reply } => {
                pools_asked.push_back(reply);
                node.handle_pool_state(now, Caller(u64::MAX - 1), name, to);
            }
            Request::Sync(SyncRequest::Begin {
                owner,
                grace,
                reply,
            }) => {
                let begun = node.handle_sync_begin(owner, grace).map(|id| {
                    let (sender, events) = mpsc::channel(64);
                    syncs.insert(id, sender);
                    (id, events)
                });
                drop(reply.send(begun));
            }
            Request::Sync(SyncRequest::Name(sync, id, reply)) => {
                let _ = reply.send(node.handle_sync_name(sync, &id));
            }
            Request::Sync(SyncRequest::Delete {
                owner,
                id,
                generation,
                reply,
            }) => match node.refuse_other(&owner, &id) {
                Some(error) => drop(reply.send(Err(error))),
                None => {
                    let caller = Caller(u64::try_from(deletes.len()).unwrap() * 2 + 1);
                    deletes.push(Some(reply));
                    node.handle_delete(now, caller, id, generation);
                }
            },
            Request::Sync(SyncRequest::Complete(sync, reply)) => {
                drop(reply.send(node.handle_sync_complete(now, sync)));
            }
            Request::Sync(SyncRequest::End(sync)) => node.handle_sync_end(sync),
            Request::Get(id, reply) => drop(reply.send(node.workload(&id))),
            Request::List(reply) => drop(reply.send(node.workloads())),
            Request::Watch(reply) => {
                let (watcher, watch) = Watcher::new(node.published(), node.cursor());
                drop(reply.send(watch));
                watchers.push(watcher);
            }
            Request::Pools(reply) => drop(reply.send(node.pools(now))),
            Request::Blocks(reply) => drop(reply.send(node.blocks(now))),
            Request::Address(address, reply) => drop(reply.send(node.address(now, address))),
            Request::Status(reply) => drop(reply.send(node.status())),
            Request::ReleaseBlock(cidr, reply) => {
                releases.push_back(reply);
                node.handle_release_block(now, Caller(u64::MAX), cidr);
            }
            Request::AddressUses(reply) => drop(reply.send(node.address_uses(now))),
            Request::Audit(reply) => {
                drop(reply.send((node.audit(now), Err(crate::store::SubmitError::Stopped))));
            }
        }
    }
}

type Waiting<T> = Vec<Option<oneshot::Sender<Result<T, Error>>>>;

fn answer(caller: Caller, reply: Reply, adds: &mut Waiting<Added>, deletes: &mut Waiting<bool>) {
    let index = usize::try_from(caller.0 / 2).unwrap();
    match reply {
        Reply::Added(result) => {
            let _ = adds[index].take().unwrap().send(result);
        }
        Reply::Deleted(result) => {
            let _ = deletes[index].take().unwrap().send(result);
        }
        Reply::Drain(_) | Reply::Pool(_) | Reply::BlockReleased(_) => {
            unreachable!("answered in order")
        }
    }
}

pub(super) struct Server {
    pub(super) channel: Channel,
    pub(super) health: Health,
    _directory: tempfile::TempDir,
    _file: socket::SocketFile,
    _stop: oneshot::Sender<()>,
}

pub(super) async fn start() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agentd.sock");
    let socket = socket::bind(&path).unwrap();
    let (node, requests) = NodeHandle::new();
    tokio::spawn(obliging(requests));
    let context = Context {
        node,
        network: Arc::new(MadeUp),
        peers: crate::peers::PeersHandle::new().0,
        identity: Arc::new(Identity {
            name: "node-a".to_owned(),
            started_at: SystemTime::now(),
            address: Some("192.0.2.1".parse().unwrap()),
            address6: None,
            asn: Some(65000),
            router_id: Some("192.0.2.1".parse().unwrap()),
        }),
        metrics: Arc::new(Metrics::new(0)),
        fleet: None,
    };
    let (stop, stopped) = oneshot::channel();
    let stopped = async {
        let _ = stopped.await;
    };
    let (health, server) = crate::api::server(socket.listener, context, stopped).await;
    tokio::spawn(server);
    Server {
        channel: connect(path).await,
        health,
        _directory: directory,
        _file: socket.guard,
        _stop: stop,
    }
}

async fn connect(path: PathBuf) -> Channel {
    // The address is not used: the connector knows the path.
    Endpoint::from_static("http://agentd")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// A network namespace that lives as long as this value.
pub(super) struct Namespace {
    pub(super) path: String,
    _stop: std::sync::mpsc::Sender<()>,
}

/// `None` without the right to make one.
pub(super) fn namespace() -> Option<Namespace> {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
        let thread = nix::unistd::gettid();
        let _ =
            tell.send(made.then(|| format!("/proc/{}/task/{thread}/ns/net", std::process::id())));
        let _ = stopped.recv();
    });
    let path = told.recv().unwrap();
    if path.is_none() {
        eprintln!("skipped in part: no right to make a network namespace");
    }
    Some(Namespace {
        path: path?,
        _stop: stop,
    })
}

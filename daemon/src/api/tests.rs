//! The API over a real Unix socket: a node core whose store, kernel and speaker always say yes, and
//! a network that is made up.

#![allow(clippy::unwrap_used)]

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agentd_proto::v1::{
    self, ipam_service_client::IpamServiceClient, node_service_client::NodeServiceClient,
    routing_service_client::RoutingServiceClient, workload_service_client::WorkloadServiceClient,
};
use bgp::{
    attributes::Attributes,
    rib::Reason,
    speaker::status::{
        PeerCounters, PeerState, PeerStatus, Route, RoutePage, RouteQuery, RouteTable,
    },
    types::{Asn, PeerId},
};
use dataplane::{
    desired::{Detail, Event, ObjectId, Source},
    kernel::Target,
    reconcile::{Hop, KernelRoute, Lookup, NextHopView, Status as DataplaneStatus},
};
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::{Context, Health, Identity, network::Network, socket};
use crate::{
    config,
    ipam::Now,
    node::{
        Caller, Error, Node, Output, Reply,
        handle::{NodeHandle, Request, Watcher},
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
            }],
            own: true,
        }
    }
}

#[tonic::async_trait]
impl Network for MadeUp {
    async fn peers(&self) -> Vec<PeerStatus> {
        vec![PeerStatus {
            id: PeerId(1),
            name: "tor".to_owned(),
            address: "192.0.2.2".parse().unwrap(),
            port: 179,
            asn: Asn(65001),
            local_asn: Asn(65000),
            state: PeerState::Established,
            since: Instant::now(),
            reason: String::new(),
            passive: false,
            route_reflector_client: false,
            remote_router_id: None,
            local_address: None,
            hold_time: Some(Duration::from_secs(9)),
            keepalive_interval: Some(Duration::from_secs(3)),
            capabilities_sent: Vec::new(),
            capabilities_received: Vec::new(),
            families: Vec::new(),
            counters: PeerCounters::default(),
            last_notification_sent: None,
            last_notification_received: None,
            next_connect_at: None,
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

    async fn dataplane(&self) -> Result<DataplaneStatus, Error> {
        Ok(DataplaneStatus {
            objects: 7,
            learned_routes: 1,
            ..Default::default()
        })
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
        name: "default".to_owned(),
        cidr: net("10.0.0.0/24"),
        block_size: 26,
        disabled: false,
        reserved: vec![net("10.0.0.0/32")],
        claim: vec![net("10.0.0.0/26")],
    }];
    let settings = config::Ipam {
        cooldown: Duration::from_secs(130),
        claim_ahead: 75,
        release_empty_after: Duration::from_secs(600),
    };
    let (mut node, _) = Node::recover(Now::read(), &pools, &settings, Default::default());
    node.handle_dataplane(Now::read(), Event::Started);
    let mut watchers: Vec<Watcher> = Vec::new();
    let mut adds = Vec::new();
    let mut deletes = Vec::new();
    loop {
        let now = Now::read();
        while let Some(output) = node.poll_output() {
            match output {
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
                Output::OriginationsSynced => {}
                Output::Publish(event) => watchers.retain(|watcher| watcher.send(&event)),
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
                wait,
                reply,
            } => {
                let caller = Caller(u64::try_from(adds.len()).unwrap() * 2);
                adds.push(Some(reply));
                node.handle_add(now, caller, id, spec, wait);
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
        }
    }
}

type Waiting<T> = Vec<Option<oneshot::Sender<Result<T, Error>>>>;

fn answer(
    caller: Caller,
    reply: Reply,
    adds: &mut Waiting<crate::node::handle::Added>,
    deletes: &mut Waiting<bool>,
) {
    let index = usize::try_from(caller.0 / 2).unwrap();
    match reply {
        Reply::Added(result) => {
            let _ = adds[index].take().unwrap().send(result);
        }
        Reply::Deleted(result) => {
            let _ = deletes[index].take().unwrap().send(result);
        }
    }
}

struct Server {
    channel: Channel,
    health: Health,
    _directory: tempfile::TempDir,
    _file: socket::SocketFile,
    _stop: oneshot::Sender<()>,
}

async fn start() -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agentd.sock");
    let socket = socket::bind(&path).unwrap();
    let (node, requests) = NodeHandle::new();
    tokio::spawn(obliging(requests));
    let context = Context {
        node,
        network: Arc::new(MadeUp),
        identity: Arc::new(Identity {
            name: "node-a".to_owned(),
            started_at: SystemTime::now(),
            address: Some("192.0.2.1".parse().unwrap()),
            address6: None,
            asn: Some(65000),
            router_id: Some("192.0.2.1".parse().unwrap()),
        }),
        metrics: Arc::new(Metrics::new(0)),
    };
    let (stop, stopped) = oneshot::channel();
    let stopped = async {
        let _ = stopped.await;
    };
    let (health, server) = super::server(socket.listener, context, stopped).await;
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
struct Namespace {
    path: String,
    _stop: std::sync::mpsc::Sender<()>,
}

/// `None` without the right to make one.
fn namespace() -> Option<Namespace> {
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

fn add_request(namespace: &str) -> v1::AddWorkloadRequest {
    v1::AddWorkloadRequest {
        id: "a".to_owned(),
        namespace: Some(v1::add_workload_request::Namespace::Netns(
            namespace.to_owned(),
        )),
        ..Default::default()
    }
}

fn reason(status: &Status) -> String {
    let info = status
        .get_details_error_info()
        .expect("every error has one");
    assert_eq!(info.domain, "agentd");
    info.reason
}

/// The one field that the status complains about.
fn field(status: &Status) -> String {
    let request = status.get_details_bad_request().expect("a bad request");
    assert_eq!(request.field_violations.len(), 1);
    let violation = &request.field_violations[0];
    assert!(!violation.description.is_empty());
    violation.field.clone()
}

#[tokio::test]
async fn malformed_adds_are_refused_with_code_field_and_reason() {
    use v1::add_workload_request::Namespace;

    type Change = fn(&mut v1::AddWorkloadRequest);
    let table: &[(&str, Change)] = &[
        ("id", |r| r.id.clear()),
        ("id", |r| r.id = "with space".to_owned()),
        ("id", |r| r.id = "ü".to_owned()),
        ("id", |r| r.id = "a".repeat(254)),
        ("attachment", |r| r.attachment = 99),
        ("netns", |r| r.namespace = None),
        ("netns", |r| {
            r.namespace = Some(Namespace::Netns("run/netns/a".to_owned()))
        }),
        ("netns", |r| {
            r.namespace = Some(Namespace::Netns("/run/../etc".to_owned()))
        }),
        ("netns", |r| {
            r.namespace = Some(Namespace::Netns("/etc/passwd".to_owned()))
        }),
        ("netns", |r| {
            r.namespace = Some(Namespace::Netns("/proc/self/ns/net".to_owned()))
        }),
        ("pid", |r| r.namespace = Some(Namespace::Pid(0))),
        ("pid", |r| r.namespace = Some(Namespace::Pid(u32::MAX))),
        ("interface_name", |r| {
            r.interface_name = "sixteen-letters-".to_owned()
        }),
        ("interface_name", |r| r.interface_name = "a/b".to_owned()),
        ("interface_name", |r| r.interface_name = "lo".to_owned()),
        ("pool", |r| r.pool = "p".repeat(64)),
        ("addresses[0]", |r| {
            r.addresses = vec!["10.0.0.300".to_owned()]
        }),
        ("addresses[0]", |r| {
            r.addresses = vec!["10.0.0.3/32".to_owned()]
        }),
        ("addresses[0]", |r| {
            r.addresses = vec!["127.0.0.1".to_owned()]
        }),
        ("addresses[0]", |r| r.addresses = vec!["fe80::1".to_owned()]),
        ("addresses[1]", |r| {
            r.addresses = vec!["10.0.0.3".to_owned(), "10.0.0.4".to_owned()];
        }),
        ("addresses[2]", |r| {
            r.addresses = vec![
                "10.0.0.3".to_owned(),
                "fd00::1".to_owned(),
                "fd00::2".to_owned(),
            ];
        }),
        ("mtu", |r| r.mtu = 67),
        ("mtu", |r| r.mtu = 65536),
        ("mtu", |r| {
            r.mtu = 1279;
            r.addresses = vec!["fd00::1".to_owned()];
        }),
        ("labels", |r| {
            r.labels = [("k".repeat(64), String::new())].into()
        }),
        ("labels", |r| {
            r.labels = [("k".to_owned(), "v".repeat(256))].into()
        }),
        ("labels", |r| {
            r.labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
        }),
        ("wait_for", |r| {
            r.wait_for = v1::WorkloadState::Deleting.into()
        }),
        ("wait_for", |r| r.wait_for = 99),
    ];
    let server = start().await;
    let mut client = WorkloadServiceClient::new(server.channel.clone());
    for (index, (wanted, change)) in table.iter().enumerate() {
        let mut request = add_request("/run/netns/nothing-here");
        change(&mut request);
        let status = client.add_workload(request).await.unwrap_err();
        let case = format!("case {index}: {status:?}");
        assert_eq!(status.code(), Code::InvalidArgument, "{case}");
        assert_eq!(field(&status), *wanted, "{case}");
        assert_eq!(reason(&status), "FIELD_INVALID", "{case}");
        assert!(status.message().starts_with(wanted), "{case}");
    }
    let status = client
        .add_workload(add_request("/run/netns/nothing-here"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(&status), "NAMESPACE_NOT_FOUND");
    // Nothing of all that is left.
    let list = client.list_workloads(v1::ListWorkloadsRequest {}).await;
    assert!(list.unwrap().into_inner().workloads.is_empty());
}

#[tokio::test]
async fn workload_lives_through_add_get_list_watch_and_delete() {
    let Some(namespace) = namespace() else {
        return;
    };
    let server = start().await;
    let mut client = WorkloadServiceClient::new(server.channel.clone());
    let mut watch = client
        .watch_workloads(v1::WatchWorkloadsRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let response = watch.next().await.unwrap().unwrap();
        (response.kind(), response.workload.unwrap_or_default())
    };
    use v1::watch_workloads_response::Kind;
    assert_eq!(next().await.0, Kind::Synced);

    let request = v1::AddWorkloadRequest {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..add_request(&namespace.path)
    };
    let added = client
        .add_workload(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(added.created);
    let workload = added.workload.unwrap();
    assert_eq!(workload.state(), v1::WorkloadState::Programmed);
    assert_eq!(
        workload.addresses[0].address, "10.0.0.1",
        "the first is reserved"
    );
    assert_eq!(workload.addresses[0].gateway, "169.254.1.1");
    assert_eq!(workload.addresses[0].block, "10.0.0.0/26");
    assert_eq!(workload.interface_name, "eth0");
    assert_eq!(workload.host_interface, "agt0");
    assert_eq!(workload.mtu, 1500);
    assert_eq!(workload.labels["app"], "web");
    assert_eq!(workload.netns, namespace.path);

    let again = client
        .add_workload(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!again.created);
    assert_eq!(again.workload.as_ref(), Some(&workload));

    let other = v1::AddWorkloadRequest {
        mtu: 1400,
        ..request.clone()
    };
    let status = client.add_workload(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(reason(&status), "WORKLOAD_EXISTS");

    let get = v1::GetWorkloadRequest { id: "a".to_owned() };
    let got = client.get_workload(get.clone()).await.unwrap().into_inner();
    assert_eq!(got.workload.as_ref(), Some(&workload));

    let late = v1::DeleteWorkloadRequest {
        id: "a".to_owned(),
        generation: workload.generation + 1,
    };
    assert!(
        !client
            .delete_workload(late)
            .await
            .unwrap()
            .into_inner()
            .deleted
    );
    let delete = v1::DeleteWorkloadRequest {
        id: "a".to_owned(),
        generation: workload.generation,
    };
    for deleted in [true, false] {
        let answer = client.delete_workload(delete.clone()).await.unwrap();
        assert_eq!(answer.into_inner().deleted, deleted);
    }
    let status = client.get_workload(get).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(&status), "WORKLOAD_NOT_FOUND");

    let mut kinds = Vec::new();
    loop {
        let (kind, workload) = next().await;
        assert_eq!(workload.id, "a");
        kinds.push(kind);
        if kind == Kind::Delete {
            break;
        }
    }
    assert!(kinds.len() >= 2 && kinds[..kinds.len() - 1].iter().all(|k| *k == Kind::Upsert));
}

#[tokio::test]
async fn addresses_and_pools_that_cannot_be_had_are_refused() {
    let Some(namespace) = namespace() else {
        return;
    };
    type Change = fn(&mut v1::AddWorkloadRequest);
    let table: &[(Code, &str, Change)] = &[
        (Code::NotFound, "POOL_NOT_FOUND", |r| {
            r.pool = "nope".to_owned()
        }),
        (Code::InvalidArgument, "ADDRESS_UNAVAILABLE", |r| {
            r.addresses = vec!["192.0.2.9".to_owned()];
        }),
        (Code::InvalidArgument, "ADDRESS_UNAVAILABLE", |r| {
            r.addresses = vec!["10.0.0.0".to_owned()];
        }),
        (Code::InvalidArgument, "ADDRESS_UNAVAILABLE", |r| {
            r.addresses = vec!["10.0.0.100".to_owned()];
        }),
        (Code::AlreadyExists, "ADDRESS_IN_USE", |r| {
            r.addresses = vec!["10.0.0.1".to_owned()];
        }),
    ];
    let server = start().await;
    let mut client = WorkloadServiceClient::new(server.channel.clone());
    client
        .add_workload(add_request(&namespace.path))
        .await
        .unwrap();
    for (code, wanted, change) in table {
        let mut request = add_request(&namespace.path);
        request.id = "b".to_owned();
        change(&mut request);
        let status = client.add_workload(request).await.unwrap_err();
        assert_eq!(status.code(), *code, "{status:?}");
        assert_eq!(reason(&status), *wanted, "{status:?}");
    }
    for index in 0..62 {
        let mut request = add_request(&namespace.path);
        request.id = format!("more-{index}");
        client.add_workload(request).await.unwrap();
    }
    let mut request = add_request(&namespace.path);
    request.id = "one-too-many".to_owned();
    let status = client.add_workload(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(reason(&status), "POOL_EXHAUSTED");
    assert!(
        status.message().contains("ipam.claim"),
        "says what helps: {status:?}"
    );
}

#[tokio::test]
async fn advertised_wait_ends_with_the_deadline_and_the_workload_stays() {
    let Some(namespace) = namespace() else {
        return;
    };
    let server = start().await;
    let mut client = WorkloadServiceClient::new(server.channel.clone());
    let mut request = tonic::Request::new(v1::AddWorkloadRequest {
        wait_for: v1::WorkloadState::Advertised.into(),
        ..add_request(&namespace.path)
    });
    request.set_timeout(Duration::from_millis(300));
    let status = client.add_workload(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(reason(&status), "NOT_ADVERTISED");
    let get = v1::GetWorkloadRequest { id: "a".to_owned() };
    client.get_workload(get).await.unwrap();
}

#[tokio::test]
async fn malformed_questions_are_refused_with_the_field() {
    let server = start().await;
    let mut workloads = WorkloadServiceClient::new(server.channel.clone());
    let mut routing = RoutingServiceClient::new(server.channel.clone());
    let mut ipam = IpamServiceClient::new(server.channel.clone());
    let routes = |table: i32, peer: &str, prefix: &str| v1::ListRoutesRequest {
        table,
        peer: peer.to_owned(),
        prefix: prefix.to_owned(),
    };
    let mut statuses = vec![
        (
            "id",
            workloads
                .get_workload(v1::GetWorkloadRequest::default())
                .await
                .unwrap_err(),
        ),
        (
            "id",
            workloads
                .delete_workload(v1::DeleteWorkloadRequest::default())
                .await
                .unwrap_err(),
        ),
        (
            "name",
            routing
                .get_peer(v1::GetPeerRequest::default())
                .await
                .unwrap_err(),
        ),
        (
            "address",
            routing
                .explain(v1::ExplainRequest::default())
                .await
                .unwrap_err(),
        ),
    ];
    let explain = v1::ExplainRequest {
        address: "10.0.0.0/24".to_owned(),
    };
    statuses.push(("address", routing.explain(explain).await.unwrap_err()));
    for (wanted, request) in [
        ("table", routes(9, "", "")),
        ("peer", routes(3, "", "")),
        ("peer", routes(1, "tor", "")),
        ("peer", routes(4, "tor", "")),
        ("prefix", routes(1, "", "10.0.0.1/24")),
        ("prefix", routes(1, "", "everything")),
    ] {
        statuses.push((wanted, routing.list_routes(request).await.unwrap_err()));
    }
    for (wanted, status) in statuses {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(field(&status), wanted, "{status:?}");
    }
    let unknown = v1::GetPeerRequest {
        name: "nobody".to_owned(),
    };
    let status = routing.get_peer(unknown).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "PEER_NOT_FOUND")
    );
    let status = routing
        .list_routes(routes(3, "nobody", ""))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "PEER_NOT_FOUND");
    let unknown = v1::ListBlocksRequest {
        pool: "nope".to_owned(),
    };
    let status = ipam.list_blocks(unknown).await.unwrap_err();
    assert_eq!(reason(&status), "POOL_NOT_FOUND");
}

#[tokio::test]
async fn tables_pools_blocks_peers_and_status_are_shown() {
    let server = start().await;
    let mut routing = RoutingServiceClient::new(server.channel.clone());
    let mut ipam = IpamServiceClient::new(server.channel.clone());
    let mut node = NodeServiceClient::new(server.channel.clone());
    let mut count = async |table: v1::RouteTable| {
        let request = v1::ListRoutesRequest {
            table: table.into(),
            peer: if table == v1::RouteTable::AdjRibOut {
                "tor"
            } else {
                ""
            }
            .to_owned(),
            prefix: String::new(),
        };
        let pages: Vec<_> = routing
            .list_routes(request)
            .await
            .unwrap()
            .into_inner()
            .collect()
            .await;
        pages
            .into_iter()
            .map(|page| page.unwrap().routes.len())
            .sum::<usize>()
    };
    assert_eq!(count(v1::RouteTable::Unspecified).await, 1);
    assert_eq!(count(v1::RouteTable::AdjRibIn).await, 1);
    assert_eq!(count(v1::RouteTable::AdjRibOut).await, 1);
    assert_eq!(count(v1::RouteTable::Kernel).await, 200);
    let peers = routing.list_peers(v1::ListPeersRequest {}).await.unwrap();
    assert_eq!(
        peers.into_inner().peers[0].state(),
        v1::PeerState::Established
    );
    let pools = ipam.list_pools(v1::ListPoolsRequest {}).await.unwrap();
    assert_eq!(pools.into_inner().pools[0].blocks_claimable, 1);
    let blocks = ipam
        .list_blocks(v1::ListBlocksRequest::default())
        .await
        .unwrap();
    assert_eq!(
        blocks.into_inner().blocks[0].state(),
        v1::BlockState::Active
    );
    let status = node
        .get_status(v1::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(status.ready, "{:?}", status.waiting_for);
    assert_eq!((status.peers_established, status.asn), (1, 65000));
}

#[tokio::test]
async fn explanation_tells_own_foreign_and_unknown_addresses_apart() {
    let server = start().await;
    let mut routing = RoutingServiceClient::new(server.channel.clone());
    let mut explain = async |address: &str| {
        let request = v1::ExplainRequest {
            address: address.to_owned(),
        };
        routing.explain(request).await.unwrap().into_inner()
    };
    let own = explain("10.0.0.7").await;
    assert!(!own.reachable);
    assert_eq!(
        own.summary,
        "10.0.0.7 belongs to this node, but no workload has it."
    );
    let subjects: Vec<_> = own.steps.iter().map(|step| step.subject.as_str()).collect();
    assert_eq!(
        subjects,
        [
            "pool",
            "block",
            "owner",
            "workload",
            "kernel route",
            "advertised"
        ]
    );
    assert!(own.steps[5].text.contains("advertised to tor"), "{own:?}");
    let foreign = explain("10.0.0.70").await;
    assert!(foreign.reachable);
    assert_eq!(
        foreign.summary,
        "10.0.0.70 is reached by 10.0.0.64/26 via 192.0.2.2, learned from tor."
    );
    let unknown = explain("203.0.113.1").await;
    assert!(!unknown.reachable);
    assert!(
        unknown.summary.starts_with("Nothing leads to"),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn health_follows_readiness_and_reflection_lists_every_service() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::{
        v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        },
        v1alpha,
    };
    let server = start().await;
    let mut health = HealthClient::new(server.channel.clone());
    let mut check = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        health.check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(check("").await, ServingStatus::NotServing);
    assert_eq!(check("agent.v1.NodeService").await, ServingStatus::Serving);
    server.health.set(true).await;
    for service in super::SERVICES.into_iter().chain([""]) {
        assert_eq!(check(service).await, ServingStatus::Serving);
    }
    server.health.stopping().await;
    assert_eq!(check("").await, ServingStatus::NotServing);

    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(server.channel.clone())
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for service in super::SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.contains(&service), "{service} is not in {names:?}");
    }
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers =
        v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel.clone())
            .server_reflection_info(futures::stream::iter([request]))
            .await
            .unwrap()
            .into_inner();
    assert!(answers.next().await.unwrap().is_ok());
}

//! The API over a real Unix socket.

#![allow(clippy::unwrap_used)]

mod server;

use std::time::Duration;

use agentd_proto::v1::{
    self, ipam_service_client::IpamServiceClient, node_service_client::NodeServiceClient,
    routing_service_client::RoutingServiceClient, workload_service_client::WorkloadServiceClient,
};
use futures::StreamExt as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use server::{namespace, start};

fn add_request(namespace: &str) -> v1::AddWorkloadRequest {
    v1::AddWorkloadRequest {
        id: "a".to_owned(),
        namespace: Some(v1::add_workload_request::Namespace::Netns(
            namespace.to_owned(),
        )),
        ..Default::default()
    }
}

fn tap_request() -> v1::AddWorkloadRequest {
    v1::AddWorkloadRequest {
        id: "a".to_owned(),
        attachment: v1::Attachment::Tap.into(),
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
        ("tap", |r| r.tap = Some(v1::TapOptions::default())),
        ("mac", |r| r.mac = "02:00:00:00:00:01".to_owned()),
        ("bridge", |r| r.bridge = "apps0".to_owned()),
        ("shared_with", |r| r.shared_with = "b".to_owned()),
        ("netns", |r| r.attachment = v1::Attachment::Tap.into()),
        ("pid", |r| {
            r.attachment = v1::Attachment::Host.into();
            r.namespace = Some(Namespace::Pid(1));
        }),
        ("tap.name", |r| {
            *r = tap_request();
            r.tap = Some(v1::TapOptions {
                name: "agt0".to_owned(),
                ..Default::default()
            });
        }),
        ("tap.owner_uid", |r| {
            *r = tap_request();
            r.tap = Some(v1::TapOptions {
                owner_uid: Some(u32::MAX),
                ..Default::default()
            });
        }),
        ("mac", |r| {
            *r = tap_request();
            r.mac = "02:00:00:00:00".to_owned();
        }),
        ("mac", |r| {
            *r = tap_request();
            r.mac = "01:00:5e:00:00:01".to_owned();
        }),
        ("mac", |r| {
            *r = tap_request();
            r.mac = "ee:ee:ee:ee:ee:ee".to_owned();
        }),
        ("interface_name", |r| {
            *r = tap_request();
            r.interface_name = "eth0".to_owned();
        }),
        ("bridge", |r| {
            r.attachment = v1::Attachment::Bridged.into();
        }),
        ("pool", |r| {
            r.attachment = v1::Attachment::Bridged.into();
            r.bridge = "apps0".to_owned();
            r.pool = "default".to_owned();
        }),
        ("wait_for", |r| {
            r.attachment = v1::Attachment::Bridged.into();
            r.bridge = "apps0".to_owned();
            r.wait_for = v1::WorkloadState::Advertised.into();
        }),
        ("shared_with", |r| {
            *r = tap_request();
            r.attachment = v1::Attachment::Shared.into();
        }),
        ("shared_with", |r| {
            *r = tap_request();
            r.attachment = v1::Attachment::Shared.into();
            r.shared_with = "a".to_owned();
        }),
        ("addresses", |r| {
            r.attachment = v1::Attachment::None.into();
            r.addresses = vec!["10.0.0.3".to_owned()];
        }),
        ("mtu", |r| {
            *r = tap_request();
            r.attachment = v1::Attachment::Host.into();
            r.mtu = 1400;
        }),
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
    let guest = |id: &str| v1::AddWorkloadRequest {
        id: id.to_owned(),
        attachment: v1::Attachment::Tap.into(),
        ..Default::default()
    };
    for (code, wanted, change) in table {
        let mut request = guest("b");
        change(&mut request);
        let status = client.add_workload(request).await.unwrap_err();
        assert_eq!(status.code(), *code, "{status:?}");
        assert_eq!(reason(&status), *wanted, "{status:?}");
    }
    for index in 0..62 {
        let request = guest(&format!("more-{index}"));
        client.add_workload(request).await.unwrap();
    }
    let request = guest("one-too-many");
    let status = client.add_workload(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(reason(&status), "POOL_EXHAUSTED");
    assert!(
        status.message().contains("ipam.claim"),
        "says what helps: {status:?}"
    );
}

#[test]
fn advertised_wait_ends_with_the_deadline_and_the_workload_stays() {
    // The namespace is looked for on the one blocking thread, and late: the time for that counts.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let Some(namespace) = namespace() else {
            return;
        };
        let server = start().await;
        let mut client = WorkloadServiceClient::new(server.channel.clone());
        let mut request = tonic::Request::new(v1::AddWorkloadRequest {
            wait_for: v1::WorkloadState::Advertised.into(),
            ..add_request(&namespace.path)
        });
        // Of this the answer gets a tenth. A client that hears nothing in time makes an answer of
        // its own, so the time is generous for a machine that is busy.
        request.set_timeout(Duration::from_millis(2500));
        drop(tokio::task::spawn_blocking(|| {
            std::thread::sleep(Duration::from_millis(500));
        }));
        let status = client.add_workload(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert_eq!(reason(&status), "NOT_ADVERTISED");
        let get = v1::GetWorkloadRequest { id: "a".to_owned() };
        client.get_workload(get).await.unwrap();
    });
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

#[test]
fn a_full_pool_tells_programs_what_it_tells_people() {
    use tonic_types::StatusExt as _;

    let error = crate::node::Error::PoolExhausted {
        exhausted: Box::new(crate::ipam::Exhausted {
            pool: "default".to_owned(),
            cidr: "10.244.0.0/16".parse().unwrap(),
            block_size: 26,
            blocks: 4,
            blocks_leaving: 1,
            in_claim: 8,
            max_blocks: Some(4),
            claim: vec!["10.244.1.0/24".parse().unwrap()],
            addresses: 256,
            used: 200,
            cooling: 50,
            reserved: 6,
            remote: false,
            next_free_in: Some(std::time::Duration::from_millis(1500)),
            also: vec!["other".to_owned()],
        }),
        consumers: vec![("nomad".to_owned(), 150), ("no owner".to_owned(), 50)],
    };
    let status = super::error::status(&error);
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "POOL_EXHAUSTED");
    for (key, value) in [
        ("pool", "default"),
        ("used", "200"),
        ("cooling", "50"),
        ("reserved", "6"),
        ("max_blocks", "4"),
        ("claim", "10.244.1.0/24"),
        ("next_free_seconds", "2"),
        ("consumers", "nomad=150,no owner=50"),
        ("also_exhausted", "other"),
    ] {
        assert_eq!(
            info.metadata.get(key).map(String::as_str),
            Some(value),
            "{key}"
        );
    }
    assert!(info.metadata["help"].contains("a larger max_blocks"));
    assert!(details.retry_info().is_some());
    assert!(
        status
            .message()
            .contains("in use by nomad (150), no owner (50)")
    );
}

//! What the kernel does not tell, or tells only in part: notifications that did not fit into the
//! buffer (ENOBUFS), and dumps during which something changed (NLM_F_DUMP_INTR). Both are forced.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Workload as Namespace, eventually, ip, on_a_host, on_one_thread, ops::all_ok};
use dataplane::{
    desired::{Attachment, Inside, Object, Source, Workload},
    kernel::{Address, Op, PROTOCOL_AGENTD, Place, Query, Route, Target},
    linux::{Kernel, interrupted_dumps},
    reconcile::Config,
    runtime,
};
use ipnet::{IpNet, Ipv4Net};

/// Index of `lo`.
const LOOPBACK: u32 = 1;

fn blackhole(number: u32) -> Op {
    let bits = u32::from_be_bytes([20, 0, 0, 0]) + (number << 8);
    let prefix = Ipv4Net::new(std::net::Ipv4Addr::from_bits(bits), 24).unwrap();
    Op::AddRoute {
        place: Place::Host,
        route: Route {
            prefix: prefix.into(),
            table: 254,
            metric: 0,
            // Of nobody that this agent knows.
            protocol: PROTOCOL_AGENTD + 100,
            target: Target::Blackhole,
        },
    }
}

#[test]
fn what_was_spoilt_while_notifications_were_lost_is_repaired_all_the_same() {
    on_one_thread(|| async {
        ip("link add under0 type veth peer name under1");
        ip("link set under0 up");
        ip("address add 192.168.7.1/24 dev under0");
        let namespace = Namespace::new();
        let (handle, mut events, task) = runtime::spawn(Config::default()).unwrap();
        tokio::spawn(async move { while events.next().await.is_some() {} });
        let workload = Workload {
            id: "pod".into(),
            attachment: Attachment::Routed(Inside {
                netns: namespace.netns(),
                interface: "eth0".to_owned(),
            }),
            addresses: vec!["10.244.1.5".parse().unwrap()],
            mtu: None,
            access: Default::default(),
        };
        let wanted = vec![
            Object::Blackhole("10.244.1.0/26".parse().unwrap()),
            Object::Workload(Arc::new(workload)),
        ];
        handle.set(wanted).await.unwrap();
        for source in [Source::Block, Source::Workload, Source::Bgp] {
            handle.source_synced(source).await.unwrap();
        }
        let right = || {
            let routes = common::run("ip", "route show proto 70");
            let inside = namespace.ip("route");
            let stands = routes.contains("10.244.1.5 dev agt")
                && routes.contains("blackhole 10.244.1.0/26")
                && inside.contains("default via 169.254.1.1");
            stands.then_some(()).ok_or(routes + &inside)
        };
        eventually("the workload stands", right).await;

        // Nobody reads the notifications while this thread is blocked.
        let (other, _) = Kernel::open().unwrap();
        let flood = other.apply((0..80_000).map(blackhole).collect());
        all_ok(&futures::executor::block_on(flood));
        ip("route delete 10.244.1.5/32");
        ip("route delete blackhole 10.244.1.0/26");
        namespace.ip("route delete default");
        eventually("it is put back", right).await;
        let status = handle.status().await.unwrap();
        assert!(status.overruns > 0, "{status:?}");
        handle.shutdown().await;
        task.await.unwrap();
    });
}

#[test]
fn an_interrupted_dump_is_taken_again_or_told_and_never_taken_for_whole() {
    on_a_host(|| async {
        const ADDRESSES: u32 = 4000;
        let address = |number: u32| Address {
            index: LOOPBACK,
            net: IpNet::new(
                std::net::Ipv4Addr::from_bits(u32::from_be_bytes([10, 9, 0, 0]) + number).into(),
                32,
            )
            .unwrap(),
            nodad: false,
        };
        let add = |number| Op::AddAddress {
            place: Place::Host,
            address: address(number),
        };
        let delete = |number| Op::DeleteAddress {
            place: Place::Host,
            address: address(number),
        };
        let (kernel, _changes) = Kernel::open().unwrap();
        all_ok(&kernel.apply((0..ADDRESSES).map(add).collect()).await);
        let wanted: HashSet<IpNet> = (0..ADDRESSES).map(|number| address(number).net).collect();
        let (other, _) = Kernel::open().unwrap();
        let whole = Query::Place {
            place: Place::Host,
            sysctls: Vec::new(),
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut complete = 0;
        while interrupted_dumps() == 0 || complete == 0 {
            assert!(Instant::now() < deadline, "no dump was interrupted");
            // Somebody else changes addresses all the time.
            let ops = (0..1000).flat_map(|_| [add(ADDRESSES), delete(ADDRESSES)]);
            let busy = other.apply(ops.collect());
            match kernel.query(whole.clone()).await {
                Ok(snapshot) => {
                    let seen: HashSet<IpNet> = snapshot
                        .addresses
                        .iter()
                        .map(|address| address.net)
                        .collect();
                    assert!(seen.is_superset(&wanted), "{} of {ADDRESSES}", seen.len());
                    complete += 1;
                }
                Err(error) => assert_eq!(error.errno, libc::EINTR, "{error}"),
            }
            busy.await;
        }
    });
}

//! Workloads added and deleted: through an agent's API, and through raw netlink at the limit.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentd_proto::v1::DeleteWorkloadRequest;
use agentd_proto::v1::workload_service_client::WorkloadServiceClient;
use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use super::netlink::{
    Batch, CREATE, DELLINK, DELROUTE, EXCL, GETLINK, NEWADDR, NEWLINK, NEWNEIGH, NEWROUTE, REPLACE,
    Socket, link_header, route_header,
};
use crate::lab::client;
use crate::lab::netns::Netns;
use crate::lab::workload::request;

/// Times of single operations and of all together.
#[derive(Clone, Debug, Default)]
pub struct Times {
    pub each: Vec<Duration>,
    pub all: Duration,
}

/// Adds a workload in each namespace through the API, by this many clients at once.
pub async fn add(socket: &Path, namespaces: &[Netns], clients: usize) -> Result<Times> {
    let requests: Vec<_> = namespaces.iter().map(|n| request(n.name(), n)).collect();
    parallel(socket, requests.len(), clients, move |mut client, index| {
        let request = requests.get(index).cloned().unwrap_or_default();
        async move {
            client.add_workload(request).await?;
            Ok(())
        }
    })
    .await
}

/// Deletes the workloads of these namespaces.
pub async fn delete(socket: &Path, namespaces: &[Netns], clients: usize) -> Result<Times> {
    let ids: Vec<_> = namespaces.iter().map(|n| n.name().to_owned()).collect();
    parallel(socket, ids.len(), clients, move |mut client, index| {
        let id = ids.get(index).cloned().unwrap_or_default();
        async move {
            let request = DeleteWorkloadRequest { id, generation: 0 };
            client.delete_workload(request).await?;
            Ok(())
        }
    })
    .await
}

type Client = WorkloadServiceClient<tonic::transport::Channel>;

async fn parallel<F, O>(socket: &Path, count: usize, clients: usize, call: F) -> Result<Times>
where
    F: Fn(Client, usize) -> O + Send + Sync + 'static,
    O: Future<Output = Result<()>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let call = Arc::new(call);
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let client = Client::new(client::channel(socket)?);
        let (next, call) = (Arc::clone(&next), Arc::clone(&call));
        tasks.push(tokio::spawn(async move {
            let mut each = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return anyhow::Ok(each);
                }
                let start = Instant::now();
                call(client.clone(), index).await?;
                each.push(start.elapsed());
            }
        }));
    }
    let mut each = Vec::new();
    for task in tasks {
        each.extend(task.await.context("a client panicked")??);
    }
    Ok(Times {
        each,
        all: start.elapsed(),
    })
}

const HOST_MAC: [u8; 6] = [0xee; 6];
const GATEWAY: [u8; 4] = [169, 254, 1, 1];
const HOST_LINK_LOCAL: [u8; 16] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee,
];
/// Where the raw run counts its host links from.
const FIRST_INDEX: u32 = 100_000;
const GROUP: u32 = 4711;

fn addresses(number: u32) -> ([u8; 4], [u8; 16], [u8; 6]) {
    let n = number.to_be_bytes();
    let v4 = [10, 100, n[2], n[3]];
    let mut v6 = [0; 16];
    v6[0] = 0xfd;
    v6[14] = n[2];
    v6[15] = n[3];
    (v4, v6, [0x02, 0, 0, 0, n[2], n[3]])
}

/// What agentd makes for a workload, written straight into the kernel: a veth whose peer is made
/// in the target namespace, addresses, routes and permanent neighbours of both families.
fn raw_add(host: &Netns, target: &Netns, number: u32, node: &mut Socket) -> Result<()> {
    let (v4, v6, mac) = addresses(number);
    let index = FIRST_INDEX + number;
    let mut batch = Batch::default();
    batch.start(NEWLINK, CREATE | EXCL, &link_header(index, false));
    batch.put(3, format!("raw{number:08x}\0").as_bytes());
    batch.put(1, &HOST_MAC);
    batch.put_u32(4, 1500);
    batch.put_u32(27, GROUP);
    batch.nest(18, &[], |link| {
        link.put(1, b"veth\0");
        link.nest(2, &[], |data| {
            data.nest(1, &link_header(2, false), |peer| {
                peer.put(3, b"eth0\0");
                peer.put(1, &mac);
                peer.put_u32(4, 1500);
                peer.put(28, &target.as_fd().as_raw_fd().to_ne_bytes());
            });
        });
    });
    no_link_local(&mut batch, index);
    batch.start(NEWLINK, 0, &link_header(index, true));
    for (family, address) in [(2, v4.as_slice()), (10, &v6)] {
        neighbour(&mut batch, family, index, address, mac);
    }
    let link_scope = 253;
    batch.start(
        NEWROUTE,
        CREATE | EXCL,
        &route_header(2, 32, 99, link_scope),
    );
    batch.put(1, &v4);
    batch.put_u32(4, index);
    batch.start(NEWROUTE, CREATE | EXCL, &route_header(10, 128, 99, 0));
    batch.put(1, &v6);
    batch.put_u32(4, index);
    node.execute(&mut batch)?;

    setns(target, CloneFlags::CLONE_NEWNET)?;
    let inside = Socket::open();
    setns(host, CloneFlags::CLONE_NEWNET)?;
    let mut inside = inside?;
    no_link_local(&mut batch, 2);
    batch.start(NEWLINK, 0, &link_header(2, true));
    for (family, length, flags, address) in [(2, 32, 0, v4.as_slice()), (10, 128, 2, &v6)] {
        let mut header = [family, length, flags, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&2u32.to_ne_bytes());
        batch.start(NEWADDR, CREATE | EXCL, &header);
        batch.put(2, address);
        batch.put(1, address);
    }
    neighbour(&mut batch, 2, 2, &GATEWAY, HOST_MAC);
    neighbour(&mut batch, 10, 2, &HOST_LINK_LOCAL, HOST_MAC);
    batch.start(
        NEWROUTE,
        CREATE | EXCL,
        &route_header(2, 32, 99, link_scope),
    );
    batch.put(1, &GATEWAY);
    batch.put_u32(4, 2);
    for (family, gateway) in [(2, GATEWAY.as_slice()), (10, &HOST_LINK_LOCAL)] {
        batch.start(NEWROUTE, CREATE | EXCL, &route_header(family, 0, 99, 0));
        batch.put(5, gateway);
        batch.put_u32(4, 2);
    }
    inside.execute(&mut batch)?;

    // Asking for the link waits until the kernel has made its route to ff00::/8.
    batch.start(GETLINK, 0, &link_header(index, false));
    let local = 255;
    let multicast = 5;
    let mut header = route_header(10, 8, 0, 0);
    (header[4], header[7]) = (local, multicast);
    batch.start(DELROUTE, 0, &header);
    batch.put(1, &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    batch.put_u32(4, index);
    node.execute(&mut batch)
}

/// The link makes no link-local address by itself.
fn no_link_local(batch: &mut Batch, index: u32) {
    batch.start(NEWLINK, 0, &link_header(index, false));
    batch.nest(26, &[], |specification| {
        specification.nest(10, &[], |family| family.put(8, &[1]));
    });
}

fn neighbour(batch: &mut Batch, family: u8, index: u32, address: &[u8], mac: [u8; 6]) {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    // NUD_PERMANENT
    header[8] = 0x80;
    batch.start(NEWNEIGH, CREATE | REPLACE, &header);
    batch.put(1, address);
    batch.put(2, &mac);
}

/// The limit for adding: a raw workload in each namespace.
pub fn raw_add_all(host: &Netns, namespaces: &[Netns]) -> Result<Times> {
    host.enter(|| -> Result<_> {
        let mut node = Socket::open()?;
        timed(namespaces.len(), |number| {
            let target = namespaces.get(number as usize).context("namespace")?;
            raw_add(host, target, number, &mut node)
        })
    })?
}

/// The addresses of the raw workload with this number.
pub fn raw_addresses(number: u32) -> [IpAddr; 2] {
    let (v4, v6, _) = addresses(number);
    [v4.into(), v6.into()]
}

/// The limit for deleting: takes the routes of each workload away, and then all links at once,
/// whose time is the second result.
pub fn raw_delete_all(host: &Netns, count: usize) -> Result<(Times, Duration)> {
    host.enter(|| -> Result<_> {
        let mut node = Socket::open()?;
        let routes = timed(count, |number| {
            let (v4, v6, _) = addresses(number);
            let mut batch = Batch::default();
            batch.start(DELROUTE, 0, &route_header(2, 32, 99, 255));
            batch.put(1, &v4);
            batch.start(DELROUTE, 0, &route_header(10, 128, 99, 0));
            batch.put(1, &v6);
            node.execute(&mut batch)
        })?;
        let start = Instant::now();
        let mut batch = Batch::default();
        batch.start(DELLINK, 0, &link_header(0, false));
        batch.put_u32(27, GROUP);
        node.execute(&mut batch)?;
        Ok((routes, start.elapsed()))
    })?
}

fn timed(count: usize, mut operation: impl FnMut(u32) -> Result<()>) -> Result<Times> {
    let mut each = Vec::with_capacity(count);
    let start = Instant::now();
    for number in 0..u32::try_from(count)? {
        let start = Instant::now();
        operation(number)?;
        each.push(start.elapsed());
    }
    Ok(Times {
        each,
        all: start.elapsed(),
    })
}

//! `agentctl workload`.

use std::{net::IpAddr, path::PathBuf};

use agentd_proto::v1::{
    AddWorkloadRequest, DeleteWorkloadRequest, GetWorkloadRequest, ListWorkloadsRequest,
    WatchWorkloadsRequest, Workload, WorkloadState, add_workload_request::Namespace,
    watch_workloads_response::Kind,
};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::{
    client::{Client, Error},
    output::{Output, printable},
    time,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give a workload its addresses and connect it
    Add(Add),
    /// Disconnect a workload and free its addresses
    Delete {
        id: String,
        /// Only if the workload still has this generation
        #[arg(long, value_name = "N")]
        generation: Option<u64>,
    },
    /// List the workloads of this node
    List,
    /// Show all that is known of one workload
    Show { id: String },
    /// Follow changes: the present set first, then each change as it happens
    Watch,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("namespace").required(true)))]
pub struct Add {
    /// Chosen by the caller; repeating the command with the same id and arguments changes nothing
    id: String,
    /// Network namespace of the workload, such as /run/netns/NAME
    #[arg(long, value_name = "PATH", group = "namespace")]
    netns: Option<PathBuf>,
    /// A process whose network namespace is meant
    #[arg(long, value_name = "PID", group = "namespace")]
    pid: Option<u32>,
    /// Name of the interface inside the namespace
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    interface: String,
    /// Pool to take addresses from; by default one address of each family
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// A fixed address; once for each family
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Bytes; by default that of the underlay
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Kept with the workload and shown
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// What to wait for
    #[arg(long, value_enum, value_name = "STATE", default_value_t = WaitFor::Programmed)]
    wait: WaitFor,
    /// Give up waiting after so many seconds; the workload stays
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WaitFor {
    /// The kernel state was written and read back
    Programmed,
    /// Besides, a peer was sent the route to it
    Advertised,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<(), Error> {
    match command {
        Command::Add(arguments) => add(arguments, client, out).await,
        Command::Delete { id, generation } => delete(id, generation, client, out).await,
        Command::List => list(client, out).await,
        Command::Show { id } => show(id, client, out).await,
        Command::Watch => watch(client, out).await,
    }
}

async fn add(arguments: Add, client: &Client, out: &mut Output) -> Result<(), Error> {
    let namespace = match (arguments.netns, arguments.pid) {
        (Some(path), _) => {
            let path = path.to_str().map(str::to_owned).ok_or_else(|| {
                Error::Usage(format!("--netns {}: the path is not UTF-8", path.display()))
            })?;
            Namespace::Netns(path)
        }
        (None, Some(pid)) => Namespace::Pid(pid),
        (None, None) => return Err(Error::Usage("--netns or --pid is needed".into())),
    };
    let mut request = tonic::Request::new(AddWorkloadRequest {
        id: arguments.id,
        namespace: Some(namespace),
        interface_name: arguments.interface,
        pool: arguments.pool.unwrap_or_default(),
        addresses: arguments.addresses.iter().map(IpAddr::to_string).collect(),
        mtu: arguments.mtu.unwrap_or_default(),
        labels: arguments.labels.into_iter().collect(),
        wait_for: match arguments.wait {
            WaitFor::Programmed => WorkloadState::Programmed,
            WaitFor::Advertised => WorkloadState::Advertised,
        }
        .into(),
        ..Default::default()
    });
    request.set_timeout(std::time::Duration::from_secs(arguments.timeout));
    let response = client.workload().add_workload(request).await?.into_inner();
    if out.is_json() {
        return out.json("AddWorkloadResponse", &response);
    }
    let workload = response.workload.unwrap_or_default();
    out.line(format!(
        "{} {}: {} on {} ({})",
        printable(&workload.id),
        if response.created {
            "added"
        } else {
            "was there"
        },
        addresses(&workload),
        workload.host_interface,
        state(workload.state()),
    ))
}

async fn delete(
    id: String,
    generation: Option<u64>,
    client: &Client,
    out: &mut Output,
) -> Result<(), Error> {
    let request = DeleteWorkloadRequest {
        id: id.clone(),
        generation: generation.unwrap_or_default(),
    };
    let response = client
        .workload()
        .delete_workload(request)
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("DeleteWorkloadResponse", &response);
    }
    out.line(format!(
        "{} {}",
        printable(&id),
        if response.deleted {
            "deleted"
        } else {
            "was not there"
        }
    ))
}

async fn list(client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client
        .workload()
        .list_workloads(ListWorkloadsRequest {})
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("ListWorkloadsResponse", &response);
    }
    out.table(
        &[
            "WORKLOAD",
            "ADDRESSES",
            "INTERFACE",
            "STATE",
            "AGE",
            "NAMESPACE",
            "REASON",
        ],
        &[],
        response.workloads.iter().map(|workload| {
            vec![
                workload.id.clone(),
                addresses(workload),
                workload.host_interface.clone(),
                state(workload.state()).to_owned(),
                time::age(workload.created_at.as_ref()),
                namespace(workload),
                workload.reason.clone(),
            ]
        }),
    )
}

async fn show(id: String, client: &Client, out: &mut Output) -> Result<(), Error> {
    let response = client
        .workload()
        .get_workload(GetWorkloadRequest { id })
        .await?
        .into_inner();
    if out.is_json() {
        return out.json("GetWorkloadResponse", &response);
    }
    let workload = response.workload.unwrap_or_default();
    let labels: Vec<_> = workload
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let held: Vec<_> = workload
        .addresses
        .iter()
        .map(|address| {
            format!(
                "{} via {} (pool {}, block {})",
                address.address, address.gateway, address.pool, address.block
            )
        })
        .collect();
    out.fields(&[
        ("Workload", workload.id.clone()),
        ("Generation", workload.generation.to_string()),
        ("State", state(workload.state()).to_owned()),
        ("Reason", workload.reason.clone()),
        ("Addresses", held.join("\n")),
        ("Namespace", namespace(&workload)),
        ("Interface", workload.interface_name.clone()),
        (
            "Host interface",
            format!(
                "{} (index {})",
                workload.host_interface, workload.host_ifindex
            ),
        ),
        ("MTU", workload.mtu.to_string()),
        ("Labels", labels.join("\n")),
        ("Created", time::moment(workload.created_at.as_ref())),
    ])
}

async fn watch(client: &Client, out: &mut Output) -> Result<(), Error> {
    let mut stream = client
        .workload()
        .watch_workloads(WatchWorkloadsRequest {})
        .await?
        .into_inner();
    while let Some(event) = stream.message().await? {
        if out.is_json() {
            out.json_line("WatchWorkloadsResponse", &event)?;
            continue;
        }
        let workload = event.workload.clone().unwrap_or_default();
        match event.kind() {
            Kind::Upsert => out.line(format!(
                "{:<12} {}  {}  {}",
                state(workload.state()),
                printable(&workload.id),
                addresses(&workload),
                printable(&workload.reason)
            ))?,
            Kind::Delete => out.line(format!("{:<12} {}", "gone", printable(&workload.id)))?,
            Kind::Synced => out.line("--- that is all there is now; changes follow ---")?,
            Kind::Unspecified => {}
        }
    }
    Ok(())
}

fn addresses(workload: &Workload) -> String {
    let list: Vec<_> = workload
        .addresses
        .iter()
        .map(|address| address.address.as_str())
        .collect();
    list.join(",")
}

fn namespace(workload: &Workload) -> String {
    if workload.netns.is_empty() && workload.pid != 0 {
        format!("pid {}", workload.pid)
    } else {
        workload.netns.clone()
    }
}

fn state(state: WorkloadState) -> &'static str {
    match state {
        WorkloadState::Unspecified => "unknown",
        WorkloadState::Pending => "pending",
        WorkloadState::Programmed => "programmed",
        WorkloadState::Advertised => "advertised",
        WorkloadState::Deleting => "deleting",
        WorkloadState::Failed => "failed",
    }
}

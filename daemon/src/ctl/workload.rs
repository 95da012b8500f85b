//! `agentctl workload`.

use std::{net::IpAddr, path::PathBuf};

use agentd_proto::v1::{
    AddWorkloadRequest, Attachment, DeleteWorkloadRequest, GetWorkloadRequest,
    ListWorkloadsRequest, Protocol, PublishedPort, TapOptions, WatchWorkloadsRequest, Workload,
    WorkloadState, add_workload_request::Namespace, watch_workloads_response::Kind,
};
use clap::{Args, Subcommand, ValueEnum};

use super::{
    client::{Client, Error},
    output::{Output, printable},
    time,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give a workload its addresses and connect it
    Add(Box<Add>),
    /// Disconnect a workload and free its addresses
    Delete {
        id: String,
        /// Only if the workload still has this generation
        #[arg(long, value_name = "N")]
        generation: Option<u64>,
    },
    /// State all workloads of an owner: those of a file are added, its other ones released
    Sync(super::sync::Arguments),
    /// List the workloads of this node
    List,
    /// Show all that is known of one workload
    Show { id: String },
    /// Follow changes: the present set first, then each change as it happens
    Watch,
}

#[derive(Debug, Args)]
pub struct Add {
    /// Chosen by the caller; repeating the command with the same id and arguments changes nothing
    id: String,
    /// How it is connected
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kinds::Routed)]
    attachment: Kinds,
    /// Network namespace of the workload, such as /run/netns/NAME (routed, bridged, none)
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    netns: Option<PathBuf>,
    /// A process whose network namespace is meant
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Name of the interface inside the namespace; by default eth0 (routed, bridged)
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Name of the device; by default derived from the id (tap)
    #[arg(long, value_name = "NAME")]
    tap_name: Option<String>,
    /// User id of who may open the device (tap)
    #[arg(long, value_name = "UID")]
    tap_owner: Option<u32>,
    /// Group id of who may open the device (tap)
    #[arg(long, value_name = "GID")]
    tap_group: Option<u32>,
    /// The device has several queues (tap)
    #[arg(long)]
    tap_multi_queue: bool,
    /// MAC address of the guest (tap)
    #[arg(long, value_name = "MAC")]
    mac: Option<String>,
    /// A bridge of the configuration (bridged)
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// The workload whose network namespace is joined (shared)
    #[arg(long, value_name = "ID")]
    shared_with: Option<String>,
    /// Pool to take an address from, once for each family; by default one address of each family
    #[arg(long = "pool", value_name = "NAME")]
    pools: Vec<String>,
    /// Whose workload it is; `workload sync` releases only those of its own owner
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// A fixed address; once for each family
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Bytes; by default that of the underlay
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// A port of the node that leads to the workload, such as 8080:80, 53:53/udp or
    /// [2001:db8::1]:80:80/tcp; may be repeated
    #[arg(long = "publish", value_name = "[IP:]PORT:PORT[/PROTOCOL]", value_parser = parse_port)]
    ports: Vec<PublishedPort>,
    /// An address or prefix beside its own that it may send from; may be repeated
    #[arg(long = "allow-address", value_name = "IP[/LENGTH]")]
    allowed: Vec<String>,
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
enum Kinds {
    /// A veth pair, routed by the host
    Routed,
    /// A tap device for a virtual machine, routed by the host
    Tap,
    /// A veth pair with the host's end on a bridge of the configuration
    Bridged,
    /// In the network namespace of another workload
    Shared,
    /// In the node's own network namespace
    Host,
    /// A network namespace with nothing but loopback
    None,
}

impl From<Kinds> for Attachment {
    fn from(kind: Kinds) -> Self {
        match kind {
            Kinds::Routed => Attachment::Routed,
            Kinds::Tap => Attachment::Tap,
            Kinds::Bridged => Attachment::Bridged,
            Kinds::Shared => Attachment::Shared,
            Kinds::Host => Attachment::Host,
            Kinds::None => Attachment::None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WaitFor {
    /// The kernel state was written and read back
    Programmed,
    /// Besides, a peer was sent the route to it
    Advertised,
}

/// `[IP:]HOST:CONTAINER[/PROTOCOL]`; an IPv6 address stands in brackets.
fn parse_port(text: &str) -> Result<PublishedPort, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((rest, "sctp")) => (rest, Protocol::Sctp),
        Some((_, other)) => return Err(format!("{other} is none of tcp, udp and sctp")),
    };
    let shape = || "expected [IP:]PORT:PORT, such as 8080:80".to_owned();
    let number = |text: &str| match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no port; 1 to 65535 are allowed")),
        Ok(number) => Ok(number.into()),
    };
    let (rest, container_port) = rest.rsplit_once(':').ok_or_else(shape)?;
    let (host_address, host_port) = match rest.rsplit_once(':') {
        None => (String::new(), rest),
        Some((address, port)) => {
            let inside = address
                .strip_prefix('[')
                .and_then(|address| address.strip_suffix(']'));
            let parsed = match inside {
                Some(address) => address.parse().map(IpAddr::V6),
                None => address.parse().map(IpAddr::V4),
            };
            let parsed = parsed.map_err(|_| format!("{address:?} is no address; {}", shape()))?;
            (parsed.to_string(), port)
        }
    };
    Ok(PublishedPort {
        host_address,
        host_port: number(host_port)?,
        container_port: number(container_port)?,
        protocol: protocol.into(),
    })
}

fn shown_port(port: &PublishedPort) -> String {
    let protocol = match port.protocol() {
        Protocol::Unspecified | Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let address = match port.host_address.as_str() {
        "" => String::new(),
        address if address.contains(':') => format!("[{address}]:"),
        address => format!("{address}:"),
    };
    format!(
        "{address}{}:{}/{protocol}",
        port.host_port, port.container_port
    )
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<(), Error> {
    match command {
        Command::Add(arguments) => add(*arguments, client, out).await,
        Command::Delete { id, generation } => delete(id, generation, client, out).await,
        Command::Sync(arguments) => super::sync::run(arguments, client, out).await,
        Command::List => list(client, out).await,
        Command::Show { id } => show(id, client, out).await,
        Command::Watch => watch(client, out).await,
    }
}

/// `None` where a kind needs no namespace; which do, the agent says.
fn named_namespace(arguments: &Add) -> Result<Option<Namespace>, Error> {
    let needed = matches!(
        arguments.attachment,
        Kinds::Routed | Kinds::Bridged | Kinds::None
    );
    match (&arguments.netns, arguments.pid) {
        (Some(path), _) => {
            let path = path.to_str().map(str::to_owned).ok_or_else(|| {
                Error::Usage(format!("--netns {}: the path is not UTF-8", path.display()))
            })?;
            Ok(Some(Namespace::Netns(path)))
        }
        (None, Some(pid)) => Ok(Some(Namespace::Pid(pid))),
        (None, None) if needed => Err(Error::Usage("--netns or --pid is needed".into())),
        (None, None) => Ok(None),
    }
}

fn tap_options(arguments: &Add) -> Option<TapOptions> {
    let options = TapOptions {
        name: arguments.tap_name.clone().unwrap_or_default(),
        owner_uid: arguments.tap_owner,
        owner_gid: arguments.tap_group,
        multi_queue: arguments.tap_multi_queue,
    };
    (options != TapOptions::default()).then_some(options)
}

async fn add(arguments: Add, client: &Client, out: &mut Output) -> Result<(), Error> {
    let namespace = named_namespace(&arguments)?;
    let tap = tap_options(&arguments);
    let mut request = tonic::Request::new(AddWorkloadRequest {
        id: arguments.id,
        attachment: Attachment::from(arguments.attachment).into(),
        namespace,
        interface_name: arguments.interface.unwrap_or_default(),
        tap,
        mac: arguments.mac.unwrap_or_default(),
        bridge: arguments.bridge.unwrap_or_default(),
        shared_with: arguments.shared_with.unwrap_or_default(),
        pool: String::new(),
        pools: arguments.pools,
        owner: arguments.owner.unwrap_or_default(),
        addresses: arguments.addresses.iter().map(IpAddr::to_string).collect(),
        mtu: arguments.mtu.unwrap_or_default(),
        labels: arguments.labels.into_iter().collect(),
        ports: arguments.ports,
        allowed_addresses: arguments.allowed,
        wait_for: match arguments.wait {
            WaitFor::Programmed => WorkloadState::Programmed,
            WaitFor::Advertised => WorkloadState::Advertised,
        }
        .into(),
    });
    request.set_timeout(std::time::Duration::from_secs(arguments.timeout));
    let response = client.workload().add_workload(request).await?.into_inner();
    if out.is_json() {
        return out.json("AddWorkloadResponse", &response);
    }
    let workload = response.workload.unwrap_or_default();
    let did = if response.created {
        "added"
    } else {
        "was there"
    };
    let mut place = addresses(&workload);
    if place.is_empty() {
        place = attachment(&workload).to_owned();
    }
    if !workload.host_interface.is_empty() {
        place += &format!(" on {}", workload.host_interface);
    }
    let state = state(workload.state());
    out.line(format!(
        "{} {did}: {place} ({state})",
        printable(&workload.id)
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
            "ATTACHMENT",
            "ADDRESSES",
            "PORTS",
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
                attachment(workload).to_owned(),
                addresses(workload),
                ports(workload, ","),
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
            let mut text = address.address.clone();
            if !address.gateway.is_empty() {
                text += &format!(" via {}", address.gateway);
            }
            if !address.pool.is_empty() {
                text += &format!(" (pool {}, block {})", address.pool, address.block);
            }
            text
        })
        .collect();
    out.fields(&[
        ("Workload", workload.id.clone()),
        ("Generation", workload.generation.to_string()),
        ("Attachment", attachment(&workload).to_owned()),
        ("State", state(workload.state()).to_owned()),
        ("Reason", workload.reason.clone()),
        ("Addresses", held.join("\n")),
        ("Ports", ports(&workload, "\n")),
        ("May also send from", workload.allowed_addresses.join("\n")),
        ("Namespace", namespace(&workload)),
        ("Interface", workload.interface_name.clone()),
        ("Shared with", workload.shared_with.clone()),
        ("Bridge", workload.bridge.clone()),
        ("Owner", workload.owner.clone()),
        ("Released", released(&workload)),
        ("Host interface", host_interface(&workload)),
        ("Guest MAC", workload.mac.clone()),
        (
            "MTU",
            match workload.mtu {
                0 => String::new(),
                mtu => mtu.to_string(),
            },
        ),
        ("Labels", labels.join("\n")),
        ("Created", time::moment(workload.created_at.as_ref())),
    ])
}

/// Of one that its owner did not name.
fn released(workload: &Workload) -> String {
    match &workload.release_at {
        Some(at) => format!("{}: its owner does not name it", time::moment(Some(at))),
        None => String::new(),
    }
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

fn ports(workload: &Workload, between: &str) -> String {
    let list: Vec<_> = workload.ports.iter().map(shown_port).collect();
    list.join(between)
}

fn addresses(workload: &Workload) -> String {
    let list: Vec<_> = workload
        .addresses
        .iter()
        .map(|address| address.address.as_str())
        .collect();
    list.join(",")
}

fn host_interface(workload: &Workload) -> String {
    match workload.host_interface.as_str() {
        "" => String::new(),
        name => format!("{name} (index {})", workload.host_ifindex),
    }
}

fn attachment(workload: &Workload) -> &'static str {
    match workload.attachment() {
        Attachment::Unspecified | Attachment::Routed => "routed",
        Attachment::Tap => "tap",
        Attachment::Bridged => "bridged",
        Attachment::Shared => "shared",
        Attachment::Host => "host",
        Attachment::None => "none",
    }
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

#[cfg(test)]
mod tests {
    use super::{parse_port, shown_port};

    #[test]
    fn published_ports_are_read_as_they_are_shown() {
        for text in [
            "8080:80/tcp",
            "53:5353/udp",
            "192.0.2.1:80:8080/sctp",
            "[2001:db8::1]:80:80/tcp",
        ] {
            let port = parse_port(text).expect(text);
            assert_eq!(shown_port(&port), text);
        }
        let short = parse_port("8080:80").expect("without protocol");
        assert_eq!(shown_port(&short), "8080:80/tcp");
        for text in [
            "80",
            "0:80",
            "80:70000",
            "80:80/icmp",
            "2001:db8::1:80:80",
            "x:80:80",
        ] {
            assert!(parse_port(text).is_err(), "{text}");
        }
    }
}

//! `agentctl route`.

use agentd_proto::v1::{ListRoutesRequest, ListRoutesResponse, Route, RouteTable};
use clap::{Subcommand, ValueEnum};
use ipnet::IpNet;

use super::{
    client::{Client, Error},
    output::Output,
    time,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List routes
    List {
        /// Which table to show
        #[arg(long, value_enum, default_value_t = Table::Loc)]
        table: Table,
        /// The peer whose routes are meant; required with `--table out`
        #[arg(long, value_name = "NAME")]
        peer: Option<String>,
        /// Only this prefix and what it covers
        prefix: Option<IpNet>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Table {
    /// Best paths after the decision process
    Loc,
    /// What peers sent, with what became of it
    In,
    /// What a peer is sent
    Out,
    /// The agent's routes in the kernel
    Kernel,
}

pub async fn run(command: Command, client: &Client, out: &mut Output) -> Result<(), Error> {
    let Command::List {
        table,
        peer,
        prefix,
    } = command;
    if table == Table::Out && peer.is_none() {
        return Err(Error::Usage(
            "--table out needs --peer NAME; `agentctl peer list` shows the names".into(),
        ));
    }
    if peer.is_some() && matches!(table, Table::Loc | Table::Kernel) {
        return Err(Error::Usage(
            "--peer goes with --table in or --table out".into(),
        ));
    }
    let request = ListRoutesRequest {
        table: match table {
            Table::Loc => RouteTable::LocRib,
            Table::In => RouteTable::AdjRibIn,
            Table::Out => RouteTable::AdjRibOut,
            Table::Kernel => RouteTable::Kernel,
        }
        .into(),
        peer: peer.unwrap_or_default(),
        prefix: prefix.map(|prefix| prefix.to_string()).unwrap_or_default(),
    };
    let mut stream = client.routing().list_routes(request).await?.into_inner();
    let mut all = ListRoutesResponse::default();
    while let Some(page) = stream.message().await? {
        all.routes.extend(page.routes);
    }
    if out.is_json() {
        return out.json("ListRoutesResponse", &all);
    }
    if table == Table::Kernel {
        out.table(
            &["PREFIX", "KIND", "VIA", "DEVICE", "PROTOCOL", "METRIC"],
            &[5],
            all.routes.iter().map(kernel_row),
        )
    } else {
        // RFC 7911: told apart by their identifiers where there are any.
        let several = all.routes.iter().any(|route| route.path_id != 0);
        let mut columns = vec!["", "PREFIX", "NEXT HOP", "PEER", "PREF", "MED", "AS PATH"];
        columns.extend(["ORIGIN", "AGE", "REASON"]);
        let mut numbers = vec![4, 5];
        if several {
            columns.insert(2, "PATH");
            numbers = vec![2, 5, 6];
        }
        out.table(
            &columns,
            &numbers,
            all.routes.iter().map(|route| {
                let mut row = bgp_row(route);
                if several {
                    row.insert(2, route.path_id.to_string());
                }
                row
            }),
        )
    }
}

fn bgp_row(route: &Route) -> Vec<String> {
    let number = |value: Option<u32>| value.map(|value| value.to_string()).unwrap_or_default();
    vec![
        if route.best { "*" } else { " " }.to_owned(),
        route.prefix.clone(),
        next_hop(route),
        if route.peer.is_empty() {
            "local".to_owned()
        } else {
            route.peer.clone()
        },
        number(route.local_pref),
        number(route.med),
        route.as_path.clone(),
        route.origin.clone(),
        time::age(route.received_at.as_ref()),
        route.reason.clone(),
    ]
}

/// One hop: `2001:db8::1 (fe80::1)` where it has two addresses.
fn next_hop(route: &Route) -> String {
    let text = match route.kind.as_str() {
        "blackhole" if route.next_hops.is_empty() => "discard".to_owned(),
        _ => route.next_hops.join(","),
    };
    match route.next_hop_link_local.as_str() {
        "" => text,
        link_local => format!("{text} ({link_local})"),
    }
}

fn kernel_row(route: &Route) -> Vec<String> {
    let protocol = match route.protocol {
        70 => "agentd".to_owned(),
        71 => "agentd-bgp".to_owned(),
        other => other.to_string(),
    };
    vec![
        route.prefix.clone(),
        route.kind.clone(),
        route.next_hops.join(","),
        route.interfaces.join(","),
        protocol,
        route.metric.to_string(),
    ]
}

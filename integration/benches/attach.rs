//! Workload add and delete: p50, p99 and rate with one and with eight clients, beside the limit of
//! raw netlink in the same run.

use anyhow::{Result, ensure};
use integration::bench::attach::{self, Times};
use integration::bench::percentile;
use integration::bench::report::{Page, milliseconds, rate};
use integration::lab::netns::Netns;
use integration::lab::{Lab, PATIENCE, single};

const WORKLOADS: usize = 200;

fn row(what: &str, times: &Times) -> Vec<String> {
    vec![
        what.to_owned(),
        milliseconds(percentile(&times.each, 0.5)),
        milliseconds(percentile(&times.each, 0.99)),
        rate(times.each.len(), times.all),
    ]
}

fn namespaces(lab: &Lab, name: &str) -> Result<Vec<Netns>> {
    (0..WORKLOADS)
        .map(|number| lab.namespace(&format!("{name}{number}")))
        .collect()
}

fn main() -> Result<()> {
    // `cargo test --benches` and `cargo nextest` call benchmarks to see whether they run at all.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut page = Page::new(
        "Workload add and delete",
        "Each add makes a veth pair into a network namespace, addresses, routes and neighbours of \
         both families, and is answered when it is durable and read back from the kernel. A delete \
         is answered when the routes are gone; links are reaped in groups later. \"Limit\" is the \
         same kernel state written by raw netlink in one thread, without a store, an API or reading \
         back.",
    );
    let mut config = single::config();
    config.claim = vec!["10.244.0.0/20".into(), "fd10:244::/112".into()];
    let agent = single::prepare(&lab, config)?;
    agent.start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut adds, mut deletes) = (Vec::new(), Vec::new());
    for clients in [1, 8] {
        let namespaces = namespaces(&lab, &format!("c{clients}-"))?;
        let add = runtime.block_on(attach::add(&agent.socket(), &namespaces, clients))?;
        let delete = runtime.block_on(attach::delete(&agent.socket(), &namespaces, clients))?;
        adds.push(row(&format!("agentd, {clients} at once"), &add));
        deletes.push(row(&format!("agentd, {clients} at once"), &delete));
        lab.wait_for("links are reaped", PATIENCE, || {
            let links = agent.namespace().show("ip -brief link")?;
            ensure!(!links.contains("agt"), "{} links", links.lines().count());
            Ok(())
        })?;
    }
    let host = lab.namespace("raw")?;
    let add = attach::raw_add_all(&host, &namespaces(&lab, "r")?)?;
    let (routes, links) = attach::raw_delete_all(&host, WORKLOADS)?;
    adds.push(row("limit, raw netlink", &add));
    deletes.push(row("limit, routes only", &routes));
    deletes.push(vec![
        "limit, links in one group".into(),
        String::new(),
        String::new(),
        rate(WORKLOADS, links),
    ]);
    let columns = ["", "p50 ms", "p99 ms", "per second"];
    page.table(&format!("Add, {WORKLOADS} workloads"), &columns, &adds);
    page.table(
        &format!("Delete, {WORKLOADS} workloads"),
        &columns,
        &deletes,
    );
    page.write("attach")
}

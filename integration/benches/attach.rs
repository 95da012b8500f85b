//! Workload add and delete: p50, p99 and rate with one and with eight clients, beside the limit of
//! raw netlink in the same run.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::bench::attach::{self, Times};
use integration::bench::percentile;
use integration::bench::report::{Page, milliseconds, rate};
use integration::bench::results::{record, record_times};
use integration::bench::{cni, is_quick, median, repetitions};
use integration::lab::netns::Netns;
use integration::lab::{Lab, PATIENCE, single};

fn workloads() -> usize {
    if is_quick() { 10 } else { 200 }
}

/// In a second.
fn per_second(times: &Times) -> Result<f64> {
    let count = u32::try_from(times.each.len())?;
    Ok(f64::from(count) / times.all.as_secs_f64())
}

fn row(what: &str, times: &Times) -> Vec<String> {
    vec![
        what.to_owned(),
        milliseconds(percentile(&times.each, 0.5)),
        milliseconds(percentile(&times.each, 0.99)),
        rate(times.each.len(), times.all),
    ]
}

/// Operations of all rounds, and what each round came to.
#[derive(Debug, Default)]
struct Collected {
    adds: Times,
    deletes: Times,
    add_p50: Vec<Duration>,
    add_rates: Vec<f64>,
    delete_rates: Vec<f64>,
}

impl Collected {
    fn take(&mut self, add: Times, delete: Times) -> Result<()> {
        self.add_p50.push(median(&add.each));
        self.add_rates.push(per_second(&add)?);
        self.delete_rates.push(per_second(&delete)?);
        for (sum, times) in [(&mut self.adds, add), (&mut self.deletes, delete)] {
            sum.each.extend(times.each);
            sum.all += times.all;
        }
        Ok(())
    }

    fn record(&self, p50: &str, rate: &str, who: &str) -> Result<()> {
        record_times(p50, who, &self.add_p50)?;
        record(rate, who, &self.add_rates)
    }
}

fn remove(lab: &Lab, namespaces: &[Netns]) -> Result<()> {
    namespaces
        .iter()
        .try_for_each(|namespace| lab.delete_namespace(namespace))
}

fn namespaces(lab: &Lab, name: &str, count: usize) -> Result<Vec<Netns>> {
    (0..count)
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
         back. The plugins are Debian's, called as container runtimes do.",
    );
    let mut config = single::config();
    config.claim = vec!["10.244.0.0/20".into(), "fd10:244::/112".into()];
    let agent = single::prepare(&lab, config)?;
    agent.start()?;
    let runtime = tokio::runtime::Runtime::new()?;
    // Of each round; the tables show all operations of all rounds.
    let mut ones = Collected::default();
    let mut eights = Collected::default();
    let mut limits = Collected::default();
    let mut links_at_once = Vec::new();
    for round in 0..repetitions(5) {
        for (clients, collected) in [(1, &mut ones), (8, &mut eights)] {
            let namespaces = namespaces(&lab, &format!("c{round}-{clients}-"), workloads())?;
            let add = runtime.block_on(attach::add(&agent.socket(), &namespaces, clients))?;
            let delete = runtime.block_on(attach::delete(&agent.socket(), &namespaces, clients))?;
            collected.take(add, delete)?;
            lab.wait_for("links are reaped", PATIENCE, || {
                let links = agent.namespace().show("ip -brief link")?;
                ensure!(!links.contains("agt"), "{} links", links.lines().count());
                Ok(())
            })?;
            remove(&lab, &namespaces)?;
        }
        let host = lab.namespace("raw")?;
        let namespaces = namespaces(&lab, &format!("r{round}-"), workloads())?;
        let add = attach::raw_add_all(&host, &namespaces)?;
        let (routes, links) = attach::raw_delete_all(&host, workloads())?;
        limits.take(add, routes)?;
        links_at_once.push(links);
        remove(&lab, &namespaces)?;
        lab.delete_namespace(&host)?;
    }
    ones.record("attach-p50", "attach-rate-1", "agentd")?;
    eights.record("attach-p50-8", "attach-rate", "agentd")?;
    limits.record("attach-p50", "attach-rate", "limit")?;
    let mut adds = vec![
        row("agentd, 1 at once", &ones.adds),
        row("agentd, 8 at once", &eights.adds),
        row("limit, raw netlink", &limits.adds),
    ];
    let mut deletes = vec![
        row("agentd, 1 at once", &ones.deletes),
        row("agentd, 8 at once", &eights.deletes),
        row("limit, routes only", &limits.deletes),
        vec![
            "limit, links in one group".into(),
            String::new(),
            String::new(),
            rate(workloads(), median(&links_at_once)),
        ],
    ];
    // Half as many, once: they take twenty times as long.
    for plugin in ["ptp", "bridge"] {
        for clients in [1, 8] {
            let host = lab.namespace("cni")?;
            let name = format!("{plugin}{clients}-");
            let namespaces = namespaces(&lab, &name, workloads() / 2)?;
            let (add, delete) = cni::run(&lab, plugin, &host, &namespaces, clients)?;
            let mut collected = Collected::default();
            collected.take(add, delete)?;
            let who = format!("CNI {plugin}");
            match clients {
                1 => collected.record("attach-p50", "attach-rate-1", &who)?,
                _ => collected.record("attach-p50-8", "attach-rate", &who)?,
            }
            if clients == 8 {
                record("delete-rate", &who, &collected.delete_rates)?;
            }
            let title = format!("CNI {plugin} and host-local, {clients} at once");
            adds.push(row(&title, &collected.adds));
            deletes.push(row(&title, &collected.deletes));
            remove(&lab, &namespaces)?;
            lab.delete_namespace(&host)?;
        }
    }
    let columns = ["", "p50 ms", "p99 ms", "per second"];
    page.table(
        &format!("Add, {} workloads each time", workloads()),
        &columns,
        &adds,
    );
    page.table(
        &format!("Delete, {} workloads each time", workloads()),
        &columns,
        &deletes,
    );
    page.write("attach")
}

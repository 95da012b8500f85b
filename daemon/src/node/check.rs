//! Whether everybody tells the same story: records on disk, the allocator, the kernel, BGP.
//!
//! Pure: what each says was read before, by whoever asks. Nothing is taken from one source to
//! judge itself. What is expected of the kernel follows from the records, and is written down here
//! a second time on purpose: the code that programs the kernel would find its own mistakes right.
//!
//! The sources are read one after the other while the agent goes on, so a single comparison may see
//! what is on its way. Whoever asks compares more than once, and believes what every look has seen
//! ([`Report::confirm`]).
//!
//! Here: what is compared, and BGP. Records and allocator are in `memory`, the kernel in `kernel`.

mod kernel;
mod memory;

use std::collections::{BTreeMap, BTreeSet};

use bgp::speaker::status::ForeignClaim;
use dataplane::{desired::Netns, kernel::Snapshot};
use ipnet::IpNet;

use super::{
    WorkloadId,
    attachment::Attachment,
    audit::{AuditedWorkload, NodeAudit},
    view::BlockState,
};
use crate::{config, store::Recovered};

/// What each source says.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub node: NodeAudit,
    /// Read from the database.
    pub records: Recovered,
    /// The host's namespace, read from the kernel.
    pub kernel: Snapshot,
    /// The namespace of each workload that has one; or why it cannot be read.
    pub inside: BTreeMap<WorkloadId, Result<Snapshot, String>>,
    /// `None`: no speaker runs.
    pub bgp: Option<BgpSays>,
}

/// What the speaker says.
#[derive(Clone, Debug, Default)]
pub struct BgpSays {
    pub originated: Vec<IpNet>,
    pub claims: Vec<ForeignClaim>,
    /// Blocks that an Established peer is to have and has not: peer, block, why.
    pub missing: Vec<(String, IpNet, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Record,
    AddressTwice,
    Block,
    Count,
    Kernel,
    Leak,
    Bgp,
    DuplicateClaim,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub kind: Kind,
    pub subject: String,
    /// For a person.
    pub text: String,
}

/// What was compared, and what is not as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub workloads: u64,
    pub addresses: u64,
    pub blocks: u64,
    pub problems: BTreeSet<Problem>,
}

impl Report {
    /// Keeps what an earlier look has seen, too.
    pub fn confirm(&mut self, earlier: &Report) {
        self.problems
            .retain(|problem| earlier.problems.contains(problem));
    }

    fn add(&mut self, kind: Kind, subject: impl ToString, text: impl Into<String>) {
        self.problems.insert(Problem {
            kind,
            subject: subject.to_string(),
            text: text.into(),
        });
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Compares everything with everything.
pub fn check(sources: &Sources) -> Report {
    let recorded = sources.records.workloads.iter();
    let mut report = Report {
        workloads: count(sources.records.workloads.len()),
        addresses: count(recorded.map(|record| record.addresses.len()).sum()),
        blocks: count(sources.records.blocks.len()),
        problems: BTreeSet::new(),
    };
    memory::records(sources, &mut report);
    memory::addresses(sources, &mut report);
    memory::allocator(sources, &mut report);
    kernel::host(sources, &mut report);
    kernel::inside(sources, &mut report);
    kernel::blackholes(sources, &mut report);
    kernel::leaks(sources, &mut report);
    announced(sources, &mut report);
    report
}

/// Blocks and what BGP says of them.
fn announced(sources: &Sources, report: &mut Report) {
    let Some(bgp) = &sources.bgp else {
        return;
    };
    let originated: BTreeSet<IpNet> = bgp.originated.iter().copied().collect();
    let mut blocks = BTreeSet::new();
    for block in sources.node.ipam.blocks.iter().filter(|block| !block.local) {
        blocks.insert(block.cidr);
        if block.state == BlockState::Active && !originated.contains(&block.cidr) {
            report.add(Kind::Bgp, block.cidr, "the block is not originated");
        }
    }
    for prefix in originated.difference(&blocks) {
        report.add(
            Kind::Bgp,
            prefix,
            "it is originated, and is no block of this node",
        );
    }
    for (peer, block, why) in &bgp.missing {
        let text = format!("peer {peer} has not got the block: {why}");
        report.add(Kind::Bgp, block, text);
    }
    for claim in &bgp.claims {
        let by = match (claim.originator, claim.origin_as) {
            (Some(originator), _) => format!("the speaker with router id {originator}"),
            (None, Some(asn)) => format!("AS {}", asn.0),
            (None, None) => "another speaker".to_owned(),
        };
        let text = format!(
            "{by} announces {}, as peer {} says",
            claim.prefix, claim.peer
        );
        report.add(Kind::DuplicateClaim, claim.block, text);
    }
}

/// The namespace of a workload to look into, when it has one.
pub fn namespace(workload: &AuditedWorkload) -> Option<&Netns> {
    match &workload.view.spec.attachment {
        Attachment::Routed(inside) | Attachment::Bridged { inside, .. }
            if workload.settled && workload.failure.is_none() =>
        {
            Some(&inside.namespace.netns)
        }
        _ => None,
    }
}

/// Whether a pool is of a bridge, which BGP does not know.
pub fn is_of_bridge(pool: &str) -> bool {
    config::Bridge::of_pool(pool).is_some()
}

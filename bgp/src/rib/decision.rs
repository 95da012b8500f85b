//! The decision process (RFC 4271 §9.1.2.2, RFC 4456 §9) as a pure function over a set of paths.
//!
//! The process is an elimination: each step drops the paths that are worse than the best of those
//! left. MED compares only paths from the same neighbouring AS and is therefore no order by
//! itself, but as a step of an elimination its result does not depend on the order of arrival.
//! All other steps compare keys. Every path learns the step it lost at.
//!
//! Not here: whether a path is eligible at all (see `table`).

use std::{cmp::Reverse, fmt, net::IpAddr};

use crate::types::PeerId;

/// The step of the decision process that told two paths apart, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Routes of our own always win.
    Local,
    /// Long-lived stale routes are the least preferred (RFC 9494 §4.3).
    LongLivedStale,
    LocalPref,
    AsPathLength,
    Origin,
    /// Among paths from the same neighbouring AS.
    Med,
    /// External over internal.
    External,
    IgpMetric,
    /// ORIGINATOR_ID, else the router id of the peer.
    RouterId,
    ClusterListLength,
    PeerAddress,
    PathId,
}

impl Step {
    /// Why the winner of this step won.
    pub fn won(self) -> &'static str {
        match self {
            Self::Local => "originated here",
            Self::LongLivedStale => "the others are long-lived stale",
            Self::LocalPref => "higher LOCAL_PREF",
            Self::AsPathLength => "shorter AS path",
            Self::Origin => "lower ORIGIN",
            Self::Med => "lower MED",
            Self::External => "external over internal",
            Self::IgpMetric => "lower metric to the next hop",
            Self::RouterId => "lower router id",
            Self::ClusterListLength => "shorter CLUSTER_LIST",
            Self::PeerAddress => "lower peer address",
            Self::PathId => "lower path id",
        }
    }

    /// Why the loser of this step lost.
    pub fn lost(self) -> &'static str {
        match self {
            Self::Local => "another is originated here",
            Self::LongLivedStale => "long-lived stale",
            Self::LocalPref => "lower LOCAL_PREF",
            Self::AsPathLength => "longer AS path",
            Self::Origin => "higher ORIGIN",
            Self::Med => "higher MED",
            Self::External => "internal, another is external",
            Self::IgpMetric => "higher metric to the next hop",
            Self::RouterId => "higher router id",
            Self::ClusterListLength => "longer CLUSTER_LIST",
            Self::PeerAddress => "higher peer address",
            Self::PathId => "higher path id",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.won())
    }
}

/// What the decision process looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The caller's name for the path.
    pub(super) path: u32,
    pub(super) local: bool,
    pub(super) long_lived_stale: bool,
    pub(super) local_pref: u32,
    pub(super) as_path_length: u32,
    pub(super) origin: u8,
    pub(super) neighbour: u32,
    pub(super) med: u32,
    pub(super) external: bool,
    pub(super) metric: u32,
    pub(super) router_id: u32,
    pub(super) cluster_list_length: u32,
    pub(super) peer_address: IpAddr,
    pub(super) peer: PeerId,
    pub(super) path_id: u32,
    /// Set by [`select`].
    pub(super) lost: Option<Step>,
}

/// Orders the candidates, the best first, and notes for each of the others the step it lost at.
/// Returns how many are equal to the best up to and including the IGP metric, itself included.
pub(super) fn select(candidates: &mut [Candidate]) -> usize {
    candidates
        .iter_mut()
        .for_each(|candidate| candidate.lost = None);
    eliminate(candidates, Step::Local, |candidate| !candidate.local);
    // RFC 9494 §4.4
    eliminate(candidates, Step::LongLivedStale, |candidate| {
        candidate.long_lived_stale
    });
    eliminate(candidates, Step::LocalPref, |candidate| {
        Reverse(candidate.local_pref)
    });
    // RFC 4271 §9.1.2.2 a
    eliminate(candidates, Step::AsPathLength, |candidate| {
        candidate.as_path_length
    });
    // RFC 4271 §9.1.2.2 b
    eliminate(candidates, Step::Origin, |candidate| candidate.origin);
    eliminate_by_med(candidates);
    // RFC 4271 §9.1.2.2 d
    eliminate(candidates, Step::External, |candidate| !candidate.external);
    // RFC 4271 §9.1.2.2 e
    eliminate(candidates, Step::IgpMetric, |candidate| candidate.metric);
    let equal = candidates
        .iter()
        .filter(|candidate| candidate.lost.is_none())
        .count();
    // RFC 4271 §9.1.2.2 f, RFC 4456 §9
    eliminate(candidates, Step::RouterId, |candidate| candidate.router_id);
    // RFC 4456 §9
    eliminate(candidates, Step::ClusterListLength, |candidate| {
        candidate.cluster_list_length
    });
    // RFC 4271 §9.1.2.2 g
    eliminate(candidates, Step::PeerAddress, |candidate| {
        (candidate.peer_address, candidate.peer)
    });
    eliminate(candidates, Step::PathId, |candidate| candidate.path_id);
    // The winner, then those that came further, so that the equal ones stand in front.
    candidates.sort_by_key(|candidate| {
        (
            Reverse(candidate.lost.map_or(u8::MAX, |step| step as u8)),
            Reverse(candidate.local_pref),
            candidate.router_id,
            candidate.cluster_list_length,
            candidate.peer_address,
            candidate.peer,
            candidate.path_id,
        )
    });
    equal
}

/// Orders the candidates so that each is the best of those after it. [`select`] alone does not: two
/// that lost at one step were not compared with each other, and MED may count again among fewer.
pub(super) fn rank(candidates: &mut [Candidate]) {
    let last = candidates.len().saturating_sub(1);
    for start in 0..last {
        select(&mut candidates[start..]);
    }
}

/// Drops those whose key is not the least among those left.
fn eliminate<K: Ord>(candidates: &mut [Candidate], step: Step, key: impl Fn(&Candidate) -> K) {
    let left = candidates
        .iter()
        .filter(|candidate| candidate.lost.is_none());
    let Some(least) = left.map(&key).min() else {
        return;
    };
    for candidate in candidates.iter_mut() {
        if candidate.lost.is_none() && key(candidate) > least {
            candidate.lost = Some(step);
        }
    }
}

/// RFC 4271 §9.1.2.2 c: a path is dropped when another from the same neighbouring AS has a lower
/// MED. A missing MED counts as 0.
fn eliminate_by_med(candidates: &mut [Candidate]) {
    for index in 0..candidates.len() {
        if candidates[index].lost.is_some() {
            continue;
        }
        let (neighbour, med) = (candidates[index].neighbour, candidates[index].med);
        // Those this step dropped still count: their own conqueror is lower still.
        let beaten = candidates.iter().any(|other| {
            matches!(other.lost, None | Some(Step::Med))
                && other.neighbour == neighbour
                && other.med < med
        });
        if beaten {
            candidates[index].lost = Some(Step::Med);
        }
    }
}

//! The decision process (RFC 4271 §9.1.2.2, RFC 4456 §9) as a pure function over a set of paths.

use std::fmt;

/// The step of the decision process that told two paths apart, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Routes of our own always win.
    Local,
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

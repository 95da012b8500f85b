//! What the API needs of the BGP speaker and the dataplane: questions only.
//!
//! A trait, so that the services can be tested without sockets and kernels.

use std::net::IpAddr;

use bgp::{
    rib::NotAdvertised,
    speaker::status::{ForeignClaim, PeerStatus, RangeStatus, Route, RoutePage, RouteQuery},
};
use dataplane::{
    kernel::{OpError, Query, Snapshot},
    reconcile::{KernelRoute, Lookup, NextHopView, Status},
    runtime::FilterStatus,
};
use ipnet::IpNet;

use crate::node::Error;

/// Prefixes around one address that are shown.
const COVERING: usize = 8;

#[tonic::async_trait]
pub trait Network: Send + Sync + 'static {
    /// In the order of configuration.
    async fn peers(&self) -> Vec<PeerStatus>;
    /// Where other peers may come from.
    async fn ranges(&self) -> Vec<RangeStatus> {
        Vec::new()
    }
    async fn routes(&self, query: RouteQuery) -> RoutePage;
    /// What peers sent of prefixes that cover the address, the longest first.
    async fn received_covering(&self, _address: IpAddr) -> Vec<Route> {
        Vec::new()
    }
    /// Why an Established peer does not get this prefix, for a person; `None`: it does.
    async fn why_not_advertised(&self, peer: &str, prefix: IpNet) -> Option<String>;
    /// What the speaker originates and owns; `None`: there is none.
    async fn originated(&self) -> Option<Vec<IpNet>> {
        None
    }
    /// Who else announces that.
    async fn claims(&self) -> Vec<ForeignClaim> {
        Vec::new()
    }
    /// `Err`: why an Established peer does not get this prefix.
    async fn advertised(&self, _peer: &str, _prefix: IpNet) -> Result<(), NotAdvertised> {
        Ok(())
    }
    /// Reads the kernel itself.
    async fn look(&self, _query: Query) -> Result<Result<Snapshot, OpError>, Error> {
        Ok(Ok(Snapshot::default()))
    }
    async fn dataplane(&self) -> Result<Status, Error>;
    async fn filter(&self) -> Result<FilterStatus, Error>;
    async fn kernel_routes(
        &self,
        within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Result<Vec<KernelRoute>, Error>;
    async fn lookup(&self, address: IpAddr) -> Result<Lookup, Error>;
    async fn next_hops(&self) -> Result<Vec<NextHopView>, Error>;
    /// Chains of other programs with the policy to drop packets that the node forwards to this
    /// address, for a person.
    async fn forward_drops(&self, _address: IpAddr) -> Vec<String> {
        Vec::new()
    }
    /// Whether ip_tables has a filter table for packets to this address. Its rules are in no nftables
    /// dump, unlike those of `iptables-nft`.
    async fn has_legacy_filter(&self, _address: IpAddr) -> bool {
        false
    }
}

/// Whether one of the tables of ip_tables, one name a line, is the one that filters.
fn names_filter(tables: &str) -> bool {
    tables.lines().any(|table| table.trim() == "filter")
}

/// The speaker and the dataplane of this process.
#[derive(Clone, Debug)]
pub struct Live {
    /// `None`: the configuration has no `[bgp]`.
    pub bgp: Option<bgp::driver::Handle>,
    pub dataplane: dataplane::runtime::Handle,
}

fn unavailable(error: dataplane::runtime::Stopped) -> Error {
    Error::Unavailable {
        part: "dataplane",
        text: error.to_string(),
    }
}

#[tonic::async_trait]
impl Network for Live {
    async fn peers(&self) -> Vec<PeerStatus> {
        match &self.bgp {
            Some(bgp) => bgp.peers().await,
            None => Vec::new(),
        }
    }

    async fn ranges(&self) -> Vec<RangeStatus> {
        match &self.bgp {
            Some(bgp) => bgp.ranges().await,
            None => Vec::new(),
        }
    }

    async fn routes(&self, query: RouteQuery) -> RoutePage {
        match &self.bgp {
            Some(bgp) => bgp.routes(query).await,
            None => RoutePage::default(),
        }
    }

    async fn received_covering(&self, address: IpAddr) -> Vec<Route> {
        match &self.bgp {
            Some(bgp) => bgp.received_covering(address, COVERING).await,
            None => Vec::new(),
        }
    }

    async fn why_not_advertised(&self, peer: &str, prefix: IpNet) -> Option<String> {
        let answer = self.bgp.as_ref()?.advertised(peer, prefix).await;
        answer.err().map(|why| why.to_string())
    }

    async fn originated(&self) -> Option<Vec<IpNet>> {
        match &self.bgp {
            Some(bgp) => Some(bgp.originated().await),
            None => None,
        }
    }

    async fn claims(&self) -> Vec<ForeignClaim> {
        match &self.bgp {
            Some(bgp) => bgp.claims().await,
            None => Vec::new(),
        }
    }

    async fn advertised(&self, peer: &str, prefix: IpNet) -> Result<(), NotAdvertised> {
        match &self.bgp {
            Some(bgp) => bgp.advertised(peer, prefix).await.map(drop),
            None => Ok(()),
        }
    }

    async fn look(&self, query: Query) -> Result<Result<Snapshot, OpError>, Error> {
        self.dataplane.look(query).await.map_err(unavailable)
    }

    async fn dataplane(&self) -> Result<Status, Error> {
        self.dataplane.status().await.map_err(unavailable)
    }

    async fn forward_drops(&self, address: IpAddr) -> Vec<String> {
        // What cannot be read is not worth failing for.
        let drops = self.dataplane.forward_drops().await.unwrap_or_default();
        let families = match address {
            IpAddr::V4(_) => ["ip", "inet"],
            IpAddr::V6(_) => ["ip6", "inet"],
        };
        drops
            .into_iter()
            .filter(|drop| families.contains(&drop.family))
            .map(|drop| drop.to_string())
            .collect()
    }

    async fn has_legacy_filter(&self, address: IpAddr) -> bool {
        let names = match address {
            IpAddr::V4(_) => "/proc/net/ip_tables_names",
            IpAddr::V6(_) => "/proc/net/ip6_tables_names",
        };
        // A few bytes, out of memory. A kernel without ip_tables has no such file.
        std::fs::read_to_string(names).is_ok_and(|tables| names_filter(&tables))
    }

    async fn filter(&self) -> Result<FilterStatus, Error> {
        self.dataplane.filter_status().await.map_err(unavailable)
    }

    async fn kernel_routes(
        &self,
        within: Option<IpNet>,
        after: Option<IpNet>,
        limit: usize,
    ) -> Result<Vec<KernelRoute>, Error> {
        self.dataplane
            .routes(within, after, limit)
            .await
            .map_err(unavailable)
    }

    async fn lookup(&self, address: IpAddr) -> Result<Lookup, Error> {
        self.dataplane.lookup(address).await.map_err(unavailable)
    }

    async fn next_hops(&self) -> Result<Vec<NextHopView>, Error> {
        self.dataplane.next_hops().await.map_err(unavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_table_is_found_among_those_of_ip_tables() {
        assert!(names_filter("nat\nfilter\n"));
        assert!(!names_filter("nat\nmangle\n"));
        assert!(!names_filter(""));
    }
}

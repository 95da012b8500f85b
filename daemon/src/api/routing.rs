//! `RoutingService`.

use std::pin::Pin;

use agentd_proto::v1::{self, routing_service_server::RoutingService};
use bgp::speaker::status::{PeerStatus, RouteQuery, RouteTable};
use futures::{Stream, stream};
use ipnet::IpNet;
use tonic::{Request, Response, Status};

use super::{Context, explain, parse, peers, render_routing as render};
use crate::node::Error;

/// Routes of one response message.
const PAGE: usize = 500;

#[derive(Clone, Debug)]
pub(super) struct Routing(pub(super) Context);

type RouteStream =
    Pin<Box<dyn Stream<Item = Result<v1::ListRoutesResponse, Status>> + Send + 'static>>;

impl Routing {
    async fn peer(&self, name: &str) -> Result<PeerStatus, Error> {
        let mut peers = self.0.network.peers().await;
        match peers.iter().position(|peer| peer.name == name) {
            Some(index) => Ok(peers.swap_remove(index)),
            None => Err(Error::peer_not_found(
                name,
                peers.iter().map(|peer| peer.name.as_str()),
            )),
        }
    }

    async fn routes(&self, request: v1::ListRoutesRequest) -> Result<RouteStream, Error> {
        let within = parse::prefix("prefix", &request.prefix)?;
        let table = match v1::RouteTable::try_from(request.table) {
            Ok(v1::RouteTable::Unspecified | v1::RouteTable::LocRib) => RouteTable::LocRib,
            Ok(v1::RouteTable::AdjRibIn) => RouteTable::AdjRibIn,
            Ok(v1::RouteTable::AdjRibOut) => RouteTable::AdjRibOut,
            Ok(v1::RouteTable::Kernel) => {
                if !request.peer.is_empty() {
                    return Err(Error::invalid(
                        "peer",
                        "has no meaning for the kernel's routes; leave it empty",
                    ));
                }
                return Ok(self.kernel(within));
            }
            Err(_) => {
                return Err(Error::invalid(
                    "table",
                    format!("is {}; 1 to 4 are known", request.table),
                ));
            }
        };
        let peer = match (table, request.peer.as_str()) {
            (RouteTable::AdjRibOut, "") => {
                return Err(Error::invalid(
                    "peer",
                    "is required for ADJ_RIB_OUT: each peer has a table of its own",
                ));
            }
            (RouteTable::LocRib, name) if !name.is_empty() => {
                return Err(Error::invalid(
                    "peer",
                    "has no meaning for LOC_RIB; leave it empty, or ask for ADJ_RIB_IN",
                ));
            }
            (_, "") => None,
            (_, name) => Some(self.peer(name).await?.name),
        };
        Ok(self.rib(table, peer, within))
    }

    fn rib(&self, table: RouteTable, peer: Option<String>, within: Option<IpNet>) -> RouteStream {
        let network = self.0.network.clone();
        // `Some(after)`: there is more to ask for.
        Box::pin(stream::unfold(
            Some(None),
            move |state: Option<Option<IpNet>>| {
                let (network, peer) = (network.clone(), peer.clone());
                async move {
                    let after = state?;
                    let page = network
                        .routes(RouteQuery {
                            table,
                            peer,
                            prefix: within,
                            after,
                            limit: PAGE,
                        })
                        .await;
                    if page.routes.is_empty() {
                        return None;
                    }
                    let routes = page
                        .routes
                        .iter()
                        .map(|route| render::route(table, route))
                        .collect();
                    let next = page.next.map(Some);
                    Some((Ok(v1::ListRoutesResponse { routes }), next))
                }
            },
        ))
    }

    fn kernel(&self, within: Option<IpNet>) -> RouteStream {
        let network = self.0.network.clone();
        Box::pin(stream::unfold(
            Some(None),
            move |state: Option<Option<IpNet>>| {
                let network = network.clone();
                async move {
                    let after = state?;
                    match network.kernel_routes(within, after, PAGE).await {
                        Ok(page) => {
                            let last = page.last()?.prefix;
                            let next = (page.len() >= PAGE).then_some(Some(last));
                            let routes = page.iter().map(render::kernel_route).collect();
                            Some((Ok(v1::ListRoutesResponse { routes }), next))
                        }
                        Err(error) => Some((Err(error.into()), None)),
                    }
                }
            },
        ))
    }
}

#[tonic::async_trait]
impl RoutingService for Routing {
    async fn list_peers(
        &self,
        _request: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersResponse>, Status> {
        Ok(Response::new(peers::list(&self.0).await))
    }

    async fn get_peer(
        &self,
        request: Request<v1::GetPeerRequest>,
    ) -> Result<Response<v1::GetPeerResponse>, Status> {
        let found = peers::get(&self.0, &request.into_inner().name).await?;
        Ok(Response::new(found))
    }

    type WatchPeersStream = peers::PeerStream;

    async fn watch_peers(
        &self,
        _request: Request<v1::WatchPeersRequest>,
    ) -> Result<Response<peers::PeerStream>, Status> {
        Ok(Response::new(peers::watch(&self.0).await))
    }

    async fn add_peer(
        &self,
        request: Request<v1::AddPeerRequest>,
    ) -> Result<Response<v1::AddPeerResponse>, Status> {
        let added = peers::add(&self.0, request.into_inner()).await?;
        Ok(Response::new(added))
    }

    async fn remove_peer(
        &self,
        request: Request<v1::RemovePeerRequest>,
    ) -> Result<Response<v1::RemovePeerResponse>, Status> {
        let removed = peers::remove(&self.0, request.into_inner()).await?;
        Ok(Response::new(removed))
    }

    async fn reset_peer(
        &self,
        request: Request<v1::ResetPeerRequest>,
    ) -> Result<Response<v1::ResetPeerResponse>, Status> {
        let reset = peers::reset(&self.0, request.into_inner()).await?;
        Ok(Response::new(reset))
    }

    async fn shutdown_peer(
        &self,
        request: Request<v1::ShutdownPeerRequest>,
    ) -> Result<Response<v1::ShutdownPeerResponse>, Status> {
        let done = peers::shutdown(&self.0, request.into_inner()).await?;
        Ok(Response::new(done))
    }

    async fn enable_peer(
        &self,
        request: Request<v1::EnablePeerRequest>,
    ) -> Result<Response<v1::EnablePeerResponse>, Status> {
        let done = peers::enable(&self.0, request.into_inner()).await?;
        Ok(Response::new(done))
    }

    type ListRoutesStream = RouteStream;

    async fn list_routes(
        &self,
        request: Request<v1::ListRoutesRequest>,
    ) -> Result<Response<RouteStream>, Status> {
        Ok(Response::new(self.routes(request.into_inner()).await?))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let address = parse::address("address", &request.into_inner().address)?;
        let facts = explain::gather(&self.0, address).await?;
        Ok(Response::new(explain::explain(&facts)))
    }
}

//! The OPEN we send, and what is asked of the one we receive (RFC 4271 §4.2 and §6.2).

use std::time::Duration;

use super::Settings;
use crate::{
    message::{Capability, Notification, Open},
    rib::Role,
    types::Family,
};

/// Our OPEN. `forwarding` sets the F bits of RFC 4724 for families whose forwarding state we have
/// kept.
pub(super) fn local_open(settings: &Settings, forwarding: [bool; 2]) -> Open {
    let families = || {
        Family::ALL
            .into_iter()
            .filter(|family| settings.families[family.index()])
    };
    let mut capabilities: Vec<_> = families()
        .map(|family| {
            let (afi, safi) = family.afi_safi();
            Capability::MultiProtocol { afi, safi }
        })
        .collect();
    capabilities.push(Capability::RouteRefresh);
    capabilities.push(Capability::EnhancedRouteRefresh);
    capabilities.push(Capability::FourOctetAs(settings.local_asn));
    capabilities.push(Capability::ExtendedMessage);
    // RFC 7911 §4: 1 is "receive", 2 "send", 3 both.
    let add_path = u8::from(settings.add_path_receive) | u8::from(settings.add_path_send) << 1;
    if add_path != 0 {
        let paths = families().map(|family| {
            let (afi, safi) = family.afi_safi();
            (afi, safi, add_path)
        });
        capabilities.push(Capability::AddPath(paths.collect()));
    }
    if settings.extended_next_hop && settings.families[Family::Ipv4Unicast.index()] {
        // RFC 8950 §4: IPv4 unicast with IPv6 next hops.
        capabilities.push(Capability::ExtendedNextHop(vec![(1, 1, 2)]));
    }
    if let Some(role) = settings.role {
        capabilities.push(Capability::Role(role_code(role)));
    }
    if let Some(restart_time) = settings.graceful_restart {
        capabilities.push(Capability::GracefulRestart {
            restarting: settings.restarting.is_some(),
            notification: true,
            restart_time: u16::try_from(restart_time.as_secs()).map_or(4095, |s| s.min(4095)),
            families: families()
                .map(|family| {
                    let (afi, safi) = family.afi_safi();
                    (afi, safi, forwarding[family.index()])
                })
                .collect(),
        });
        // RFC 9494 §4.1: only beside the capability above. Without families it says that routes
        // others have kept are understood.
        if let Some(times) = settings.long_lived {
            let stale_time = u32::try_from(times.stale_time.as_secs()).unwrap_or(u32::MAX);
            let asked = families().filter(|_| stale_time > 0);
            capabilities.push(Capability::LongLivedGracefulRestart(
                asked
                    .map(|family| {
                        let (afi, safi) = family.afi_safi();
                        (afi, safi, forwarding[family.index()], stale_time)
                    })
                    .collect(),
            ));
        }
    }
    Open {
        asn: settings.local_asn,
        hold_time: settings.timers.hold_time,
        router_id: settings.router_id,
        capabilities,
    }
}

/// RFC 4271 §6.2, as far as it needs the configuration; the codec has checked the rest.
pub(super) fn validate(settings: &Settings, remote: &Open) -> Result<(), Notification> {
    if !settings.remote_asn.allows(remote.asn, settings.local_asn) {
        return Err(Notification::bad_peer_as());
    }
    // RFC 6286 §2.2: only unique inside an AS.
    if remote.asn == settings.local_asn && remote.router_id == settings.router_id {
        return Err(Notification::bad_bgp_identifier());
    }
    check_role(settings, remote)
}

/// RFC 9234 §4.1, table 1.
const fn role_code(role: Role) -> u8 {
    match role {
        Role::Provider => 0,
        Role::RouteServer => 1,
        Role::RouteServerClient => 2,
        Role::Customer => 3,
        Role::Peer => 4,
    }
}

/// RFC 9234 §4.2: both roles, when both are known, must make a pair. A peer without a role is taken.
fn check_role(settings: &Settings, remote: &Open) -> Result<(), Notification> {
    let Some(role) = settings.role else {
        return Ok(());
    };
    let wanted = role_code(match role {
        Role::Provider => Role::Customer,
        Role::Customer => Role::Provider,
        Role::RouteServer => Role::RouteServerClient,
        Role::RouteServerClient => Role::RouteServer,
        Role::Peer => Role::Peer,
    });
    let mismatch = remote
        .capabilities
        .iter()
        .any(|capability| matches!(capability, Capability::Role(other) if *other != wanted));
    if mismatch {
        return Err(Notification::role_mismatch());
    }
    Ok(())
}

/// 2/7 with the families we need, as they stand in an OPEN (RFC 5492 §5, RFC 4760 §8).
pub(super) fn no_common_family(sent: &Open) -> Notification {
    let mut data = Vec::new();
    for capability in &sent.capabilities {
        if let Capability::MultiProtocol { afi, safi } = capability {
            let [high, low] = afi.to_be_bytes();
            data.extend_from_slice(&[1, 4, high, low, 0, *safi]);
        }
    }
    Notification::unsupported_capability(&data)
}

/// What a peer promised about graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GracefulRestart {
    /// The R bit: it has restarted itself and waits for nobody's End-of-RIB.
    pub(super) restarting: bool,
    /// RFC 8538: notifications do not end it.
    pub(super) notification: bool,
    pub(super) restart_time: Duration,
    /// By `Family::index`: listed, and listed with its forwarding state kept.
    pub(super) families: [bool; 2],
    pub(super) forwarding: [bool; 2],
}

/// The graceful restart capability of an OPEN, the last one if there are several (RFC 4724 §3).
pub(super) fn graceful_restart(open: &Open) -> Option<GracefulRestart> {
    open.capabilities
        .iter()
        .rev()
        .find_map(|capability| match capability {
            Capability::GracefulRestart {
                restarting,
                notification,
                restart_time,
                families,
            } => {
                let mut listed = [false; 2];
                let mut forwarding = [false; 2];
                for (afi, safi, kept) in families {
                    if let Some(family) = Family::from_afi_safi(*afi, *safi) {
                        listed[family.index()] = true;
                        forwarding[family.index()] = *kept;
                    }
                }
                Some(GracefulRestart {
                    restarting: *restarting,
                    notification: *notification,
                    restart_time: Duration::from_secs(u64::from(*restart_time)),
                    families: listed,
                    forwarding,
                })
            }
            _ => None,
        })
}

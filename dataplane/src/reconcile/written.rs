//! Kernel parameters that somebody wrote, and of which no netlink notification tells.
//!
//! What is heard is the name of a file and what it holds. Interfaces of the same name may stand in
//! many namespaces: where the value is another than ours should have, ours is looked at.

use std::sync::Arc;

use super::Reconciler;

/// Of these RTM_NEWNETCONF tells.
const TOLD: [&str; 4] = ["forwarding", "proxy_arp", "proxy_ndp", "rp_filter"];

/// Interface and parameter.
fn untold(path: &str) -> Option<(&str, &str)> {
    let rest = ["net/ipv4/conf/", "net/ipv4/neigh/", "net/ipv6/conf/"]
        .into_iter()
        .find_map(|group| path.strip_prefix(group))?;
    let (interface, key) = rest.split_once('/')?;
    (!TOLD.contains(&key)).then_some((interface, key))
}

impl Reconciler {
    pub(super) fn sysctl_written(&mut self, path: &str, value: Option<&str>) {
        let Some((interface, key)) = untold(path) else {
            return;
        };
        let wrong = |sysctls: Vec<(String, &'static str)>| {
            let mut sysctls = sysctls.iter();
            sysctls.any(|(ours, wanted)| ours == path && Some(*wanted) != value)
        };
        let index = self.link_named(interface).map(|link| link.index);
        if let Some(device) = index.and_then(|index| self.tunnel_of(index)) {
            self.tunnels.device(device).read |= wrong(device.sysctls());
            return;
        }
        let bound = index.and_then(|index| self.by_index.get(&index)).cloned();
        if let Some(id) = bound
            && let Some(state) = self.workloads.get(&id)
            && wrong(self.want(state).host_sysctls())
        {
            self.read_again(&id, true);
        }
        // Where IPv6 is switched off addresses go, which is told.
        if key == "disable_ipv6" {
            return;
        }
        let concerned: Vec<Arc<str>> = self
            .workloads
            .iter()
            .filter(|(_, state)| {
                state.spec.interface() == Some(interface)
                    && wrong(self.want(state).inside_sysctls())
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in concerned {
            self.read_again(&id, true);
        }
    }
}

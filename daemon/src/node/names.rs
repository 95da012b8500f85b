//! What workloads hold besides addresses, and nobody else may have: network namespaces, names of
//! devices and published ports. And which workloads share the namespace of another one.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use super::{
    Error, Node, Phase, WorkloadId, WorkloadSpec,
    access::{AccessSpec, Holders},
    attachment::Attachment,
};

#[derive(Debug, Default)]
pub(super) struct Names {
    /// By device and inode.
    namespaces: HashMap<(u64, u64), WorkloadId>,
    /// By name of the device.
    taps: HashMap<String, WorkloadId>,
    /// By the workload whose namespace they share.
    sharers: HashMap<WorkloadId, BTreeSet<WorkloadId>>,
    ports: Holders,
}

fn key(attachment: &Attachment) -> Option<(u64, u64)> {
    let netns = &attachment.namespace()?.netns;
    Some((netns.device, netns.inode))
}

impl Node {
    /// Whether a new workload can be attached like that.
    pub(super) fn check_attachment(&self, attachment: &Attachment) -> Result<(), Error> {
        if let Some(namespace) = attachment.namespace()
            && let Some(by) = key(attachment).and_then(|key| self.names.namespaces.get(&key))
        {
            return Err(Error::NamespaceAttached {
                name: namespace.name.to_string(),
                by: by.clone(),
            });
        }
        if let Some(name) = attachment.tap_name().map(|name| name.as_str()) {
            if let Some(by) = self.names.taps.get(name) {
                return Err(Error::TapInUse {
                    name: name.to_owned(),
                    by: format!("workload {by}"),
                });
            }
            if self.bridges.iter().any(|bridge| bridge.name == name) {
                return Err(Error::TapInUse {
                    name: name.to_owned(),
                    by: "a bridge of the configuration".to_owned(),
                });
            }
        }
        match attachment {
            Attachment::Bridged { bridge, .. } => {
                if !self.bridges.iter().any(|known| known.name == *bridge) {
                    let known = self.bridges.iter().map(|bridge| bridge.name.as_str());
                    return Err(Error::BridgeNotFound {
                        name: bridge.clone(),
                        configured: known.collect::<Vec<_>>().join(", "),
                    });
                }
                Ok(())
            }
            Attachment::Shared { with } => self.check_shared(with),
            _ => Ok(()),
        }
    }

    /// Whether nobody holds one of these ports.
    pub(super) fn check_ports(&self, access: &AccessSpec) -> Result<(), Error> {
        self.names.ports.check(access)
    }

    fn check_shared(&self, with: &WorkloadId) -> Result<(), Error> {
        let Some(owner) = self.workloads.get(with) else {
            return Err(Error::WorkloadNotFound(with.clone()));
        };
        let refused = |why: String| {
            Err(Error::NotShareable {
                with: with.clone(),
                why,
            })
        };
        match &owner.spec.attachment {
            Attachment::Shared { with } => {
                return refused(format!(
                    "it shares that of workload {with} itself: share with that one"
                ));
            }
            Attachment::Host => return refused("it is the node's: use HOST".to_owned()),
            Attachment::Tap(_) => return refused("a TAP workload has none".to_owned()),
            Attachment::Routed(_) | Attachment::Bridged { .. } | Attachment::None(_) => {}
        }
        match owner.phase {
            Phase::Standing => Ok(()),
            Phase::Recording { .. } | Phase::Programming { .. } => {
                refused("it is still being added".to_owned())
            }
            _ => refused("it is being deleted".to_owned()),
        }
    }

    pub(super) fn note_names(&mut self, id: &WorkloadId, spec: &WorkloadSpec) {
        let attachment = &spec.attachment;
        for port in spec.access.ports() {
            self.names.ports.insert(*port, id.clone());
        }
        if let Some(key) = key(attachment) {
            self.names.namespaces.insert(key, id.clone());
        }
        if let Some(name) = attachment.tap_name() {
            let name = name.as_str().to_owned();
            self.names.taps.insert(name, id.clone());
        }
        if let Attachment::Shared { with } = attachment {
            let sharers = self.names.sharers.entry(with.clone()).or_default();
            sharers.insert(id.clone());
        }
    }

    pub(super) fn forget_names(&mut self, id: &WorkloadId, spec: &WorkloadSpec) {
        let attachment = &spec.attachment;
        self.names.ports.remove(spec.access.ports(), id);
        if let Some(key) = key(attachment)
            && self.names.namespaces.get(&key) == Some(id)
        {
            self.names.namespaces.remove(&key);
        }
        if let Some(name) = attachment.tap_name()
            && self.names.taps.get(name.as_str()) == Some(id)
        {
            self.names.taps.remove(name.as_str());
        }
        if let Attachment::Shared { with } = attachment
            && let Some(sharers) = self.names.sharers.get_mut(with)
        {
            sharers.remove(id);
            if sharers.is_empty() {
                self.names.sharers.remove(with);
            }
        }
    }

    /// Those that share the namespace of this one, in order.
    pub(super) fn sharers(&self, id: &WorkloadId) -> Vec<WorkloadId> {
        let sharers = self.names.sharers.get(id);
        sharers.into_iter().flatten().cloned().collect()
    }

    /// The node's own addresses, which workloads in its namespace have.
    pub fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        if self.own_addresses == addresses {
            return;
        }
        self.own_addresses = addresses;
        let concerned: Vec<WorkloadId> = self
            .workloads
            .iter()
            .filter(|(_, workload)| matches!(workload.spec.attachment, Attachment::Host))
            .map(|(id, _)| id.clone())
            .collect();
        for id in concerned {
            self.publish(&id);
        }
    }
}

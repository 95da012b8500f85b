//! Workloads on a bridge wait for it, fail with it, and follow it.

use std::sync::Arc;

use super::{
    Reconciler,
    attach::{Spec, object_id},
    lifecycle::Stage,
};
use crate::desired::{Bridge, FailureKind};

impl Reconciler {
    /// The bridge that this one is a port of, and its index while it stands.
    pub(super) fn bridge_of(&self, spec: &Spec) -> Option<(&Bridge, Option<u32>)> {
        let state = self.workloads.get(&spec.bridge()?)?;
        let Spec::Bridge(bridge) = &state.spec else {
            return None;
        };
        let stands = state.is_programmed() && self.links.contains_key(&state.index);
        Some((bridge, stands.then_some(state.index)))
    }

    pub(super) fn mtu_of(&self, spec: &Spec) -> u32 {
        let of_bridge = || self.bridge_of(spec).and_then(|(bridge, _)| bridge.mtu);
        let by_pools = || self.mtu_with(spec.routed());
        spec.mtu().or_else(of_bridge).unwrap_or_else(by_pools)
    }

    /// Whether a workload can be made, or compared. When its bridge does not stand, it waits for
    /// that; when it cannot, that is told.
    pub(super) fn bridge_stands_for(&mut self, id: &Arc<str>) -> bool {
        let Some(key) = self.workloads.get(id).and_then(|state| state.spec.bridge()) else {
            return true;
        };
        let name = match object_id(&key) {
            crate::desired::ObjectId::Bridge(name) => name,
            _ => key.clone(),
        };
        let Some(bridge) = self.workloads.get(&key) else {
            let text = format!("there is no bridge {name}");
            self.fail_workload(id, FailureKind::Conflict, text);
            return false;
        };
        if bridge.is_programmed() && self.links.contains_key(&bridge.index) {
            return true;
        }
        match self.failures.get(&object_id(&key)) {
            Some(trouble) => {
                let text = format!("bridge {name}: {}", trouble.failure.text);
                let kind = trouble.failure.kind;
                self.fail_workload(id, kind, text);
            }
            None => self.stage(id, Stage::AwaitBridge),
        }
        false
    }

    fn ports_of(&self, bridge: &Arc<str>) -> Vec<Arc<str>> {
        let is_bridge = self
            .workloads
            .get(bridge)
            .is_some_and(|state| matches!(state.spec, Spec::Bridge(_)));
        if !is_bridge {
            return Vec::new();
        }
        let is_port = |spec: &Spec| spec.bridge().is_some_and(|of| of == *bridge);
        let ports = self.workloads.iter();
        ports
            .filter(|(_, state)| is_port(&state.spec))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The bridge stands, anew or with another index or MTU.
    pub(super) fn bridge_changed(&mut self, bridge: &Arc<str>) {
        for id in self.ports_of(bridge) {
            let waits = self
                .workloads
                .get(&id)
                .is_some_and(|state| matches!(state.stage, Stage::AwaitBridge));
            match waits {
                true => self.enter(&id),
                false => self.read_again(&id, true),
            }
        }
    }

    /// The bridge cannot be made: those who wait for it are told.
    pub(super) fn bridge_failed(&mut self, bridge: &Arc<str>) {
        for id in self.ports_of(bridge) {
            let waits = self
                .workloads
                .get(&id)
                .is_some_and(|state| matches!(state.stage, Stage::AwaitBridge));
            if waits {
                self.bridge_stands_for(&id);
            }
        }
    }
}

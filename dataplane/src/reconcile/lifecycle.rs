//! The way of one workload, or bridge, from wanted to programmed, and away again.
//!
//! ```text
//!            set                      nothing to do
//!   (new) ────────► Create ──► Write ──► Read ──► Idle
//!                     │ link    ▲         │  ▲      │ change, audit, MTU
//!                     │ stands  └─────────┘  └──────┘
//!                     └────────────────► Read
//!   any ──remove──► Unroute ──► (reap later) ──► Removed
//!                      └── never programmed ──► Unlink ──► Removed
//! ```
//!
//! `Read` compares both ends with what is wanted and is the only way to `Idle`: what is reported as
//! programmed was read back. An error of a write is kept, and counts only if reading shows that
//! something is missing indeed. What has no link of its own starts with `Read`.

use std::sync::Arc;

use super::{
    Reconciler,
    attach::{Difference, Spec, Want, object_id},
    table::LINK,
    values::{What, host_interface, in_words, is_link_of, single, what},
};
use crate::{
    desired::{Detail, Event, FailureKind, Kind},
    kernel::{LinkChange, Op, OpError, Place, Snapshot},
};

/// Times that a workload is written without being right afterwards before it waits.
const MAX_TRIES: u8 = 4;
/// Interface indexes that are tried before somebody else is thought to be at fault.
const MAX_INDEXES: u8 = 4;

#[derive(Debug)]
pub(super) struct State {
    pub(super) spec: Spec,
    pub(super) stage: Stage,
    /// Of the host's end and of the workload's; 0: there is no link yet.
    pub(super) index: u32,
    pub(super) peer: u32,
    /// The link stood there before this run wanted it, and was not yet read.
    pub(super) inherited: bool,
    /// Something happened while it was being written or read.
    pub(super) again: bool,
    told: Option<Detail>,
    /// Somebody changed it after it was right: what is written now is a repair.
    disturbed: bool,
    repaired: Vec<What>,
    tries: u8,
    pub(super) create_tries: u8,
    pub(super) last_error: Option<OpError>,
    pub(super) removal: Option<Removal>,
}

impl State {
    pub(super) fn is_programmed(&self) -> bool {
        self.told.is_some()
    }

    pub(super) fn detail(&self) -> Option<&Detail> {
        self.told.as_ref()
    }
}

#[derive(Debug, Default)]
pub(super) struct Removal {
    /// Wanted under the same id, once the old one is gone.
    pub(super) next: Option<Spec>,
    /// Nobody asked for the removal: the wanted object changed too much to be altered.
    pub(super) silent: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    Idle,
    Create,
    Write(Box<Difference>),
    Read {
        verify: bool,
    },
    Unroute,
    Unlink,
    /// Part of the round that is under way.
    Busy,
    Backoff,
    /// Until the link of its predecessor is deleted.
    AwaitReap,
    /// Until the bridge it is on stands.
    AwaitBridge,
}

/// What a round read of a workload.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) host: Option<Result<Snapshot, OpError>>,
    pub(super) inside: Option<Result<Snapshot, OpError>>,
}

impl Reconciler {
    pub(super) fn add_workload(&mut self, spec: Spec) {
        let id = spec.key();
        for address in spec.routed() {
            self.host_routes.insert(single(*address), id.clone());
        }
        if let Some(name) = spec.host_name() {
            self.by_host_name.insert(name, id.clone());
        }
        if let Some(netns) = spec.netns() {
            let inode = (netns.device, netns.inode);
            self.by_netns.entry(inode).or_default().push(id.clone());
        }
        let state = State {
            spec,
            stage: Stage::Create,
            index: 0,
            peer: 0,
            inherited: false,
            again: false,
            told: None,
            disturbed: false,
            repaired: Vec::new(),
            tries: 0,
            create_tries: 0,
            last_error: None,
            removal: None,
        };
        self.workloads.insert(id.clone(), state);
        self.enter(&id);
    }

    pub(super) fn set_workload(&mut self, spec: Spec) {
        let id = spec.key();
        let Some(state) = self.workloads.get_mut(&id) else {
            self.add_workload(spec);
            return;
        };
        if let Some(removal) = &mut state.removal {
            removal.next = Some(spec);
            return;
        }
        if state.spec == spec {
            if let (Stage::Idle, Some(detail)) = (&state.stage, state.told.clone()) {
                let id = object_id(&id);
                self.events.push_back(Event::Programmed { id, detail });
            }
            return;
        }
        if state.spec.differs_in_place(&spec) {
            state.spec = spec;
            self.read_again(&id, false);
        } else {
            state.removal = Some(Removal {
                next: Some(spec),
                silent: true,
            });
            self.start_removal(&id);
        }
    }

    pub(super) fn remove_workload(&mut self, id: &Arc<str>) {
        if let Some(state) = self.workloads.get_mut(id) {
            match &mut state.removal {
                Some(removal) => {
                    removal.next = None;
                    removal.silent = false;
                }
                None => {
                    state.removal = Some(Removal::default());
                    self.start_removal(id);
                }
            }
            return;
        }
        // Unknown to us, but an earlier run may have left it.
        let stale = self
            .link_named(&host_interface(id))
            .filter(|link| is_link_of(link, id))
            .map(|link| link.index);
        if let Some(index) = stale {
            self.unroute_link(index);
            self.reap_later(index);
        }
        let id = object_id(id);
        self.events.push_back(Event::Removed { id });
    }

    fn start_removal(&mut self, id: &Arc<str>) {
        if let Some(state) = self.workloads.get_mut(id)
            && !matches!(state.stage, Stage::Busy)
        {
            state.stage = Stage::Unroute;
            self.to_write.push_back(id.clone());
        }
    }

    /// Deletes whatever own routes lead to a link that is nobody's.
    pub(super) fn unroute_link(&mut self, index: u32) {
        self.deletes
            .extend(self.table.to_link(index).iter().copied());
    }

    pub(super) fn want<'a>(&'a self, state: &'a State) -> Want<'a> {
        let bridge = self.bridge_of(&state.spec);
        Want {
            mtu: self.mtu_of(&state.spec),
            spec: &state.spec,
            index: state.index,
            peer_index: state.peer,
            bridge: bridge.map(|(bridge, _)| bridge),
            master: bridge.and_then(|(_, index)| index),
            link_local: !self.has_ipv6,
        }
    }

    /// Something about a workload may have changed. `disturbed`: by somebody else.
    pub(super) fn read_again(&mut self, id: &Arc<str>, disturbed: bool) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        if state.removal.is_some() {
            return;
        }
        if disturbed && state.told.is_some() {
            state.disturbed = true;
        }
        match state.stage {
            Stage::Idle | Stage::Backoff => self.enter(id),
            Stage::Busy => state.again = true,
            _ => {}
        }
    }

    /// Sets a workload going that is at rest.
    pub(super) fn enter(&mut self, id: &Arc<str>) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        state.again = false;
        state.tries = 0;
        state.last_error = None;
        if state.removal.is_some() {
            state.stage = Stage::Unroute;
            self.to_write.push_back(id.clone());
        } else if state.index != 0 || state.spec.host_name().is_none() {
            state.stage = Stage::Read { verify: false };
            self.to_read.push_back(id.clone());
        } else {
            state.stage = Stage::Create;
            self.to_write.push_back(id.clone());
        }
    }

    pub(super) fn stage(&mut self, id: &Arc<str>, stage: Stage) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        match stage {
            Stage::Read { .. } => self.to_read.push_back(id.clone()),
            Stage::Create | Stage::Write(_) | Stage::Unroute | Stage::Unlink => {
                self.to_write.push_back(id.clone());
            }
            Stage::AwaitReap => {
                self.awaiting.insert(id.clone());
            }
            Stage::Idle | Stage::Busy | Stage::Backoff | Stage::AwaitBridge => {}
        }
        state.stage = stage;
    }

    pub(super) fn fail_workload(&mut self, id: &Arc<str>, kind: FailureKind, text: String) {
        self.fail(object_id(id), kind, text);
        self.stage(id, Stage::Backoff);
        self.bridge_failed(id);
    }

    pub(super) fn fail_workload_by(&mut self, id: &Arc<str>, place: &str, error: &OpError) {
        let kind = kind_of(error, true);
        self.fail_workload(id, kind, format!("{place}{}", error.text));
    }

    pub(super) fn bind(&mut self, id: &Arc<str>, index: u32, peer: u32) {
        if let Some(state) = self.workloads.get_mut(id) {
            self.by_index.remove(&state.index);
            state.index = index;
            state.peer = peer;
            if index != 0 {
                self.by_index.insert(index, id.clone());
            }
        }
    }

    /// Judges what was read of a workload, and decides what comes next.
    pub(super) fn evaluate(&mut self, id: &Arc<str>, reading: Reading) {
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        if state.removal.is_some() {
            self.stage(id, Stage::Unroute);
            return;
        }
        let inside = match reading.inside {
            Some(Ok(inside)) => inside,
            Some(Err(error)) => {
                self.fail_workload_by(id, "cannot read its namespace: ", &error);
                return;
            }
            None => Snapshot::default(),
        };
        let (index, known_peer) = (state.index, state.peer);
        let has_peer = state.spec.interface().is_some();
        let Some(host_name) = state.spec.host_name() else {
            self.compare(id, &Snapshot::default(), &inside);
            return;
        };
        if index == 0 {
            self.evaluate_without_link(id, &inside);
            return;
        }
        let host = match reading.host {
            Some(Ok(host)) => host,
            Some(Err(error)) if error.errno == libc::ENODEV || error.errno == libc::ENXIO => {
                Snapshot::default()
            }
            Some(Err(error)) => {
                self.fail_workload_by(id, "cannot read its link: ", &error);
                return;
            }
            None => Snapshot::default(),
        };
        let Some(link) = host.links.iter().find(|link| link.index == index) else {
            self.forget_link(index);
            self.bind(id, 0, 0);
            if let Some(state) = self.workloads.get_mut(id) {
                let kind = state.spec.link_kind();
                state.repaired.push(what(kind, "link (missing)"));
            }
            self.stage(id, Stage::Create);
            return;
        };
        self.note_link(link.clone());
        let peer = match has_peer {
            true => link.peer_index.unwrap_or(known_peer),
            false => 0,
        };
        if has_peer && !inside.links.iter().any(|link| link.index == peer) {
            // The namespace is another one than that in which the link was made.
            if let Some(state) = self.workloads.get_mut(id) {
                let text = "link (led to another namespace)";
                state.repaired.push(what(Kind::Link, text));
            }
            self.stage(id, Stage::Unlink);
            return;
        }
        self.bind(id, index, peer);
        if self.is_of_a_predecessor(id, &inside) {
            self.stage(id, Stage::Unlink);
            return;
        }
        if link.name != host_name {
            self.rename(id, host_name);
            return;
        }
        self.compare(id, &host, &inside);
    }

    /// Whether the link was made for an earlier workload of that id, with other addresses: we died
    /// between its removal and the end of its link. Those addresses carry no mark. Left inside,
    /// they would be the source of packets that nobody answers.
    fn is_of_a_predecessor(&mut self, id: &Arc<str>, inside: &Snapshot) -> bool {
        let inherited = match self.workloads.get_mut(id) {
            Some(state) => std::mem::take(&mut state.inherited),
            None => false,
        };
        inherited
            && (self.workloads.get(id))
                .is_some_and(|state| self.want(state).other_addresses_stand(inside))
    }

    /// Gives the link its name back; where that fails, as it does on older kernels while a link is
    /// up, it is made anew.
    fn rename(&mut self, id: &Arc<str>, name: String) {
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        let kind = state.spec.link_kind();
        state.repaired.push(what(kind, "link (renamed)"));
        state.tries += 1;
        if state.tries > 1 {
            self.stage(id, Stage::Unlink);
            return;
        }
        let mut difference = Difference::default();
        let link = LinkChange {
            index: state.index,
            name: Some(name),
            ..LinkChange::default()
        };
        let place = Place::Host;
        difference.host.push(Op::SetLink { place, link });
        self.stage(id, Stage::Write(Box::new(difference)));
    }

    fn compare(&mut self, id: &Arc<str>, host: &Snapshot, inside: &Snapshot) {
        if !self.bridge_stands_for(id) {
            return;
        }
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let mut difference = self.want(state).difference(host, inside);
        let code = LINK | state.index;
        let mut routes_right = true;
        for address in state.spec.routed() {
            let prefix = single(*address);
            if self.table.get(&prefix).seen == code {
                continue;
            }
            routes_right = false;
            let found = match self.table.get(&prefix).seen {
                super::table::NONE => "missing",
                _ => "led elsewhere",
            };
            let text = format!("route {prefix} ({found})");
            difference.what.push(what(Kind::Route, text));
            if let Some(foreign) = self.table.foreign_on_key(&prefix) {
                difference.conflict = Some(format!(
                    "route {prefix}: a route of protocol {} stands there",
                    foreign.protocol
                ));
            }
        }
        if let Some(conflict) = difference.conflict {
            self.fail_workload(id, FailureKind::Conflict, conflict);
            return;
        }
        if difference.is_empty() && routes_right {
            self.programmed(id);
            return;
        }
        let words = in_words(&difference.what);
        let tries = state.tries;
        // Without IPv6, what belongs to it could not be written at first.
        let forgiven = tries == 0 && difference.switches_ipv6_on();
        if let Some(error) = state.last_error.clone().filter(|_| !forgiven) {
            let kind = kind_of(&error, false);
            self.fail_workload(id, kind, format!("{words}: {}", error.text));
        } else if tries >= MAX_TRIES {
            let text = format!("{words}: not as it was written, {tries} times");
            self.fail_workload(id, FailureKind::Kernel, text);
        } else {
            if let Some(state) = self.workloads.get_mut(id) {
                state.tries += 1;
                state.last_error = None;
                if state.disturbed {
                    state.repaired.append(&mut difference.what);
                }
            }
            self.stage(id, Stage::Write(Box::new(difference)));
        }
    }

    /// Making the link failed because a name or an index was taken. Which?
    fn evaluate_without_link(&mut self, id: &Arc<str>, inside: &Snapshot) {
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let taken = state
            .spec
            .interface()
            .and_then(|name| inside.links.iter().find(|link| link.name == name));
        if let Some(taken) = taken {
            // That of a workload that is gone, but for the link?
            let leaving = taken.peer_index.filter(|peer| self.reap.contains(*peer));
            if let Some(peer) = leaving {
                self.reap_soon(peer);
                self.stage(id, Stage::AwaitReap);
                return;
            }
            let text = format!(
                "its namespace has an interface named {} already",
                taken.name
            );
            self.fail_workload(id, FailureKind::InterfaceInUse, text);
        } else if state.create_tries >= MAX_INDEXES {
            self.refresh = true;
            let text = format!("no free interface index in {MAX_INDEXES} tries");
            self.fail_workload(id, FailureKind::Kernel, text);
        } else {
            self.stage(id, Stage::Create);
        }
    }

    fn programmed(&mut self, id: &Arc<str>) {
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let detail = match state.spec.host_name() {
            Some(host_interface) => Detail {
                host_interface,
                host_ifindex: state.index,
                mtu: self.mtu_of(&state.spec),
            },
            None => Detail::default(),
        };
        let object = object_id(id);
        let failed = self.failures.remove(&object).is_some();
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        state.tries = 0;
        state.create_tries = 0;
        state.last_error = None;
        let again = std::mem::take(&mut state.again);
        let what = std::mem::take(&mut state.repaired);
        let disturbed = std::mem::take(&mut state.disturbed);
        if disturbed && !what.is_empty() {
            self.tell_repair(Some(object.clone()), &what);
        }
        let Some(state) = self.workloads.get_mut(id) else {
            return;
        };
        if failed || state.told.as_ref() != Some(&detail) {
            state.told = Some(detail.clone());
            self.events
                .push_back(Event::Programmed { id: object, detail });
            self.bridge_changed(id);
        }
        if again {
            self.stage(id, Stage::Read { verify: false });
        } else {
            self.stage(id, Stage::Idle);
        }
    }

    /// Its routes are gone. What has never worked is taken away entirely before that is told;
    /// else the link is left to be deleted together with others.
    pub(super) fn unrouted(&mut self, id: &Arc<str>) {
        let Some(state) = self.workloads.get(id) else {
            return;
        };
        let link = state
            .spec
            .host_name()
            .and_then(|name| self.link_named(&name))
            .filter(|link| is_link_of(link, id))
            .map(|link| link.index);
        match link {
            Some(index) if state.told.is_none() => {
                self.bind(id, index, 0);
                self.stage(id, Stage::Unlink);
            }
            Some(index) => {
                self.reap_later(index);
                self.finish_removal(id);
            }
            None => self.finish_removal(id),
        }
    }

    pub(super) fn finish_removal(&mut self, id: &Arc<str>) {
        let Some(state) = self.workloads.remove(id) else {
            return;
        };
        for address in state.spec.routed() {
            let prefix = single(*address);
            if self.host_routes.get(&prefix) == Some(id) {
                self.host_routes.remove(&prefix);
                // Something else may be wanted there now.
                self.queue(prefix);
            }
        }
        if let Some(name) = state.spec.host_name()
            && self.by_host_name.get(&name) == Some(id)
        {
            self.by_host_name.remove(&name);
        }
        self.by_index.remove(&state.index);
        if let Some(netns) = state.spec.netns() {
            let inode = (netns.device, netns.inode);
            if let Some(others) = self.by_netns.get_mut(&inode) {
                others.retain(|other| other != id);
                if others.is_empty() {
                    self.by_netns.remove(&inode);
                }
            }
        }
        let object = object_id(id);
        self.failures.remove(&object);
        let removal = state.removal.unwrap_or_default();
        if !removal.silent {
            self.events.push_back(Event::Removed { id: object });
        }
        if let Some(next) = removal.next {
            self.add_workload(next);
        }
    }
}

pub(super) fn kind_of(error: &OpError, namespace: bool) -> FailureKind {
    match error.errno {
        libc::ENOENT | libc::ESTALE if namespace => FailureKind::NamespaceGone,
        libc::ESTALE => FailureKind::NamespaceGone,
        libc::EPERM | libc::EACCES => FailureKind::Permission,
        _ => FailureKind::Kernel,
    }
}

//! Links of removed workloads: collected, and deleted together when there is time.
//!
//! Deleting links holds the kernel's RTNL lock while it waits for RCU grace periods, some 20 ms
//! however many they are, and then takes about a millisecond for each. Nobody waits for it, so alone
//! large groups are best. While workloads come and go they would wait for a whole group: then groups
//! are small, the smaller the longer a link takes (with thousands of links it does), and between two
//! of them is more time than one took.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::{
    Config, Reconciler,
    plan::{Batch, Tag},
    table::Hash,
};
use crate::kernel::{Op, OpResult};

/// For so long after an add or a removal, others are expected.
const BUSY: Duration = Duration::from_secs(1);
/// A group of this share while workloads come and go, if it takes no longer than that.
const SHARE: usize = 8;
const STALL: Duration = Duration::from_millis(40);
/// Fewer do not go faster: most of the time is the same for one.
const LEAST: usize = 4;
/// Rest after such a group, in times that it took.
const REST: u32 = 3;
/// With so many whole groups waiting, links come faster than they go that way.
const PRESSING: usize = 16;

/// Links in the order in which they are to go. Thousands can wait: none moves the others.
#[derive(Debug, Default)]
struct Line {
    places: HashMap<u32, i64, Hash>,
    order: BTreeMap<i64, u32>,
}

impl Line {
    fn len(&self) -> usize {
        self.order.len()
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn contains(&self, index: u32) -> bool {
        self.places.contains_key(&index)
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.order.values().copied()
    }

    /// At the end, unless it waits already.
    fn push(&mut self, index: u32) {
        if !self.contains(index) {
            let place = self.order.last_key_value().map_or(0, |(last, _)| last + 1);
            self.places.insert(index, place);
            self.order.insert(place, index);
        }
    }

    fn push_first(&mut self, index: u32) {
        self.remove(index);
        let place = self
            .order
            .first_key_value()
            .map_or(0, |(first, _)| first - 1);
        self.places.insert(index, place);
        self.order.insert(place, index);
    }

    fn remove(&mut self, index: u32) {
        if let Some(place) = self.places.remove(&index) {
            self.order.remove(&place);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Reaper {
    links: Line,
    /// When those that wait are to go.
    due: Option<Instant>,
    /// Somebody waits for the first ones.
    awaited: bool,
    /// Begin of the group under way.
    began: Option<(Instant, usize)>,
    /// What a link took in the last group.
    each: Duration,
    /// End of the rest.
    rest: Option<Instant>,
    /// The last batch was a group: it is the others' turn.
    turn: bool,
    /// When a workload came or went last.
    active: Option<Instant>,
}

impl Reaper {
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.links.contains(index)
    }

    pub(super) fn forget(&mut self, index: u32) {
        self.links.remove(index);
    }

    pub(super) fn retain(&mut self, stands: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self.links.iter().filter(|index| !stands(*index)).collect();
        for index in gone {
            self.links.remove(index);
        }
    }

    /// A workload comes or goes.
    pub(super) fn note_active(&mut self, now: Instant) {
        self.active = Some(now);
    }

    /// Some other batch goes out.
    pub(super) fn note_turn(&mut self) {
        self.turn = false;
    }

    /// When the next group is due.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let due = self.due.filter(|_| !self.links.is_empty())?;
        Some(self.rest.map_or(due, |rest| due.max(rest)))
    }

    fn is_busy(&self, now: Instant, config: &Config) -> bool {
        self.links.len() < PRESSING * config.reap_group
            && self.active.is_some_and(|active| now < active + BUSY)
    }

    fn group(&self, now: Instant, config: &Config) -> usize {
        match self.awaited || self.is_busy(now, config) {
            true => {
                let most = (config.reap_group / SHARE).max(1);
                let each = self.each.as_micros().max(1);
                let fitting = usize::try_from(STALL.as_micros() / each).unwrap_or(most);
                fitting.clamp(LEAST.min(most), most)
            }
            false => config.reap_group,
        }
    }

    /// Whether a group goes before other work: it has waited long, or there are enough.
    pub(super) fn is_overdue(&self, now: Instant, config: &Config) -> bool {
        let late = self
            .due
            .is_some_and(|due| now >= due + 4 * config.reap_delay);
        let enough = self.links.len() >= self.group(now, config);
        !self.turn && (late || enough) && self.is_rested(now)
    }

    fn is_rested(&self, now: Instant) -> bool {
        self.rest.is_none_or(|rest| now >= rest)
    }

    fn take(&mut self, now: Instant, config: &Config) -> Option<Vec<u32>> {
        let group = self.group(now, config);
        let due = self.due.is_some_and(|due| now >= due) || self.links.len() >= group;
        let wanted = self.awaited || due && self.is_rested(now);
        if self.links.is_empty() || !wanted {
            return None;
        }
        self.awaited = false;
        self.due = None;
        self.turn = true;
        let indexes: Vec<u32> = self.links.iter().take(group).collect();
        self.began = Some((now, indexes.len()));
        Some(indexes)
    }

    fn done(&mut self, now: Instant, config: &Config) {
        let busy = self.is_busy(now, config);
        let (began, count) = self.began.take().unwrap_or((now, 1));
        let took = now - began;
        self.each = took / u32::try_from(count.max(1)).unwrap_or(1);
        self.rest = busy.then(|| now + (took * REST).max(config.reap_delay));
        if !self.links.is_empty() && self.due.is_none() {
            self.due = Some(now);
        }
    }
}

impl Reconciler {
    pub(super) fn reap_later(&mut self, index: u32) {
        self.reap.links.push(index);
        if self.reap.due.is_none() {
            self.reap.due = Some(self.now + self.config.reap_delay);
        }
    }

    /// A workload waits until this link is gone.
    pub(super) fn reap_soon(&mut self, index: u32) {
        self.reap_later(index);
        self.reap.links.push_first(index);
        self.reap.awaited = true;
    }

    pub(super) fn plan_reap(&mut self, batch: &mut Batch) {
        if let Some(indexes) = self.reap.take(self.now, &self.config) {
            let op = Op::DeleteLinks(indexes.clone());
            batch.rest.push((op, Tag::Reap(indexes)));
        }
    }

    pub(super) fn reaped(&mut self, indexes: Vec<u32>, result: OpResult) {
        if let Err(error) = result {
            tracing::warn!(%error, "cannot delete links");
            self.reap.due = Some(self.now + Duration::from_secs(1));
            return;
        }
        for index in indexes {
            self.reap.forget(index);
            self.forget_link(index);
        }
        self.reap.done(self.now, &self.config);
        self.wake_awaiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_go_in_their_order_and_one_that_is_waited_for_goes_first() {
        let mut line = Line::default();
        for index in [7, 5, 9, 5] {
            line.push(index);
        }
        assert_eq!(line.iter().collect::<Vec<_>>(), [7, 5, 9]);
        line.push_first(9);
        line.push_first(4);
        line.remove(7);
        line.push(7);
        assert_eq!(line.iter().collect::<Vec<_>>(), [4, 9, 5, 7]);
        assert_eq!(line.len(), 4);
        assert!(line.contains(5) && !line.contains(6));
    }

    #[test]
    fn groups_get_smaller_where_a_link_takes_long_and_large_again_at_rest() {
        let config = Config::default();
        let mut now = Instant::now();
        let mut reaper = Reaper::default();
        (0..2000).for_each(|index| reaper.links.push(index));
        reaper.due = Some(now);
        for (took_for_each, next) in [(1, 32), (5, 8), (100, 4)] {
            reaper.note_active(now);
            reaper.rest = None;
            let group = reaper.take(now, &config).expect("it is due");
            let count = u32::try_from(group.len()).expect("few");
            let began = now;
            now += Duration::from_millis(took_for_each) * count;
            reaper.note_active(now);
            reaper.done(now, &config);
            assert_eq!(reaper.group(now, &config), next);
            assert!(
                reaper
                    .rest
                    .is_some_and(|rest| rest - now >= (now - began) * REST)
            );
        }
        assert_eq!(reaper.group(now + BUSY, &config), config.reap_group);
    }
}

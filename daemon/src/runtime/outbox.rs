//! Where the node's task puts what others have to do: bounded channels with a backlog in front, so
//! that the task itself never waits.
//!
//! What is in the backlog was caused by input that was taken already. While there is any, the task
//! takes no more commands and routes (but everything else), so the backlog is bounded by what one
//! input can cause.

use std::collections::VecDeque;

use bgp::rib::NextHopState;
use dataplane::desired::{Object, ObjectId, Source};
use ipnet::IpNet;
use tokio::sync::mpsc;

/// Messages that may wait for a task that carries them on. Few: what is behind them stays where it
/// is coalesced and costs next to nothing.
const QUEUE: usize = 8;
/// Objects of one message.
const OBJECTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Outbox<T> {
    sender: mpsc::Sender<T>,
    backlog: VecDeque<T>,
}

impl<T: Merge> Outbox<T> {
    pub(super) fn new() -> (Self, mpsc::Receiver<T>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let outbox = Self {
            sender,
            backlog: VecDeque::new(),
        };
        (outbox, receiver)
    }

    /// Behind everything that was put before.
    pub(super) fn put(&mut self, message: T) {
        let rest = match self.backlog.back_mut() {
            Some(last) => last.merge(message),
            None => Some(message),
        };
        self.backlog.extend(rest);
    }

    /// Hands over as much as fits now. To be called after a round of [`put`](Self::put).
    pub(super) fn push(&mut self) {
        while let Some(message) = self.backlog.pop_front() {
            if let Err(error) = self.sender.try_send(message) {
                // A closed channel means that the other side has ended; so will this task.
                if let mpsc::error::TrySendError::Full(message) = error {
                    self.backlog.push_front(message);
                }
                return;
            }
        }
    }

    pub(super) fn is_clear(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Waits until something more was handed over; forever when nothing waits. Cancel-safe.
    pub(super) async fn flush(&mut self) {
        if self.backlog.is_empty() {
            std::future::pending::<()>().await;
        }
        match self.sender.reserve().await {
            Ok(permit) => {
                if let Some(message) = self.backlog.pop_front() {
                    permit.send(message);
                }
            }
            Err(_) => self.backlog.clear(),
        }
    }
}

/// Joining messages that follow each other, so that they share a batch.
pub(super) trait Merge: Sized {
    /// What does not fit comes back.
    fn merge(&mut self, next: Self) -> Option<Self>;
}

/// For the dataplane, in order.
#[derive(Debug)]
pub(super) enum ToDataplane {
    Set(Vec<Object>),
    Remove(Vec<ObjectId>),
    Synced(Source),
    WatchNextHops {
        add: Vec<dataplane::desired::Via>,
        remove: Vec<dataplane::desired::Via>,
    },
}

impl Merge for ToDataplane {
    fn merge(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (ToDataplane::Set(list), ToDataplane::Set(more))
                if list.len() + more.len() <= OBJECTS =>
            {
                list.extend(more);
                None
            }
            (ToDataplane::Remove(list), ToDataplane::Remove(more))
                if list.len() + more.len() <= OBJECTS =>
            {
                list.extend(more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// For the speaker, in order.
#[derive(Debug)]
pub(super) enum ToSpeaker {
    Originate(Vec<IpNet>),
    Withdraw(Vec<IpNet>),
    /// Originated already; to be preferred from now on.
    Prefer(IpNet),
    OriginationsSynced,
    Drain(bgp::rib::Drain),
    NextHops(Vec<(bgp::attributes::Via, NextHopState)>),
}

impl Merge for ToSpeaker {
    fn merge(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (ToSpeaker::Originate(list), ToSpeaker::Originate(more))
            | (ToSpeaker::Withdraw(list), ToSpeaker::Withdraw(more)) => {
                list.extend(more);
                None
            }
            (ToSpeaker::NextHops(list), ToSpeaker::NextHops(more)) => {
                list.extend(more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    impl Merge for u32 {
        fn merge(&mut self, next: Self) -> Option<Self> {
            Some(next)
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_and_keeps_its_order() {
        let (mut outbox, mut receiver) = Outbox::<u32>::new();
        let count = u32::try_from(QUEUE).unwrap() + 10;
        for number in 0..count {
            outbox.put(number);
        }
        outbox.push();
        assert!(!outbox.is_clear());
        for number in 0..count {
            if !outbox.is_clear() && number > 0 {
                outbox.flush().await;
            }
            assert_eq!(receiver.recv().await, Some(number));
        }
        assert!(outbox.is_clear());
    }

    #[test]
    fn sets_that_follow_each_other_are_joined_but_not_across_a_removal() {
        let prefix: IpNet = "10.0.0.0/26".parse().unwrap();
        let (mut outbox, mut receiver) = Outbox::<ToDataplane>::new();
        let set = || ToDataplane::Set(vec![Object::Blackhole(prefix)]);
        outbox.put(set());
        outbox.put(set());
        outbox.put(ToDataplane::Remove(vec![ObjectId::Blackhole(prefix)]));
        outbox.put(set());
        outbox.push();
        let mut kinds = Vec::new();
        while let Ok(message) = receiver.try_recv() {
            kinds.push(match message {
                ToDataplane::Set(list) => list.len(),
                _ => 0,
            });
        }
        assert_eq!(kinds, [2, 0, 1]);
    }
}

//! The identifiers that paths are sent with (RFC 7911 §3).
//!
//! A path is known by whom it came from and by the identifier that it came with. It has one
//! identifier towards every peer, and keeps it for as long as anybody is sent the path; a while
//! longer even, so that a path that went and comes again is the same. Numbers are small and used
//! again, and there are never many more of them than paths.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::types::PeerId;

/// Whom the path was learned from (`None`: originated here), and its identifier there.
pub(super) type PathKey = (Option<PeerId>, u32);

/// Paths without a user whose identifiers are remembered.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
struct Entry {
    id: u32,
    users: u32,
}

#[derive(Debug, Default)]
pub(super) struct PathIds {
    entries: HashMap<PathKey, Entry, foldhash::fast::RandomState>,
    /// Lost their last user, the one longest ago first. They may have one again.
    unused: VecDeque<PathKey>,
    free: Vec<u32>,
    /// The greatest identifier given out.
    last: u32,
}

impl PathIds {
    /// The identifier of a path, for one more user. Never 0.
    pub(super) fn acquire(&mut self, path: PathKey) -> u32 {
        if let Some(entry) = self.entries.get_mut(&path) {
            entry.users += 1;
            return entry.id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        self.entries.insert(path, Entry { id, users: 1 });
        id
    }

    pub(super) fn release(&mut self, path: PathKey) {
        let Some(entry) = self.entries.get_mut(&path) else {
            return;
        };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        self.unused.push_back(path);
        while self.unused.len() > REMEMBERED {
            let Some(oldest) = self.unused.pop_front() else {
                break;
            };
            if let Some(entry) = self.entries.get(&oldest)
                && entry.users == 0
            {
                self.free.push(entry.id);
                self.entries.remove(&oldest);
            }
        }
    }

    /// Identifiers that are in use or remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_its_identifier_and_no_two_paths_share_one() {
        let mut ids = PathIds::default();
        let a = ids.acquire((Some(PeerId(1)), 0));
        let b = ids.acquire((Some(PeerId(1)), 7));
        let own = ids.acquire((None, 0));
        assert_eq!((a, b, own), (1, 2, 3));
        ids.release((Some(PeerId(1)), 7));
        assert_eq!(ids.acquire((Some(PeerId(2)), 0)), 4, "b is remembered");
        assert_eq!(ids.acquire((Some(PeerId(1)), 7)), b);
        assert_eq!(ids.acquire((Some(PeerId(1)), 0)), a);
    }

    #[test]
    fn identifiers_of_paths_that_never_come_again_are_used_again() {
        let mut ids = PathIds::default();
        let kept = ids.acquire((None, 0));
        for path in 0..10 * REMEMBERED {
            let path = (Some(PeerId(1)), u32::try_from(path).unwrap_or(0));
            assert_ne!(ids.acquire(path), kept);
            ids.release(path);
        }
        assert!(ids.len() <= REMEMBERED + 1, "{}", ids.len());
        assert!(ids.last as usize <= REMEMBERED + 2, "{}", ids.last);
        assert_eq!(ids.acquire((None, 0)), kept);
    }
}

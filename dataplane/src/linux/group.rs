//! Deletes many links at once.
//!
//! Deleting one link waits for the kernel's RCU grace periods, some 20 ms, and deleting one after
//! the other waits for each. One RTM_DELLINK for a whole group waits once. So links are put into a
//! group of our own first. When its number is chosen it is made sure that nobody else's link is in it;
//! that reads all links, so it is chosen once, and anew when something went wrong.

use hashbrown::HashSet;

use super::{
    decode,
    encode::{NLM_F_DUMP, attribute, kind},
    pipe::{Answers, Pipe},
    socket::Socket,
};
use crate::kernel::{Op, OpResult};

/// Carries out [`Op::DeleteLinks`]. Links that are gone already do not count as failed.
pub(super) fn delete_links(socket: &Socket, pipe: &mut Pipe, op: &Op, indexes: &[u32]) -> OpResult {
    let mut work = Work { socket, pipe, op };
    match indexes {
        [] => Ok(()),
        [_] => work.by_index(indexes),
        _ => work.by_group(indexes),
    }
}

struct Work<'a> {
    socket: &'a Socket,
    pipe: &'a mut Pipe,
    op: &'a Op,
}

impl Work<'_> {
    fn by_index(&mut self, indexes: &[u32]) -> OpResult {
        self.request(indexes, |pipe, sequence, index| {
            pipe.encoder
                .begin_link(kind::DELETE_LINK, 0, sequence, index);
            pipe.encoder.end();
        })
    }

    fn by_group(&mut self, indexes: &[u32]) -> OpResult {
        let group = match self.pipe.group {
            Some(group) => group,
            None => self.choose(),
        };
        self.pipe.group = Some(group);
        let deleted = self.set_group(indexes, group).and_then(|()| {
            self.request(&[group], |pipe, sequence, group| {
                pipe.encoder.begin_link(kind::DELETE_LINK, 0, sequence, 0);
                pipe.encoder.u32(attribute::IFLA_GROUP, group);
                pipe.encoder.end();
            })
        });
        if deleted.is_err() {
            // One link that cannot be deleted keeps the whole group.
            let _ = self.set_group(indexes, 0);
            self.pipe.group = None;
            return self.by_index(indexes);
        }
        Ok(())
    }

    fn choose(&mut self) -> u32 {
        let taken = self.groups();
        loop {
            let group = fastrand::u32(0x1000_0000..0x7fff_ffff);
            if !taken.contains(&group) {
                return group;
            }
        }
    }

    fn set_group(&mut self, indexes: &[u32], group: u32) -> OpResult {
        self.request(indexes, |pipe, sequence, index| {
            pipe.encoder.begin_link(kind::SET_LINK, 0, sequence, index);
            pipe.encoder.u32(attribute::IFLA_GROUP, group);
            pipe.encoder.end();
        })
    }

    /// One message for each number; ENODEV is no failure.
    fn request(&mut self, numbers: &[u32], encode: impl Fn(&mut Pipe, u32, u32)) -> OpResult {
        let mut answers = Answers::new(std::slice::from_ref(self.op));
        for number in numbers {
            let sequence = self.pipe.next_tolerant(0, libc::ENODEV);
            encode(self.pipe, sequence, *number);
            if self.pipe.is_full(self.socket) {
                self.pipe.flush(self.socket, &mut answers, |_, _| {});
            }
        }
        self.pipe.flush(self.socket, &mut answers, |_, _| {});
        answers.results.pop().unwrap_or(Ok(()))
    }

    /// The groups that links are in. Should links come or go meanwhile, some may be missing; the
    /// group is a random one besides.
    fn groups(&mut self) -> HashSet<u32> {
        let sequence = self.pipe.sequence();
        let encoder = &mut self.pipe.encoder;
        encoder.begin_link(kind::GET_LINK, NLM_F_DUMP, sequence, 0);
        encoder.u32(attribute::IFLA_EXT_MASK, attribute::RTEXT_FILTER_SKIP_STATS);
        encoder.end();
        let request = encoder.bytes().to_vec();
        encoder.clear();
        let mut groups = HashSet::new();
        let mut answers = 0;
        let _ = self
            .socket
            .dump(&request, sequence, &mut self.pipe.receive, |message| {
                answers += 1;
                let group = message.payload.get(16..).and_then(|rest| {
                    decode::attributes(rest)
                        .find(|(kind, _)| *kind == attribute::IFLA_GROUP)
                        .and_then(|(_, value)| decode::u32_at(value, 0))
                });
                groups.extend(group);
            });
        self.pipe.count_dump(answers);
        groups
    }
}

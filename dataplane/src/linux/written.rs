//! Hears when others write a kernel parameter below /proc/sys/net, which netlink tells of few.
//!
//! Every write to a file passes fsnotify, those to procfs as well. One mark of fanotify(7) on procfs
//! as a whole brings an event with the file opened anew, so that its name and what it holds can be
//! read, for writes by any process that sees this procfs, whatever its network namespace. Writes
//! through other instances of procfs, such as those of containers, are not heard.
//!
//! Other files of procfs are written far more often, so after each look the listener rests, the
//! longer the more it took: of a processor it never takes more than a tenth. The kernel merges
//! equal events meanwhile, and says when it dropped some.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, readlink},
    sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags},
    unistd::{Pid, getpid, read},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{ChangeEvent, OpenError};
use crate::kernel::{Change, Place};

/// Each mount of procfs may be an instance of its own. systemd gives one to a service with
/// `ProtectKernelTunables`, as this one is: those who write use that of the first process.
const FIRST_PROCESS: &str = "/proc/1/root/proc/sys";
/// At least so long, and at least so many times what a look took.
const REST: Duration = Duration::from_millis(1);
const REST_FACTOR: u32 = 10;
/// After events were lost, which has everything read again.
const REST_AFTER_LOSS: Duration = Duration::from_secs(10);

/// Writes of others, in order.
#[derive(Debug)]
pub struct Writes {
    group: AsyncFd<Fanotify>,
    own: Pid,
    rest_until: Option<Instant>,
    queue: VecDeque<ChangeEvent>,
}

impl Writes {
    /// Needs CAP_SYS_ADMIN in the first user namespace, and Linux 4.20. Call it inside a tokio
    /// runtime.
    pub fn open() -> Result<Self, OpenError> {
        let system = |what| {
            move |errno: Errno| OpenError::System {
                what,
                source: errno.into(),
            }
        };
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let opened = EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_NONBLOCK;
        let group = Fanotify::init(flags, opened).map_err(system("cannot use fanotify"))?;
        let watch = |path: &str| {
            group.mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_MODIFY,
                AT_FDCWD,
                Some(path),
            )
        };
        watch("/proc/sys").map_err(system("cannot watch /proc/sys"))?;
        if let Err(error) = watch(FIRST_PROCESS) {
            tracing::warn!(
                %error,
                "writes to kernel parameters are heard only from processes that share this one's /proc"
            );
        }
        // SAFETY: `Fanotify` owns its descriptor, always names the same one, and closes it when
        // dropped.
        let group = unsafe { AsyncFd::register_with_interest(group, Interest::READABLE) }.map_err(
            |error| OpenError::System {
                what: "cannot wait for fanotify",
                source: error.into(),
            },
        )?;
        Ok(Self {
            group,
            own: getpid(),
            rest_until: None,
            queue: VecDeque::new(),
        })
    }

    /// The next write; `None` once nothing can be heard any more. May be dropped while waiting.
    pub async fn next(&mut self) -> Option<ChangeEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if let Some(until) = self.rest_until {
                tokio::time::sleep_until(until.into()).await;
                self.rest_until = None;
            }
            let mut ready = self.group.readable().await.ok()?;
            let began = Instant::now();
            match self.group.get_ref().read_events() {
                Ok(events) => {
                    let own = self.own;
                    self.queue
                        .extend(events.iter().filter_map(|event| told(event, own)));
                }
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
                    self.queue.push_back(ChangeEvent::Overrun);
                }
                Err(errno @ (Errno::EBADF | Errno::EINVAL | Errno::EFAULT)) => {
                    tracing::error!(%errno, "writes to /proc/sys cannot be heard any more");
                    return None;
                }
                // A file that cannot be opened, such as one of a process that is gone: none below
                // /proc/sys/net is like that.
                Err(_) => {}
            }
            let rest = match self.queue.contains(&ChangeEvent::Overrun) {
                true => REST_AFTER_LOSS,
                false => REST.max(began.elapsed() * REST_FACTOR),
            };
            self.rest_until = Some(began + rest);
        }
    }
}

fn told(event: &FanotifyEvent, own: Pid) -> Option<ChangeEvent> {
    if event.mask().contains(MaskFlags::FAN_Q_OVERFLOW) {
        return Some(ChangeEvent::Overrun);
    }
    if event.pid() == own.as_raw() {
        return None;
    }
    let file = event.fd()?;
    let name = readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).ok()?;
    let path = parameter(name.to_str()?)?.to_owned();
    // It is the file that was written, in whatever namespace.
    let mut value = [0; 64];
    let value = read(file.as_fd(), &mut value)
        .ok()
        .and_then(|length| std::str::from_utf8(value.get(..length)?).ok())
        .map(|value| value.trim_end().to_owned());
    let change = Change::Sysctl { path, value };
    Some(ChangeEvent::Change(Place::Host, change))
}

/// The part below /proc/sys of the name of a parameter of the network. What precedes it depends on
/// where the writer has procfs mounted.
fn parameter(name: &str) -> Option<&str> {
    const BEFORE: &str = "/sys/";
    let start = name.find("/sys/net/")? + BEFORE.len();
    name.get(start..)
}

#[cfg(test)]
mod tests {
    use super::parameter;

    #[test]
    fn a_parameter_is_known_wherever_procfs_is_mounted() {
        let path = "net/ipv6/conf/eth0/accept_ra";
        for mount in ["/proc", "/host/proc", ""] {
            let name = format!("{mount}/sys/{path}");
            assert_eq!(parameter(&name), Some(path));
        }
        for other in ["/proc/1/oom_score_adj", "/proc/sys/kernel/hostname", ""] {
            assert_eq!(parameter(other), None);
        }
    }
}

//! Kernel parameters below /proc/sys.
//!
//! Which namespace a path below `net` belongs to is decided by the thread that opens it: to the
//! kernel's cache of names, `net/ipv4` of all namespaces is one name, and looking it up takes the
//! longer the more namespaces it was looked up in. So parameters of interfaces are read and written
//! by netlink where that is possible, and those of the host's interfaces below folders that are
//! opened once.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::encode::{AF_INET, AF_INET6};

/// Some IPv4 parameters of an interface can be set in one message with others
/// (IFLA_AF_SPEC/AF_INET/IFLA_INET_CONF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByMessage<'a> {
    /// IPV4_DEVCONF_* number.
    Conf { interface: &'a str, number: u16 },
    /// NDTPA_PROXY_DELAY.
    ProxyDelay { interface: &'a str },
}

/// Tells whether a parameter can be written by a netlink message.
pub(super) fn by_message(path: &str) -> Option<ByMessage<'_>> {
    let mut parts = path.strip_prefix("net/ipv4/")?.split('/');
    let (table, interface, key) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || matches!(interface, "all" | "default") {
        return None;
    }
    match (table, key) {
        ("neigh", "proxy_delay") => Some(ByMessage::ProxyDelay { interface }),
        ("conf", key) => {
            // include/uapi/linux/ip.h
            let number = match key {
                "forwarding" => 1,
                "proxy_arp" => 3,
                "send_redirects" => 6,
                "rp_filter" => 8,
                "arp_ignore" => 19,
                "accept_local" => 23,
                "route_localnet" => 26,
                _ => return None,
            };
            Some(ByMessage::Conf { interface, number })
        }
        _ => None,
    }
}

/// A parameter that RTM_NEWLINK shows (IFLA_AF_SPEC, IFLA_INET_CONF or IFLA_INET6_CONF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown<'a> {
    pub(super) interface: &'a str,
    pub(super) family: u8,
    /// In the list of 32-bit numbers.
    pub(super) position: usize,
}

/// Tells whether a message about a link shows a parameter.
pub(super) fn shown(path: &str) -> Option<Shown<'_>> {
    if let Some(ByMessage::Conf { interface, number }) = by_message(path) {
        return Some(Shown {
            interface,
            family: AF_INET,
            position: usize::from(number) - 1,
        });
    }
    let mut parts = path.strip_prefix("net/ipv6/conf/")?.split('/');
    let (interface, key) = (parts.next()?, parts.next()?);
    if parts.next().is_some() || matches!(interface, "all" | "default") {
        return None;
    }
    // include/uapi/linux/ipv6.h
    let position = match key {
        "forwarding" => 0,
        "accept_ra" => 3,
        "proxy_ndp" => 22,
        "disable_ipv6" => 26,
        "accept_dad" => 27,
        _ => return None,
    };
    Some(Shown {
        interface,
        family: AF_INET6,
        position,
    })
}

/// The folders of parameters of one namespace's interfaces, held open.
#[derive(Debug)]
pub(super) struct Folders(Vec<(&'static str, File)>);

impl Folders {
    /// Of the calling thread's namespace. Those that the kernel does not have are left out.
    pub(super) fn open() -> Self {
        let open = |prefix: &'static str| {
            let folder = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open(Path::new("/proc/sys").join(prefix));
            Some((prefix, folder.ok()?))
        };
        let prefixes = ["net/ipv4/conf/", "net/ipv4/neigh/", "net/ipv6/conf/"];
        Self(prefixes.into_iter().filter_map(open).collect())
    }

    pub(super) fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.file(path, OFlag::O_WRONLY)?
            .write_all(value.as_bytes())
    }

    /// `None`: there is no such parameter.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<String>> {
        text(self.file(path, OFlag::O_RDONLY))
    }

    fn file(&self, path: &str, mode: OFlag) -> io::Result<File> {
        check(path)?;
        let below = |(prefix, folder)| Some((folder, path.strip_prefix(prefix)?));
        let found = self
            .0
            .iter()
            .find_map(|(prefix, folder)| below((*prefix, folder)));
        match found {
            Some((folder, rest)) => {
                let flags = mode | OFlag::O_CLOEXEC;
                Ok(openat(folder, rest, flags, Mode::empty())?.into())
            }
            None => OpenOptions::new()
                .read(mode == OFlag::O_RDONLY)
                .write(mode == OFlag::O_WRONLY)
                .open(full(path)),
        }
    }
}

/// Nothing above or beside /proc/sys.
fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match plain {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

fn full(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

/// In the calling thread's namespace.
pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    check(path)?;
    OpenOptions::new()
        .write(true)
        .open(full(path))?
        .write_all(value.as_bytes())
}

/// In the calling thread's namespace; `None`: there is no such parameter.
pub(super) fn read(path: &str) -> io::Result<Option<String>> {
    check(path)?;
    text(File::open(full(path)))
}

fn text(opened: io::Result<File>) -> io::Result<Option<String>> {
    let mut text = String::new();
    match opened.and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

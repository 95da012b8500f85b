//! Tap devices through /dev/net/tun (linux/if_tun.h).
//!
//! A device that is not persistent is gone when its file is closed, whatever closes it; so it is
//! made persistent last, when nothing of it is missing.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        raw::{c_int, c_uint, c_ulong},
    },
};

use crate::kernel::CreateTap;

// _IOW('T', n, int): all of these encode the size of an int, whatever their argument is.
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOWNER: c_ulong = 0x4004_54cc;
const TUNSETGROUP: c_ulong = 0x4004_54ce;
const TUNSETIFINDEX: c_ulong = 0x4004_54da;

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
/// Refuses to open a device that exists.
const IFF_TUN_EXCL: u16 = 0x8000;

/// `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// A device that vanishes when this is dropped before [`persist`](Self::persist).
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    owner: Option<u32>,
    group: Option<u32>,
}

/// Makes the device in the calling thread's namespace. EBUSY: the name or the index is taken.
pub(super) fn create(tap: &CreateTap) -> io::Result<Device> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let index: c_uint = tap.index;
    // SAFETY: the kernel reads one unsigned int from a pointer that is valid during the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFINDEX, &raw const index) })?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL,
        rest: [0; 22],
    };
    if tap.multi_queue {
        request.flags |= IFF_MULTI_QUEUE;
    }
    let name = tap.name.as_bytes();
    if name.len() >= request.name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.name.iter_mut().zip(name) {
        *to = *from;
    }
    // SAFETY: the kernel reads and writes one `struct ifreq`, of which `Request` has the layout and
    // the size, at a pointer that is valid during the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(Device {
        file,
        owner: tap.owner,
        group: tap.group,
    })
}

impl Device {
    /// From now on the device stays, and whoever may open it finds it unused.
    pub(super) fn persist(self) -> io::Result<()> {
        if let Some(owner) = self.owner {
            self.set(TUNSETOWNER, owner)?;
        }
        if let Some(group) = self.group {
            self.set(TUNSETGROUP, group)?;
        }
        self.set(TUNSETPERSIST, 1)
    }

    fn set(&self, request: c_ulong, value: u32) -> io::Result<()> {
        // SAFETY: these requests take their argument by value.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), request, c_ulong::from(value)) })
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

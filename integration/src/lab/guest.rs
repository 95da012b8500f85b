//! A virtual machine as the host sees it: somebody who opens a tap device and speaks Ethernet on it.
//!
//! The guest's network stack is that of a namespace with a tap device of its own; two threads carry
//! frames between the two devices, as a virtual machine monitor does between the host's device and
//! the guest's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::netns::Netns;

/// _IOW('T', 202, int)
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
/// As virtual machine monitors ask for: each frame begins with a header of so many bytes.
const IFF_VNET_HDR: u16 = 0x4000;
const HEADER: usize = 10;

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// Opens a tap device inside a namespace; one that does not exist is made, and lasts as long as it
/// is open.
pub fn open_tap(namespace: &Netns, name: &str, header: bool) -> Result<File> {
    namespace
        .enter(|| -> io::Result<File> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")?;
            let mut request = Request {
                name: [0; libc::IFNAMSIZ],
                flags: IFF_TAP | IFF_NO_PI | if header { IFF_VNET_HDR } else { 0 },
                rest: [0; 22],
            };
            for (to, from) in request.name.iter_mut().zip(name.bytes().take(15)) {
                *to = from;
            }
            // SAFETY: the kernel reads and writes one `struct ifreq`, of which `Request` has the
            // layout and the size.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(file)
        })?
        .with_context(|| format!("cannot open tap {name} in {}", namespace.name()))
}

/// A running guest. Dropping it closes both devices.
#[derive(Debug)]
pub struct Guest {
    pub namespace: Netns,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Boots: opens the host's device and gives the guest its own, `eth0`, with that MAC address.
    pub fn boot(host: &Netns, tap: &str, namespace: &Netns, mac: &str) -> Result<Self> {
        let outer = open_tap(host, tap, true)?;
        let inner = open_tap(namespace, "eth0", false)?;
        namespace.ip(["link", "set", "eth0", "address", mac])?;
        namespace.ip(["link", "set", "eth0", "up"])?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to, strip) in [
            (outer.try_clone()?, inner.try_clone()?, true),
            (inner, outer, false),
        ] {
            let stop = stop.clone();
            let body = move || carry(from, to, strip, &stop);
            threads.push(
                std::thread::Builder::new()
                    .name("guest".into())
                    .spawn(body)?,
            );
        }
        Ok(Self {
            namespace: namespace.clone(),
            stop,
            threads,
        })
    }

    /// Configures the guest as the agent's answer says, as cloud-init would.
    pub fn configure(&self, addresses: &[agentd_proto::v1::WorkloadAddress]) -> Result<()> {
        for address in addresses {
            let (family, length) = match address.address.contains(':') {
                false => ("-4", 32),
                true => ("-6", 128),
            };
            let with_length = format!("{}/{length}", address.address);
            let namespace = &self.namespace;
            if family == "-6" {
                namespace.ip(["address", "add", &with_length, "dev", "eth0", "nodad"])?;
            } else {
                namespace.ip(["address", "add", &with_length, "dev", "eth0"])?;
            }
            let gateway = address.gateway.as_str();
            namespace.ip([
                family, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink",
            ])?;
        }
        Ok(())
    }

    /// Shuts down.
    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow!("a guest's thread panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Carries frames; `strip`: `from` has the header, else `to` has it.
fn carry(mut from: File, mut to: File, strip: bool, stop: &AtomicBool) {
    let _ = fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Acquire) {
        let mut wait = libc::pollfd {
            fd: from.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which is valid during the call, for a descriptor that stays open.
        unsafe { libc::poll(&raw mut wait, 1, 50) };
        while let Ok(length) = from.read(&mut buffer[HEADER..]) {
            let frame = match strip {
                true => buffer.get(HEADER * 2..HEADER + length),
                // The header of a plain frame is zero.
                false => {
                    buffer[..HEADER].fill(0);
                    buffer.get(..HEADER + length)
                }
            };
            // A frame that the other side does not take is lost, as on a wire.
            if let Some(frame) = frame {
                let _ = to.write(frame);
            }
        }
    }
}

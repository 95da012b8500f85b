//! Memory that is no longer needed goes back to the kernel.
//!
//! * The heap: after a start, and after a full table came or went, the allocator holds pages that
//!   nothing uses. [`trim`] returns them.
//! * Code: a start runs through most of the executable once (configuration, recovery, the first
//!   dump), and the kernel maps 64 KiB around each page that is touched. [`unmap_code`] drops these
//!   mappings. The pages stay in the page cache; what runs again is mapped again, a microsecond for
//!   each 64 KiB, and what does not is the first that the kernel can do without.
//!
//! [`Footprint`] says when: once it has been quiet for a while, so that nothing is returned that is
//! wanted again at once. It sets no timer while there is nothing to return.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    ops::Range,
    time::{Duration, Instant},
};

use nix::libc;

/// Fewer changed routes leave nothing worth looking for.
const BURST: u64 = 10_000;
/// How long no route changes before memory is returned.
const QUIET: Duration = Duration::from_secs(2);

/// When to return memory.
#[derive(Debug, Default)]
pub(super) struct Footprint {
    /// Code that the start used is still mapped.
    code: bool,
    /// Routes changed since memory was returned.
    changed: u64,
    due: Option<Instant>,
}

/// What to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Surplus {
    code: bool,
}

impl Footprint {
    /// The start is over.
    pub(super) fn handle_ready(&mut self, now: Instant) {
        self.code = true;
        self.due = Some(now + QUIET);
    }

    /// So many routes have changed.
    pub(super) fn handle_routes(&mut self, now: Instant, count: usize) {
        self.changed = self
            .changed
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if self.due.is_some() || self.changed >= BURST {
            self.due = Some(now + QUIET);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Surplus> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        let surplus = Surplus { code: self.code };
        *self = Self::default();
        Some(surplus)
    }
}

impl Surplus {
    /// Takes milliseconds, tens of them after a million routes, and others that allocate wait for
    /// parts of it.
    pub(super) fn release(self) {
        trim();
        if self.code
            && let Err(error) = unmap_code()
        {
            tracing::debug!(%error, "code of the start stays mapped");
        }
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim has no precondition and may be called by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// Drops this process's mappings of code and constants that were never written to.
fn unmap_code() -> io::Result<()> {
    let maps = BufReader::new(File::open("/proc/self/smaps")?);
    for area in clean_areas(maps.lines())? {
        // SAFETY: `clean_areas` names only mappings of files that are not writable and have no page
        // of their own. Dropping such pages changes no byte that anybody can read: the next access
        // maps them from the file again, as after the kernel reclaimed them by itself. A mapping
        // that another thread removed or replaced meanwhile: areas of the executable and its
        // libraries live as long as the process, since nothing here calls dlclose.
        let result = unsafe {
            libc::madvise(
                area.start as *mut libc::c_void,
                area.end - area.start,
                libc::MADV_DONTNEED,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// From lines of `/proc/PID/smaps`: executables and libraries mapped without the right to write, of
/// which this process has no copy of its own, resident or swapped out. (Relocated tables are
/// read-only as well, but are such copies: dropping them would undo the relocation.)
fn clean_areas(lines: impl Iterator<Item = io::Result<String>>) -> io::Result<Vec<Range<usize>>> {
    let mut areas: Vec<Range<usize>> = Vec::new();
    // The area that the lines are about, while nothing speaks against it.
    let mut candidate = None;
    // Of `Anonymous:` and `Swap:`; both have to be seen.
    let mut zeros = 0;
    for line in lines {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            None => {
                zeros = 0;
                candidate = area(first, words);
            }
            Some("Anonymous" | "Swap") if words.next() == Some("0") => {
                zeros += 1;
                if zeros == 2 {
                    areas.extend(candidate.take());
                }
            }
            Some("Anonymous" | "Swap") => candidate = None,
            Some(_) => {}
        }
    }
    Ok(areas)
}

/// `55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 1234 /usr/sbin/agentd`
fn area<'a>(range: &str, mut rest: impl Iterator<Item = &'a str>) -> Option<Range<usize>> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let is_fixed = matches!(rest.next()?, "r-xp" | "r--p");
    let inode = rest.nth(2)?;
    let is_file = inode != "0" && rest.next()?.starts_with('/');
    (is_fixed && is_file && start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NONE: [(usize, usize); 0] = [];

    /// Start and end of each.
    fn areas(text: &str) -> Vec<(usize, usize)> {
        clean_areas(text.lines().map(|line| Ok(line.to_owned())))
            .unwrap()
            .into_iter()
            .map(|area| (area.start, area.end))
            .collect()
    }

    /// An entry of smaps, of the lines that count and some others.
    fn entry(head: &str, anonymous: u32, swap: u32) -> String {
        format!(
            "{head}\nSize: 4 kB\nRss: 4 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\n\
             SwapPss: 0 kB\nVmFlags: rd mr mw me\n"
        )
    }

    #[test]
    fn only_untouched_read_only_files_are_dropped() {
        let code = "1000-3000 r-xp 00001000 fe:00 77 /usr/sbin/agentd";
        assert_eq!(areas(&entry(code, 0, 0)), [(0x1000, 0x3000)]);
        let constants = "1000-3000 r--p 00000000 fe:00 77 /usr/sbin/agentd (deleted)";
        assert_eq!(areas(&entry(constants, 0, 0)), [(0x1000, 0x3000)]);

        assert_eq!(areas(&entry(code, 4, 0)), NONE, "relocated");
        assert_eq!(areas(&entry(code, 0, 4)), NONE, "relocated and swapped out");
        for other in [
            "1000-3000 rw-p 00001000 fe:00 77 /usr/sbin/agentd",
            "1000-3000 r--s 00001000 fe:00 77 /var/lib/agentd/state",
            "1000-3000 rw-p 00000000 00:00 0 [heap]",
            "1000-3000 r-xp 00000000 00:00 0 [vdso]",
            "1000-3000 r--p 00000000 00:00 0",
            "3000-1000 r-xp 00001000 fe:00 77 /usr/sbin/agentd",
        ] {
            assert_eq!(areas(&entry(other, 0, 0)), NONE, "{other}");
        }
        let rows = format!(
            "{}{}{}",
            entry(code, 4, 0),
            entry("a000-b000 r-xp 0 fe:00 77 /lib/c", 0, 0),
            entry(code, 4, 0)
        );
        assert_eq!(areas(&rows), [(0xa000, 0xb000)]);
    }

    /// Resident pages of files, in KiB.
    fn file_pages() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let number = line.unwrap().trim().strip_suffix(" kB").unwrap();
        number.parse().unwrap()
    }

    /// Maps all that may be dropped.
    fn map_code() {
        let maps = BufReader::new(File::open("/proc/self/smaps").unwrap());
        for area in clean_areas(maps.lines()).unwrap() {
            let length = area.end - area.start;
            // SAFETY: the area is mapped and readable, and pages that nobody changes are mapped.
            let result = unsafe {
                let start = area.start as *mut libc::c_void;
                libc::madvise(start, length, libc::MADV_POPULATE_READ)
            };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
    }

    #[test]
    fn a_process_goes_on_after_its_code_was_dropped() {
        map_code();
        let before = file_pages();
        trim();
        unmap_code().unwrap();
        let after = file_pages();
        assert!(after < before, "{before} KiB before, {after} KiB after");
        // Constants and relocated tables are what they were.
        let text = format!("{:?}", Footprint::default());
        assert!(text.contains("changed: 0"), "{text}");
    }

    #[test]
    fn memory_is_returned_once_it_is_quiet_after_the_start() {
        let start = Instant::now();
        let mut footprint = Footprint::default();
        assert_eq!(footprint.poll_timeout(), None);
        footprint.handle_ready(start);
        footprint.handle_routes(start + QUIET / 2, 1);
        assert_eq!(footprint.handle_timeout(start + QUIET), None);
        assert_eq!(
            footprint.handle_timeout(start + QUIET * 3 / 2),
            Some(Surplus { code: true })
        );
        assert_eq!(footprint.poll_timeout(), None);
    }

    #[test]
    fn only_a_burst_of_routes_wakes_an_agent_at_rest() {
        let start = Instant::now();
        let mut footprint = Footprint::default();
        for _ in 0..BURST - 1 {
            footprint.handle_routes(start, 1);
        }
        assert_eq!(footprint.poll_timeout(), None);
        footprint.handle_routes(start, 1);
        assert_eq!(footprint.poll_timeout(), Some(start + QUIET));
        assert_eq!(
            footprint.handle_timeout(start + QUIET),
            Some(Surplus { code: false })
        );
        footprint.handle_routes(start + QUIET, 1);
        assert_eq!(
            footprint.poll_timeout(),
            None,
            "counted from the start again"
        );
    }
}

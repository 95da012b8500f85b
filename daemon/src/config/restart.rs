//! `graceful_restart` and `long_lived_graceful_restart`, in `[bgp]` and in `[[bgp.peer]]`.

use bgp::speaker::config::LongLived;

use super::{
    GracefulRestart,
    document::Section,
    sections::{defaults, seconds},
};

/// `false`, or a table with `restart_time`. `None`: not given.
pub(super) fn read_graceful(section: &mut Section<'_, '_, '_>) -> Option<Option<GracefulRestart>> {
    let value = section.value("graceful_restart")?;
    if value.get_ref().as_bool() == Some(false) {
        return Some(None);
    }
    if !value.get_ref().is_table() {
        let reason = "expected false or a table such as { restart_time = \"120s\" }";
        section.error("graceful_restart", Some(value.span()), reason);
        return None;
    }
    let mut table = section.section("graceful_restart");
    // RFC 4724 §3: twelve bits of seconds.
    let restart_time = table.duration("restart_time", seconds(1)..=seconds(4095));
    let assume_forwarding = table.boolean("assume_forwarding");
    table.finish();
    Some(Some(GracefulRestart {
        assume_forwarding: assume_forwarding.is_some_and(|found| found.value),
        restart_time: restart_time.map_or(defaults::RESTART_TIME, |found| found.value),
    }))
}

/// `false`, `"aware"`, or a table with `stale_time`. `None`: not given.
pub(super) fn read_long_lived(section: &mut Section<'_, '_, '_>) -> Option<Option<LongLived>> {
    const KEY: &str = "long_lived_graceful_restart";
    let value = section.value(KEY)?;
    if value.get_ref().as_bool() == Some(false) {
        return Some(None);
    }
    if value.get_ref().as_str() == Some("aware") {
        return Some(Some(LongLived {
            stale_time: std::time::Duration::ZERO,
            max_stale_time: std::time::Duration::ZERO,
        }));
    }
    if !value.get_ref().is_table() {
        let reason = "expected false, \"aware\" or a table such as { stale_time = \"24h\" }";
        section.error(KEY, Some(value.span()), reason);
        return None;
    }
    let mut table = section.section(KEY);
    // RFC 9494 §3.1: 24 bits of seconds.
    let stale_time = table.duration("stale_time", seconds(1)..=LongLived::MAX_TIME);
    let stale_time = table.required("stale_time", stale_time, "there is no time to suggest");
    table.finish();
    let stale_time = stale_time?.value;
    Some(Some(LongLived {
        stale_time,
        max_stale_time: stale_time,
    }))
}

//! The service manager: sd_notify(3). Without NOTIFY_SOCKET every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Everything is up: the API answers, recovered state is in the kernel's hands.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// A configuration reload begins; [`ready`] ends it.
pub fn reloading() {
    // RELOADING=1 must carry the time at which it began (sd_notify(3), Type=notify-reload).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic time for RELOADING"),
    }
}

pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Keeps the watchdog quiet. Only the node's loop calls this: when it is stuck, the pings end.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] is to be called: half of what the service manager allows; `None` when it
/// does not watch.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "sd_notify failed");
    }
}

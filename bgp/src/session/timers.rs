//! Deadlines of a session: back-off with jitter, and the pair of hold and keepalive timers.

use std::time::{Duration, Instant};

/// How often in a row the neighbour has failed; decides how long to wait.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The neighbour has failed once more. Returns the wait that follows: `first` doubled for each
    /// earlier failure, at most `max`, less up to a quarter of jitter (RFC 4271 §10).
    pub(super) fn fail(
        &mut self,
        rng: &mut fastrand::Rng,
        first: Duration,
        max: Duration,
    ) -> Duration {
        // Beyond 2^20 every first wait is over any sensible maximum.
        let factor = 1u32 << self.failures.min(20);
        self.count();
        jitter(rng, first.saturating_mul(factor).min(max.max(first)))
    }

    /// The neighbour has failed once more, without a wait.
    pub(super) fn count(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// The neighbour has shown that it works.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

/// A bound on how often something may happen: so many at once, then one for each interval.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// When all that happened is forgotten.
    clear_at: Option<Instant>,
}

impl Rate {
    /// Also the longest wait.
    pub(super) const INTERVAL: Duration = Duration::from_millis(5);
    pub(super) const BURST: u32 = 4000;

    /// It has happened.
    pub(super) fn count(&mut self, now: Instant) {
        let start = self.clear_at.map_or(now, |at| at.max(now));
        // What happened without a wait must not add to the waits of later ones.
        let most = now + Self::INTERVAL * (Self::BURST + 1);
        self.clear_at = Some((start + Self::INTERVAL).min(most));
    }

    /// How long the next one has to wait.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.clear_at.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(now + Self::INTERVAL * Self::BURST)
        })
    }
}

/// Between three quarters of the duration and the duration (RFC 4271 §10).
pub(super) fn jitter(rng: &mut fastrand::Rng, duration: Duration) -> Duration {
    duration.mul_f64(0.75 + 0.25 * rng.f64())
}

/// Hold and keepalive timers of one connection.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Liveness {
    /// A hold time of 0 was negotiated: neither side sends keepalives (RFC 4271 §4.2).
    Off,
    On {
        hold_time: Duration,
        expires_at: Instant,
        keepalive_at: Instant,
    },
}

impl Liveness {
    pub(super) fn start(now: Instant, rng: &mut fastrand::Rng, hold_time: Duration) -> Self {
        if hold_time.is_zero() {
            return Liveness::Off;
        }
        Liveness::On {
            hold_time,
            expires_at: now + hold_time,
            keepalive_at: now + jitter(rng, hold_time / 3),
        }
    }

    /// Something arrived.
    pub(super) fn heard(&mut self, now: Instant) {
        if let Liveness::On {
            hold_time,
            expires_at,
            ..
        } = self
        {
            *expires_at = now + *hold_time;
        }
    }

    /// A KEEPALIVE or UPDATE went out (RFC 4271 §8.2.2).
    pub(super) fn sent(&mut self, now: Instant, rng: &mut fastrand::Rng) {
        if let Liveness::On {
            hold_time,
            keepalive_at,
            ..
        } = self
        {
            *keepalive_at = now + jitter(rng, *hold_time / 3);
        }
    }

    pub(super) fn expired(&self, now: Instant) -> bool {
        matches!(self, Liveness::On { expires_at, .. } if *expires_at <= now)
    }

    pub(super) fn keepalive_due(&self, now: Instant) -> bool {
        matches!(self, Liveness::On { keepalive_at, .. } if *keepalive_at <= now)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Liveness::Off => None,
            Liveness::On {
                expires_at,
                keepalive_at,
                ..
            } => Some(*expires_at.min(keepalive_at)),
        }
    }

    /// When the hold timer expires, and when a keepalive is due.
    pub(super) fn deadlines(&self) -> (Option<Instant>, Option<Instant>) {
        match self {
            Liveness::Off => (None, None),
            Liveness::On {
                expires_at,
                keepalive_at,
                ..
            } => (Some(*expires_at), Some(*keepalive_at)),
        }
    }

    /// Zero when off.
    pub(super) fn hold_time(&self) -> Duration {
        match self {
            Liveness::Off => Duration::ZERO,
            Liveness::On { hold_time, .. } => *hold_time,
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.hold_time() / 3
    }
}

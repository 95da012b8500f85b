//! Routes kept of a session that ended, family by family: graceful restart (RFC 4724 §4.2), then
//! long-lived graceful restart (RFC 9494 §4.2); and those of a refresh under way (RFC 7313 §4).
//!
//! ```text
//!             lost                  restart time over           stale time over
//!   (none) ──────────► Restart ───────────────────────► LongLived ──────────────► (swept)
//!      ▲                  │ back, forwarding kept           │ back, forwarding kept
//!      │ End-of-RIB       ▼                                 ▼
//!      └────────────── Returned                         LongLived, still running ──► Expired
//! ```
//!
//! Nothing is kept for ever. Without long-lived graceful restart what a session has not renewed
//! goes when that session is lost. With it, such routes may stay, but a neighbour that comes and
//! goes without ever sending its End-of-RIB does not get new time: the first loss counts.

use std::time::{Duration, Instant};

use super::{
    Action, Context, Session, Settings, State,
    open::{GracefulRestart, graceful_restart},
};
use crate::{
    message::{Open, RouteRefresh},
    types::Family,
};

/// The routes of one family that wait for the neighbour's End-of-RIB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// The neighbour is away. When the time is over the routes are kept for `then` as long-lived
    /// stale; zero: they go.
    Restart { until: Instant, then: Duration },
    /// It is back, and has its forwarding state; the marker must come in time. `until` and `then`
    /// are those of the first loss.
    Returned {
        by: Instant,
        until: Instant,
        then: Duration,
    },
    /// RFC 9494 §4.2. Away or back again: the time runs on until the marker.
    LongLived { until: Instant },
    /// That time was over before the marker came. If the session is lost now nothing is kept.
    Expired,
}

impl Stale {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Restart { until, .. } | Self::LongLived { until } => Some(until),
            Self::Returned { by, .. } => Some(by),
            Self::Expired => None,
        }
    }
}

/// How long a family is kept when the session is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Terms {
    restart: Duration,
    long_lived: Duration,
}

/// `None`: not at all.
fn terms(settings: &Settings, remote: &Open, family: Family) -> Option<Terms> {
    settings.graceful_restart?;
    let restart = graceful_restart(remote)?;
    let asked = long_lived(remote, family).map_or(Duration::ZERO, |(_, time)| time);
    let most = settings
        .long_lived
        .map_or(Duration::ZERO, |times| times.max_stale_time);
    let terms = Terms {
        // RFC 9494 §4.2: zero for a family that only the long-lived capability lists.
        restart: if restart.families[family.index()] {
            restart.restart_time
        } else {
            Duration::ZERO
        },
        long_lived: asked.min(most),
    };
    (terms.restart + terms.long_lived > Duration::ZERO).then_some(terms)
}

/// The F bit and the stale time that a neighbour announced for a family.
fn long_lived(remote: &Open, family: Family) -> Option<(bool, Duration)> {
    let wanted = family.afi_safi();
    remote
        .long_lived_graceful_restart()?
        .iter()
        .rev()
        .find(|(afi, safi, ..)| (*afi, *safi) == wanted)
        .map(|(_, _, forwarding, time)| (*forwarding, Duration::from_secs(u64::from(*time))))
}

impl Session {
    /// The session is lost: tells the RIB what stays. `keep` is false when it ended in a way after
    /// which nothing may stay.
    pub(super) fn keep_or_drop(&mut self, cx: &mut Context<'_>, keep: bool) {
        let State::Established(established) = &self.state else {
            return;
        };
        let mut keep_stale = [false; 2];
        let mut again = [false; 2];
        for family in Family::ALL {
            let index = family.index();
            let before = self.stale[index].take();
            // What was kept on an assumption and was not renewed does not live on.
            let assumed = established.assumed[index] && established.refreshes[index].is_some();
            let terms = terms(&self.settings, &established.remote, family)
                .filter(|_| keep && established.negotiated.families[index]);
            let Some(terms) = terms else { continue };
            let fresh = Stale::Restart {
                until: cx.now + terms.restart,
                then: terms.long_lived,
            };
            let long_lived = !terms.long_lived.is_zero();
            let after = match before {
                None => {
                    if assumed {
                        cx.actions.push(Action::SweepStale(family));
                    }
                    fresh
                }
                // RFC 9494 §4.2: the time that was over is over.
                Some(Stale::Expired) => continue,
                Some(Stale::LongLived { until }) if long_lived => {
                    again[index] = true;
                    Stale::LongLived { until }
                }
                Some(Stale::Restart { until, then } | Stale::Returned { until, then, .. })
                    if long_lived && !then.is_zero() =>
                {
                    Stale::Restart { until, then }
                }
                // RFC 4724 §4.2: what was stale before and was not renewed goes.
                Some(_) => {
                    cx.actions.push(Action::SweepStale(family));
                    fresh
                }
            };
            keep_stale[index] = true;
            self.stale[index] = Some(after);
        }
        cx.actions.push(Action::Down { keep_stale });
        for family in Family::ALL {
            if again[family.index()] {
                cx.actions.push(Action::LongLived(family));
            }
        }
        // A restart time of zero, or one that was over long ago.
        self.stale_timeout(cx, false);
    }

    /// The neighbour is back: which of its kept routes may still wait for its End-of-RIB. Returned
    /// is until when those wait that are kept on an assumption alone.
    pub(super) fn resume_stale(
        &mut self,
        cx: &mut Context<'_>,
        remote: &Open,
        negotiated: [bool; 2],
    ) -> [Option<Instant>; 2] {
        let restart = graceful_restart(remote);
        let mut assumed = [None; 2];
        for family in Family::ALL {
            let index = family.index();
            let Some(stale) = self.stale[index].take() else {
                continue;
            };
            let after = match stale {
                // RFC 4724 §4.2
                Stale::Restart { until, then } if forwards(restart, family) => {
                    Some(Stale::Returned {
                        by: cx.now + self.settings.timers.stale_time,
                        until,
                        then,
                    })
                }
                // RFC 9494 §4.2
                Stale::LongLived { until }
                    if long_lived(remote, family).is_some_and(|(forwarding, _)| forwarding) =>
                {
                    Some(Stale::LongLived { until })
                }
                _ => None,
            };
            self.stale[index] = after.filter(|_| negotiated[index]);
            if self.stale[index].is_some() {
                continue;
            }
            let listed = restart.filter(|restart| restart.families[index] && negotiated[index]);
            match listed.filter(|_| self.settings.assume_forwarding) {
                // It began with an empty table, and its End-of-RIB may come before others have
                // told it anything: as with a refresh without an end, time alone ends the wait.
                Some(restart) => {
                    assumed[index] = Some(cx.now + restart.restart_time);
                    cx.actions.push(Action::MarkStale(family));
                }
                None => cx.actions.push(Action::SweepStale(family)),
            }
        }
        assumed
    }

    /// The RIB has swept the stale routes with the marker.
    pub(super) fn end_of_rib_received(&mut self, family: Family) {
        self.stale[family.index()] = None;
    }

    /// Somebody ends it: nothing stays.
    pub(super) fn sweep_stale(&mut self, cx: &mut Context<'_>) {
        for family in Family::ALL {
            if self.stale[family.index()].take().is_some() {
                cx.actions.push(Action::SweepStale(family));
            }
        }
    }

    /// Does what is due for kept routes.
    pub(super) fn stale_timeout(&mut self, cx: &mut Context<'_>, established: bool) {
        for family in Family::ALL {
            let place = &mut self.stale[family.index()];
            if let Some(Stale::Restart { until, then }) = *place
                && until <= cx.now
                && !then.is_zero()
            {
                *place = Some(Stale::LongLived {
                    until: until + then,
                });
                cx.actions.push(Action::LongLived(family));
            }
            let Some(stale) = *place else { continue };
            if stale.deadline().is_some_and(|deadline| deadline <= cx.now) {
                let waits = established && matches!(stale, Stale::LongLived { .. });
                *place = waits.then_some(Stale::Expired);
                cx.actions.push(Action::SweepStale(family));
            }
        }
        if let State::Established(established) = &mut self.state {
            for family in Family::ALL {
                let refresh = &mut established.refreshes[family.index()];
                if refresh.take_if(|until| *until <= cx.now).is_some() {
                    cx.actions.push(Action::SweepStale(family));
                }
            }
        }
    }

    pub(super) fn stale_deadline(&self) -> Option<Instant> {
        let refreshes = match &self.state {
            State::Established(established) => established.refreshes,
            _ => [None; 2],
        };
        let stale = self.stale.iter().flatten();
        stale
            .filter_map(|stale| stale.deadline())
            .chain(refreshes.into_iter().flatten())
            .min()
    }

    /// The begin or the end of what the neighbour sends again (RFC 7313 §4). A mark that may not
    /// come now is ignored, and so is an end without a begin.
    pub(super) fn refresh_mark(&mut self, cx: &mut Context<'_>, mark: RouteRefresh) {
        let State::Established(established) = &mut self.state else {
            return;
        };
        let Some(family) = Family::from_afi_safi(mark.afi, mark.safi) else {
            return;
        };
        let index = family.index();
        let negotiated = &established.negotiated;
        if !negotiated.enhanced_route_refresh || !negotiated.families[index] {
            return;
        }
        match mark.subtype {
            1 => {
                // RFC 7313 §4: not before the End-of-RIB of a neighbour that sends one.
                let waits = graceful_restart(&established.remote).is_some()
                    && !established.end_of_rib_received[index];
                if !waits {
                    established.refreshes[index] = Some(cx.now + self.settings.timers.stale_time);
                    cx.actions.push(Action::MarkStale(family));
                }
            }
            2 if established.refreshes[index].is_some() => {
                established.refreshes[index] = None;
                cx.actions.push(Action::SweepStale(family));
            }
            // RFC 7313 §5
            _ => {}
        }
    }
}

fn forwards(restart: Option<GracefulRestart>, family: Family) -> bool {
    restart.is_some_and(|restart| restart.forwarding[family.index()])
}

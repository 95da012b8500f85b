//! The rows of the table: what is measured, and what it is to reach.

use super::results::{Figures, middle};

/// What the figure of agentd is held against.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// At most so many times the figure of another program, or of the limit.
    Times(f64, &'static str),
    AtMost(f64),
    AtLeast(f64),
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// In the results.
    pub id: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub aims: &'static [Aim],
}

const fn row(
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    aims: &'static [Aim],
) -> Row {
    Row {
        id,
        title,
        unit,
        aims,
    }
}

pub const AGENTD: &str = "agentd";
pub const LIMIT: &str = "limit";
pub const BIRD: &str = "BIRD";
/// In the order of columns.
pub const OTHERS: [&str; 6] = [
    "FRR",
    "OpenBGPD",
    "GoBGP",
    "CNI ptp",
    "CNI bridge",
    "plain routes",
];

use Aim::{AtLeast, AtMost, Times};

pub const ROWS: [Row; 30] = [
    row(
        "fib-10k",
        "10k IPv4 routes, first UPDATE to last kernel route",
        "ms",
        &[Times(0.45, BIRD)],
    ),
    row(
        "fib-100k",
        "100k IPv4 routes, the same",
        "ms",
        &[Times(1.3, LIMIT), Times(0.45, BIRD)],
    ),
    row(
        "fib-1m",
        "1M IPv4 routes, the same",
        "ms",
        &[Times(0.5, BIRD)],
    ),
    row(
        "fib-100k-v6",
        "100k IPv6 routes, the same",
        "ms",
        &[Times(0.45, BIRD)],
    ),
    row(
        "withdrawn-100k",
        "100k IPv4 routes withdrawn",
        "ms",
        &[Times(0.25, BIRD)],
    ),
    row(
        "lost-100k",
        "session lost, 100k IPv4 routes",
        "ms",
        &[Times(0.25, BIRD)],
    ),
    row(
        "withdrawn-100k-v6",
        "100k IPv6 routes withdrawn",
        "ms",
        &[Times(0.25, BIRD)],
    ),
    row(
        "lost-100k-v6",
        "session lost, 100k IPv6 routes",
        "ms",
        &[Times(0.25, BIRD)],
    ),
    row(
        "ecmp-operations-100k",
        "one of two routers lost, 100k routes: kernel operations",
        "",
        &[AtMost(1.0)],
    ),
    row(
        "ecmp-1k",
        "one of two routers lost, 1k routes: forwarding healed",
        "ms",
        &[],
    ),
    row("ecmp-10k", "the same, 10k routes", "ms", &[]),
    row(
        "ecmp-100k",
        "the same, 100k routes",
        "ms",
        &[Times(0.25, BIRD)],
    ),
    row(
        "pass-100k",
        "100k routes passed on to another peer",
        "ms",
        &[Times(0.8, BIRD)],
    ),
    row(
        "pass-1m",
        "1M routes passed on to another peer",
        "ms",
        &[Times(0.8, BIRD)],
    ),
    row(
        "pass-withdrawn-100k",
        "100k withdrawn routes passed on",
        "ms",
        &[Times(0.8, BIRD)],
    ),
    row(
        "peers-10k",
        "10k routes to 99 peers",
        "ms",
        &[Times(0.3, BIRD)],
    ),
    row(
        "peers-100k",
        "100k routes to 99 peers",
        "ms",
        &[Times(0.3, BIRD)],
    ),
    row(
        "memory-100k",
        "peak memory above idle, 100k routes",
        "MiB",
        &[Times(1.3, BIRD)],
    ),
    row(
        "memory-1m",
        "peak memory above idle, 1M routes",
        "MiB",
        &[Times(1.3, BIRD)],
    ),
    row("attach-p50", "workload add, p50", "ms", &[AtMost(2.0)]),
    row(
        "attach-rate",
        "workload adds, 8 clients",
        "per s",
        &[AtLeast(800.0)],
    ),
    row(
        "delete-rate",
        "workload deletes, 1,000 at once",
        "per s",
        &[AtLeast(1500.0)],
    ),
    row(
        "restart",
        "kill -9 to ready, 1,000 workloads and 100k routes",
        "ms",
        &[AtMost(1000.0)],
    ),
    row(
        "rss-idle",
        "resident, idle, 3 peers and 100 routes",
        "MiB",
        &[AtMost(12.0)],
    ),
    row(
        "rss-loaded",
        "resident, 1,000 workloads and 100k routes",
        "MiB",
        &[],
    ),
    row(
        "idle-cpu",
        "processor time in 60 s at rest, 1,000 workloads and 100k routes",
        "ms",
        &[AtMost(30.0)],
    ),
    row(
        "add-first",
        "workload add p50, the first 500 of 5,000",
        "ms",
        &[],
    ),
    row(
        "add-last",
        "workload add p50, the last 500 of 5,000",
        "ms",
        &[],
    ),
    row(
        "growth-add",
        "growth of an add, last against first 500",
        "×",
        &[AtMost(1.2)],
    ),
    row(
        "growth-route",
        "growth of a route's cost, 1M against 10k",
        "×",
        &[Times(1.3, LIMIT)],
    ),
];

/// What a row says.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub own: f64,
    /// Each aim in words, with whether it is met; `None`: nothing to hold it against.
    pub aims: Vec<(String, Option<bool>)>,
}

impl Row {
    pub fn value(&self, figures: &Figures, who: &str) -> Option<f64> {
        middle(figures.get(self.id)?.get(who)?)
    }

    /// `None`: not measured.
    pub fn verdict(&self, figures: &Figures) -> Option<Verdict> {
        let own = self.value(figures, AGENTD)?;
        let aims = self.aims.iter().map(|aim| match *aim {
            Times(factor, who) => match self.value(figures, who) {
                Some(other) if other > 0.0 => {
                    let ratio = own / other;
                    let text = format!("{ratio:.2} × {who} (≤ {factor})");
                    (text, Some(ratio <= factor))
                }
                _ => (format!("≤ {factor} × {who}"), None),
            },
            AtMost(most) => (format!("≤ {most} {}", self.unit), Some(own <= most)),
            AtLeast(least) => (format!("≥ {least} {}", self.unit), Some(own >= least)),
        });
        Some(Verdict {
            own,
            aims: aims.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_met_or_missed_by_the_medians() {
        let mut figures = Figures::new();
        let row = ROWS[1];
        assert!(row.verdict(&figures).is_none());
        let of = figures.entry(row.id.to_owned()).or_default();
        of.insert(AGENTD.into(), vec![340.0, 330.0, 350.0]);
        of.insert(BIRD.into(), vec![743.0]);
        let verdict = row.verdict(&figures).expect("measured");
        assert_eq!(verdict.aims.len(), 2);
        assert_eq!(verdict.aims[0].1, None);
        assert_eq!(
            verdict.aims[1],
            ("0.46 × BIRD (≤ 0.45)".into(), Some(false))
        );
    }

    #[test]
    fn rows_have_different_names() {
        let names: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}

//! The chart of `docs/benchmarks`: for every row, how the others compare with agentd, on a
//! logarithmic scale. A small SVG writer: bars, lines and text are all it takes.

use std::fmt::Write as _;

use super::aims::{AGENTD, BIRD, LIMIT, OTHERS, ROWS, Row};
use super::results::Figures;

const LEFT: f64 = 330.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 11.0;
/// Ratios from here to there.
const LEAST: f64 = 0.05;
const MOST: f64 = 200.0;

const COLOURS: [(&str, &str); 9] = [
    (AGENTD, "#1b6ca8"),
    (LIMIT, "#9aa5b1"),
    ("plain routes", "#c7cdd4"),
    (BIRD, "#d1495b"),
    ("FRR", "#edae49"),
    ("OpenBGPD", "#66a182"),
    ("GoBGP", "#8d6a9f"),
    ("CNI ptp", "#e07a3f"),
    ("CNI bridge", "#a0522d"),
];

fn colour(who: &str) -> &'static str {
    let found = COLOURS.iter().find(|(name, _)| *name == who);
    found.map_or("#000000", |(_, colour)| colour)
}

fn position(ratio: f64) -> f64 {
    let share = (ratio.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    LEFT + share * WIDTH
}

/// Cost of each program as a multiple of agentd's: rates are turned over.
fn ratios(row: &Row, figures: &Figures) -> Vec<(&'static str, f64)> {
    let Some(own) = row.value(figures, AGENTD).filter(|own| *own > 0.0) else {
        return Vec::new();
    };
    let mut found = vec![(AGENTD, 1.0)];
    for who in [LIMIT, BIRD].into_iter().chain(OTHERS) {
        let Some(value) = row.value(figures, who).filter(|value| *value > 0.0) else {
            continue;
        };
        let ratio = match row.unit {
            "per s" => own / value,
            _ => value / own,
        };
        found.push((who, ratio));
    }
    found
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The picture as text; rows with nobody to compare with are left out.
pub fn draw(figures: &Figures) -> String {
    let mut body = String::new();
    let mut y = 84.0;
    for row in &ROWS {
        let ratios = ratios(row, figures);
        if ratios.len() < 2 {
            continue;
        }
        let _ = writeln!(
            body,
            r##"<text x="{x}" y="{middle}" text-anchor="end">{title}</text>"##,
            x = LEFT - 10.0,
            middle = y + BAR,
            title = escape(row.title),
        );
        for (who, ratio) in ratios {
            let (one, end) = (position(1.0), position(ratio));
            let _ = writeln!(
                body,
                r##"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height}" fill="{fill}"/><text x="{label:.1}" y="{base:.1}" class="small">{who} {ratio:.2}</text>"##,
                x = one.min(end),
                width = (one - end).abs().max(2.0),
                height = BAR - 2.0,
                fill = colour(who),
                label = one.max(end) + 4.0,
                base = y + BAR - 3.0,
            );
            y += BAR;
        }
        y += 9.0;
    }
    let mut grid = String::new();
    for tick in [0.1, 1.0, 10.0, 100.0] {
        let x = position(tick);
        let _ = writeln!(
            grid,
            r##"<line x1="{x:.1}" y1="70" x2="{x:.1}" y2="{y:.1}" stroke="#dddddd"/><text x="{x:.1}" y="64" text-anchor="middle" class="small">{tick} ×</text>"##,
        );
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0}" font-family="sans-serif" font-size="11">
<style>.small {{ font-size: 9px; fill: #444444; }}</style>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="20" y="24" font-size="15">Cost as a multiple of agentd's (less is better)</text>
<text x="20" y="42" class="small">Medians; logarithmic. Left of 1 ×: cheaper than agentd. Limit: the same kernel state by raw netlink, without a daemon.</text>
{grid}{body}</svg>
"##,
        width = LEFT + WIDTH + 110.0,
        height = y + 20.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_bar_for_each_figure_and_is_well_formed() {
        let mut figures = Figures::new();
        let row = figures.entry("fib-100k".into()).or_default();
        row.insert(AGENTD.into(), vec![340.0]);
        row.insert(BIRD.into(), vec![740.0]);
        row.insert(LIMIT.into(), vec![240.0]);
        let picture = draw(&figures);
        assert_eq!(picture.matches("<rect x=").count(), 3);
        assert!(picture.contains("BIRD 2.18"), "{picture}");
        for (open, close) in [("<svg", "</svg>"), ("<text", "</text>")] {
            assert_eq!(
                picture.matches(open).count(),
                picture.matches(close).count()
            );
        }
        // One unit of distance for one factor.
        let step = position(10.0) - position(1.0);
        assert!((position(100.0) - position(10.0) - step).abs() < 1e-9);
    }
}

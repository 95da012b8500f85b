//! Points in time and spans as a person reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// Seconds since then: "12s", "5m03s", "3h20m", "4d06h"; in the future "in 3s".
pub fn age(at: Option<&Timestamp>) -> String {
    let Some(at) = at else { return String::new() };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    #[allow(clippy::cast_precision_loss)]
    let then = at.seconds as f64 + f64::from(at.nanos) / 1e9;
    let elapsed = now - then;
    let text = span(Duration::try_from_secs_f64(elapsed.abs()).unwrap_or_default());
    if elapsed < 0.0 {
        format!("in {text}")
    } else {
        text
    }
}

/// At most two units.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A configured or negotiated time, with its fraction where it has one: "9s", "2.5s".
pub fn interval(duration: Option<&prost_types::Duration>) -> String {
    let Some(duration) = duration else {
        return String::new();
    };
    if duration.nanos == 0 {
        format!("{}s", duration.seconds)
    } else {
        #[allow(clippy::cast_precision_loss)]
        let seconds = duration.seconds as f64 + f64::from(duration.nanos) / 1e9;
        format!("{seconds:.1}s")
    }
}

/// RFC 3339 in UTC, to the second, with the age behind it.
pub fn moment(at: Option<&Timestamp>) -> String {
    let Some(timestamp) = at else {
        return String::new();
    };
    match jiff::Timestamp::from_second(timestamp.seconds) {
        Ok(time) => match age(at) {
            ahead if ahead.starts_with("in ") => format!("{time} ({ahead})"),
            past => format!("{time} ({past} ago)"),
        },
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (3_599, "59m59s"),
            (3_600, "1h00m"),
            (90_061, "1d01h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}

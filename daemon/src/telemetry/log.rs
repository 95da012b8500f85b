//! The log: journald when the service manager reads our stderr, else text; JSON on request.

use std::{
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
};

use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Where and how lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Journald` when stderr is the journal's stream, else `Text`.
    Auto,
    Journald,
    /// One JSON object a line, on stderr.
    Json,
    Text,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log level {level:?} is not understood: {source}; use error, warn, info, debug, trace or directives such as info,bgp=debug"
    )]
    Level {
        level: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("the journal cannot be written: {0}")]
    Journald(#[source] io::Error),
    #[error("the log is set up already")]
    Twice,
}

/// Sets up the log of this process. `level` is a filter directive; AGENTD_LOG in the environment
/// overrides it.
pub fn init(format: Format, level: &str) -> Result<(), LogError> {
    let directives = std::env::var("AGENTD_LOG").unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&directives).map_err(|source| LogError::Level {
        level: directives,
        source,
    })?;
    let format = match format {
        Format::Auto if stderr_is_journal() => Format::Journald,
        Format::Auto => Format::Text,
        format => format,
    };
    let layer = match format {
        Format::Journald => tracing_journald::layer()
            .map_err(LogError::Journald)?
            .with_syslog_identifier("agentd".to_owned())
            .boxed(),
        Format::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
        Format::Text | Format::Auto => tracing_subscriber::fmt::layer()
            .with_ansi(io::stderr().is_terminal())
            .with_target(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|_| LogError::Twice)
}

/// Whether stderr is connected to the journal: systemd.exec(5), `$JOURNAL_STREAM`, which holds
/// device and inode of the stream it made. Inherited by processes whose stderr is elsewhere, so it
/// has to be compared.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr().as_fd()) else {
        return false;
    };
    names_stream(&stream, stat.st_dev, stat.st_ino)
}

fn names_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::names_stream;

    #[test]
    fn journal_stream_is_compared_by_device_and_inode() {
        assert!(names_stream("8:1234", 8, 1234));
        assert!(!names_stream("8:1234", 8, 1235));
        assert!(!names_stream("9:1234", 8, 1234));
        assert!(!names_stream("8", 8, 1234));
        assert!(!names_stream("", 0, 0));
    }
}

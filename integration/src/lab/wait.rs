//! Waiting for a state, never for a time: the condition is asked again and again until it holds
//! or the deadline passes, and the last answer is part of the error.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Lab;

/// Between two looks.
pub const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `attempt` until it succeeds.
///
/// # Errors
///
/// When it did not within `patience`; the text names what was waited for and the last error.
pub fn wait_for<T, E: Display>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let error = match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if start.elapsed() > patience {
            bail!("waited {patience:?} for: {what}; at last: {error:#}");
        }
        std::thread::sleep(INTERVAL);
    }
}

impl Lab {
    /// Waits until `condition` holds.
    ///
    /// # Errors
    ///
    /// When it did not within `patience`.
    pub fn wait_until(
        &self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> Result<()> {
        self.wait_for(what, patience, || {
            if condition() {
                Ok(())
            } else {
                Err("it does not hold")
            }
        })
    }

    /// As the function [`wait_for`]. A failing test prints the state of the lab as it ends.
    pub fn wait_for<T, E: Display>(
        &self,
        what: &str,
        patience: Duration,
        attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T> {
        wait_for(what, patience, attempt)
    }
}

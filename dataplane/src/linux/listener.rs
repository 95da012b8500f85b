//! The multicast socket.

use super::ChangeEvent;

/// Changes in the kernel, in order.
#[derive(Debug)]
pub struct Changes {}

impl Changes {
    /// The next change; `None` once the socket is broken. May be dropped while waiting.
    pub async fn next(&mut self) -> Option<ChangeEvent> {
        None
    }
}

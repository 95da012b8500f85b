//! OPEN and what two of them agree on.

use crate::message::{Negotiated, Open};

/// Appends an OPEN message.
pub fn encode_open(out: &mut Vec<u8>, open: &Open) {
    let _ = (out, open);
    unimplemented!()
}

/// What holds on a session whose sides sent these two OPENs.
pub fn negotiate(local: &Open, remote: &Open) -> Negotiated {
    let _ = (local, remote);
    unimplemented!()
}

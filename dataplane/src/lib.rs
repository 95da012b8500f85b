//! Desired kernel network state, observed kernel network state, the plan between them, and the
//! Linux driver that carries it out.
//!
//! ```text
//!   desired objects ─► Reconciler ─► batches of Op ─► linux driver ─► kernel
//!        events     ◄─ (no IO)    ◄─ results, snapshots, events   ◄─
//! ```
//!
//! [`desired`] is what the agent wants, in its own terms. [`kernel`] is what the kernel has and how
//! it is changed, in netlink's terms. The reconciler between them does no IO.

pub mod desired;
pub mod fake;
pub mod filter;
pub mod kernel;
pub mod linux;
pub mod reconcile;
pub mod runtime;

//! The gRPC API.

pub mod error;
pub mod parse;
pub mod render;

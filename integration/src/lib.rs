//! Network-namespace lab for end-to-end tests, the demo and benchmarks.
//!
//! [`lab`] builds nodes, links, workloads and real daemons out of network namespaces and takes
//! everything away again. [`bench`] holds the measuring programs' shared parts: statistics, raw
//! netlink at the kernel's limit and a BGP injector. [`interop`] makes a table of what was tried
//! with other BGP speakers.

pub mod bench;
pub mod interop;
pub mod lab;
pub mod vm;

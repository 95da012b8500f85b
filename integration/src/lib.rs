//! Network-namespace lab for end-to-end tests, the demo and benchmarks.

//! Agents that agree on blocks in a real etcd.

mod claims;
mod migration;
mod nodes;
mod outage;
mod security;

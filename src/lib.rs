//! The map of the house. Four floors; a floor calls only the floors below it (`tests/tidy.rs`
//! keeps this). Read the modules in this order, then follow one request down and up.
//!
//! ```text
//!               main -> cli -> daemon         owns every task, opens every door
//!                              |
//!                            http             what clients see
//!                       cache <- push         the decisions: reads | writes
//!                      store      upstream    the disk | other caches: they never meet
//!                            nix              the nouns: no I/O, no clock, no tokio
//!     (beside the house: allocator, appliance, backup, ciphers, config, durable, firstboot, mdns,
//!      metrics, pinned, pressure, spool, systemd, units, update)
//! ```

pub mod nix;

pub mod store;
pub mod upstream;

pub mod cache;
pub mod push;

pub mod http;

pub mod allocator;
pub mod ciphers;
pub mod durable;
pub mod pinned;
pub mod pressure;
pub mod units;
mod limit;
pub mod metrics;
pub mod mdns;
pub mod spool;
pub mod config;
pub mod systemd;
pub mod appliance;
pub mod update;

pub mod forward;

pub mod firstboot;
pub mod backup;

pub mod daemon;
pub mod cli;

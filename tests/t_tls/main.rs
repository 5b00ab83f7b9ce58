//! TLS of the built `snowberry`: curl and real Nix clients over h2 and HTTP/1.1, pushes with a token,
//! certificates that are renewed, lost, expired or somebody else's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod curl;
mod faults;
mod kit;
mod nix;

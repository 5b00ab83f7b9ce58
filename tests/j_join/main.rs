//! `snowberry join` and `join --undo`: what they write, what they refuse, and what real Nix clients of
//! three releases make of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect"
)]

#[path = "../world/mod.rs"]
mod world;

mod files;
mod forward;
mod kit;
mod nix;

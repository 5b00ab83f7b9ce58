//! What real Nix clients build waits in the spool while the cache is away, is kept from their
//! garbage collectors, and arrives in the end, whatever is killed, full or deleted in between.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops and says what it saw"
)]

#[path = "../world/mod.rs"]
mod world;

mod build;
mod forward;
mod gate;
mod harm;
mod kit;
mod many;

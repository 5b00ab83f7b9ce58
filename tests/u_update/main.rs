//! `snowberry update` on cards that are plain files: what counts as an update, how it comes, how it gets
//! onto the card, how it may stay, and what a pulled plug leaves at each step. The firmware's part is
//! played by the kit: it reads `config.txt` or `tryboot.txt` as a Pi does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test stops at what it did not expect"
)]

#[path = "../world/mod.rs"]
mod world;

mod card;
mod commands;
mod confirm;
mod fetch;
mod files;
mod garbage;
mod pack;
mod power;
mod units;

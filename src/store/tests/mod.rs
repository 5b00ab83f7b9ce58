//! Promises of the store, through its door.

mod bounds;
mod kit;
mod main_path;

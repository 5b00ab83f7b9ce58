//! Promises of the store, through its door.

mod bounds;
mod crash;
mod damage;
mod flip;
mod history;
mod kit;
mod main_path;
mod mend;
mod push;
mod push_crash;
mod push_index;
mod push_kit;
mod rest;
mod scrub;
mod trouble;
mod uploads;
mod outs;
mod pin_kit;
mod pins;
mod pins_crash;
mod pins_index;

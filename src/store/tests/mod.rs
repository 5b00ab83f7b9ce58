//! Promises of the store, through its door.

mod bounds;
mod crash;
mod damage;
mod flip;
mod kit;
mod main_path;
mod mend;
mod rest;
mod trouble;

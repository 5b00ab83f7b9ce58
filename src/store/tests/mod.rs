//! Promises of the store, through its door.

mod bounds;
mod crash;
mod damage;
mod kit;
mod main_path;
mod rest;
mod trouble;

//! Updates of the appliance: a signed file with the next version is fetched or given, verified, written
//! to the slot that does not run, booted once on trial, and confirmed when all is well. The firmware
//! falls back by itself otherwise. Knows neither store nor cache, nor how the daemon is asked.
//!
//! `manifest`, `package`: what a file is. `fetch`: how it comes. `install`: how it gets onto the card,
//! and why in that order. `confirm`, `trial`: how it may stay. `record`: what outlives a restart.

mod confirm;
mod error;
mod fat;
mod fetch;
mod install;
mod machine;
mod manifest;
mod network;
mod package;
mod record;
mod trial;
mod version;

use std::path::PathBuf;

use crate::units::ByteSize;

pub use crate::upstream::ConfigError;
pub use confirm::{Boot, OnTrial, WELL_FOR, WITHIN, look};
pub use error::Error;
pub use fetch::{PATIENCE, Patience, Server, forget};
pub use install::{Downgrade, admit, install, roll_back};
pub use machine::{ARCH, Machine};
pub use manifest::{Head, Manifest, ManifestError, Part, Place, Sha256Hex};
pub use package::Package;
pub use record::{Folder, Holds, Record, Trial};
pub use trial::{Look, Verdict, Watch};
pub use version::{NoVersion, Version};

/// Where updates come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The folder of a server that has `latest`; without it nothing is looked for.
    pub url: Option<String>,
    /// The certificate authority of that server, trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Bytes a second that are fetched.
    pub limit: Option<ByteSize>,
}

/// Who looks on while an update is fetched and written.
pub trait Watcher {
    /// So much of a piece of work is done.
    fn progress(&mut self, what: &'static str, done: u64, of: u64);

    /// A step is done. An error ends the work there as a pulled plug would: so tests try each.
    fn step(&mut self, step: &'static str) -> Result<(), Error>;
}

/// Nobody looks on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Watcher for Unwatched {
    fn progress(&mut self, _: &'static str, _: u64, _: u64) {}

    fn step(&mut self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }
}

//! What can go wrong with an update.

use std::io;
use std::path::{Path, PathBuf};

use super::manifest::ManifestError;
use super::version::Version;
use crate::appliance::Slot;
use crate::nix::signature::KeyError;
use crate::units::ByteSize;
use crate::upstream;

/// What can go wrong with an update.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a partition.
    #[error("{act} {}", path.display())]
    Io {
        /// What was done.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image's release keys are not there to be compared with.
    #[error("{}: line {line} is no key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// Why not.
        source: KeyError,
    },
    /// The image has no release key at all.
    #[error("{} lists no key: nothing can be verified with this image", .0.display())]
    NoKeys(PathBuf),
    /// The kernel does not say which slot runs.
    #[error("{} does not say which slot runs: this is no appliance", .0.display())]
    NoSlot(PathBuf),
    /// `config.txt` does not say which slot is booted.
    #[error("{} does not say in one line `os_prefix=a/` or `os_prefix=b/` what is booted",
        .0.display())]
    NoPrefix(PathBuf),
    /// The image's own version cannot be compared with another.
    #[error("the version of this image")]
    OwnVersion {
        /// Why not.
        source: super::version::NoVersion,
    },
    /// The head of a file, or the one named `latest`, does not count.
    #[error("{name}")]
    Manifest {
        /// What it was read from.
        name: String,
        /// Why not.
        source: ManifestError,
    },
    /// For other machines.
    #[error("the update {version} is for {arch}, and this machine is {own}")]
    Arch {
        /// Its version.
        version: Version,
        /// What it is for.
        arch: String,
        /// What this machine is.
        own: &'static str,
    },
    /// Not newer than what runs.
    #[error(
        "the update {version} is not newer than {running}, which runs here; a file can be installed \
         all the same with --allow-downgrade"
    )]
    NotNewer {
        /// Its version.
        version: Version,
        /// What runs.
        running: Version,
    },
    /// Its store is not ours.
    #[error(
        "the update {version} keeps stores of format {theirs} (and opens them from {theirs_min}), \
         this version keeps format {ours}: the way back would find a store that it cannot open. \
         Install a version between the two first, or flash the card anew"
    )]
    StoreFormat {
        /// Its version.
        version: Version,
        /// The format that it makes.
        theirs: u64,
        /// The oldest that it opens.
        theirs_min: u64,
        /// Ours.
        ours: u64,
    },
    /// The file is not as long as its manifest says.
    #[error("{} has {found} bytes and should have {wanted}: it was cut short or is another file",
        path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What it should have.
        wanted: u64,
    },
    /// What is in the file is not what was signed.
    #[error("{part} is damaged in {}: its hash is another one", path.display())]
    Damaged {
        /// The part.
        part: String,
        /// The file.
        path: PathBuf,
    },
    /// A part does not unpack to what was signed.
    #[error("{part} does not unpack to what its manifest says")]
    Unpack {
        /// The part.
        part: String,
        /// What zstd says, where it is that.
        source: Option<io::Error>,
    },
    /// It does not fit.
    #[error("{what} needs {needed}, and {} has room for {room}", path.display())]
    Room {
        /// What.
        what: String,
        /// How much it is.
        needed: ByteSize,
        /// Where.
        path: PathBuf,
        /// How much fits.
        room: ByteSize,
    },
    /// The slot that would be written is the one that runs.
    #[error("{} is what runs, and is not written", .0.display())]
    Running(PathBuf),
    /// A trial is under way.
    #[error("slot {0} runs on trial: wait until it is confirmed, or restart to go back")]
    OnTrial(Slot),
    /// Another `snowberry update` runs.
    #[error("another `snowberry update` is at work")]
    Busy,
    /// What was written reads back as something else.
    #[error("{} does not read back what was written to it: the card may be worn out",
        .0.display())]
    ReadBack(PathBuf),
    /// The update server.
    #[error("fetch {name}")]
    Fetch {
        /// Which file.
        name: String,
        /// Why not.
        source: upstream::Error,
    },
    /// The update server has it not.
    #[error("the update server has no {0}")]
    Absent(String),
    /// The update server sends what does not fit to what it said.
    #[error("{name} of the update server is not what its signed manifest says, twice in a row")]
    Mismatch {
        /// Which file.
        name: String,
    },
    /// Nothing came for too long, again and again.
    #[error("fetch {name}: given up after {tries} tries without a byte; what came is kept")]
    Stalled {
        /// Which file.
        name: String,
        /// How often it was tried.
        tries: u32,
    },
    /// There is nothing to go back to.
    #[error("slot {slot} holds no version that was confirmed before: {why}")]
    NoWayBack {
        /// The other slot.
        slot: Slot,
        /// Why not.
        why: &'static str,
    },
    /// `mount` refuses.
    #[error("mount {} {how}: {told}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// `rw` or `ro`.
        how: &'static str,
        /// What it says.
        told: String,
    },
    /// A test stopped here, as a pulled plug would.
    #[error("stopped at {0}")]
    Stopped(&'static str),
}

/// For `map_err`: what was done, and with what.
pub(super) fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { act, path, source }
}

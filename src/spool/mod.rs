//! The spool: what was built here and waits to be pushed, kept from garbage collection until it
//! was, for as long as its bounds allow. The hook notes, a drainer runs `nix copy`; between them is
//! a folder of links and nothing else. Knows no store and no cache of ours.

mod copy;
mod derivation;
mod drain;
mod drainer;
mod entry;
mod exclude;
mod folder;
mod gcroot;
#[cfg(test)]
mod kit;
mod look;
mod note;
mod pace;
mod pass;
mod probe;
mod status;
mod target;
mod token;
mod watch;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::nix::{StoreDir, StorePath};
use crate::units::ByteSize;

pub use copy::{NixCopy, nix_copy};
pub use drain::{Left, Spool};
pub use entry::Entry;
pub use exclude::{Pattern, PatternError};
pub use note::{Built, Noted, note};
pub use status::{Dropped, Parked, Status, Trouble, View, forget, retry, view};
pub use target::{Target, TargetError};
pub use token::{netrc, read_token};

/// Where what is built waits, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The spool folder.
    pub path: PathBuf,
    /// What is not pushed.
    pub exclude: Vec<Pattern>,
    /// What could not be pushed for longer is dropped.
    pub age_max: Duration,
    /// What could not be pushed is dropped, the oldest first, until the rest takes no more.
    pub bytes_max: ByteSize,
    /// The cache that takes it.
    pub to: Target,
    /// Where the token is.
    pub token_file: PathBuf,
    /// Whether the configuration names that file; else it need not be there.
    pub needs_token_file: bool,
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// Where Nix keeps its database and its garbage collector's roots.
    pub nix_state_dir: PathBuf,
}

/// What went wrong with the spool or with the copy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be made.
    #[error("make the spool folder {}", path.display())]
    Make {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder cannot be read.
    #[error("list the spool folder {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Too much waits.
    #[error(
        "the spool {} is full with {entries_max} entries: nobody drains it (snowberry spool \
         status says why)",
        path.display()
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// The bound.
        entries_max: usize,
    },
    /// A path cannot be noted.
    #[error("note {path} in the spool")]
    Note {
        /// What was built.
        path: StorePath,
        /// Why not.
        source: io::Error,
    },
    /// An entry cannot be removed.
    #[error("remove {}", link.display())]
    Remove {
        /// The entry.
        link: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The lock cannot be had.
    #[error("lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The drainer cannot be asked.
    #[error("ask for a retry by {}", path.display())]
    Ask {
        /// The file that asks.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The token cannot be read.
    #[error("read the token in {}", path.display())]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file has something else than a token.
    #[error("{} does not hold one token, as `snowberry token add` prints it", path.display())]
    NotOneToken {
        /// The file.
        path: PathBuf,
    },
    /// The token cannot be handed to Nix.
    #[error("keep the token for Nix")]
    Netrc {
        /// Why not.
        source: io::Error,
    },
    /// There is no nix.
    #[error("find nix: it is neither on the PATH nor in {places}")]
    NoNix {
        /// Where else it was looked for.
        places: String,
    },
    /// Nix does not start.
    #[error("run {}", nix.display())]
    RunNix {
        /// The program.
        nix: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// An error with its causes, for a log of plain lines and for the status.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

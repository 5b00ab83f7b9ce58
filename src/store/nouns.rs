//! What passes through the store's door.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::nix::{FileHash, NarHash, NarInfo};

/// What the store says when it cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store is not open: missing, damaged, newer, or lost while running.
    #[error("the store is degraded: {0}")]
    Degraded(Arc<str>),
    /// There is no room, and eviction cannot make any.
    #[error("no room for {wanted_bytes} bytes")]
    NoRoom {
        /// Bytes asked for.
        wanted_bytes: u64,
    },
    /// A row was not what was written. Its NAR has been withdrawn.
    #[error("a stored row of {0:?} is damaged")]
    Corrupt(NarHash),
    /// The index did not answer in time.
    #[error("the disk did not answer within {0:?}")]
    Slow(Duration),
    /// The fill that was followed was given up.
    #[error("the fill was given up")]
    Abandoned,
    /// The store is being closed.
    #[error("the store is closing")]
    Closing,
}

/// Where a thing came from; decides what eviction takes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// An upstream still has it.
    Upstream,
    /// Only we have it (pushed, imported).
    Ours,
    /// Not evicted at all: a NAR that waits to be carried on, or for its narinfo. The store says
    /// so of its own accord; from a caller it is `Ours`.
    Kept,
}

/// A narinfo as it is kept: its `url`, `compression`, `file_hash` and `file_size` are the
/// upstream's own (or the uploader's); what clients see is made from it by the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNarInfo {
    /// As the upstream said it, sanitised.
    pub narinfo: NarInfo,
    /// The upstream's URL (without user data) that said so; empty when it is ours.
    pub upstream: String,
    /// Where it came from.
    pub origin: Origin,
}

/// What is known once a NAR went through ingest.
#[derive(Debug, Clone)]
pub struct Finished {
    /// SHA-256 of the NAR, checked by the caller.
    pub nar_hash: NarHash,
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// SHA-256 of the stored zstd stream.
    pub file_hash: FileHash,
    /// Where it came from.
    pub origin: Origin,
    /// The `.ls` document, when it was small enough to make.
    pub listing: Option<Bytes>,
}

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Open.
    Open,
    /// Not open; why, in a sentence, and for how long (uptime).
    Degraded {
        /// What is wrong, in a sentence that says what to do.
        reason: Arc<str>,
        /// For how long.
        since: Duration,
    },
}

/// The figures of design 14 that the store knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes that rows may take.
    pub budget_bytes: u64,
    /// Bytes that rows take, by our own count of rounded row sizes.
    pub used_bytes: u64,
    /// narinfos held.
    pub narinfos: u64,
    /// NARs held.
    pub nars: u64,
    /// Bytes of pinned NARs.
    pub pinned_bytes: u64,
    /// Bytes written to the disk since start.
    pub written_bytes: u64,
    /// Bytes free on the file system.
    pub disk_free_bytes: u64,
}

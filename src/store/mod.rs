//! The disk: one index and segments of rows, all redb, all behind one async door. Knows nothing of
//! networks. Nothing outside this folder names redb.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Deserialize;

use crate::metrics::Metrics;
use crate::nix::{FileHash, NarHash, NarInfo, StorePathHash};
use crate::units::ByteSize;

pub mod disk;

pub use disk::Disk;

/// The `[store]` table of the configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The folder; default `<state-dir>/store`.
    pub path: Option<PathBuf>,
    /// Bytes that stored rows may take; default 90 % of what is free at first start, then fixed.
    pub budget: Option<ByteSize>,
    /// zstd level of what is stored, 1 to 19; default 3. Used by the cache's ingest.
    pub compression_level: Option<i32>,
    /// File in the state directory that remembers that a store was begun, and with which id: when
    /// it exists and the index is missing, the disk is missing. Not a key of the file.
    #[serde(skip)]
    pub marker: Option<PathBuf>,
}

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

/// The door. A cheap clone of a handle; never fails to exist, though the disk behind it may.
#[derive(Clone)]
pub struct Store {}

impl Store {
    /// Starts the store's threads; opening goes on behind and is tried again with back-off for as
    /// long as it fails ([`Store::state`]). `disk` is [`disk::Folder`] but in tests of faults.
    pub fn start(
        _config: Config,
        _disk: Arc<dyn Disk>,
        _metrics: Metrics,
    ) -> std::io::Result<Self> {
        todo!()
    }
    /// Waits until the first attempt to open has ended (either way).
    pub async fn first_opened(&self) -> State {
        todo!()
    }
    /// Open or degraded.
    pub fn state(&self) -> State {
        todo!()
    }
    /// The store's figures.
    pub fn figures(&self) -> Figures {
        todo!()
    }
    /// Makes durable what waits, closes the files, joins the threads.
    pub async fn close(&self) {
        todo!()
    }

    /// The narinfo kept for this key, within 1.0 s (`Error::Slow`), and the NAR when it is held.
    pub async fn lookup(
        &self,
        _key: StorePathHash,
    ) -> Result<Option<(StoredNarInfo, Option<HeldNar>)>, Error> {
        todo!()
    }
    /// Keeps a narinfo (replaces the one of that key). Not durable by itself; visible at once.
    pub async fn keep_narinfo(&self, _stored: StoredNarInfo) -> Result<(), Error> {
        todo!()
    }
    /// Forgets a narinfo: its NAR can be had nowhere. The NAR's rows go when no other path has it.
    pub async fn withdraw_narinfo(&self, _key: StorePathHash) -> Result<(), Error> {
        todo!()
    }
    /// Any keys of kept narinfos that name this NAR, at most `count_max`.
    pub async fn paths_of(
        &self,
        _nar_hash: NarHash,
        _count_max: usize,
    ) -> Result<Vec<StorePathHash>, Error> {
        todo!()
    }

    /// The NAR, when it is held. The handle keeps it from eviction while it lives.
    pub async fn nar(&self, _nar_hash: NarHash) -> Result<Option<HeldNar>, Error> {
        todo!()
    }
    /// Withdraws a NAR whose bytes are not what they should be.
    pub async fn withdraw_nar(&self, _nar_hash: NarHash) -> Result<(), Error> {
        todo!()
    }
    /// The `.ls` document of a held NAR.
    pub async fn listing(&self, _nar_hash: NarHash) -> Result<Option<Bytes>, Error> {
        todo!()
    }

    /// Room for a fill; evicts to make it. What is not used is given back when it is dropped.
    pub async fn reserve(&self, _len_bytes: u64) -> Result<Reservation, Error> {
        todo!()
    }
    /// Begins to write a NAR's zstd stream.
    pub async fn begin(&self, _reservation: Reservation) -> Result<NarWriter, Error> {
        todo!()
    }

    /// A small document by name (`log/…`, `realisations/…`).
    pub async fn document(&self, _name: &str) -> Result<Option<Bytes>, Error> {
        todo!()
    }
    /// Keeps a small document.
    pub async fn keep_document(
        &self,
        _name: &str,
        _body: Bytes,
        _origin: Origin,
    ) -> Result<(), Error> {
        todo!()
    }
}

/// A held NAR: whole on the disk (or whole and soon durable), kept from eviction while this lives.
#[derive(Clone, Debug)]
pub struct HeldNar {}

impl HeldNar {
    /// SHA-256 of the NAR.
    pub fn nar_hash(&self) -> NarHash {
        todo!()
    }
    /// Bytes of the NAR.
    pub fn nar_size(&self) -> u64 {
        todo!()
    }
    /// SHA-256 of the stored zstd stream.
    pub fn file_hash(&self) -> FileHash {
        todo!()
    }
    /// Bytes of the stored zstd stream.
    pub fn file_size(&self) -> u64 {
        todo!()
    }
    /// Whether this NarHash was held with another file hash before, and this one for less than an
    /// hour: a `Range` without `If-Range` must then be 404.
    pub fn changed_lately(&self) -> bool {
        todo!()
    }
    /// The stored bytes from `offset` to the end of their row; empty at the end. Nothing is copied.
    pub async fn read(&self, _offset: u64) -> Result<Bytes, Error> {
        todo!()
    }
}

/// Room that was set aside.
#[derive(Debug)]
pub struct Reservation {}

impl Reservation {
    /// Asks for more while a fill grows beyond its estimate.
    pub async fn grow(&mut self, _more_bytes: u64) -> Result<(), Error> {
        todo!()
    }
}

/// Writes one NAR's zstd stream; dropping it gives the fill up: nothing stays, followers get
/// [`Error::Abandoned`].
#[derive(Debug)]
pub struct NarWriter {}

impl NarWriter {
    /// The next bytes of the zstd stream, of any length. Seen by followers at once; waits while the
    /// disk is behind. Grows the reservation by itself (`Error::NoRoom`).
    pub async fn append(&mut self, _bytes: Bytes) -> Result<(), Error> {
        todo!()
    }
    /// A follower that may read from any offset, at its own speed.
    pub fn follow(&self) -> Growing {
        todo!()
    }
    /// The NAR is whole and its hash was checked: held from now on, durable with its group (at
    /// 64 MiB of rows, after 60 s, or when all is quiet). When the same NAR is held already (a race
    /// of fills), that one is adopted, and these rows go when their followers have left.
    pub async fn finish(self, _finished: Finished) -> Result<HeldNar, Error> {
        todo!()
    }
}

/// A follower's view of a NAR that is being written.
#[derive(Clone, Debug)]
pub struct Growing {}

impl Growing {
    /// Bytes from `offset` on, as soon as there are any: from memory or from a landed row.
    /// `Ok(None)` after the last byte of a finished NAR; `Err(Abandoned)` when it was given up.
    pub async fn read(&self, _offset: u64) -> Result<Option<Bytes>, Error> {
        todo!()
    }
}

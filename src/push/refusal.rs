//! Why an upload is not taken, in sentences that say what to do. Always for good, never "try
//! again": 5xx, 408, 429 and 202 hang old Nix clients or make them send an empty body.

use std::sync::Arc;

use crate::nix::narinfo::NarInfoError;
use crate::nix::{Compression, NarHash, StoreDir, StorePathHash};
use crate::store;
use crate::units::ByteSize;

/// Why an upload is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The store cannot be used now.
    #[error("this cache's disk cannot be used now ({0}): mend that, then upload again")]
    Degraded(Arc<str>),
    /// The disk did not answer in time.
    #[error("this cache's disk is too slow now: upload again later")]
    Slow,
    /// Too many uploads, or no memory to unpack this one, for too long.
    #[error("this cache is busy with other uploads: upload again later, fewer at a time")]
    Busy,
    /// What waits may take no more room.
    #[error(
        "there is no room to keep this upload safe: {kept_back} wait for the push targets or for \
         their narinfo, {under_way} are coming, this needs {wanted}, and half of the budget of \
         {budget} is all that may wait. Let the queue drain (`snowberry status`) or raise \
         store.budget"
    )]
    Full {
        /// Bytes that may not be evicted.
        kept_back: ByteSize,
        /// Bytes of uploads under way.
        under_way: ByteSize,
        /// Bytes of this one.
        wanted: ByteSize,
        /// The store's budget.
        budget: ByteSize,
    },
    /// The same, beside what is pinned.
    #[error(
        "there is no room to keep this upload safe beside {pinned} that are pinned: this needs \
         {wanted}, and four fifths of the budget of {budget} are all that may be pinned and wait. \
         Unpin something on the cache (`snowberry pins`) or raise store.budget"
    )]
    FullOfPins {
        /// Bytes that are pinned.
        pinned: ByteSize,
        /// Bytes of this one.
        wanted: ByteSize,
        /// The store's budget.
        budget: ByteSize,
    },
    /// Eviction made no room.
    #[error("the disk of this cache is full and nothing on it may be evicted: make room there")]
    NoRoom,
    /// Too many uploads whose narinfo never came.
    #[error(
        "{0} uploaded NARs wait for their narinfo, which is all that may: finish those copies, or \
         wait a day until they are dropped"
    )]
    Unbound(u64),
    /// It is longer than it may be.
    #[error("more than {max}, which is all that is taken{hint}")]
    TooLong {
        /// The bound.
        max: ByteSize,
        /// What could be done.
        hint: &'static str,
    },
    /// The body ended before its `Content-Length`.
    #[error("only {came} of {promised} bytes came, nothing was kept: upload again")]
    Short {
        /// Bytes that came.
        came: u64,
        /// `Content-Length`.
        promised: u64,
    },
    /// The bytes are no NAR file.
    #[error("this is no NAR file in a compression that is known here ({0})")]
    NotANar(String),
    /// The file is not what its name says.
    #[error("the file's SHA-256 is not the one in its name, nothing was kept: upload again")]
    WrongFile,
    /// The narinfo does not parse.
    #[error("{0}")]
    Narinfo(#[from] NarInfoError),
    /// The narinfo is another path's.
    #[error("this is the narinfo of {found}, but it was put as that of {expected}")]
    OtherPath {
        /// The key in the URL.
        expected: StorePathHash,
        /// The key in the narinfo.
        found: StorePathHash,
    },
    /// Its URL is none that an upload has.
    #[error(
        "the narinfo's URL {0:?} is no file of this cache: upload the NAR to \
         nar/<SHA-256 of the file>.nar.<ending> first and name that"
    )]
    Url(String),
    /// The NAR is not here.
    #[error(
        "the NAR that the narinfo names ({0}) is not here: upload it first. If Nix skipped it, \
         copy again with `--refresh`"
    )]
    NoNar(String),
    /// A line of the narinfo is not what came.
    #[error("the narinfo says {line} {said}, but what was uploaded has {is}")]
    Line {
        /// The line's key.
        line: &'static str,
        /// Its value.
        said: String,
        /// What came.
        is: String,
    },
    /// More signatures than a narinfo may have.
    #[error("more than {0} signatures on one path")]
    Signatures(usize),
    /// A document that is not what its name says.
    #[error("this is no {0}")]
    Document(&'static str),
    /// A `Content-Encoding` that is not known, or does not fit the bytes.
    #[error("{0}: send it without, or as gzip, zstd, br, xz or bzip2")]
    Encoding(String),
    /// A file name with another ending than those that are known.
    #[error(
        "this compression is not taken: copy with ?compression=zstd (best on a LAN), none, xz, \
         bzip2, gzip or br"
    )]
    Ending,
    /// Another store directory.
    #[error("this cache is for {0}: nothing else is taken")]
    StoreDir(StoreDir),
    /// Something that is no `nix-cache-info`.
    #[error("this is no nix-cache-info")]
    CacheInfo,
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Degraded(reason) => Self::Degraded(reason),
            store::Error::NoRoom { .. } => Self::NoRoom,
            // A damaged row has been withdrawn, an abandoned fill was ours: again, from the start.
            store::Error::Slow(_) | store::Error::Corrupt(_) | store::Error::Abandoned => {
                Self::Slow
            }
            store::Error::Closing => Self::Degraded("it is being stopped".into()),
        }
    }
}

impl Refusal {
    /// A line that is not what came.
    pub(super) fn line(line: &'static str, said: &impl ToString, is: &impl ToString) -> Self {
        Self::Line { line, said: said.to_string(), is: is.to_string() }
    }

    pub(super) fn compression(said: Compression, is: Compression) -> Self {
        Self::line("Compression:", &said.label(), &is.label())
    }

    pub(super) fn nar_hash(said: &NarHash, is: &NarHash) -> Self {
        Self::line("NarHash:", said, is)
    }
}

//! Writing to a bucket or a folder: the few calls that pushing needs, and no other right than to
//! read, to put and to abort.

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::{Error, Upstream};
use crate::nix::FileHash;

/// An object as HEAD shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Its length in bytes.
    pub len: u64,
    /// When it was written last.
    pub modified: Option<SystemTime>,
    /// When the bucket's lifecycle will take it (`x-amz-expiration`).
    pub expires: Option<SystemTime>,
}

/// Where the bytes of an object come from; they are asked for more than once, and are the same
/// each time.
pub trait Source: Send + Sync {
    /// The bytes from `from` (included) to `to`, in pieces of any length.
    fn read(&self, from: u64, to: u64) -> BoxStream<'_, std::io::Result<Bytes>>;
}

/// An object that is to be put.
pub struct Object<'a> {
    /// Its key below the upstream's root (`nar/<hash>.nar.zst`).
    pub key: &'a str,
    /// Its media type.
    pub content_type: &'static str,
    /// Its length in bytes.
    pub len: u64,
    /// Its SHA-256.
    pub sha256: FileHash,
    /// Its bytes.
    pub source: &'a dyn Source,
}

impl Upstream {
    /// Whether what the house builds is carried there (`push = true`).
    pub fn is_target(&self) -> bool {
        self.inner.is_target
    }

    /// What is known of an object; `None` when it is not there. Not asked through the breaker:
    /// whoever pushes has a back-off of its own.
    pub async fn head(&self, _key: &str) -> Result<Option<ObjectHead>, Error> {
        todo!()
    }

    /// Writes a small object whole (narinfo, document), over what is there.
    pub async fn put_small(
        &self,
        _key: &str,
        _content_type: &'static str,
        _body: Bytes,
    ) -> Result<(), Error> {
        todo!()
    }

    /// Writes an object from its source: in one request, or above 64 MiB in parts, which are
    /// aborted when it comes to nothing. Returns only when the upstream has all of it.
    pub async fn put(&self, _object: Object<'_>) -> Result<(), Error> {
        todo!()
    }
}

/// What a failed write means for the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// Trouble that passes: again, after a while.
    Passing,
    /// The target does not take anything from us until somebody mends it: credentials, rights, a
    /// bucket that is not there, no room.
    Target,
    /// The clock, here or there, is wrong: again, after a while, and said as such.
    Clock,
    /// The target takes others, but not this object.
    Object,
    /// The source could not be read: the store's trouble, not the target's.
    Source,
}

impl Error {
    /// What it means for the queue when a write ended so.
    pub fn setback(&self) -> Setback {
        todo!()
    }
}

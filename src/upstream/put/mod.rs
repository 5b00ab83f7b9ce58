//! Writing to a bucket or a folder: the few calls that pushing needs, and no other right than to
//! read, to put and to abort.
//!
//! Writes do not go through the breaker: whoever pushes has a back-off of its own, and a bucket
//! that refuses them may be read all the same.

mod call;
mod digest;
mod folder;
mod multipart;
mod send;
mod setback;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hyper::Method;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Error, Kind, Upstream};
use crate::nix::FileHash;

pub(super) use call::{Call, not_taken};
use folder::Written;
pub(super) use multipart::Left;
pub(super) use send::{Answer, PACE, Pace, Pipe, Sent};
pub use setback::Setback;

/// Longest object that is put in one request: what is sent again when that fails. `MinIO` and AWS
/// take 5 GiB so.
const MULTIPART_FROM_LEN: u64 = 64 * 1024 * 1024;

/// Objects that are put at the same time, each with a few buffers of its own.
const PUTS_MAX: usize = 8;

/// Small objects that are put, and questions that belong to putting, at the same time.
const SMALL_PUTS_MAX: usize = 16;

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

    /// Returns when so many bytes may go out. Asked before they do, and not where they are only
    /// digested.
    fn may_go(&self, _len: usize) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
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

/// The places of writes.
pub(super) struct Puts {
    big: Arc<Semaphore>,
    small: Arc<Semaphore>,
    pub(super) pace: Pace,
}

impl Puts {
    pub(super) fn new() -> Self {
        let of = |places| Arc::new(Semaphore::new(places));
        Self { big: of(PUTS_MAX), small: of(SMALL_PUTS_MAX), pace: PACE }
    }
}

impl Upstream {
    /// Whether what the house builds is carried there (`push = true`).
    pub fn is_target(&self) -> bool {
        self.inner.is_target
    }

    /// What is known of an object; `None` when it is not there. Not asked through the breaker:
    /// whoever pushes has a back-off of its own.
    ///
    /// `None` also where a bucket says `AccessDenied`: AWS says so of a missing key to who may not
    /// list. A put then says what it really was. Wrong keys and a wrong clock are errors here
    /// already, told by a second question, as the answer to a HEAD has no code.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectHead>, Error> {
        let _place = self.place(&self.inner.puts.small).await?;
        let (asked, pace) = (self.inner.asked(key), &self.inner.puts.pace);
        match &self.inner.kind {
            Kind::S3(s3) => s3.head(key, pace, &asked).await,
            Kind::Folder(folder) => folder.head(key, &asked).await,
            Kind::Http(_) => Err(self.no_target()),
        }
    }

    /// Writes a small object whole (narinfo, document), over what is there.
    pub async fn put_small(
        &self,
        key: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<(), Error> {
        let _place = self.place(&self.inner.puts.small).await?;
        let (asked, pace) = (self.inner.asked(key), &self.inner.puts.pace);
        let sent = Sent::Bytes(body);
        match &self.inner.kind {
            Kind::S3(s3) => {
                let content_type = Some(content_type);
                let call = Call { content_type, sent, ..Call::bare(Method::PUT, key, "") };
                s3.put_whole(&call, pace, &asked).await
            }
            Kind::Folder(folder) => {
                folder.put(&Written { key, sent, sha256: None }, pace, &asked).await
            }
            Kind::Http(_) => Err(self.no_target()),
        }
    }

    /// Writes an object from its source: in one request, or above 64 MiB in parts, which are
    /// aborted when it comes to nothing. Returns only when the upstream has all of it.
    pub async fn put(&self, object: Object<'_>) -> Result<(), Error> {
        let _place = self.place(&self.inner.puts.big).await?;
        let (asked, pace) = (self.inner.asked(object.key), &self.inner.puts.pace);
        match &self.inner.kind {
            Kind::S3(s3) => s3.put(&object, pace, &asked).await,
            Kind::Folder(folder) => {
                let sent = Sent::Range(object.source, 0, object.len);
                let sha256 = Some(object.sha256);
                folder.put(&Written { key: object.key, sent, sha256 }, pace, &asked).await
            }
            Kind::Http(_) => Err(self.no_target()),
        }
    }

    /// Aborts the multipart uploads whose [`Self::put`] was dropped in the middle, so that no parts
    /// stay behind in the bucket.
    pub async fn abort_left(&self) {
        match &self.inner.kind {
            Kind::S3(s3) => s3.abort_left(&self.inner.puts.pace).await,
            Kind::Folder(_) | Kind::Http(_) => {}
        }
    }

    async fn place(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
        let busy = || Error::Busy { upstream: Arc::clone(self.url()) };
        let place = timeout(self.inner.puts.pace.answer, Arc::clone(places).acquire_owned()).await;
        place.map_err(|_| busy())?.map_err(|_| busy())
    }

    fn no_target(&self) -> Error {
        Error::NoTarget { upstream: Arc::clone(self.url()) }
    }
}

//! PUT: what may be put where, and the bodies of uploads. What is refused for good is refused before
//! the body is read, so that a client that waits for `100 Continue` sends none of it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, EXPECT};
use hyper::{HeaderMap, Request, Version};
use tokio::time::timeout;
use tracing::debug;

use super::refusal::Refusal;
use super::reply::Reply;
use super::route::{Family, Object};
use crate::metrics::Ended;
use crate::nix::UploadName;
use crate::nix::cache_info::CACHE_INFO_LEN_MAX;
use crate::nix::narinfo::NARINFO_LEN_MAX;
use crate::push::{self, Begun, DOCUMENT_LEN_MAX, Push, Shape, Wrapping};
use crate::units::ByteSize;

/// How long an upload may send nothing: longer than any Wi-Fi is away that comes back at all.
const BODY_IDLE_MAX: Duration = Duration::from_mins(1);

/// Bytes of a refused upload that are read and dropped, so that its connection can go on: newer
/// Nix announces bodies over 1 MiB with `Expect`, and is refused before it sends them.
const REFUSED_BODY_LEN_MAX: u64 = 1024 * 1024;

/// How long those may take: a second or two on the slowest Wi-Fi.
const REFUSED_BODY_WAIT: Duration = Duration::from_secs(10);

/// How long the rest of an upload is read and dropped that was refused in the middle: a client that
/// is still sending does not see the answer, and an old one hangs when its connection is cut.
const REFUSED_REST_WAIT: Duration = Duration::from_mins(5);

/// The body of a PUT.
pub(super) struct Upload<'a> {
    headers: &'a HeaderMap,
    version: Version,
    body: Incoming,
    /// `Content-Length`, when there is one.
    len: Option<u64>,
    came: u64,
    /// Whether reading has begun, and with it the client's sending.
    is_begun: bool,
    /// Whether nothing more can come of it.
    is_broken: bool,
}

impl<'a> Upload<'a> {
    /// The body that came with a request; nothing is read yet.
    pub(super) fn new(request: &'a Request<()>, body: Incoming) -> Self {
        let len = body.size_hint().exact();
        let (headers, version) = (request.headers(), request.version());
        Self { headers, version, body, len, came: 0, is_begun: false, is_broken: false }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        self.is_begun = true;
        loop {
            let frame = match timeout(BODY_IDLE_MAX, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => {
                    self.is_broken = true;
                    return Err(Refusal::Cut);
                }
                Err(_) => {
                    self.is_broken = true;
                    return Err(Refusal::Stalled);
                }
            };
            if let Ok(bytes) = frame.into_data() {
                self.came = self.came.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
                return Ok(Some(bytes));
            }
        }
    }

    /// All of it, which may not be longer than `len_max`, with its `Content-Encoding` undone.
    async fn small(&mut self, len_max: usize) -> Result<Bytes, Refusal> {
        let wrapping = Wrapping::of(self.headers).map_err(Refusal::Upload)?;
        let len = self.len.ok_or(Refusal::NoLength)?;
        let max = u64::try_from(len_max).unwrap_or(u64::MAX);
        if len > max {
            let why = push::Refusal::TooLong { max: ByteSize(max), hint: "" };
            return Err(Refusal::Upload(why));
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(len).unwrap_or(0));
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
        }
        if self.came != len {
            return Err(Refusal::Cut);
        }
        wrapping.undo(whole.freeze(), len_max).await.map_err(Refusal::Upload)
    }

    /// The refusal, and what of the body is still coming taken off the connection where that can
    /// be done in time.
    pub(super) async fn refused(mut self, why: Refusal) -> (Reply, Ended) {
        let drained = self.drain().await;
        debug!(?why, came_bytes = self.came, drained, "an upload was refused");
        (Reply::Refused { why, drained }, Ended::Refused)
    }

    /// Whether nothing is left on the connection.
    async fn drain(&mut self) -> bool {
        if self.body.is_end_stream() {
            return !self.is_broken;
        }
        // Reading what is held back for a `100 Continue` would ask for it.
        let is_held_back = !self.is_begun && self.headers.contains_key(EXPECT);
        let is_long = self.len.is_none_or(|len| len > REFUSED_BODY_LEN_MAX);
        // On h2 the end of an answer resets what is still coming, and curl then forgets the answer:
        // an old Nix would try again without a body, and hang.
        let is_h2 = self.version == Version::HTTP_2;
        if self.is_broken || !is_h2 && (is_held_back || (!self.is_begun && is_long)) {
            return false;
        }
        let is_whole = self.is_begun || is_h2;
        let wait = if is_whole { REFUSED_REST_WAIT } else { REFUSED_BODY_WAIT };
        let rest = async {
            loop {
                match self.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return true,
                    Err(_) => return false,
                }
            }
        };
        timeout(wait, rest).await.unwrap_or(false)
    }
}

/// Takes what a writer puts; `None` is a path where nothing is taken.
pub(super) async fn answer(
    push: &Push,
    object: Option<Object<'_>>,
    mut upload: Upload<'_>,
) -> (Reply, Ended) {
    match take(push, object, &mut upload).await {
        Ok(()) => (Reply::Taken, Ended::Hit),
        Err(why) => upload.refused(why).await,
    }
}

async fn take(
    push: &Push,
    object: Option<Object<'_>>,
    upload: &mut Upload<'_>,
) -> Result<(), Refusal> {
    match object {
        Some(Object::Upload(name)) => return Box::pin(nar(push, name, upload)).await,
        Some(Object::OtherNar) => return Err(Refusal::Upload(push::Refusal::Ending)),
        Some(Object::Nar(_)) | None => return Err(Refusal::Nowhere),
        Some(_) => {}
    }
    // Before the body: a client that waits for `100 Continue` need not send it.
    push.check_open().map_err(Refusal::Upload)?;
    let len = upload.len.unwrap_or(0);
    let _place = push.document_place(len).await.map_err(Refusal::Upload)?;
    let taken = match object {
        Some(Object::CacheInfo) => push.cache_info(&upload.small(CACHE_INFO_LEN_MAX).await?),
        Some(Object::Narinfo(key)) => {
            let text = upload.small(NARINFO_LEN_MAX).await?;
            Box::pin(push.narinfo(key, text)).await
        }
        Some(Object::Listing(key)) => {
            push.listing(key, upload.small(DOCUMENT_LEN_MAX).await?).await
        }
        Some(Object::Document(family, path)) => {
            let body = upload.small(DOCUMENT_LEN_MAX).await?;
            push.document(&path, shape(family, &path), body).await
        }
        Some(Object::Upload(_) | Object::OtherNar | Object::Nar(_)) | None => {
            return Err(Refusal::Nowhere);
        }
    };
    taken.map_err(Refusal::Upload)
}

fn shape(family: Family, path: &str) -> Shape {
    match family {
        Family::Realisation => Shape::Json,
        Family::DebugInfo if path.strip_suffix(".debug").is_some() => Shape::DebugInfo,
        // Without the ending it may be an ELF file.
        Family::Log | Family::DebugInfo => Shape::Text,
    }
}

async fn nar(push: &Push, name: UploadName, upload: &mut Upload<'_>) -> Result<(), Refusal> {
    if upload.headers.contains_key(CONTENT_ENCODING) {
        return Err(Refusal::EncodedNar);
    }
    let len = upload.len.ok_or(Refusal::NoLength)?;
    let mut wanted = match push.begin_nar(name, len).await.map_err(Refusal::Upload)? {
        Begun::Wanted(wanted) => wanted,
        Begun::Known => {
            while upload.next().await?.is_some() {}
            return Ok(());
        }
    };
    while let Some(bytes) = upload.next().await? {
        wanted.feed(bytes).await.map_err(Refusal::Upload)?;
    }
    wanted.finish().await.map_err(Refusal::Upload)
}

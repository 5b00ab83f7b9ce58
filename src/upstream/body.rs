//! Bodies: small ones read whole within bounds, NARs chunk by chunk.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::{HeaderMap, Response, StatusCode, header};
use tokio::sync::OwnedSemaphorePermit;

use super::encoding::{Encoding, EncodingError};
use super::error::{Asked, Error};
use super::folder;
use super::{Inner, Resume};

/// Longest `ETag` that is kept; S3's have 40 characters.
const ETAG_LEN_MAX: usize = 256;

/// Of the pieces that a bound allows at once each NAR gets so small a part that all those in flight
/// have had theirs before one of them is taken for dead.
const PIECES_SHARE: u64 = 4;

/// A small body, its Content-Encoding undone.
pub(super) async fn read_small(
    response: Response<Incoming>,
    len_max: usize,
    asked: &Asked,
    inner: &Inner,
) -> Result<Bytes, Error> {
    let too_long = || Error::TooLong { asked: asked.clone(), len_max };
    let encoding = |source| Error::Encoding { asked: asked.clone(), source };
    let wrapped = Encoding::of(response.headers()).map_err(encoding)?;
    let mut body = response.into_body();
    let promised = body.size_hint().lower();
    if promised > u64::try_from(len_max).unwrap_or(u64::MAX) {
        return Err(too_long());
    }
    let mut text = BytesMut::with_capacity(usize::try_from(promised).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Error::Body { asked: asked.clone(), source: Arc::new(error) })?;
        let Ok(chunk) = frame.into_data() else { continue };
        inner.count_fetched(chunk.len());
        if text.len() + chunk.len() > len_max {
            return Err(too_long());
        }
        text.extend_from_slice(&chunk);
    }
    let Some(wrapped) = wrapped else {
        return Ok(text.freeze());
    };
    // A decoder may take milliseconds for a megabyte: not on the reactor.
    let undone = tokio::task::spawn_blocking(move || wrapped.undo(&text, len_max)).await;
    let undone = undone
        .unwrap_or_else(|error| Err(EncodingError::Decode(Arc::new(io::Error::other(error)))));
    undone.map_err(encoding)?.ok_or_else(too_long)
}

/// A NAR file on its way. Dropping it ends the transfer.
pub struct NarBody {
    source: Source,
    remaining: Option<u64>,
    /// What came and is held back by the upstream's bound.
    held_back: Bytes,
    etag: Option<String>,
    asked: Asked,
    inner: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

/// Where the bytes come from.
enum Source {
    Http(Incoming),
    Folder { file: Arc<File>, offset: u64 },
}

impl NarBody {
    /// From an answer of 200 or 206 to a question with this resume.
    pub(super) fn of_response(
        response: Response<Incoming>,
        resume: Option<&Resume>,
        asked: Asked,
        (inner, permit): (Arc<Inner>, OwnedSemaphorePermit),
    ) -> Result<Self, Error> {
        let headers = response.headers();
        // Range and resume count bytes as they are stored; and the decoder belongs to the threads
        // of the ingest, which believes the narinfo's Compression only.
        let wrapped = Encoding::of(headers)
            .and_then(|wrapped| wrapped.map_or(Ok(()), |_| Err(on_nar(headers))));
        wrapped.map_err(|source| Error::Encoding { asked: asked.clone(), source })?;
        let etag = strong_etag(headers);
        if !continues(&response, resume, etag.as_deref()) {
            return Err(Error::Changed { asked });
        }
        let body = response.into_body();
        let remaining = body.size_hint().exact();
        Ok(Self {
            source: Source::Http(body),
            remaining,
            held_back: Bytes::new(),
            etag,
            asked,
            inner,
            _permit: permit,
        })
    }

    /// From a file of a folder, which must be that long.
    pub(super) fn of_file(
        file: File,
        len_bytes: u64,
        resume: Option<&Resume>,
        asked: Asked,
        (inner, permit): (Arc<Inner>, OwnedSemaphorePermit),
    ) -> Result<Self, Error> {
        let offset = resume.map_or(0, |resume| resume.offset);
        let Some(remaining) = len_bytes.checked_sub(offset) else {
            return Err(Error::Changed { asked });
        };
        let source = Source::Folder { file: Arc::new(file), offset };
        Ok(Self {
            source,
            remaining: Some(remaining),
            held_back: Bytes::new(),
            etag: None,
            asked,
            inner,
            _permit: permit,
        })
    }

    /// Bytes still to come, where the upstream said so.
    pub fn len_bytes(&self) -> Option<u64> {
        let held_back = u64::try_from(self.held_back.len()).unwrap_or(u64::MAX);
        self.remaining.map(|remaining| remaining.saturating_add(held_back))
    }

    /// The object's strong `ETag`, where there is one.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// The next bytes; `None` after the last. A body shorter than it promised is an error. The
    /// caller watches for stalls; dropping the future loses no bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.held_back.is_empty() {
            match self.receive().await? {
                Some(chunk) => self.held_back = chunk,
                None => return Ok(None),
            }
        }
        let limit = &self.inner.limit;
        let piece_len_max = limit.piece_len_max() / PIECES_SHARE;
        let len = usize::try_from(piece_len_max).unwrap_or(usize::MAX).min(self.held_back.len());
        limit.wait(len).await;
        Ok(Some(self.held_back.split_to(len)))
    }

    /// What comes next, as it comes.
    async fn receive(&mut self) -> Result<Option<Bytes>, Error> {
        let next = match &mut self.source {
            Source::Http(body) => next_of(body, &self.asked).await,
            Source::Folder { file, offset } => {
                let next = folder::chunk(file, *offset, &self.asked).await;
                if let Ok(Some(chunk)) = &next {
                    *offset += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                }
                next
            }
        };
        let next = next.and_then(|next| self.check_len(next));
        match &next {
            Ok(Some(chunk)) => self.inner.count_fetched(chunk.len()),
            Ok(None) => {}
            Err(error) => self.inner.record_trouble(error),
        }
        next
    }

    /// Ends a transfer that the caller waited for in vain: trouble of the upstream, not of the
    /// caller, and it counts as such.
    pub fn stalled(self, waited: Duration) {
        let waited_s = waited.as_secs();
        self.inner.record_trouble(&Error::Silent { asked: self.asked.clone(), waited_s });
    }

    fn check_len(&mut self, next: Option<Bytes>) -> Result<Option<Bytes>, Error> {
        let Some(remaining) = self.remaining.as_mut() else {
            return Ok(next);
        };
        let Some(chunk) = next else {
            let missing = *remaining;
            return match missing {
                0 => Ok(None),
                _ => Err(Error::Short { asked: self.asked.clone(), missing }),
            };
        };
        let len = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        // A file that grew under us is another file.
        *remaining = remaining
            .checked_sub(len)
            .ok_or_else(|| Error::Changed { asked: self.asked.clone() })?;
        Ok(Some(chunk))
    }
}

async fn next_of(body: &mut Incoming, asked: &Asked) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Error::Body { asked: asked.clone(), source: Arc::new(error) })?;
        if let Ok(chunk) = frame.into_data()
            && !chunk.is_empty()
        {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

fn on_nar(headers: &HeaderMap) -> EncodingError {
    let value = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    EncodingError::OnNar(value.unwrap_or("?").into())
}

/// The `ETag` when it stands for the bytes themselves.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(header::ETAG)?.to_str().ok()?;
    (etag.len() <= ETAG_LEN_MAX && etag.starts_with('"')).then(|| etag.to_owned())
}

/// Whether an answer goes on where the question wanted, with the same object.
fn continues(response: &Response<Incoming>, resume: Option<&Resume>, etag: Option<&str>) -> bool {
    let offset = resume.map_or(0, |resume| resume.offset);
    let wanted = resume.and_then(|resume| resume.etag.as_deref());
    if let (Some(wanted), Some(etag)) = (wanted, etag)
        && wanted != etag
    {
        return false;
    }
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return offset == 0;
    }
    let range = response.headers().get(header::CONTENT_RANGE);
    range
        .and_then(|range| content_range(range.to_str().ok()?))
        .is_some_and(|(start, is_to_the_end)| start == offset && is_to_the_end)
}

/// The start of a `Content-Range`, and whether it reaches the object's end.
fn content_range(text: &str) -> Option<(u64, bool)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.trim().parse().ok()?, last.trim().parse().ok()?);
    let is_to_the_end = total == "*" || total.trim().parse() == Ok(last.checked_add(1)?);
    Some((start, is_to_the_end && start <= last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, true)));
        assert_eq!(content_range("bytes 5-8/10"), Some((5, false)));
        assert_eq!(content_range("bytes 5-8/*"), Some((5, true)));
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("bytes 9-5/6"), Some((9, false)));
        assert_eq!(content_range("items 5-9/10"), None);
    }

    #[test]
    fn only_strong_etags_count() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ETAG, text.parse().unwrap());
            strong_etag(&headers)
        };
        assert_eq!(of("\"abc-6\"").as_deref(), Some("\"abc-6\""));
        assert_eq!(of("W/\"abc\""), None);
        assert_eq!(of("abc"), None);
    }
}

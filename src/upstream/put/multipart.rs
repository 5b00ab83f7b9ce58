//! Objects too long for one request: in parts, each digested and then sent, none held in memory.
//! An upload that comes to nothing is aborted, also when whoever sent it has gone.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::{Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::call::{self, Call};
use super::send::{Answer, Pace, Sent};
use super::{MULTIPART_FROM_LEN, Object};
use crate::upstream::s3::S3;
use crate::upstream::{Asked, Error, xml};

/// A part: what is sent again when one fails, and far above the 5 MiB that S3 wants at least.
const PART_LEN: u64 = 16 * 1024 * 1024;

/// As many parts as S3 takes.
const PARTS_MAX: u64 = 10_000;

/// How often a part, and the completion, is tried before the upload is given up.
const TRIES_MAX: u32 = 3;

/// Longest `ETag` of a part; S3's have 34 characters.
const ETAG_LEN_MAX: usize = 256;

/// Uploads without an owner that are remembered; there are never as many under way.
const LEFT_MAX: usize = 16;

/// What is escaped in a query's value, which is signed as it stands.
const QUERY_ESCAPES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The length of all parts but the last.
fn part_len(len: u64) -> u64 {
    len.div_ceil(PARTS_MAX).next_multiple_of(1024 * 1024).max(PART_LEN)
}

/// The bounds of an object's parts, in order.
fn parts(len: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = part_len(len);
    (0..len.div_ceil(step)).map(move |n| (n * step, len.min((n + 1) * step)))
}

impl S3 {
    /// Writes an object of any length.
    pub(super) async fn put(
        &self,
        object: &Object<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        if object.len > MULTIPART_FROM_LEN {
            return self.put_in_parts(object, pace, asked).await;
        }
        let call = Call {
            method: Method::PUT,
            key: object.key,
            query: "",
            content_type: Some(object.content_type),
            sent: Sent::Range(object.source, 0, object.len),
            sha256: Some(*object.sha256.as_bytes()),
        };
        self.put_whole(&call, pace, asked).await
    }

    /// One request; what is there already is as good. The success of a bucket has nothing to say:
    /// a page with status 200 is some proxy's, and the object is nowhere.
    pub(super) async fn put_whole(
        &self,
        call: &Call<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        match self.done(call, pace, asked).await {
            Ok(answer) if !answer.body.trim_ascii().is_empty() => {
                let (asked, status) = (asked.clone(), answer.status.as_u16());
                Err(Error::Status { asked, status, code: "with a page of its own".into() })
            }
            Ok(_) | Err(Error::NotTaken { status: 412, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn put_in_parts(
        &self,
        object: &Object<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        self.abort_left(pace).await;
        let call = Call {
            content_type: Some(object.content_type),
            ..Call::bare(Method::POST, object.key, "uploads=")
        };
        let begun = self.done(&call, pace, asked).await?;
        let root = xml::parse(&begun.body).unwrap_or_default();
        let id = root.at(&["UploadId"]).map_or("", |id| &id.text);
        if id.is_empty() {
            return Err(call::not_taken(&begun, asked));
        }
        let id = utf8_percent_encode(id, QUERY_ESCAPES).to_string();
        let begun = Begun { key: object.key.to_owned(), id, asked: asked.clone() };
        let owned = Owned { begun: Some(begun.clone()), left: self.left.clone() };
        let ended = Upload { s3: self, id: &begun.id, object }.carry(pace, asked).await;
        if ended.is_err() {
            self.abort(&begun, pace).await;
        }
        owned.ended();
        ended
    }

    /// Aborts the uploads whose sender was dropped in the middle.
    pub(super) async fn abort_left(&self, pace: &Pace) {
        for begun in self.left.take() {
            self.abort(&begun, pace).await;
        }
    }

    /// Tells the server to forget the parts; it does so by itself some day.
    async fn abort(&self, begun: &Begun, pace: &Pace) {
        let Begun { key, id, asked } = begun;
        let query = format!("uploadId={id}");
        match self.done(&Call::bare(Method::DELETE, key, &query), pace, asked).await {
            Ok(_) | Err(Error::NotTaken { status: 404, .. }) => {}
            Err(error) => {
                tracing::warn!(%asked, error = error.chain(), "upload not aborted, parts stay behind");
            }
        }
    }
}

/// A multipart upload as its server knows it.
#[derive(Debug, Clone)]
struct Begun {
    key: String,
    /// Escaped for a query.
    id: String,
    asked: Asked,
}

/// Uploads whose sender was dropped before they ended. A cheap clone.
#[derive(Debug, Clone, Default)]
pub(in crate::upstream) struct Left(Arc<Mutex<Vec<Begun>>>);

impl Left {
    fn take(&self) -> Vec<Begun> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An upload with a sender; dropped before its end, it is left for whoever aborts.
struct Owned {
    begun: Option<Begun>,
    left: Left,
}

impl Owned {
    fn ended(mut self) {
        self.begun = None;
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        let mut left = self.left.0.lock().unwrap_or_else(PoisonError::into_inner);
        if left.len() < LEFT_MAX {
            left.push(begun);
        }
    }
}

/// What a multipart upload sends.
struct Upload<'a> {
    s3: &'a S3,
    /// Escaped for a query.
    id: &'a str,
    object: &'a Object<'a>,
}

impl Upload<'_> {
    async fn carry(&self, pace: &Pace, asked: &Asked) -> Result<(), Error> {
        let mut list = String::from("<CompleteMultipartUpload>");
        for (number, (from, to)) in (1_u32..).zip(parts(self.object.len)) {
            let etag = self.part(number, (from, to), pace, asked).await?;
            let etag = quick_xml::escape::partial_escape(&*etag);
            write!(list, "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
                .expect("a String takes any text");
        }
        list.push_str("</CompleteMultipartUpload>");
        self.complete(list.into(), pace, asked).await
    }

    /// Sends a part and returns its `ETag`.
    async fn part(
        &self,
        number: u32,
        (from, to): (u64, u64),
        pace: &Pace,
        asked: &Asked,
    ) -> Result<String, Error> {
        let query = format!("partNumber={number}&uploadId={}", self.id);
        let sent = Sent::Range(self.object.source, from, to);
        let call = Call { sent, ..Call::bare(Method::PUT, self.object.key, &query) };
        let answer = self.again(&call, pace, asked).await?;
        let etag = answer.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok());
        match etag.filter(|etag| !etag.is_empty() && etag.len() <= ETAG_LEN_MAX) {
            Some(etag) => Ok(etag.to_owned()),
            None => Err(call::not_taken(&answer, asked)),
        }
    }

    /// A call that may be made more than once, until it ends well or its trouble does not pass.
    async fn again(&self, call: &Call<'_>, pace: &Pace, asked: &Asked) -> Result<Answer, Error> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.s3.done(call, pace, asked).await {
                Err(error) if tried < TRIES_MAX && call::may_pass(&error) => {
                    tracing::debug!(%asked, tried, error = error.chain(), "part failed, trying again");
                    tokio::time::sleep(call::rest(pace, tried)).await;
                }
                ended => return ended,
            }
        }
    }

    /// Puts the parts together. The answer may be 200 and an error inside, after white space that
    /// kept the connection.
    async fn complete(&self, list: Bytes, pace: &Pace, asked: &Asked) -> Result<(), Error> {
        let query = format!("uploadId={}", self.id);
        let call = Call {
            content_type: Some("application/xml"),
            sent: Sent::Bytes(list),
            ..Call::bare(Method::POST, self.object.key, &query)
        };
        let mut tried = 0;
        loop {
            tried += 1;
            let ended = match self.s3.done(&call, pace, asked).await {
                Ok(answer) if is_completed(&answer.body) => Ok(()),
                Ok(answer) => Err(call::not_taken(&answer, asked)),
                Err(error) => Err(error),
            };
            match ended {
                Err(Error::NotTaken { status, code, .. }) if is_won(status, &code) => {
                    return self.is_there(&code, status, pace, asked).await;
                }
                Err(error) if tried < TRIES_MAX && call::may_pass(&error) => {
                    tokio::time::sleep(call::rest(pace, tried)).await;
                }
                ended => return ended,
            }
        }
    }

    /// An upload that is not known any more may have been completed by a try whose answer was
    /// lost.
    async fn is_there(
        &self,
        code: &str,
        status: u16,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<(), Error> {
        let head = self.s3.head(self.object.key, pace, asked).await?;
        if head.is_some_and(|head| head.len == self.object.len) {
            return Ok(());
        }
        Err(Error::NotTaken { asked: asked.clone(), status, code: code.into() })
    }
}

/// Whether a body says that the parts are one object now; anything else is an error inside a 200.
fn is_completed(body: &[u8]) -> bool {
    xml::parse(body).is_some_and(|root| root.name == "CompleteMultipartUploadResult")
}

/// Whether the upload may have become an object: it is not known any more, or the object is there.
fn is_won(status: u16, code: &str) -> bool {
    code == "NoSuchUpload" || status == 412
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn parts_cover_an_object_and_are_never_too_many_nor_too_short() {
        for len in [64 * MIB + 1, 200 * MIB, 156 * 1024 * MIB, 157 * 1024 * MIB, 5 << 40] {
            let all: Vec<_> = parts(len).collect();
            assert!(all.len() <= 10_000, "{len}: {} parts", all.len());
            assert_eq!(all.first().unwrap().0, 0);
            assert_eq!(all.last().unwrap().1, len);
            assert!(all.windows(2).all(|two| two[0].1 == two[1].0), "{len}");
            let (_, shorter) = all.split_last().unwrap();
            assert!(shorter.iter().all(|(from, to)| to - from >= 16 * MIB), "{len}");
        }
        assert_eq!(part_len(100 * MIB), 16 * MIB);
    }
}

//! The calls of S3 that write, each signed over its body: one request and what its answer means.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue, RANGE, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri, header};

use super::digest::{self, Digests};
use super::send::{self, Answer, Pace, Sent};
use super::{ObjectHead, Setback};
use crate::upstream::s3::{self, Payload, S3};
use crate::upstream::{Asked, Error, answer, http};

/// Connections that broke are tried again at once so many times: a pooled one may be closed by the
/// server at the moment it is used.
const RETRIES_MAX: usize = 1;

/// One request to a bucket.
pub(in crate::upstream) struct Call<'a> {
    pub(in crate::upstream) method: Method,
    /// The object; empty for the bucket itself.
    pub(in crate::upstream) key: &'a str,
    /// Without the question mark, escaped.
    pub(in crate::upstream) query: &'a str,
    pub(in crate::upstream) content_type: Option<&'static str>,
    pub(in crate::upstream) sent: Sent<'a>,
    /// The body's SHA-256, where it is known already.
    pub(in crate::upstream) sha256: Option<[u8; 32]>,
}

impl<'a> Call<'a> {
    /// One without a body.
    pub(in crate::upstream) fn bare(method: Method, key: &'a str, query: &'a str) -> Self {
        let (content_type, sent, sha256) = (None, Sent::Nothing, None);
        Self { method, key, query, content_type, sent, sha256 }
    }
}

impl S3 {
    /// The answer to a call, whatever its status.
    pub(in crate::upstream) async fn call(
        &self,
        call: &Call<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<Answer, Error> {
        let digests = match &call.sent {
            Sent::Nothing => None,
            sent @ (Sent::Bytes(_) | Sent::Range(..)) => {
                Some(digest::digests(sent, call.sha256, asked).await?)
            }
        };
        let mut retries = 0;
        loop {
            let request = self.request(call, digests.as_ref(), asked).await?;
            match send::exchange(self.transport(), request, &call.sent, pace, asked).await {
                Err(Error::Transport { source, .. })
                    if !source.is_connect() && retries < RETRIES_MAX =>
                {
                    retries += 1;
                }
                ended => return ended,
            }
        }
    }

    /// The same where only success is of use.
    pub(in crate::upstream) async fn done(
        &self,
        call: &Call<'_>,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<Answer, Error> {
        let answer = self.call(call, pace, asked).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(not_taken(&answer, asked)) }
    }

    async fn request(
        &self,
        call: &Call<'_>,
        digests: Option<&Digests>,
        asked: &Asked,
    ) -> Result<Request<()>, Error> {
        let refuse = |why| Error::Url { asked: asked.clone(), why };
        let mut url = match call.key {
            "" => self.bucket.base.to_string(),
            key => self.bucket.key(key).map_err(refuse)?,
        };
        if !call.query.is_empty() {
            url.push('?');
            url.push_str(call.query);
        }
        let mut request = Request::new(());
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = Uri::try_from(url).map_err(|_| refuse("the key makes no URL"))?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, http::AGENT);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(content_type) = call.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if let Some(digests) = digests {
            let md5 = HeaderValue::try_from(STANDARD.encode(digests.md5));
            headers.insert("content-md5", md5.expect("base 64 may stand in a header"));
        }
        let upstream = || Arc::clone(&asked.upstream);
        let credentials = |source| Error::Credentials { upstream: upstream(), source };
        if let Some(keys) = self.credentials().await.map_err(credentials)? {
            let payload = digests.map_or(Payload::Empty, |it| Payload::Sha256(it.sha256));
            let region = &self.bucket.region;
            s3::sign_request(&mut request, &keys, region, payload, SystemTime::now())
                .map_err(credentials)?;
        }
        Ok(request)
    }

    /// What is known of an object.
    ///
    /// The answer to a HEAD has no body, so a refusal has no code: the same key is asked with a
    /// GET of one byte then, whose code tells wrong keys or a wrong clock (an error) from
    /// `AccessDenied`, which is what AWS says of a missing key to who may not list: absent. Whoever
    /// goes on to put hears from that whether it was something else.
    pub(super) async fn head(
        &self,
        key: &str,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<Option<ObjectHead>, Error> {
        let answer = self.call(&Call::bare(Method::HEAD, key, ""), pace, asked).await?;
        match answer.status.as_u16() {
            200 => object_head(&answer.headers, header::CONTENT_LENGTH, asked).map(Some),
            404 | 410 => Ok(None),
            300..=499 => self.first_byte(key, pace, asked).await,
            status => Err(Error::Status { asked: asked.clone(), status, code: "".into() }),
        }
    }

    /// What is known of an object by its first byte.
    async fn first_byte(
        &self,
        key: &str,
        pace: &Pace,
        asked: &Asked,
    ) -> Result<Option<ObjectHead>, Error> {
        let call = Call::bare(Method::GET, key, "");
        let mut request = self.request(&call, None, asked).await?;
        request.headers_mut().insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let answer = send::exchange(self.transport(), request, &call.sent, pace, asked).await?;
        let code = answer::error_code(&answer.body).unwrap_or_default();
        match (answer.status.as_u16(), code.as_str()) {
            (206, _) => object_head(&answer.headers, header::CONTENT_RANGE, asked).map(Some),
            (404, code) if code != "NoSuchBucket" => Ok(None),
            (410, _) | (403, "" | "AccessDenied") => Ok(None),
            _ => Err(not_taken(&answer, asked)),
        }
    }
}

/// From the headers of an answer; the length is in `len`, behind a slash in a `Content-Range`.
fn object_head(
    headers: &HeaderMap,
    len: header::HeaderName,
    asked: &Asked,
) -> Result<ObjectHead, Error> {
    let text = |name: header::HeaderName| headers.get(name)?.to_str().ok();
    let len = text(len).and_then(|text| text.rsplit('/').next()?.trim().parse().ok());
    let status = StatusCode::OK.as_u16();
    // Without a length it is no answer of S3's.
    let len = len.ok_or_else(|| Error::Status { asked: asked.clone(), status, code: "".into() })?;
    let modified = text(header::LAST_MODIFIED).and_then(|it| httpdate::parse_http_date(it).ok());
    let expires = headers.get("x-amz-expiration").and_then(|it| expiry(it.to_str().ok()?));
    Ok(ObjectHead { len, modified, expires })
}

/// The date in `expiry-date="Fri, 21 Dec 2012 00:00:00 GMT", rule-id="..."`.
fn expiry(text: &str) -> Option<SystemTime> {
    let (_, rest) = text.split_once("expiry-date=\"")?;
    let (date, _) = rest.split_once('"')?;
    httpdate::parse_http_date(date).ok()
}

/// What an answer that is no success says.
pub(in crate::upstream) fn not_taken(answer: &Answer, asked: &Asked) -> Error {
    let asked = asked.clone();
    let code = answer::error_code(answer.body.trim_ascii_start()).unwrap_or_default();
    if code == "RequestTimeTooSkewed" {
        return Error::Clock { asked, detail: answer::clock_detail(&answer.headers).into() };
    }
    Error::NotTaken { asked, status: answer.status.as_u16(), code: code.into() }
}

/// Whether it may help to try the same at once, or after a breath.
pub(super) fn may_pass(error: &Error) -> bool {
    let lost = matches!(error, Error::NotTaken { code, .. } if code.as_ref() == "NoSuchUpload");
    error.setback() == Setback::Passing && !lost
}

/// The rest before the try after `tried` ones.
pub(super) fn rest(pace: &Pace, tried: u32) -> Duration {
    pace.rest.saturating_mul(2_u32.saturating_pow(tried.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&'static str, &'static str)]) -> Option<ObjectHead> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let asked = Asked { upstream: "s3://b".into(), object: "x".into() };
        object_head(&map, header::CONTENT_LENGTH, &asked).ok()
    }

    #[test]
    fn a_head_tells_length_age_and_end() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let found = head(&[
            ("content-length", "7"),
            ("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT"),
            ("x-amz-expiration", "expiry-date=\"Mon, 21 Dec 2026 00:00:00 GMT\", rule-id=\"a\""),
        ]);
        let wanted = ObjectHead { len: 7, modified: at(1_795_262_400), expires: at(1_797_811_200) };
        assert_eq!(found, Some(wanted));
        assert_eq!(
            head(&[("content-length", "0"), ("x-amz-expiration", "soon")]),
            Some(ObjectHead { len: 0, modified: None, expires: None })
        );
        assert_eq!(head(&[]), None);
    }

    #[test]
    fn rests_grow() {
        let pace = Pace { rest: Duration::from_secs(1), ..send::PACE };
        assert_eq!([1, 2, 3].map(|tried| rest(&pace, tried).as_secs()), [1, 2, 4]);
    }
}

//! The only place where an answer becomes a status and headers. No internal text leaves here: an
//! answer is one of the things below, or a sentence that stands in this file.

use bytes::Bytes;
use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};

use super::body::{Body, Content, Rows};
use super::refusal::Refusal;
use crate::cache::{HeldNar, NarStream};
use crate::metrics::Counter;
use crate::push;

/// What is sent.
pub(super) enum Reply {
    /// Bytes at hand that Nix asks for.
    Found(Media, Bytes),
    /// Bytes at hand for people and their tools, never to be kept by a browser.
    Shown(Media, Bytes),
    /// A command on the admin socket that cannot be done, in JSON.
    Undone(Bytes),
    /// The course of a command on the admin socket that takes long, in lines of JSON.
    Told(Content),
    /// The page, with its `Content-Security-Policy`.
    Page(Bytes, HeaderValue),
    /// A NAR that is whole here.
    Held(Held),
    /// A part of it, from the first to the last byte, both included.
    Part(Held, u64, u64),
    /// The client has it already: the `ETag` of what it has.
    NotModified(HeaderValue),
    /// A range that begins behind this length.
    Unsatisfiable(u64),
    /// A NAR that is on its way, or packed on its way out: no ranges, no `ETag`, and a length only
    /// where it is known.
    Coming(NarStream, Option<u64>),
    /// The head of what would be packed on its way out, with its length where it is known.
    Packable(Option<u64>),
    /// What was put is taken.
    Taken,
    /// Not to be had here now, or nothing of ours.
    Absent,
    /// Not for this asker. A request whose body is still on the connection ends it.
    Refused {
        /// Why.
        why: Refusal,
        /// Whether nothing of the request is left on the connection.
        drained: bool,
    },
}

/// A NAR that is whole here and its `ETag`.
pub(super) struct Held {
    /// The NAR.
    pub(super) nar: HeldNar,
    /// The `ETag`, with quotes.
    pub(super) etag: HeaderValue,
}

/// The media types of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    /// A narinfo.
    Narinfo,
    /// `nix-cache-info`.
    CacheInfo,
    /// JSON.
    Json,
    /// JSON, a line each.
    JsonLines,
    /// Sentences and logs.
    Text,
    /// The page.
    Html,
    /// What may be anything.
    Octets,
    /// What Prometheus reads.
    OpenMetrics,
    /// A certificate.
    Pem,
}

impl Media {
    const fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Narinfo => "text/x-nix-narinfo",
            Self::CacheInfo => "text/x-nix-cache-info",
            Self::Json => "application/json",
            Self::JsonLines => "application/x-ndjson",
            Self::Text => "text/plain; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
            Self::Octets => "application/octet-stream",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Pem => "application/x-pem-file",
        })
    }
}

const NAR_MEDIA: HeaderValue = HeaderValue::from_static("application/x-nix-nar");
const BYTES_UNIT: HeaderValue = HeaderValue::from_static("bytes");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

impl Refusal {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Host
            | Self::NoWriter
            | Self::NoToken
            | Self::WrongToken
            | Self::Plain
            | Self::Tokens => StatusCode::FORBIDDEN,
            Self::NoLength => StatusCode::LENGTH_REQUIRED,
            Self::EncodedNar => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Nowhere | Self::Stalled | Self::Cut => StatusCode::BAD_REQUEST,
            Self::Upload(why) => of_upload(why),
        }
    }
}

const fn of_upload(why: &push::Refusal) -> StatusCode {
    match why {
        push::Refusal::Degraded(_)
        | push::Refusal::Slow
        | push::Refusal::Busy
        | push::Refusal::NoNar(_)
        | push::Refusal::StoreDir(_) => StatusCode::CONFLICT,
        push::Refusal::Full { .. }
        | push::Refusal::NoRoom
        | push::Refusal::Unbound(_)
        | push::Refusal::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        push::Refusal::Encoding(_) | push::Refusal::Ending => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        push::Refusal::Short { .. }
        | push::Refusal::NotANar(_)
        | push::Refusal::WrongFile
        | push::Refusal::Narinfo(_)
        | push::Refusal::OtherPath { .. }
        | push::Refusal::Url(_)
        | push::Refusal::Line { .. }
        | push::Refusal::Signatures(_)
        | push::Refusal::Document(_)
        | push::Refusal::CacheInfo => StatusCode::BAD_REQUEST,
    }
}

impl Reply {
    /// A sentence for people.
    pub(super) const fn text(sentence: &'static str) -> Self {
        Self::Shown(Media::Text, Bytes::from_static(sentence.as_bytes()))
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Found(..)
            | Self::Shown(..)
            | Self::Told(_)
            | Self::Page(..)
            | Self::Held(_)
            | Self::Coming(..)
            | Self::Packable(_)
            | Self::Taken => StatusCode::OK,
            Self::Part(..) => StatusCode::PARTIAL_CONTENT,
            Self::NotModified(_) => StatusCode::NOT_MODIFIED,
            Self::Unsatisfiable(_) => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Absent => StatusCode::NOT_FOUND,
            Self::Undone(_) => StatusCode::CONFLICT,
            Self::Refused { why, .. } => why.status(),
        }
    }

    /// The response. What its body hands out is added to `served_bytes`; for a HEAD hyper sends
    /// none of it, and only the head counts.
    pub(super) fn into_response(self, served_bytes: Counter) -> Response<Body> {
        let status = self.status();
        let mut headers = HeaderMap::with_capacity(8);
        let content = self.into_content(&mut headers);
        let mut response = Response::new(Body::new(content, served_bytes));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    fn into_content(self, headers: &mut HeaderMap) -> Content {
        match self {
            Self::Found(media, body) => sized(headers, media, body),
            Self::Shown(media, body) => {
                guard(headers);
                sized(headers, media, body)
            }
            Self::Told(lines) => {
                guard(headers);
                headers.insert(CONTENT_TYPE, Media::JsonLines.value());
                lines
            }
            Self::Undone(body) => {
                guard(headers);
                sized(headers, Media::Json, body)
            }
            Self::Page(body, policy) => {
                guard(headers);
                headers.insert(CONTENT_SECURITY_POLICY, policy);
                headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
                sized(headers, Media::Html, body)
            }
            Self::Held(held) => {
                let len = held.nar.file_size();
                held.rows(headers, 0, len)
            }
            Self::Part(held, first, last) => {
                let range = format!("bytes {first}-{last}/{}", held.nar.file_size());
                headers.insert(CONTENT_RANGE, value(&range));
                held.rows(headers, first, last + 1)
            }
            Self::NotModified(etag) => {
                headers.insert(ETAG, etag);
                Content::Bytes(Bytes::new())
            }
            Self::Unsatisfiable(len) => {
                headers.insert(CONTENT_RANGE, value(&format!("bytes */{len}")));
                sized(
                    headers,
                    Media::Text,
                    Bytes::from_static(b"The range begins behind the end.\n"),
                )
            }
            Self::Coming(nar, len) => {
                headers.insert(CONTENT_TYPE, NAR_MEDIA);
                headers.extend(len.map(|len| (CONTENT_LENGTH, HeaderValue::from(len))));
                Content::coming(nar)
            }
            Self::Packable(len) => {
                headers.insert(CONTENT_TYPE, NAR_MEDIA);
                headers.extend(len.map(|len| (CONTENT_LENGTH, HeaderValue::from(len))));
                Content::Bytes(Bytes::new())
            }
            Self::Taken => sized(headers, Media::Text, Bytes::new()),
            Self::Absent => sized(headers, Media::Text, Bytes::from_static(b"Not here.\n")),
            Self::Refused { why, drained } => {
                guard(headers);
                if !drained {
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
                sized(headers, Media::Text, why.sentence().into())
            }
        }
    }
}

impl Held {
    fn rows(self, headers: &mut HeaderMap, first: u64, end: u64) -> Content {
        headers.insert(CONTENT_TYPE, NAR_MEDIA);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(end.saturating_sub(first)));
        headers.insert(ACCEPT_RANGES, BYTES_UNIT);
        headers.insert(ETAG, self.etag);
        Content::Held(Rows::of_nar(self.nar, first, end))
    }
}

/// A strong `ETag`.
pub(super) fn etag(tag: &str) -> HeaderValue {
    value(tag)
}

/// Headers of what browsers see.
fn guard(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

fn sized(headers: &mut HeaderMap, media: Media, body: Bytes) -> Content {
    headers.insert(CONTENT_TYPE, media.value());
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    Content::Bytes(body)
}

/// A header value of our own making: digits, letters and punctuation.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("made of printable ASCII here")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(reply: Reply) -> Response<Body> {
        reply.into_response(Counter::default())
    }

    fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().expect("ASCII"))
    }

    #[test]
    fn no_answer_is_encoded_or_shared_with_other_sites() {
        for reply in [
            Reply::Found(Media::Narinfo, Bytes::from_static(b"x")),
            Reply::Shown(Media::Json, Bytes::from_static(b"{}")),
            Reply::Page(Bytes::from_static(b"<p>"), value("default-src 'none'")),
            Reply::NotModified(value("\"a\"")),
            Reply::Unsatisfiable(7),
            Reply::Absent,
            Reply::Refused { why: Refusal::Host, drained: true },
            Reply::Refused { why: Refusal::NoWriter, drained: true },
        ] {
            let response = response(reply);
            assert_eq!(header(&response, "content-encoding"), None);
            for name in response.headers().keys() {
                assert!(!name.as_str().starts_with("access-control"), "{name}");
            }
            assert!(!response.status().is_server_error());
        }
    }

    #[test]
    fn a_narinfo_has_its_type_and_length() {
        let response =
            response(Reply::Found(Media::Narinfo, Bytes::from_static(b"StorePath: x\n")));
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "content-type"), Some("text/x-nix-narinfo"));
        assert_eq!(header(&response, "content-length"), Some("13"));
    }

    #[test]
    fn a_range_behind_the_end_says_the_length() {
        let response = response(Reply::Unsatisfiable(7));
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(header(&response, "content-range"), Some("bytes */7"));
    }

    #[test]
    fn a_refused_upload_whose_body_is_still_coming_ends_the_connection() {
        let kept = response(Reply::Refused { why: Refusal::NoWriter, drained: true });
        assert_eq!(header(&kept, "connection"), None);
        let ended = response(Reply::Refused { why: Refusal::NoWriter, drained: false });
        assert_eq!(header(&ended, "connection"), Some("close"));
        assert_eq!(ended.status(), StatusCode::FORBIDDEN);
    }
}

//! The only place of the forwarder where an answer becomes a status: what a cache said as it said
//! it, or one of our own few answers.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use crate::nix::CacheInfo;

/// What is sent to the client. An error cuts the connection, so that nothing is taken for whole.
pub(super) type Body = UnsyncBoxBody<Bytes, Cut>;

/// A body that cannot be brought to its end.
#[derive(Debug, thiserror::Error)]
#[error("the cache was lost in the middle of an answer")]
pub(super) struct Cut;

/// What is sent.
pub(super) enum Reply {
    /// What the cache answered.
    Passed(Passed),
    /// What a cache of this house says of itself.
    CacheInfo(CacheInfo),
    /// Not to be had here now.
    Absent,
    /// Not done, for good.
    Refused {
        /// Why.
        why: Refusal,
        /// Whether nothing of the request is left on the connection.
        drained: bool,
    },
}

/// An answer of a cache, its headers those that go further.
pub(super) struct Passed {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Whether nothing of the request is left on the connection.
    pub(super) drained: bool,
}

/// Why something is refused. An upload is refused for good, with a 4xx: what Nix tries again it may
/// send with an empty body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The Host is none of loopback.
    Host,
    /// An upload, and no cache is here.
    Away,
    /// The cache was lost in the middle of an upload.
    Lost,
    /// The cache answered an upload with what Nix would try again.
    Odd,
    /// The client's own connection broke or stood still.
    Cut,
    /// A token, and only a cache that merely announced itself over plain HTTP.
    Stranger,
}

impl Refusal {
    const fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Stranger => StatusCode::FORBIDDEN,
            Self::Away | Self::Lost | Self::Odd => StatusCode::CONFLICT,
            Self::Cut => StatusCode::BAD_REQUEST,
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Host => {
                "snowberry forward answers this machine only, as 127.0.0.1, [::1] or localhost.\n"
            }
            Self::Away => {
                "snowberry: the cache of this house is away, so nothing can be pushed now: try \
                 again at home, or let the hook do it (`snowberry join --install`).\n"
            }
            Self::Lost => {
                "snowberry: the cache of this house was lost in the middle of this upload: push \
                 again, what is there already is not sent twice.\n"
            }
            Self::Odd => {
                "snowberry: the cache of this house could not take this upload now: its log says \
                 why.\n"
            }
            Self::Cut => "The upload ended before its time: upload again.\n",
            Self::Stranger => {
                "snowberry: a token is not sent over plain http to a cache that merely announced \
                 itself: run `snowberry join`, or set forward.cache.\n"
            }
        }
    }
}

/// Whether Nix would try an answer again or let a build fail for it: such a one to a question is as
/// good as absence, and to an upload a refusal.
pub(super) fn is_trouble(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::ACCEPTED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        )
}

impl Reply {
    pub(super) fn into_response(self) -> Response<Body> {
        match self {
            Self::Passed(passed) => {
                let mut response = Response::new(passed.body);
                *response.status_mut() = passed.status;
                *response.headers_mut() = passed.headers;
                closed_unless(passed.drained, response)
            }
            Self::CacheInfo(info) => {
                own(StatusCode::OK, "text/x-nix-cache-info", info.to_string().into())
            }
            Self::Absent => own(StatusCode::NOT_FOUND, TEXT, Bytes::from_static(b"Not here.\n")),
            Self::Refused { why, drained } => {
                let sentence = Bytes::from_static(why.sentence().as_bytes());
                closed_unless(drained, own(why.status(), TEXT, sentence))
            }
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn own(status: StatusCode, media: &'static str, text: Bytes) -> Response<Body> {
    let len = text.len();
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(len));
    response
}

/// A request whose body is still on the connection ends it.
fn closed_unless(drained: bool, mut response: Response<Body>) -> Response<Body> {
    if !drained {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that is at hand.
pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// No body, as for HEAD.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_for_good_and_fit_what_nix_shows() {
        for why in [
            Refusal::Host,
            Refusal::Away,
            Refusal::Lost,
            Refusal::Odd,
            Refusal::Cut,
            Refusal::Stranger,
        ] {
            let response = Reply::Refused { why, drained: false }.into_response();
            assert!(response.status().is_client_error() && !is_trouble(response.status()));
            assert_eq!(response.headers()[CONNECTION], "close");
            assert!(why.sentence().len() < 1024 && why.sentence().ends_with(".\n"));
        }
    }

    #[test]
    fn what_nix_tries_again_is_trouble() {
        for status in [202, 408, 429, 500, 502, 503, 504] {
            assert!(is_trouble(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [200, 201, 204, 206, 304, 400, 403, 404, 409, 410, 413, 416] {
            assert!(!is_trouble(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}

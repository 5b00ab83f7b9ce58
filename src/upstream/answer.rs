//! What a status means: here, absent, trouble, or not wanted. The same for http(s) caches and S3.

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode, header};
use quick_xml::events::Event;

use super::error::{Asked, Error};

/// An error's document: S3's have some hundred bytes, error pages some KiB.
const ERROR_LEN_MAX: usize = 16 * 1024;

/// Longest error code that is shown; S3's have up to 50 characters.
const CODE_LEN_MAX: usize = 64;

/// Codes that stand for something that passes by itself (S3's list, as Nix retries it).
const PASSING_CODES: [&str; 11] = [
    "IncompleteBody",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "RequestExpired",
    "RequestTimeout",
    "RequestThrottled",
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottledException",
];

/// The response when it brings the object, `None` when the upstream has it not.
pub(super) async fn judge(
    response: Response<Incoming>,
    asked: &Asked,
) -> Result<Option<Response<Incoming>>, Error> {
    let status = response.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(Some(response));
    }
    let (head, body) = response.into_parts();
    // What cannot be read has no code. Reading it to its end lets the connection be used again.
    let body = Limited::new(body, ERROR_LEN_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let code = error_code(&body);
    match meaning(status, code.as_deref()) {
        Meaning::Absent => Ok(None),
        Meaning::Changed => Err(Error::Changed { asked: asked.clone() }),
        Meaning::Clock => {
            Err(Error::Clock { asked: asked.clone(), detail: clock_detail(&head.headers).into() })
        }
        Meaning::Refused => Err(Error::Refused {
            asked: asked.clone(),
            status: status.as_u16(),
            code: code.unwrap_or_default().into(),
        }),
        Meaning::Trouble => Err(Error::Status {
            asked: asked.clone(),
            status: status.as_u16(),
            code: code.unwrap_or_default().into(),
        }),
    }
}

/// Whether it leads elsewhere.
pub(super) fn is_redirect<B>(response: &Response<B>) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// What an answer without the object means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// "I have it not."
    Absent,
    /// Trouble that may pass.
    Trouble,
    /// Credentials, bucket or region are wrong.
    Refused,
    /// A clock is wrong.
    Clock,
    /// The object is not as long as the part of it that we have.
    Changed,
}

fn meaning(status: StatusCode, code: Option<&str>) -> Meaning {
    if matches!(code, Some("RequestTimeTooSkewed")) {
        return Meaning::Clock;
    }
    if code.is_some_and(|code| PASSING_CODES.contains(&code)) {
        return Meaning::Trouble;
    }
    match (status.as_u16(), code) {
        // Not one path is missing but the whole bucket.
        (404, Some("NoSuchBucket")) => Meaning::Refused,
        // AWS says 403 for a missing key to who may not list.
        (404 | 410, _) | (403, None | Some("AccessDenied")) => Meaning::Absent,
        // Redirects that were not followed are S3's: another region or endpoint.
        (300..=399 | 401 | 403 | 407, _) | (400, Some(_)) => Meaning::Refused,
        (416, _) => Meaning::Changed,
        _ => Meaning::Trouble,
    }
}

/// What shows that a clock is wrong.
pub(super) fn clock_detail(headers: &HeaderMap) -> String {
    let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
    match date.filter(|date| date.len() <= CODE_LEN_MAX) {
        Some(date) => format!("it differs too much from the server's, which says {date}"),
        None => "it differs too much from the server's".to_owned(),
    }
}

/// The `Code` of S3's XML error document; `None` when it is none.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let mut reader = quick_xml::Reader::from_reader(body);
    reader.config_mut().trim_text(true);
    let mut path: Vec<String> = Vec::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => path.push(tag.local_name().as_ref().to_owned()),
            Event::End(_) => {
                path.pop();
            }
            Event::Text(text) if path == ["Error", "Code"] => {
                let code = text.trim().to_owned();
                let is_code = code.bytes().all(|byte| byte.is_ascii_alphanumeric());
                return (is_code && code.len() <= CODE_LEN_MAX).then_some(code);
            }
            Event::Eof => return None,
            Event::Empty(_)
            | Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_is_told_from_trouble() {
        let check = |status: u16, code: Option<&str>, wanted: Meaning| {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(meaning(status, code), wanted, "{status} {code:?}");
        };
        check(404, None, Meaning::Absent);
        check(404, Some("NoSuchKey"), Meaning::Absent);
        check(410, None, Meaning::Absent);
        check(403, None, Meaning::Absent);
        check(403, Some("AccessDenied"), Meaning::Absent);
        check(404, Some("NoSuchBucket"), Meaning::Refused);
        check(403, Some("SignatureDoesNotMatch"), Meaning::Refused);
        check(403, Some("InvalidAccessKeyId"), Meaning::Refused);
        check(403, Some("AllAccessDisabled"), Meaning::Refused);
        check(400, Some("ExpiredToken"), Meaning::Refused);
        check(400, Some("AuthorizationHeaderMalformed"), Meaning::Refused);
        check(301, Some("PermanentRedirect"), Meaning::Refused);
        check(401, None, Meaning::Refused);
        check(407, None, Meaning::Refused);
        check(403, Some("RequestTimeTooSkewed"), Meaning::Clock);
        check(403, Some("SlowDown"), Meaning::Trouble);
        check(400, Some("RequestTimeout"), Meaning::Trouble);
        check(400, None, Meaning::Trouble);
        check(429, None, Meaning::Trouble);
        check(500, None, Meaning::Trouble);
        check(503, Some("SlowDown"), Meaning::Trouble);
        check(202, None, Meaning::Trouble);
        check(416, None, Meaning::Changed);
    }

    #[test]
    fn the_code_is_read_from_an_error_document_only() {
        let check = |text: &str, wanted: Option<&str>| {
            assert_eq!(error_code(text.as_bytes()).as_deref(), wanted);
        };
        check(
            "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Key>x</Key></Error>",
            Some("NoSuchKey"),
        );
        check("<Error>\n <Message>m</Message>\n <Code> SlowDown </Code></Error>", Some("SlowDown"));
        check("<html><body><Code>AccessDenied</Code></body></html>", None);
        check("<Error><Details><Code>X</Code></Details></Error>", None);
        check("<Error><Code>not a code!</Code></Error>", None);
        check("<Error><Code>cut", Some("cut"));
        check("not found", None);
        check("", None);
    }
}

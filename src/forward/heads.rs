//! Heads of requests and answers: which headers are passed on, which Host is answered, and what of
//! an answer decides whether a cut body can be gone on with. Pure.

use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, EXPECT, HOST, HeaderMap,
    HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Request, StatusCode};

use super::place::Place;

/// Headers of one connection, not of what goes over it.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Longest `ETag` that is kept for going on: snowberry's has 54 characters.
const ETAG_LEN_MAX: usize = 256;

/// What goes to the cache of a caller's headers. Nothing is added; a token goes to a cache that
/// merely announced itself over TLS only.
pub(super) fn to_cache(headers: &HeaderMap, place: &Place) -> HeaderMap {
    let mut passed = end_to_end(headers);
    passed.remove(HOST);
    passed.remove(EXPECT);
    if !place.is_tls && !place.is_chosen {
        passed.remove(AUTHORIZATION);
    }
    passed
}

/// Headers without those of the connection, and without those that `Connection` names.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')) {
        if let Ok(name) = name.trim().parse::<HeaderName>() {
            passed.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        passed.remove(name);
    }
    passed
}

/// Whether a request names this machine, and nothing else, as its host: a web page that had its own
/// name pointed here (DNS rebinding) is not answered.
pub(super) fn is_loopback<B>(request: &Request<B>) -> bool {
    let mut headers = request.headers().get_all(HOST).iter();
    let header = headers.next().map(|value| value.to_str().unwrap_or(""));
    let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str);
    let is_one = headers.next().is_none()
        && header.is_none_or(|header| authority.is_none_or(|it| it.eq_ignore_ascii_case(header)));
    is_one && header.or(authority).is_some_and(is_loopback_host)
}

fn is_loopback_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        Some(_) | None => (host, ""),
    };
    if !port.bytes().all(|c| c.is_ascii_digit()) {
        return false;
    }
    let address = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().ok().map(std::net::IpAddr::V6),
        None => name.parse::<std::net::Ipv4Addr>().ok().map(std::net::IpAddr::V4),
    };
    address.is_some_and(|address| address.is_loopback()) || name.eq_ignore_ascii_case("localhost")
}

/// A body that can be gone on with from any place: its length and a strong `ETag` are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) etag: String,
    /// The first byte that is wanted next, counted in the whole file.
    pub(super) at: u64,
    /// One behind the last byte that is wanted.
    pub(super) end: u64,
    /// Length of the whole file.
    pub(super) total: u64,
}

impl Span {
    /// Of an answer to a GET.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text(ETAG).filter(|it| it.starts_with('"') && it.len() <= ETAG_LEN_MAX)?;
        let len: u64 = text(CONTENT_LENGTH)?.parse().ok()?;
        let (at, end, total) = match status {
            StatusCode::OK => (0, len, len),
            StatusCode::PARTIAL_CONTENT => content_range(text(CONTENT_RANGE)?)?,
            _ => return None,
        };
        let fits = end.checked_sub(at) == Some(len) && end <= total;
        fits.then(|| Self { etag: etag.to_owned(), at, end, total })
    }

    /// The `Range` that asks for the rest.
    pub(super) fn range(&self) -> String {
        format!("bytes={}-{}", self.at, self.end.saturating_sub(1))
    }

    /// Whether an answer is the rest of the same file.
    pub(super) fn goes_on_with(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        status == StatusCode::PARTIAL_CONTENT && Self::of(status, headers).as_ref() == Some(self)
    }
}

/// `bytes FIRST-LAST/TOTAL` as first, one behind the last, total.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some((first, last.checked_add(1)?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), hyper::header::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn place(is_tls: bool, is_chosen: bool) -> Place {
        let addresses = Vec::new();
        Place { host: "snowberry.local".into(), port: 1, is_tls, addresses, is_chosen }
    }

    #[test]
    fn headers_of_the_connection_stay_on_it() {
        let came = headers(&[
            ("host", "127.0.0.1:8501"),
            ("connection", "close, X-Own"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("proxy-authorization", "Basic x"),
            ("user-agent", "Nix"),
            ("range", "bytes=1-"),
            ("authorization", "Basic eDp5"),
        ]);
        let passed = to_cache(&came, &place(true, false));
        let mut names: Vec<&str> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "range", "user-agent"]);
    }

    #[test]
    fn a_token_goes_to_a_stranger_over_tls_only() {
        let came = headers(&[("authorization", "Basic eDp5")]);
        for (is_tls, is_chosen, goes) in
            [(true, false, true), (true, true, true), (false, true, true), (false, false, false)]
        {
            let passed = to_cache(&came, &place(is_tls, is_chosen));
            assert_eq!(passed.contains_key(AUTHORIZATION), goes, "{is_tls} {is_chosen}");
        }
        assert!(to_cache(&HeaderMap::new(), &place(true, true)).is_empty(), "nothing is added");
    }

    #[test]
    fn only_loopback_names_are_answered() {
        let asked = |host: &str| {
            let request = Request::builder().uri("/").header(HOST, host).body(()).unwrap();
            is_loopback(&request)
        };
        for host in
            ["127.0.0.1", "127.0.0.1:8501", "127.9.9.9", "localhost", "LOCALHOST:1", "[::1]:8501"]
        {
            assert!(asked(host), "{host}");
        }
        for host in [
            "",
            "evil.example.org",
            "localhost.evil.org",
            "127.0.0.1.evil.org",
            "192.168.1.7",
            "snowberry.local",
            "[::2]",
            "[::1",
            "::1",
            "127.0.0.1:x",
            "a@localhost",
        ] {
            assert!(!asked(host), "{host}");
        }
        let whole = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            is_loopback(&request.body(()).unwrap())
        };
        assert!(!whole("/", &[]));
        assert!(!whole("/", &["localhost", "evil.org"]));
        assert!(!whole("http://evil.org/", &["localhost"]));
        assert!(whole("http://localhost/", &["localhost"]));
    }

    #[test]
    fn a_body_is_gone_on_with_only_by_the_rest_of_the_same_file() {
        let ok = headers(&[("etag", "\"x\""), ("content-length", "100")]);
        let mut span = Span::of(StatusCode::OK, &ok).unwrap();
        span.at = 40;
        assert_eq!(span.range(), "bytes=40-99");
        let check = |status: StatusCode, pairs: &[(&'static str, &'static str)], goes: bool| {
            assert_eq!(span.goes_on_with(status, &headers(pairs)), goes, "{pairs:?}");
        };
        let part = StatusCode::PARTIAL_CONTENT;
        let of =
            |etag, range, len| [("etag", etag), ("content-range", range), ("content-length", len)];
        check(part, &of("\"x\"", "bytes 40-99/100", "60"), true);
        check(part, &of("\"y\"", "bytes 40-99/100", "60"), false);
        check(part, &of("\"x\"", "bytes 41-99/100", "59"), false);
        check(part, &of("\"x\"", "bytes 40-98/100", "59"), false);
        check(part, &of("\"x\"", "bytes 40-99/101", "60"), false);
        check(part, &of("\"x\"", "bytes 40-99/100", "61"), false);
        check(StatusCode::OK, &of("\"x\"", "bytes 40-99/100", "100"), false);
    }

    #[test]
    fn without_length_or_strong_etag_nothing_is_gone_on_with() {
        for pairs in [
            &[("etag", "\"x\"")][..],
            &[("content-length", "7")],
            &[("etag", "W/\"x\""), ("content-length", "7")],
        ] {
            assert_eq!(Span::of(StatusCode::OK, &headers(pairs)), None, "{pairs:?}");
        }
        let whole = headers(&[("etag", "\"x\""), ("content-length", "7")]);
        assert_eq!(Span::of(StatusCode::NOT_FOUND, &whole), None);
    }
}

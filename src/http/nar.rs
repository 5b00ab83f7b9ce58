//! NARs: whole here with ranges and `ETag`, on their way without either, or absent.

use hyper::{HeaderMap, Method, Version};

use super::range::{Asked, Plan, Whole};
use super::reply::{Held, Reply, etag};
use crate::cache::{AliasAnswer, Cache, HeldNar, NarAnswer, NarWant};
use crate::metrics::Ended;
use crate::nix::{NarName, UploadName};

/// What of a request matters for a NAR.
pub(super) struct Request<'a> {
    /// GET or HEAD.
    pub(super) method: &'a Method,
    /// The protocol's version.
    pub(super) version: Version,
    /// The headers.
    pub(super) headers: &'a HeaderMap,
}

impl<'a> Request<'a> {
    fn asked(&self) -> Asked<'a> {
        if *self.method == Method::HEAD {
            Asked::of_head(self.headers)
        } else {
            Asked::of_get(self.headers)
        }
    }

    fn want(&self, asked: &Asked<'_>) -> NarWant {
        if *self.method == Method::HEAD {
            NarWant::Head
        } else if !asked.takes_whole() || self.version < Version::HTTP_11 {
            // A body without length ends in HTTP/1.0 as a cut one does: only a NAR that is whole
            // here can be sent so that the client knows its end.
            NarWant::Part
        } else {
            NarWant::Whole
        }
    }
}

/// Answers a question for a NAR.
pub(super) async fn answer(cache: &Cache, name: NarName, request: Request<'_>) -> (Reply, Ended) {
    let asked = request.asked();
    match cache.nar(name, request.want(&asked)).await {
        NarAnswer::Held(nar) => held(nar, &asked),
        NarAnswer::Filled(nar) => match held(nar, &asked) {
            (reply, Ended::Hit) => (reply, Ended::Miss),
            other => other,
        },
        NarAnswer::Filling(nar) => (Reply::Coming(nar, None), Ended::Miss),
        NarAnswer::Absent => (Reply::Absent, Ended::Absent),
    }
}

/// Answers a question for a NAR below `/push`: nothing is fetched for it.
pub(super) async fn held_only(
    cache: &Cache,
    name: NarName,
    request: Request<'_>,
) -> (Reply, Ended) {
    let asked = request.asked();
    match cache.nar(name, NarWant::Part).await {
        NarAnswer::Held(nar) | NarAnswer::Filled(nar) => held(nar, &asked),
        NarAnswer::Filling(_) | NarAnswer::Absent => (Reply::Absent, Ended::Absent),
    }
}

/// Answers a question for a NAR by the name that its uploader gave it; below `/push` nothing is
/// fetched for it.
pub(super) async fn alias(
    cache: &Cache,
    name: UploadName,
    request: Request<'_>,
    may_fetch: bool,
) -> (Reply, Ended) {
    let asked = request.asked();
    under_alias(cache.alias(name, request.want(&asked), may_fetch).await, &asked)
}

fn under_alias(answer: AliasAnswer, asked: &Asked<'_>) -> (Reply, Ended) {
    match answer {
        AliasAnswer::Stored(NarAnswer::Held(nar)) => held(nar, asked),
        AliasAnswer::Stored(NarAnswer::Filled(nar)) => match held(nar, asked) {
            (reply, Ended::Hit) => (reply, Ended::Miss),
            other => other,
        },
        AliasAnswer::Stored(NarAnswer::Filling(nar)) => (Reply::Coming(nar, None), Ended::Miss),
        AliasAnswer::Stored(NarAnswer::Absent) => (Reply::Absent, Ended::Absent),
        AliasAnswer::Packed(nar, len) => (Reply::Coming(nar, len), Ended::Hit),
        AliasAnswer::Whole(len) => (Reply::Packable(len), Ended::Hit),
    }
}

fn held(nar: HeldNar, asked: &Asked<'_>) -> (Reply, Ended) {
    let tag = format!("\"{}\"", nar.file_hash().to_nix32());
    let len = nar.file_size();
    let whole = Whole { etag: &tag, len, changed_lately: nar.changed_lately() };
    let plan = asked.plan(whole);
    let etag = etag(&tag);
    match plan {
        Plan::All => (Reply::Held(Held { nar, etag }), Ended::Hit),
        Plan::Part(first, last) => (Reply::Part(Held { nar, etag }, first, last), Ended::Hit),
        Plan::NotModified => (Reply::NotModified(etag), Ended::Hit),
        Plan::Unsatisfiable => (Reply::Unsatisfiable(len), Ended::Refused),
        Plan::Changed => (Reply::Absent, Ended::Absent),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{IF_RANGE, RANGE};

    use super::*;

    fn want(method: &Method, version: Version, headers: &[(&str, &str)]) -> NarWant {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = if *name == "range" { RANGE } else { IF_RANGE };
            map.insert(name, value.parse().expect("a value"));
        }
        let request = Request { method, version, headers: &map };
        request.want(&request.asked())
    }

    #[test]
    fn only_a_get_from_the_start_may_begin_a_fill() {
        let v11 = Version::HTTP_11;
        let part = [("range", "bytes=5-")];
        let from_start = [("range", "bytes=0-")];
        let guarded = [("range", "bytes=5-"), ("if-range", "\"x\"")];
        for (method, version, headers, expected) in [
            (Method::HEAD, v11, &[][..], NarWant::Head),
            (Method::HEAD, v11, &part[..], NarWant::Head),
            (Method::GET, v11, &[][..], NarWant::Whole),
            (Method::GET, v11, &from_start[..], NarWant::Whole),
            (Method::GET, v11, &guarded[..], NarWant::Whole),
            (Method::GET, v11, &part[..], NarWant::Part),
            (Method::GET, Version::HTTP_10, &[][..], NarWant::Part),
            (Method::GET, Version::HTTP_2, &[][..], NarWant::Whole),
        ] {
            let got = want(&method, version, headers);
            assert_eq!(got, expected, "{method} {version:?} {headers:?}");
        }
    }
}

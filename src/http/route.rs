//! What a request asks for: method and path in, `Route` out. Pure: knows neither cache nor clock.

use std::borrow::Cow;

use hyper::Method;
use percent_encoding::percent_decode_str;

use crate::nix::{NarName, StorePathHash, UploadName};

/// Longest path that names anything, decoded: `build-trace-v2/` with a derivation's and an
/// output's name (211 bytes each) stays below; what is longer is nothing of ours.
const PATH_LEN_MAX: usize = 512;

/// What was asked for. HEAD is routed as the GET it stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// GET of what caches have.
    Object(Object<'a>),
    /// The same below `/push/`: the cache without its upstreams.
    Pushed(Object<'a>),
    /// PUT of what caches have, below `/` or `/push/`.
    Put(Object<'a>),
    /// `/`
    Page,
    /// `/api/status`
    Status,
    /// `/metrics`
    Metrics,
    /// `/healthz`
    Healthz,
    /// `/public-key`
    PublicKey,
    /// `/ca.pem`
    CaPem,
    /// A PUT to anywhere else.
    Write,
    /// Nothing of ours.
    Unknown,
}

/// What caches have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Object<'a> {
    /// `nix-cache-info`
    CacheInfo,
    /// `<hash>.narinfo`
    Narinfo(StorePathHash),
    /// `<hash>.ls`
    Listing(StorePathHash),
    /// `nar/<canonical name>`
    Nar(NarName),
    /// `nar/<file hash>.nar[.ext]`: an uploader's name.
    Upload(UploadName),
    /// `nar/...` by any other name.
    OtherNar,
    /// A small document, by its decoded path without leading slash.
    Document(Family, Cow<'a, str>),
}

/// The families of small documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `log/<derivation>`
    Log,
    /// `realisations/<id>.doi` and `build-trace-v2/<derivation>/<output>.doi`
    Realisation,
    /// `debuginfo/<build id>` with or without `.debug`
    DebugInfo,
}

/// The route of a method and a path as it came, without query.
pub(super) fn route<'a>(method: &Method, path: &'a str) -> Route<'a> {
    let is_put = *method == Method::PUT;
    if !is_put && *method != Method::GET && *method != Method::HEAD {
        // Not 405: to a Nix client that is an error, and 404 is "not here".
        return Route::Unknown;
    }
    let found = match percent_decode_str(path).decode_utf8() {
        Ok(path) if path.len() > PATH_LEN_MAX => None,
        Ok(Cow::Borrowed(path)) => read(path),
        Ok(Cow::Owned(path)) => read(&path).map(detach),
        Err(_) => None,
    };
    match (is_put, found) {
        (true, Some(Route::Object(object) | Route::Pushed(object))) => Route::Put(object),
        (true, _) => Route::Write,
        (false, found) => found.unwrap_or(Route::Unknown),
    }
}

/// The route of a decoded path, as GET.
fn read(path: &str) -> Option<Route<'_>> {
    let path = path.strip_prefix('/')?;
    match path {
        "" => Some(Route::Page),
        "api/status" => Some(Route::Status),
        "metrics" => Some(Route::Metrics),
        "healthz" => Some(Route::Healthz),
        "public-key" => Some(Route::PublicKey),
        "ca.pem" => Some(Route::CaPem),
        _ => match path.strip_prefix("push/") {
            Some(path) => read_object(path).map(Route::Pushed),
            None => read_object(path).map(Route::Object),
        },
    }
}

fn read_object(path: &str) -> Option<Object<'_>> {
    if let Some((folder, rest)) = path.split_once('/') {
        return read_folder(folder, rest, path);
    }
    if path == "nix-cache-info" {
        return Some(Object::CacheInfo);
    }
    let (stem, extension) = path.split_once('.')?;
    let key = || StorePathHash::parse(stem).ok();
    match extension {
        "narinfo" => key().map(Object::Narinfo),
        "ls" => key().map(Object::Listing),
        _ => None,
    }
}

fn read_folder<'a>(folder: &str, rest: &'a str, path: &'a str) -> Option<Object<'a>> {
    let document = |family| Some(Object::Document(family, Cow::Borrowed(path)));
    match folder {
        "nar" => match (NarName::parse(rest), UploadName::parse(rest)) {
            (Some(name), _) => Some(Object::Nar(name)),
            (None, Some(name)) => Some(Object::Upload(name)),
            (None, None) => is_name(rest).then_some(Object::OtherNar),
        },
        "log" if is_name(rest) => document(Family::Log),
        "realisations" if is_name(rest) => document(Family::Realisation),
        "build-trace-v2" => {
            let (derivation, output) = rest.split_once('/')?;
            (is_name(derivation) && is_name(output)).then(|| document(Family::Realisation))?
        }
        "debuginfo" if is_name(rest) => document(Family::DebugInfo),
        _ => None,
    }
}

/// One segment of a document's path: the characters of store path names and of realisation ids
/// (`sha256:...!out.doi`), and no name that a file system reads as another folder.
fn is_name(segment: &str) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || b"+-._?=!:".contains(&c);
    !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(fits)
}

/// The same route, holding its own text.
fn detach<'a>(route: Route<'_>) -> Route<'a> {
    let own = |object: Object<'_>| match object {
        Object::Document(family, path) => Object::Document(family, Cow::Owned(path.into_owned())),
        Object::CacheInfo => Object::CacheInfo,
        Object::Narinfo(key) => Object::Narinfo(key),
        Object::Listing(key) => Object::Listing(key),
        Object::Nar(name) => Object::Nar(name),
        Object::Upload(name) => Object::Upload(name),
        Object::OtherNar => Object::OtherNar,
    };
    match route {
        Route::Object(object) => Route::Object(own(object)),
        Route::Pushed(object) => Route::Pushed(own(object)),
        Route::Put(object) => Route::Put(own(object)),
        Route::Page => Route::Page,
        Route::Status => Route::Status,
        Route::Metrics => Route::Metrics,
        Route::Healthz => Route::Healthz,
        Route::PublicKey => Route::PublicKey,
        Route::CaPem => Route::CaPem,
        Route::Write => Route::Write,
        Route::Unknown => Route::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "9d82wl65gr2phigksgzzimbdf176rx4c";
    const NAR_HASH: &str = "17s988j711dwxfgqmvy6kim08cw61v9piq9zf363mkqhacbnz76r";

    fn key() -> StorePathHash {
        StorePathHash::parse(KEY).expect("a known key")
    }

    fn document(family: Family, path: &str) -> Route<'_> {
        Route::Object(Object::Document(family, Cow::Borrowed(path)))
    }

    #[track_caller]
    fn check(path: &str, expected: &Route<'_>) {
        assert_eq!(route(&Method::GET, path), *expected, "GET {path}");
        assert_eq!(route(&Method::HEAD, path), *expected, "HEAD {path}");
    }

    #[test]
    fn every_path_of_the_contract_has_its_route() {
        check("/", &Route::Page);
        check("/nix-cache-info", &Route::Object(Object::CacheInfo));
        check(&format!("/{KEY}.narinfo"), &Route::Object(Object::Narinfo(key())));
        check(&format!("/{KEY}.ls"), &Route::Object(Object::Listing(key())));
        let name = format!("{NAR_HASH}{KEY}.nar.zst");
        let nar = NarName::parse(&name).expect("a canonical name");
        check(&format!("/nar/{name}"), &Route::Object(Object::Nar(nar)));
        for ending in [".xz", "", ".zst"] {
            let name = format!("{NAR_HASH}.nar{ending}");
            let upload = UploadName::parse(&name).expect("an uploader's name");
            check(&format!("/nar/{name}"), &Route::Object(Object::Upload(upload)));
            check(&format!("/push/nar/{name}"), &Route::Pushed(Object::Upload(upload)));
        }
        check(&format!("/nar/{NAR_HASH}.nar.lz4"), &Route::Object(Object::OtherNar));
        check("/push/nix-cache-info", &Route::Pushed(Object::CacheInfo));
        check(&format!("/push/{KEY}.narinfo"), &Route::Pushed(Object::Narinfo(key())));
        check("/api/status", &Route::Status);
        check("/metrics", &Route::Metrics);
        check("/healthz", &Route::Healthz);
        check("/public-key", &Route::PublicKey);
        check("/ca.pem", &Route::CaPem);
    }

    #[test]
    fn documents_keep_their_decoded_path() {
        let log = format!("log/{KEY}-hello-2.12.drv");
        check(&format!("/{log}"), &document(Family::Log, &log));
        let realisation = "realisations/sha256:ab!out.doi";
        check(&format!("/{realisation}"), &document(Family::Realisation, realisation));
        check("/realisations/sha256%3Aab%21out.doi", &document(Family::Realisation, realisation));
        let trace = format!("build-trace-v2/{KEY}-x.drv/out.doi");
        check(&format!("/{trace}"), &document(Family::Realisation, &trace));
        let debug = "debuginfo/0123456789012345678901234567890123456789.debug";
        check(&format!("/{debug}"), &document(Family::DebugInfo, debug));
        let plus = "log/abc-c++-1.drv";
        check("/log/abc-c%2B%2B-1.drv", &document(Family::Log, plus));
        check("/log/abc-c++-1.drv", &document(Family::Log, plus));
    }

    #[test]
    fn percent_encoding_hides_no_route() {
        check(&format!("/{KEY}%2Enarinfo"), &Route::Object(Object::Narinfo(key())));
        check("/nix%2dcache%2Dinfo", &Route::Object(Object::CacheInfo));
    }

    #[test]
    fn odd_names_are_unknown() {
        for path in [
            "",
            "//",
            "//nix-cache-info",
            "/nix-cache-info/",
            "/index.html",
            "/favicon.ico",
            "/push",
            "/push/",
            "/push/metrics",
            "/push/push/nix-cache-info",
            "/push/../nix-cache-info",
            "/nar",
            "/nar/",
            "/nar/../nix-cache-info",
            "/nar/a/b.nar",
            "/log/",
            "/log/..",
            "/log/%2e%2e",
            "/log/..%2fetc%2fpasswd",
            "/log/a%00b",
            "/log/a%0d%0ab",
            "/log/a%5cb",
            "/log/a%ffb",
            "/log/.hidden",
            "/realisations/a/b",
            "/build-trace-v2/a",
            "/build-trace-v2/a/b/c",
            "/build-trace-v2/../b",
            "/debuginfo/",
            "/api",
            "/api/",
            "/api/status/x",
            "/9d82wl65gr2phigksgzzimbdf176rx4c.narinfo.sig",
            "/9D82WL65GR2PHIGKSGZZIMBDF176RX4C.narinfo",
            "/9d82wl65gr2phigksgzzimbdf176rx4.narinfo",
            "/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee.narinfo",
        ] {
            check(path, &Route::Unknown);
        }
        check(&format!("/log/{}", "a".repeat(PATH_LEN_MAX)), &Route::Unknown);
    }

    #[test]
    fn a_put_names_what_caches_have_and_other_methods_find_nothing() {
        let put = |path: &str| assert_eq!(route(&Method::PUT, path), Route::Write, "{path}");
        for path in ["/", "/metrics", "/push/metrics", "/../x", "/nar/../x.nar", "/nar/a%2fb.nar"] {
            put(path);
            for method in [Method::POST, Method::DELETE, Method::OPTIONS, Method::CONNECT] {
                assert_eq!(route(&method, path), Route::Unknown);
            }
        }
        put(&format!("/push/{KEY}.narinfo/"));
        let narinfo = Route::Put(Object::Narinfo(key()));
        assert_eq!(route(&Method::PUT, &format!("/{KEY}.narinfo")), narinfo);
        assert_eq!(route(&Method::PUT, &format!("/push/{KEY}.narinfo")), narinfo);
        let realisation = "realisations/sha256:ab!out.doi";
        let document = Object::Document(Family::Realisation, Cow::Borrowed(realisation));
        let found = route(&Method::PUT, "/push/realisations/sha256%3Aab%21out.doi");
        assert_eq!(found, Route::Put(document));
    }
}

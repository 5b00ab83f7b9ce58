//! http caches: absence and trouble, redirects, secrets, encodings, bounds, resuming.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::server::{Answer, Server, answer, cut, ok, status};
use super::{Error, HealthState, KEY, Resume, config, key, upstream, whole};
use crate::metrics::Metrics;
use crate::nix::StoreDir;
use crate::upstream::{DOCUMENT_LEN_MAX, Upstream};

fn redirect(to: &str) -> Answer {
    answer(302, &[("location", to)], "")
}

#[tokio::test]
async fn absence_is_an_answer_and_trouble_is_an_error() {
    let server = Server::start(|question| {
        let code = question.uri.path().rsplit('/').next().unwrap().parse().unwrap();
        status(code)
    })
    .await;
    let ask = async |code: &str| {
        let upstream = upstream(&server.url, "");
        let answer = upstream.document(code, DOCUMENT_LEN_MAX).await;
        let nar = upstream.nar(code, None).await.map(|nar| nar.is_some());
        assert_eq!(answer.as_ref().map(Option::is_some).ok(), nar.ok(), "{code}");
        answer
    };
    for code in ["404", "410", "403"] {
        assert!(matches!(ask(code).await, Ok(None)), "{code}");
    }
    for code in ["500", "502", "503", "429", "202", "204", "400"] {
        assert!(matches!(ask(code).await, Err(Error::Status { .. })), "{code}");
    }
    for code in ["401", "407"] {
        assert!(matches!(ask(code).await, Err(Error::Refused { .. })), "{code}");
    }
}

#[tokio::test]
async fn a_narinfo_comes_from_below_the_prefix() {
    let server = Server::start(|_| ok("StorePath: x\n")).await;
    let upstream = upstream(&format!("{}/a/b?priority=3", server.url), "");
    assert_eq!(upstream.narinfo(key()).await.unwrap().unwrap(), "StorePath: x\n");
    assert_eq!(server.paths(), [format!("/a/b/{KEY}.narinfo")]);
    let question = server.questions().remove(0);
    assert_eq!(question.headers.get("accept-encoding").unwrap(), "identity");
    assert!(
        question.headers.get("user-agent").unwrap().to_str().unwrap().starts_with("snowberry/")
    );
}

#[tokio::test]
async fn the_cache_info_must_be_of_our_store() {
    let ask = async |text: &'static str| {
        let server = Server::start(move |_| ok(text)).await;
        upstream(&server.url, "").cache_info().await
    };
    let info = ask("StoreDir: /nix/store\nPriority: 40\n").await.unwrap();
    assert_eq!(info.priority, Some(40));
    assert!(matches!(ask("StoreDir: /gnu/store\n").await, Err(Error::StoreDir { .. })));
    assert!(matches!(ask("<html>").await, Err(Error::CacheInfo { .. })));
    let server = Server::start(|_| status(404)).await;
    let error = upstream(&server.url, "").cache_info().await.unwrap_err();
    assert!(matches!(error, Error::NotACache { .. }), "{error}");
}

#[tokio::test]
async fn an_upstream_for_another_store_directory_rests_until_it_is_for_ours() {
    let is_ours = Arc::new(AtomicBool::new(false));
    let which = Arc::clone(&is_ours);
    let server = Server::start(move |_| {
        let ours = which.load(Ordering::Relaxed);
        ok(if ours { "StoreDir: /nix/store\n" } else { "StoreDir: /gnu/store\n" })
    })
    .await;
    let upstream = upstream(&server.url, "");
    assert!(!upstream.is_resting());
    assert!(upstream.cache_info().await.is_err());
    assert!(upstream.is_resting());
    let health = upstream.health();
    assert_eq!(health.state, HealthState::Refusing);
    assert!(health.last_error.unwrap().contains("/gnu/store"));
    is_ours.store(true, Ordering::Relaxed);
    assert!(upstream.cache_info().await.is_ok());
    assert!(!upstream.is_resting());
    assert_eq!(upstream.health().state, HealthState::Up);
}

#[tokio::test]
async fn redirects_are_followed_within_bounds() {
    let server = Server::start(|question| {
        let hops: u32 = question.uri.path().rsplit('/').next().unwrap().parse().unwrap();
        if hops == 0 { ok("here") } else { redirect(&format!("{}", hops - 1)) }
    })
    .await;
    let upstream = upstream(&server.url, "");
    assert_eq!(upstream.document("5", DOCUMENT_LEN_MAX).await.unwrap().unwrap(), "here");
    assert!(matches!(upstream.document("6", DOCUMENT_LEN_MAX).await, Err(Error::Redirect { .. })));
    assert_eq!(whole(&upstream, "3", None).await.unwrap(), "here");
}

#[tokio::test]
async fn secrets_reach_their_host_and_not_where_it_redirects() {
    let other = Server::start(|_| ok("there")).await;
    let to = other.url.clone();
    let server = Server::start(move |_| redirect(&format!("{to}/x"))).await;
    let folder = tempfile::tempdir().unwrap();
    let headers = folder.path().join("headers");
    std::fs::write(&headers, "X-Token: t0ken\n").unwrap();
    let url = server.url.replace("http://", "http://me:secret@");
    let upstream = upstream(&url, &format!("headers-file = {headers:?}"));
    assert_eq!(upstream.narinfo(key()).await.unwrap().unwrap(), "there");
    let own = server.questions().remove(0).headers;
    assert_eq!(own.get("authorization").unwrap(), "Basic bWU6c2VjcmV0");
    assert_eq!(own.get("x-token").unwrap(), "t0ken");
    let foreign = other.questions().remove(0).headers;
    assert!(foreign.get("authorization").is_none() && foreign.get("x-token").is_none());
    assert!(!format!("{:?}", upstream.health()).contains("secret"));
}

#[tokio::test]
async fn the_password_is_found_in_netrc() {
    let server = Server::start(|_| ok("x")).await;
    let folder = tempfile::tempdir().unwrap();
    let netrc = folder.path().join("netrc");
    std::fs::write(&netrc, "machine 127.0.0.1 login me password secret\n").unwrap();
    let upstream = upstream(&server.url, &format!("netrc-file = {netrc:?}"));
    upstream.narinfo(key()).await.unwrap();
    let header = server.questions().remove(0).headers.remove("authorization").unwrap();
    assert_eq!(header, "Basic bWU6c2VjcmV0");
}

#[tokio::test]
async fn content_encodings_of_small_things_are_undone() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"text").unwrap();
    let gzip = gzip.finish().unwrap();
    let server = Server::start(move |question| match question.uri.path() {
        "/log/gzip" => answer(200, &[("content-encoding", "gzip")], gzip.clone()),
        "/log/none" => answer(200, &[("content-encoding", "none")], "text"),
        _ => answer(200, &[("content-encoding", "lzip")], "text"),
    })
    .await;
    let upstream = upstream(&server.url, "");
    assert_eq!(upstream.document("log/gzip", DOCUMENT_LEN_MAX).await.unwrap().unwrap(), "text");
    assert_eq!(upstream.document("log/none", DOCUMENT_LEN_MAX).await.unwrap().unwrap(), "text");
    assert!(matches!(
        upstream.document("log/lzip", DOCUMENT_LEN_MAX).await,
        Err(Error::Encoding { .. })
    ));
    // One object that cannot be read says nothing against the upstream.
    for _ in 0..3 {
        assert!(matches!(whole(&upstream, "log/gzip", None).await, Err(Error::Encoding { .. })));
    }
    assert_eq!(upstream.health().state, HealthState::Up);
}

#[tokio::test]
async fn a_narinfo_longer_than_any_is_not_read() {
    let server = Server::start(|_| ok(vec![b'x'; 1024 * 1024 + 1])).await;
    let upstream = upstream(&server.url, "");
    assert!(matches!(upstream.narinfo(key()).await, Err(Error::TooLong { .. })));
}

#[tokio::test]
async fn a_nar_that_is_cut_is_an_error_and_its_bytes_are_counted() {
    let server = Server::start(|_| cut(10, b"12345")).await;
    let metrics = Metrics::new();
    let config = config(&server.url, "");
    let upstream = Upstream::new(&config, &StoreDir::default(), &metrics).unwrap();
    let mut body = upstream.nar("nar/x.nar", None).await.unwrap().unwrap();
    assert_eq!(body.len_bytes(), Some(10));
    assert_eq!(body.chunk().await.unwrap().unwrap(), "12345");
    assert_eq!(body.len_bytes(), Some(5));
    assert!(matches!(body.chunk().await, Err(Error::Body { .. })));
    assert_eq!(metrics.fetched_bytes.get(), 5);
}

/// Serves `0123456789` with ranges and an `ETag`, as a good server does.
fn ranges(question: &hyper::http::request::Parts) -> Answer {
    let range = question.headers.get("range").map(|range| range.to_str().unwrap().to_owned());
    let matches = question.headers.get("if-range").is_none_or(|etag| etag == "\"one\"");
    match range.as_deref() {
        Some("bytes=4-") if matches => {
            let headers = [("content-range", "bytes 4-9/10"), ("etag", "\"one\"")];
            answer(206, &headers, "456789")
        }
        Some("bytes=10-") => answer(416, &[("content-range", "bytes */10")], ""),
        _ => answer(200, &[("etag", "\"one\"")], "0123456789"),
    }
}

#[tokio::test]
async fn a_nar_is_resumed_at_the_same_object_only() {
    let server = Server::start(ranges).await;
    let upstream = upstream(&server.url, "");
    let resume =
        |offset, etag: Option<&str>| Some(Resume { offset, etag: etag.map(str::to_owned) });
    let body = upstream.nar("nar/x", None).await.unwrap().unwrap();
    assert_eq!((body.etag(), body.len_bytes()), (Some("\"one\""), Some(10)));
    assert_eq!(whole(&upstream, "nar/x", resume(4, Some("\"one\""))).await.unwrap(), "456789");
    assert_eq!(whole(&upstream, "nar/x", resume(4, None)).await.unwrap(), "456789");
    for changed in
        [resume(4, Some("\"two\"")), resume(0, Some("\"two\"")), resume(10, None), resume(5, None)]
    {
        let error = whole(&upstream, "nar/x", changed).await.unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error}");
    }
    assert_eq!(upstream.health().state, HealthState::Up);
}

#[tokio::test]
async fn a_nar_url_is_asked_as_it_stands() {
    let server = Server::start(|_| ok("nar")).await;
    let upstream = upstream(&format!("{}/a", server.url), "");
    for url in ["nar/x.nar?hash=a%2Bb", "/abs.nar", &format!("{}/full", server.url)] {
        assert_eq!(whole(&upstream, url, None).await.unwrap(), "nar");
    }
    assert_eq!(server.paths(), ["/a/nar/x.nar?hash=a%2Bb", "/abs.nar", "/full"]);
    for url in ["file:///etc/passwd", "http://127.0.0.2:1/x", "ftp://x/y"] {
        assert!(matches!(upstream.nar(url, None).await, Err(Error::Url { .. })), "{url}");
    }
    assert_eq!(upstream.health().state, HealthState::Up);
}

#[tokio::test]
async fn names_that_lead_out_of_the_cache_are_not_asked() {
    let server = Server::start(|_| ok("x")).await;
    let upstream = upstream(&format!("{}/a", server.url), "");
    for name in ["../x", "log/../../x", "/x", "log//x"] {
        assert!(
            matches!(upstream.document(name, DOCUMENT_LEN_MAX).await, Err(Error::Url { .. })),
            "{name}"
        );
    }
    assert!(server.questions().is_empty());
}

#[tokio::test]
async fn a_transfer_that_its_reader_gave_up_is_trouble() {
    let server = Server::start(|_| ok("nar")).await;
    let upstream = upstream(&server.url, "");
    let mut bodies = Vec::new();
    for _ in 0..3 {
        bodies.push(upstream.nar("nar/x", None).await.unwrap().unwrap());
    }
    for body in bodies {
        body.stalled(std::time::Duration::from_secs(15));
    }
    assert_eq!(upstream.health().state, HealthState::Down);
}

#[tokio::test]
async fn a_refused_url_is_named_without_its_secrets() {
    let upstream = upstream("http://127.0.0.1:1", "");
    let error = upstream.nar("https://me:secret@h.example/x?token=secret", None).await;
    let text = error.err().unwrap().chain();
    assert!(text.contains("h.example") && !text.contains("secret"), "{text}");
}

/// Answers `count` questions on each connection and then closes it, unannounced, when the next
/// one has come. Tells how many connections were made.
async fn closing(count: usize) -> (String, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            let mut stream = BufReader::new(stream);
            for number in 0.. {
                let mut line = String::from("x");
                while line.trim() != "" {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                }
                if number == count {
                    break;
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntext")
                    .await
                    .unwrap();
            }
        }
    });
    (url, connections, tasks)
}

#[tokio::test]
async fn a_connection_is_used_again_and_its_end_is_nobodys_trouble() {
    let (url, connections, _tasks) = closing(3).await;
    let upstream = upstream(&url, "");
    for _ in 0..6 {
        assert_eq!(upstream.narinfo(key()).await.unwrap().unwrap(), "text");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2);
    assert_eq!(upstream.health().last_error, None);
}

#[tokio::test]
async fn a_server_that_always_closes_is_trouble() {
    let (url, connections, _tasks) = closing(0).await;
    let upstream = upstream(&url, "");
    let error = upstream.narinfo(key()).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error}");
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

//! Uploads: through with the caller's own token, refused for good while nobody is there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use snowberry::nix::{NarInfo, StoreDir};
use snowberry::push::tokens::Tokens;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::made::Made;
use super::world::{Fault, Forward, Scripted, Settings, Snowberry};
use super::{MadeCache, signal};

/// Until an upload is given up whose cache is frozen: six seconds, and what a busy machine adds.
const LOST_AFTER: Duration = Duration::from_secs(10);

async fn writer() -> (Snowberry, String) {
    let snowberry = Settings::new().start().await;
    let token = Tokens::new(snowberry.state().join("tokens")).add("tester", [1; 20], 0).unwrap();
    let authorization = format!("Basic {}", STANDARD.encode(format!("any:{token}")));
    (snowberry, authorization)
}

async fn here(forward: &Forward) {
    super::world::until("the cache to be here", Duration::from_secs(5), async || {
        (forward.client().get("/public-key").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_path_goes_through_with_the_callers_token_and_is_the_same() {
    let (snowberry, authorization) = writer().await;
    let forward = Forward::to(&snowberry.url()).await;
    here(&forward).await;
    let made = Made::mixed("pushed", 3_000_000);
    let put = async |path: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        forward.client().ask(Method::PUT, path, headers, body.into()).await
    };
    let (nar, narinfo) = (format!("/push/{}", made.file_url()), made.narinfo());
    let narinfo = NarInfo { signatures: Vec::new(), ..narinfo }.print(&StoreDir::default());

    let stranger = put(&nar, &[], vec![1; 1000]).await;
    assert_eq!(stranger.status, 403);
    assert!(stranger.text().contains("need a token"), "{}", stranger.text());

    let own = [("authorization", authorization.as_str())];
    let taken = put(&nar, &own, made.file.clone()).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    let path = format!("/push{}", made.narinfo_url());
    assert_eq!(put(&path, &own, narinfo.into()).await.status, 200);
    let read = snowberry.client().get(&made.nar_url()).await;
    assert!(made.is_in(&read.body), "another NAR");
    assert_eq!(forward.client().head(&nar).await.status, 200);
}

/// Sends as much of a PUT as it is told to, and reads what comes.
struct Raw(TcpStream);

impl Raw {
    async fn head(address: SocketAddr, path: &str, more: &str, len: usize) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len}\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(stream)
    }

    async fn send(&mut self, body: &[u8]) {
        self.0.write_all(body).await.unwrap();
    }

    /// The next head, and what came with it.
    async fn answer(&mut self) -> String {
        let mut all = String::new();
        let mut piece = [0; 4096];
        while !all.contains("\r\n\r\n") {
            let len = self.0.read(&mut piece).await.unwrap();
            assert!(len > 0, "the connection ended after {all:?}");
            all += std::str::from_utf8(&piece[..len]).unwrap();
        }
        all
    }
}

#[tokio::test]
async fn who_waits_for_100_continue_gets_it_from_the_cache_or_an_answer() {
    let (snowberry, authorization) = writer().await;
    let forward = Forward::to(&snowberry.url()).await;
    here(&forward).await;
    let made = Made::noise("expected", 100_000);
    let path = format!("/push/{}", made.file_url());
    let expect = "expect: 100-continue\r\n";

    let mut refused = Raw::head(forward.address, &path, expect, made.file.len()).await;
    let answer = refused.answer().await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    let more = format!("{expect}authorization: {authorization}\r\n");
    let mut taken = Raw::head(forward.address, &path, &more, made.file.len()).await;
    let answer = taken.answer().await;
    assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
    taken.send(&made.file).await;
    let answer = taken.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(snowberry.client().head(&path).await.status, 200);
}

#[tokio::test]
async fn with_nobody_there_it_is_refused_for_good_with_a_sentence() {
    let forward = Forward::with(&["mdns.enabled=false"]).await;
    for path in ["/push/nix-cache-info", "/push/nar/x.nar.xz", "/x.narinfo"] {
        let refused = forward.client().put(path, vec![1; 100_000]).await;
        assert_eq!(refused.status, 409, "{path}");
        assert!(refused.text().contains("is away"), "{}", refused.text());
        assert!(refused.all_after < Duration::from_millis(200), "{:?}", refused.all_after);
    }
    let mut waiting =
        Raw::head(forward.address, "/push/x.narinfo", "expect: 100-continue\r\n", 9).await;
    let answer = waiting.answer().await;
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
}

#[tokio::test]
async fn a_cache_that_freezes_or_dies_in_the_middle_is_said_so_for_good() {
    for how in ["STOP", "KILL"] {
        let (snowberry, authorization) = writer().await;
        let forward = Forward::to(&snowberry.url()).await;
        here(&forward).await;
        let made = Made::noise("lost", 2_000_000);
        let path = format!("/push/{}", made.file_url());
        let more = format!("authorization: {authorization}\r\n");
        let mut raw = Raw::head(forward.address, &path, &more, made.file.len()).await;
        let (first, rest) = made.file.split_at(1_000_000);
        raw.send(first).await;
        signal(how, snowberry.pid());
        let began = Instant::now();
        raw.send(rest).await;
        let answer = raw.answer().await;
        assert!(answer.starts_with("HTTP/1.1 409 "), "{how}: {answer}");
        assert!(answer.contains("push again"), "{how}: {answer}");
        assert!(began.elapsed() < LOST_AFTER, "{how}: {:?}", began.elapsed());
        signal("CONT", snowberry.pid());
    }
}

#[tokio::test]
async fn what_nix_would_try_again_is_refused_for_good() {
    let cache = MadeCache::of([]);
    let upstream = Scripted::serve(cache.root()).await;
    upstream.put("/public-key", "x");
    let forward = Forward::to(&upstream.url()).await;
    here(&forward).await;
    for status in [202, 408, 429, 500, 502, 503] {
        upstream.heal();
        upstream.fault("/x.narinfo", Fault::Status(status));
        let refused = forward.client().put("/x.narinfo", "x").await;
        assert_eq!(refused.status, 409, "{status}");
        assert!(refused.text().contains("its log says why"), "{}", refused.text());
    }
}

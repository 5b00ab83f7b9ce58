//! Bodies that come slowly, in part, or not at all, over raw sockets.

use std::time::Duration;

use snowberry::nix::Compression;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::made::Made;
use crate::{Lab, Settings, basic, unsigned};

/// Longer than any of these answers takes.
const LIMIT: Duration = Duration::from_secs(90);

struct Raw(TcpStream);

impl Raw {
    async fn put(lab: &Lab, path: &str, len: usize, headers: &str) -> Self {
        let mut stream = TcpStream::connect(lab.snowberry.address).await.unwrap();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {}\r\n\
             Content-Length: {len}\r\n{headers}\r\n",
            basic(&lab.token)
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// All that comes until the connection is closed.
    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        timeout(LIMIT, self.0.read_to_end(&mut text)).await.unwrap().unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Up to and with these words.
    async fn until(&mut self, words: &str) -> String {
        let mut text = String::new();
        let read = async {
            while !text.contains(words) {
                text.push(char::from(self.0.read_u8().await.unwrap()));
            }
        };
        timeout(LIMIT, read).await.unwrap();
        text
    }
}

#[tokio::test]
async fn an_ending_that_is_not_taken_is_refused_before_the_body() {
    let lab = Lab::new().await;
    let url = format!("/nar/{}.nar.lz4", Made::noise("x", 10).file_hash().to_nix32());
    let text = unasked(&lab, &url, 9_000_000).await;
    assert!(text.starts_with("HTTP/1.1 415"), "{text}");
}

/// What is refused before its body is, without `100 Continue`.
async fn unasked(lab: &Lab, path: &str, len: usize) -> String {
    let mut raw = Raw::put(lab, path, len, "Expect: 100-continue\r\n").await;
    let text = raw.rest().await;
    assert!(!text.contains("100 Continue") && text.contains("connection: close"), "{text}");
    text
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_the_body() {
    let lab = Lab::new().await;
    let made = Made::noise("x", 10);
    let log = unasked(&lab, "/log/a-long.drv", (16 << 20) + 1).await;
    assert!(log.starts_with("HTTP/1.1 413"), "{log}");
    let narinfo = unasked(&lab, &made.narinfo_url(), (1 << 20) + 1).await;
    assert!(narinfo.starts_with("HTTP/1.1 413"), "{narinfo}");
    let nar = unasked(&lab, &format!("/{}", made.file_url()), 70 << 30).await;
    assert!(nar.starts_with("HTTP/1.1 413") && nar.contains("push.nar-size-max"), "{nar}");
}

#[tokio::test]
async fn what_can_not_be_kept_safe_is_refused_before_the_body() {
    let lab = Lab::with(Settings::new().set(r#"store.budget="64 MiB""#)).await;
    let url = format!("/nar/{}.nar", Made::noise("x", 10).file_hash().to_nix32());
    let text = unasked(&lab, &url, 40 << 20).await;
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    assert!(text.contains("this needs 40.0 MiB, and half of the budget of 64.0 MiB"), "{text}");
    // What waits counts: with 20 MiB that no narinfo binds yet, another 20 are too many.
    let fits = Made::noise("fits", 20 << 20).packed(Compression::None);
    assert_eq!(lab.put_nar(&fits).await.status, 200);
    let text = unasked(&lab, &url, 20 << 20).await;
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("wait for the push"), "{text}");
    let narinfo = lab.put_narinfo(&fits, &unsigned(&fits)).await;
    assert_eq!(narinfo.status, 200, "{}", narinfo.text());
    // Without a target nothing waits for one.
    let next = Made::noise("next", 20 << 20).packed(Compression::None);
    assert_eq!(lab.put_nar(&next).await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_wanted_is_asked_for() {
    let lab = Lab::new().await;
    let made = Made::noise("asked", 50_000);
    let url = format!("/{}", made.file_url());
    let mut raw = Raw::put(&lab, &url, made.file.len(), "Expect: 100-continue\r\n").await;
    assert!(raw.until("\r\n\r\n").await.starts_with("HTTP/1.1 100 Continue"));
    for piece in made.file.chunks(7000) {
        raw.send(piece).await;
        tokio::task::yield_now().await;
    }
    let text = raw.until("\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    // The same connection goes on.
    raw.send(b"GET /nix-cache-info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert!(raw.until("StoreDir").await.contains("200 OK"));
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_leaves_nothing() {
    let lab = Lab::new().await;
    let made = Made::noise("short", 500_000);
    let url = format!("/{}", made.file_url());
    for len in [0, 100, made.file.len() - 1] {
        let mut raw = Raw::put(&lab, &url, made.file.len(), "").await;
        raw.send(&made.file[..len]).await;
        raw.0.shutdown().await.unwrap();
        let text = raw.rest().await;
        assert!(!text.contains("200 OK"), "{text}");
        assert_eq!(lab.head(&url).await.status, 404);
    }
    // What an old client sends that tries again: a length, and no body.
    assert_eq!(lab.put_nar(&made).await.status, 200);
}

#[tokio::test]
async fn an_upload_without_a_length_is_refused() {
    let lab = Lab::new().await;
    let mut stream = TcpStream::connect(lab.snowberry.address).await.unwrap();
    let head = format!(
        "PUT /log/a-b.drv HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {}\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        basic(&lab.token)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let text = Raw(stream).rest().await;
    assert!(text.starts_with("HTTP/1.1 411"), "{text}");
}

#[tokio::test]
async fn a_body_that_stalls_ends_with_its_connection() {
    let lab = Lab::new().await;
    let made = Made::noise("stalls", 500_000);
    let url = format!("/{}", made.file_url());
    let mut raw = Raw::put(&lab, &url, made.file.len(), "").await;
    raw.send(&made.file[..200_000]).await;
    // Nothing else comes: the server's own patience ends first.
    let text = raw.rest().await;
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    assert!(text.contains("stopped coming"), "{text}");
    assert_eq!(lab.head(&url).await.status, 404);
}

#[tokio::test]
async fn heads_stay_bounded() {
    let lab = Lab::new().await;
    let mut raw = Raw::put(&lab, "/log/a-b.drv", 1, &"X: y\r\n".repeat(100)).await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 431"));
    let long = format!("X: {}\r\n", "y".repeat(70_000));
    let mut stream = TcpStream::connect(lab.snowberry.address).await.unwrap();
    let head = format!("PUT /log/a-b.drv HTTP/1.1\r\nHost: 127.0.0.1\r\n{long}");
    drop(stream.write_all(head.as_bytes()).await);
    assert!(Raw(stream).until("\r\n").await.starts_with("HTTP/1.1 431"));
}

//! Puts to a bucket: what is sent, what is tried again, what it means when it fails.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hyper::http::request::Parts;
use sha2::{Digest as _, Sha256};

use super::bucket::{Bucket, Fault, query};
use super::{HealthState, upstream};
use crate::nix::FileHash;
use crate::upstream::put::{PACE, Pace};
use crate::upstream::{Error, Object, Setback, Source, Upstream};

const MIB: u64 = 1024 * 1024;
const KEY: &str = "nar/x.nar.zst";
const CREDENTIALS: &str =
    "[nixbuilder]\naws_access_key_id = AKID\naws_secret_access_key = SECRET\n";

/// As quick as a test wants it.
const QUICK: Pace = Pace { rest: Duration::from_millis(1), ..PACE };

/// Bytes that tell their place, and a trouble after some of them.
#[derive(Clone, Copy)]
struct Counted {
    fails_at: u64,
    /// Bytes that it has fewer than it is asked for.
    lacks: u64,
}

const WELL: Counted = Counted { fails_at: u64::MAX, lacks: 0 };

/// A prime, so that no two parts are alike.
const PERIOD: usize = 1_048_583;

static PATTERN: LazyLock<Bytes> =
    LazyLock::new(|| (0..PERIOD).map(|n| u8::try_from((n ^ (n >> 9)) & 0xff).unwrap()).collect());

/// The bytes from a place on, as many as the pattern has in a row there.
fn piece(from: u64, to: u64) -> Bytes {
    let at = usize::try_from(from).unwrap() % PERIOD;
    let len = usize::try_from(to - from).unwrap().min(PERIOD - at);
    PATTERN.slice(at..at + len)
}

fn bytes_of(from: u64, to: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::try_from(to - from).unwrap());
    let mut at = from;
    while at < to {
        let piece = piece(at, to);
        at += u64::try_from(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    bytes
}

impl Source for Counted {
    fn read(&self, from: u64, to: u64) -> BoxStream<'_, io::Result<Bytes>> {
        let end = to.saturating_sub(self.lacks);
        let next = move |at: u64| async move {
            if at >= end {
                return None;
            }
            let piece = piece(at, end.min(at + 255 * 1024));
            let to = at + u64::try_from(piece.len()).unwrap();
            let piece =
                if to > self.fails_at { Err(io::ErrorKind::Other.into()) } else { Ok(piece) };
            Some((piece, to))
        };
        stream::unfold(from, next).boxed()
    }
}

fn target(bucket: &Bucket, pace: Pace) -> Upstream {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, CREDENTIALS).unwrap();
    let url = format!("s3://nix-cache?endpoint={}&profile=nixbuilder", bucket.server.url);
    let mut upstream = upstream(&url, &format!("push = true\ncredentials-file = {file:?}"));
    // The file is read once and then looked at again after a while only.
    Arc::get_mut(&mut upstream.inner).unwrap().puts.pace = pace;
    std::mem::forget(folder);
    upstream
}

async fn put_from(upstream: &Upstream, source: Counted, len: u64) -> Result<(), Error> {
    let sha256 = FileHash::from_bytes(Sha256::digest(bytes_of(0, len)).into());
    let content_type = "application/x-nix-nar";
    upstream.put(Object { key: KEY, content_type, len, sha256, source: &source }).await
}

async fn put(bucket: &Bucket, len: u64) -> Result<(), Error> {
    put_from(&target(bucket, QUICK), WELL, len).await
}

fn is_whole(bucket: &Bucket, len: u64) {
    let object = bucket.object(KEY).expect("the object is there");
    assert!(object == bytes_of(0, len), "the object is not what was put");
    bucket.held(|held| assert!(held.uploads.is_empty(), "an upload is left"));
}

fn part(number: &'static str) -> impl Fn(&Parts) -> bool {
    move |parts| query(parts, "partNumber") == Some(number)
}

fn completes(parts: &Parts) -> bool {
    parts.method == "POST" && query(parts, "uploadId").is_some()
}

#[tokio::test]
async fn small_objects_are_one_request_and_overwrite() {
    let bucket = Bucket::well().await;
    let target = target(&bucket, QUICK);
    assert!(target.is_target());
    for text in ["one", "two", ""] {
        target.put_small("x.narinfo", "text/x-nix-narinfo", text.into()).await.unwrap();
        assert_eq!(bucket.object("x.narinfo").unwrap(), text.as_bytes());
    }
    let first = bucket.server.questions().remove(0);
    let header = |name: &str| first.headers.get(name).unwrap().to_str().unwrap();
    assert_eq!(header("content-type"), "text/x-nix-narinfo");
    assert_eq!(header("content-length"), "3");
    assert!(header("authorization").contains("Credential=AKID/"));
}

#[tokio::test]
async fn an_object_up_to_64_mib_is_one_request() {
    for len in [0, 1, 3 * MIB + 7, 64 * MIB] {
        let bucket = Bucket::well().await;
        put(&bucket, len).await.unwrap();
        is_whole(&bucket, len);
        assert_eq!(bucket.requests(), [format!("PUT {KEY}")]);
    }
}

#[tokio::test]
async fn a_longer_object_goes_in_parts_of_16_mib() {
    let bucket = Bucket::well().await;
    put(&bucket, 64 * MIB + 1).await.unwrap();
    is_whole(&bucket, 64 * MIB + 1);
    let mut wanted = vec![format!("POST {KEY}?uploads")];
    wanted.extend((1..=5).map(|n| format!("PUT {KEY}?partNumber={n}")));
    wanted.push(format!("POST {KEY}?uploadId"));
    assert_eq!(bucket.requests(), wanted);
}

#[tokio::test]
async fn a_part_whose_trouble_passes_is_sent_again() {
    for (fault, times) in
        [(Fault::Cut(3 << 20), 3), (Fault::Refused(503, "SlowDown"), 2), (Fault::AnswerLost, 1)]
    {
        let bucket = Bucket::failing(fault, times, part("2")).await;
        put(&bucket, 65 * MIB).await.unwrap();
        is_whole(&bucket, 65 * MIB);
    }
}

#[tokio::test]
async fn an_upload_that_comes_to_nothing_is_aborted() {
    let check = async |fault: Fault, wanted: Setback| {
        let bucket = Bucket::failing(fault, 9, part("3")).await;
        let error = put(&bucket, 65 * MIB).await.unwrap_err();
        assert_eq!(error.setback(), wanted, "{error}");
        assert_eq!(bucket.requests().last().unwrap(), &format!("DELETE {KEY}?uploadId"));
        bucket.held(|held| assert!(held.uploads.is_empty() && held.objects.is_empty()));
    };
    check(Fault::Refused(500, "InternalError"), Setback::Passing).await;
    check(Fault::Refused(403, "AccessDenied"), Setback::Target).await;
    check(Fault::Refused(507, "XMinioStorageFull"), Setback::Target).await;
    check(Fault::Refused(400, "BadDigest"), Setback::Object).await;
    check(Fault::Refused(404, "NoSuchUpload"), Setback::Passing).await;
}

#[tokio::test]
async fn an_upload_whose_sender_has_gone_can_be_aborted() {
    let bucket = Bucket::failing(Fault::Silent, 1, part("2")).await;
    let target = target(&bucket, QUICK);
    let second = format!("PUT {KEY}?partNumber=2");
    tokio::select! {
        ended = put_from(&target, WELL, 65 * MIB) => panic!("{ended:?}"),
        () = async { while !bucket.requests().contains(&second) { tokio::task::yield_now().await } } => {}
    }
    bucket.held(|held| assert_eq!(held.uploads.len(), 1));
    target.abort_left().await;
    bucket.held(|held| assert!(held.uploads.is_empty()));
    // Only what was left: another put is whole, and nothing of it is aborted.
    put_from(&target, WELL, 65 * MIB).await.unwrap();
    target.abort_left().await;
    is_whole(&bucket, 65 * MIB);
}

#[tokio::test]
async fn an_error_inside_a_200_is_one() {
    let bucket = Bucket::failing(Fault::ErrorInside("InternalError"), 1, completes).await;
    put(&bucket, 65 * MIB).await.unwrap();
    is_whole(&bucket, 65 * MIB);
    let bucket = Bucket::failing(Fault::ErrorInside("InternalError"), 9, completes).await;
    let error = put(&bucket, 65 * MIB).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Passing);
    assert!(error.to_string().contains("InternalError"), "{error}");
    bucket.held(|held| assert!(held.uploads.is_empty() && held.objects.is_empty()));
}

#[tokio::test]
async fn a_completion_whose_answer_was_lost_has_won() {
    let bucket = Bucket::failing(Fault::AnswerLost, 1, completes).await;
    put(&bucket, 65 * MIB).await.unwrap();
    is_whole(&bucket, 65 * MIB);
    assert_eq!(bucket.requests().last().unwrap(), &format!("HEAD {KEY}"));

    let bucket = Bucket::failing(Fault::Refused(404, "NoSuchUpload"), 9, completes).await;
    bucket.held(|held| held.objects.insert(KEY.to_owned(), vec![0; 7]));
    let error = put(&bucket, 65 * MIB).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Passing, "another object is not ours: {error}");
    bucket.held(|held| assert!(held.uploads.is_empty()));
}

#[tokio::test]
async fn a_target_that_stalls_is_given_up() {
    let moment = Duration::from_millis(100);
    let pace = Pace { progress: moment, answer: moment, whole: moment * 2, ..QUICK };
    let check = async |fault: Fault, len: u64, is: fn(&Parts) -> bool| {
        let bucket = Bucket::failing(fault, 99, is).await;
        let error = put_from(&target(&bucket, pace), WELL, len).await.unwrap_err();
        assert_eq!(error.setback(), Setback::Passing, "{fault:?}");
        error
    };
    let error = check(Fault::Stalled(1 << 20), 32 * MIB, |_| true).await;
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    let error = check(Fault::Silent, 3, |_| true).await;
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    let error = check(Fault::Silent, 65 * MIB, |parts| query(parts, "uploads").is_some()).await;
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    let error = check(Fault::Blank, 65 * MIB, completes).await;
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    // The abort has its bound too.
    let error =
        check(Fault::Silent, 65 * MIB, |parts| parts.method == "DELETE" || part("2")(parts));
    assert!(matches!(error.await, Error::Silent { .. }));
}

#[tokio::test]
async fn a_server_that_takes_no_connection_is_given_up() {
    // Nobody accepts: the connection is made by the system, TLS gets no answer.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("s3://nix-cache?endpoint=https://{}", listener.local_addr().unwrap());
    let mut upstream = upstream(&url, "push = true");
    let connect = Duration::from_millis(50);
    Arc::get_mut(&mut upstream.inner).unwrap().puts.pace = Pace { connect, ..PACE };
    let error = upstream.put_small("x", "text/plain", "x".into()).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");
}

#[tokio::test]
async fn what_a_refusal_means_is_told_by_its_code_and_the_breaker_does_not_hear_of_it() {
    let check = async |code: u16, name: &'static str, wanted: Setback| {
        let bucket = Bucket::failing(Fault::Refused(code, name), 9, |_| true).await;
        let target = target(&bucket, QUICK);
        for _ in 0..4 {
            let error = target.put_small("x", "text/plain", "text".into()).await.unwrap_err();
            assert_eq!(error.setback(), wanted, "{code} {name}");
        }
        assert_eq!(target.health().state, HealthState::Up);
        assert!(!target.is_resting());
    };
    check(403, "InvalidAccessKeyId", Setback::Target).await;
    check(403, "SignatureDoesNotMatch", Setback::Target).await;
    check(403, "AccessDenied", Setback::Target).await;
    check(404, "NoSuchBucket", Setback::Target).await;
    check(507, "XMinioStorageFull", Setback::Target).await;
    check(403, "RequestTimeTooSkewed", Setback::Clock).await;
    check(503, "SlowDown", Setback::Passing).await;
    check(400, "XAmzContentSHA256Mismatch", Setback::Object).await;
}

#[tokio::test]
async fn what_is_there_already_is_done() {
    let bucket = Bucket::failing(Fault::Refused(412, "PreconditionFailed"), 9, |_| true).await;
    put(&bucket, 7).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_heard_while_a_long_body_is_on_its_way() {
    let bucket = Bucket::failing(Fault::Refused(403, "AccessDenied"), 9, |_| true).await;
    let error = put(&bucket, 60 * MIB).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Target, "{error}");
}

#[tokio::test]
async fn a_source_that_fails_is_no_trouble_of_the_target_and_ends_nothing_as_whole() {
    let fails_at = |fails_at| Counted { fails_at, ..WELL };
    let lacks = |lacks| Counted { lacks, ..WELL };
    for (source, len) in [
        (fails_at(MIB), 3 * MIB),
        (lacks(1), 3 * MIB),
        (lacks(1), 65 * MIB),
        (fails_at(50 * MIB), 65 * MIB),
    ] {
        let bucket = Bucket::well().await;
        let error = put_from(&target(&bucket, QUICK), source, len).await.unwrap_err();
        assert_eq!(error.setback(), Setback::Source, "{error}");
        bucket.held(|held| assert!(held.uploads.is_empty() && held.objects.is_empty()));
    }
}

#[tokio::test]
async fn a_head_tells_absence_from_wrong_keys() {
    let bucket = Bucket::well().await;
    bucket.held(|held| held.objects.insert(KEY.to_owned(), vec![0; 7]));
    let target = target(&bucket, QUICK);
    assert_eq!(target.head(KEY).await.unwrap().unwrap().len, 7);
    assert_eq!(target.head("nar/y").await.unwrap(), None);

    let check = async |code: u16, name: &'static str, wanted: Option<Setback>| {
        let bucket = Bucket::failing(Fault::Refused(code, name), 9, |_| true).await;
        let head = super::put::target(&bucket, QUICK).head(KEY).await;
        match wanted {
            None => assert_eq!(head.unwrap(), None, "{code} {name}"),
            Some(wanted) => assert_eq!(head.unwrap_err().setback(), wanted, "{code} {name}"),
        }
    };
    check(403, "AccessDenied", None).await;
    check(403, "", None).await;
    check(410, "", None).await;
    check(403, "SignatureDoesNotMatch", Some(Setback::Target)).await;
    check(403, "InvalidAccessKeyId", Some(Setback::Target)).await;
    check(400, "ExpiredToken", Some(Setback::Target)).await;
    check(403, "RequestTimeTooSkewed", Some(Setback::Clock)).await;
    check(503, "SlowDown", Some(Setback::Passing)).await;
}

#[tokio::test]
async fn nothing_is_put_to_an_http_cache() {
    let upstream = upstream("https://h.example", "");
    assert!(!upstream.is_target());
    let error = upstream.put_small("x", "text/plain", "x".into()).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Target);
}

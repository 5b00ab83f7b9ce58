//! Buckets: keys, signatures on the wire, what an error's code means.

use std::sync::Arc;

use hyper::HeaderMap;

use super::server::{Server, ok, s3_error, status};
use super::{Error, HealthState, KEY, key, upstream, whole};
use crate::upstream::client::{self, Transport};
use crate::upstream::credentials::Provider;
use crate::upstream::http::Http;
use crate::upstream::s3::S3;
use crate::upstream::s3_url::Bucket;
use crate::upstream::{DOCUMENT_LEN_MAX, Kind, Upstream};

const CREDENTIALS: &str =
    "[nixbuilder]\naws_access_key_id = AKID\naws_secret_access_key = SECRET\n";

fn bucket(server: &Server) -> String {
    format!("s3://nix-cache?endpoint={}&region=home&profile=nixbuilder", server.url)
}

/// With keys from a file, as the environment of a test may have its own.
async fn ask(server: &Server) -> (Upstream, Result<Option<bytes::Bytes>, Error>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, CREDENTIALS).unwrap();
    let upstream = upstream(&bucket(server), &format!("credentials-file = {file:?}"));
    let answer = upstream.narinfo(key()).await;
    (upstream, answer)
}

#[tokio::test]
async fn a_question_is_signed_and_goes_to_the_key() {
    let server = Server::start(|_| ok("text")).await;
    let (upstream, answer) = ask(&server).await;
    assert_eq!(answer.unwrap().unwrap(), "text");
    assert_eq!(whole(&upstream, "nar/a+b.nar?x=y", None).await.unwrap(), "text");
    upstream.document("realisations/sha256:0!out.doi", DOCUMENT_LEN_MAX).await.unwrap();
    assert_eq!(
        server.paths(),
        [
            format!("/nix-cache/{KEY}.narinfo"),
            "/nix-cache/nar/a%2Bb.nar".to_owned(),
            "/nix-cache/realisations/sha256%3A0%21out.doi".to_owned(),
        ]
    );
    let headers = server.questions().remove(0).headers;
    let authorization = headers.get("authorization").unwrap().to_str().unwrap();
    assert!(authorization.contains("Credential=AKID/"), "{authorization}");
    assert!(authorization.contains("/home/s3/aws4_request"), "{authorization}");
    assert!(headers.contains_key("x-amz-content-sha256"));
}

#[tokio::test]
async fn absence_is_told_from_refusal_by_the_code() {
    let check = async |code: u16, name: &'static str, state: Option<HealthState>| {
        let server = Server::start(move |_| match name {
            "" => status(code),
            _ => s3_error(code, name),
        })
        .await;
        let (_, answer) = ask(&server).await;
        match (answer, state) {
            (Ok(None), None) => {}
            (Err(error), Some(state)) => assert_eq!(error.verdict(), Some(state), "{code} {name}"),
            (answer, _) => panic!("{code} {name}: {answer:?}"),
        }
    };
    check(404, "NoSuchKey", None).await;
    check(404, "", None).await;
    check(403, "AccessDenied", None).await;
    check(403, "", None).await;
    check(404, "NoSuchBucket", Some(HealthState::Refusing)).await;
    check(403, "SignatureDoesNotMatch", Some(HealthState::Refusing)).await;
    check(403, "InvalidAccessKeyId", Some(HealthState::Refusing)).await;
    check(400, "ExpiredToken", Some(HealthState::Refusing)).await;
    check(400, "AuthorizationHeaderMalformed", Some(HealthState::Refusing)).await;
    check(301, "PermanentRedirect", Some(HealthState::Refusing)).await;
    check(503, "SlowDown", Some(HealthState::Down)).await;
    check(500, "InternalError", Some(HealthState::Down)).await;
}

#[tokio::test]
async fn a_wrong_clock_is_named_and_may_pass() {
    let server = Server::start(|_| s3_error(403, "RequestTimeTooSkewed")).await;
    let (_, answer) = ask(&server).await;
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::Clock { .. }) && error.is_transient());
    let text = error.to_string();
    assert!(text.contains("clock") && text.contains("12:00:00 GMT"), "{text}");
}

#[tokio::test]
async fn another_key_than_the_buckets_is_not_reached() {
    let server = Server::start(|_| ok("x")).await;
    let (upstream, _) = ask(&server).await;
    for url in ["../other/x", "nar/%2e%2e/%2e%2e/x", "/x", "s3://other/x", "http://127.0.0.2/x"] {
        assert!(matches!(upstream.nar(url, None).await, Err(Error::Url { .. })), "{url}");
    }
    assert_eq!(server.questions().len(), 1);
}

#[tokio::test]
async fn an_absolute_url_is_asked_without_signature() {
    let server = Server::start(|_| ok("nar")).await;
    let (upstream, _) = ask(&server).await;
    assert_eq!(whole(&upstream, &format!("{}/x", server.url), None).await.unwrap(), "nar");
    assert!(server.questions().remove(1).headers.get("authorization").is_none());
}

#[tokio::test]
async fn without_credentials_a_bucket_is_asked_anonymously() {
    let server = Server::start(|_| ok("text")).await;
    let parsed = Bucket::parse(&bucket(&server)).unwrap();
    let transport = Transport::new(&parsed.base, &client::tls(None).unwrap(), false);
    let http = Http::new(parsed.base.clone(), HeaderMap::new(), transport);
    // Whatever this machine's own environment has.
    let provider = Provider::new(None, None, |_| None);
    let (mut upstream, _) = ask(&server).await;
    let kind = Kind::S3(Box::new(S3::new(parsed, provider, http)));
    Arc::get_mut(&mut upstream.inner).unwrap().kind = kind;
    assert_eq!(upstream.narinfo(key()).await.unwrap().unwrap(), "text");
    assert!(server.questions().remove(1).headers.get("authorization").is_none());
}

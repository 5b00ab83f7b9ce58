//! Upstreams against a small server in this process; loopback only.

mod bucket;
mod folder;
mod http;
mod put;
mod put_folder;
mod s3;
mod server;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use server::Server;
use tokio::sync::Semaphore;

use super::{Config, Error, HealthState, PATIENCE, Patience, Proof, Resume, Upstream};
use crate::metrics::Metrics;
use crate::nix::{StoreDir, StorePathHash};

const KEY: &str = "0s266z35rvqgdz0nisk38kb5xbivg3s0";

fn key() -> StorePathHash {
    StorePathHash::parse(KEY).unwrap()
}

/// A configuration by its TOML text, unsigned.
fn config(url: &str, more: &str) -> Config {
    toml::from_str(&format!("url = {url:?}\nunsigned = true\n{more}")).unwrap()
}

fn upstream(url: &str, more: &str) -> Upstream {
    Upstream::new(&config(url, more), &StoreDir::default(), &Metrics::new()).unwrap()
}

/// One that loses patience after a moment.
fn impatient(url: &str, patience: Patience) -> Upstream {
    let mut upstream = upstream(url, "");
    Arc::get_mut(&mut upstream.inner).unwrap().patience = patience;
    upstream
}

async fn whole(upstream: &Upstream, url: &str, resume: Option<Resume>) -> Result<Bytes, Error> {
    let mut body = upstream.nar(url, resume).await?.expect("the NAR is there");
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

#[test]
fn an_upstream_says_whom_it_trusts() {
    let store_dir = StoreDir::default();
    let new = |text: &str| {
        let config: Config = toml::from_str(text).unwrap();
        Upstream::new(&config, &store_dir, &Metrics::new())
    };
    let url = "url = \"https://me:secret@h.example/a?x=y\"\n";
    let error = new(url).err().unwrap().to_string();
    assert!(error.contains("trusted-public-keys") && error.contains("unsigned = true"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    let signed = "trusted-public-keys = \
        [\"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"]\n";
    let upstream = new(&format!("{url}{signed}")).unwrap();
    assert_eq!(upstream.trusted_keys().unwrap().keys().len(), 1);
    assert_eq!(&**upstream.url(), "https://h.example/a");
    assert!(new(&format!("{url}{signed}unsigned = true")).is_err());
    assert!(new(&format!("{url}trusted-public-keys = [\"nonsense\"]")).is_err());
    assert!(new(&format!("{url}unsigned = true")).unwrap().trusted_keys().is_none());
}

#[test]
fn what_is_wrong_in_a_table_is_said_with_its_key_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "Bearer-secret").unwrap();
    let check = |url: &str, more: &str, wanted: &str| {
        let made = Upstream::new(&config(url, more), &StoreDir::default(), &Metrics::new());
        let error = made.err().unwrap().to_string();
        assert!(error.contains(wanted), "{error} should have {wanted}");
        assert!(!error.contains("secret"), "{error}");
    };
    let is = |key: &str| format!("{key} = {:?}", file.to_str().unwrap());
    let missing = |key: &str| format!("{key} = \"/nowhere/x\"");
    let https = "https://h.example";
    check(https, &missing("ca-file"), "ca-file /nowhere/x");
    check(https, &is("ca-file"), "no certificate");
    check(https, &missing("netrc-file"), "netrc-file /nowhere/x");
    check(https, &is("netrc-file"), "machine h.example");
    check(https, &missing("headers-file"), "headers-file /nowhere/x");
    check(https, &is("headers-file"), "line 1");
    check(https, &is("credentials-file"), "credentials-file does nothing");
    check("s3://b", &is("netrc-file"), "netrc-file does nothing");
    check("s3://b", &missing("credentials-file"), "credentials-file");
    check("file:///x", &is("ca-file"), "ca-file does nothing");
    check("file://x/y", "", "three slashes");
    check("ftp://h.example", "", "file:///");
    check("https://", "", "does not parse");
    check("s3://b/c", "", "no path");
}

#[tokio::test]
async fn an_upstream_in_trouble_rests_and_is_well_with_one_answer() {
    let server = Server::start(|_| server::status(500)).await;
    let metrics = Metrics::new();
    let config = config(&server.url, "");
    let upstream = Upstream::new(&config, &StoreDir::default(), &metrics).unwrap();
    for _ in 0..3 {
        assert!(matches!(upstream.narinfo(key()).await, Err(Error::Status { status: 500, .. })));
    }
    assert!(upstream.is_resting());
    assert!(matches!(upstream.narinfo(key()).await, Err(Error::Resting { .. })));
    assert_eq!(server.questions().len(), 3);
    let health = upstream.health();
    assert_eq!(health.state, HealthState::Down);
    assert!(health.last_error.unwrap().contains("500"));
    let up = |metrics: &Metrics, n: u8| {
        let line = format!("upstream_up{{upstream=\"{}\"}} {n}", server.url);
        assert!(metrics.text().contains(&line), "{}", metrics.text());
    };
    up(&metrics, 0);
    upstream.inner.record_success();
    up(&metrics, 1);
    assert!(!upstream.is_resting());
}

#[tokio::test]
async fn a_silent_upstream_is_trouble_also_when_the_asker_gives_up_first() {
    let server = Server::start(|_| server::silence()).await;
    let moment = Duration::from_millis(20);
    let never = Duration::from_hours(1);
    let upstream =
        impatient(&server.url, Patience { slow: never, answer: moment, given_up: never });
    for _ in 0..3 {
        assert!(matches!(upstream.narinfo(key()).await, Err(Error::Silent { .. })));
    }
    assert_eq!(upstream.health().state, HealthState::Down);

    let upstream =
        impatient(&server.url, Patience { slow: never, answer: never, given_up: moment });
    for _ in 0..3 {
        assert!(tokio::time::timeout(moment * 2, upstream.narinfo(key())).await.is_err());
    }
    assert_eq!(upstream.health().state, HealthState::Down);

    let upstream = impatient(&server.url, Patience { slow: never, answer: never, given_up: never });
    for _ in 0..3 {
        assert!(tokio::time::timeout(moment, upstream.narinfo(key())).await.is_err());
    }
    assert_eq!(upstream.health().state, HealthState::Up);
}

#[tokio::test]
async fn nobody_there_is_trouble_that_may_pass() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let upstream = upstream(&format!("http://me:secret@{address}"), "");
    let error = upstream.narinfo(key()).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }) && error.is_transient(), "{error}");
    assert!(error.chain().contains("refused"), "{}", error.chain());
    assert!(!error.chain().contains("secret"));
}

#[tokio::test]
async fn a_silent_upstream_is_trouble_before_its_questions_end_and_one_trouble_each() {
    let server = Server::start(|_| server::silence()).await;
    let (slow, never) = (Duration::from_millis(20), Duration::from_hours(1));
    let upstream = impatient(&server.url, Patience { slow, answer: never, given_up: slow });
    let two = async { tokio::join!(upstream.narinfo(key()), upstream.narinfo(key())) };
    assert!(tokio::time::timeout(slow * 5, two).await.is_err());
    assert!(upstream.health().last_error.unwrap().contains("no answer"));
    assert_eq!(upstream.health().state, HealthState::Up, "two questions are two troubles");
    let third = upstream.narinfo(key());
    assert!(tokio::time::timeout(slow * 5, third).await.is_err());
    assert!(upstream.is_resting());
    assert_eq!(upstream.health().state, HealthState::Down);
}

#[tokio::test]
async fn an_answer_that_comes_late_is_an_answer_and_ends_the_rest() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let server = Server::start(move |_| {
        let held = Arc::clone(&held);
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            server::status(404).await
        })
    });
    let patience = Patience { slow: Duration::from_millis(20), ..PATIENCE };
    let server = server.await;
    let upstream = impatient(&server.url, patience);
    let ask = async || upstream.narinfo(key()).await;
    let open = async {
        while !upstream.is_resting() {
            tokio::task::yield_now().await;
        }
        assert_eq!(upstream.health().state, HealthState::Down);
        gate.add_permits(3);
    };
    let (first, second, third, ()) = tokio::join!(ask(), ask(), ask(), open);
    assert!(matches!((first, second, third), (Ok(None), Ok(None), Ok(None))));
    assert_eq!(upstream.health().state, HealthState::Up);
    assert!(!upstream.is_resting());
}

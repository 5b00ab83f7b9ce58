//! One fetch for each NAR, however many clients ask, at whatever speed (promise 7).

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use snowberry::nix::Compression;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::made::Made;
use crate::world::fault::Fault;
use crate::{Lab, SOON};

/// Far less than any NAR here, and more than a row that has landed.
const HELD_AT: usize = 400_000;

/// More than what all socket buffers between two processes hold (4 to 10 MiB on Linux).
const BEYOND_BUFFERS: usize = 24 << 20;

/// The rest of a body, and whether it ended cleanly.
async fn rest(mut body: Incoming) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (all, false) };
        all.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
    }
    (all, true)
}

#[tokio::test]
async fn fifty_clients_that_miss_at_once_cause_one_fetch() {
    let made = Made::noise("fifty", 2_000_000);
    let lab = Lab::of([&made]).await;
    lab.upstream.fault("/nar/", Fault::Held(HELD_AT));
    assert!(lab.narinfo(&made).await.is_some());
    let (mut tasks, mut readers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..50 {
        let response = lab.snowberry.client().open(&made.nar_url(), &mut tasks).await;
        assert_eq!(response.status(), 200);
        readers.spawn(rest(response.into_body()));
    }
    // All of them wait for bytes that the upstream has not sent.
    lab.upstream.release();
    while let Some(read) = readers.join_next().await {
        let (body, whole) = read.unwrap();
        assert!(whole && made.is_in(&body));
    }
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_the_fetch() {
    let made = Made::noise("leaves", 2_000_000);
    let lab = Lab::of([&made]).await;
    lab.upstream.fault("/nar/", Fault::Held(HELD_AT));
    assert!(lab.narinfo(&made).await.is_some());
    let mut tasks = JoinSet::new();
    drop(lab.snowberry.client().open(&made.nar_url(), &mut tasks).await);
    tasks.shutdown().await;
    lab.upstream.release();
    lab.until_held(&made).await;
    lab.fetch(&made).await;
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn a_client_that_comes_late_follows_from_the_start() {
    let made = Made::noise("late", 2_000_000);
    let lab = Lab::of([&made]).await;
    lab.upstream.fault("/nar/", Fault::Held(1_500_000));
    assert!(lab.narinfo(&made).await.is_some());
    let mut tasks = JoinSet::new();
    let mut first = lab.snowberry.client().open(&made.nar_url(), &mut tasks).await.into_body();
    let mut read = 0;
    while read < 1_000_000 {
        let frame = timeout(SOON, first.frame()).await.unwrap().unwrap().unwrap();
        read += frame.data_ref().unwrap().len();
    }
    let late = lab.snowberry.client().open(&made.nar_url(), &mut tasks).await.into_body();
    lab.upstream.release();
    let (body, whole) = rest(late).await;
    assert!(whole && made.is_in(&body));
    assert!(rest(first).await.1);
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn a_reader_that_stops_reading_a_fill_stops_nobody() {
    let made = Made::noise("stops", BEYOND_BUFFERS).packed(Compression::None);
    let other = Made::noise("other", 100_000);
    let lab = Lab::of([&made, &other]).await;
    assert!(lab.narinfo(&made).await.is_some());
    let mut tasks = JoinSet::new();
    let stopped = lab.snowberry.client().open(&made.nar_url(), &mut tasks).await.into_body();
    let started = Instant::now();
    lab.fetch(&made).await;
    lab.fetch(&other).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    lab.until_held(&made).await;
    assert_eq!(lab.upstream.asked(&made.file_url()), 1);
    // It may go on, and gets the same NAR.
    let (body, whole) = rest(stopped).await;
    assert!(whole && made.is_in(&body));
}

#[tokio::test]
async fn readers_of_a_held_nar_that_stop_reading_stop_nobody() {
    let made = Made::noise("stopped", BEYOND_BUFFERS).packed(Compression::None);
    let lab = Lab::of([&made]).await;
    lab.fetch(&made).await;
    lab.until_held(&made).await;
    let mut tasks = JoinSet::new();
    let mut stopped = Vec::new();
    // More than there are threads that read rows.
    for _ in 0..8 {
        stopped.push(lab.snowberry.client().open(&made.nar_url(), &mut tasks).await);
    }
    let started = Instant::now();
    lab.fetch(&made).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn two_fills_of_one_nar_under_two_paths_are_one() {
    let made = Made::noise("first-of-two", 2_000_000);
    let twin = made.twin("second-of-two");
    let lab = Lab::of([&made, &twin]).await;
    lab.upstream.fault("/nar/", Fault::Held(HELD_AT));
    assert!(lab.narinfo(&made).await.is_some() && lab.narinfo(&twin).await.is_some());
    let mut tasks = JoinSet::new();
    let first = lab.snowberry.client().open(&made.nar_url(), &mut tasks).await;
    let second = lab.snowberry.client().open(&twin.nar_url(), &mut tasks).await;
    lab.upstream.release();
    for response in [first, second] {
        let (body, whole) = rest(response.into_body()).await;
        assert!(whole && made.is_in(&body));
    }
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn all_followers_of_a_wrong_nar_are_cut() {
    let made = Made::noise("promised", 2_000_000);
    let lab = Lab::of([&made.clone().in_file(Made::noise("delivered", 2_000_000).file)]).await;
    lab.upstream.fault("/nar/", Fault::Held(HELD_AT));
    assert!(lab.narinfo(&made).await.is_some());
    let (mut tasks, mut readers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..10 {
        let response = lab.snowberry.client().open(&made.nar_url(), &mut tasks).await;
        readers.spawn(rest(response.into_body()));
    }
    lab.upstream.release();
    while let Some(read) = readers.join_next().await {
        assert!(!read.unwrap().1, "a wrong NAR ended cleanly");
    }
    assert!(!lab.is_held(&made).await);
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn the_questions_of_many_clients_for_one_narinfo_are_one() {
    let made = Made::noise("asked-often", 100_000);
    let lab = Lab::of([&made]).await;
    let mut clients = JoinSet::new();
    let url = made.narinfo_url();
    for _ in 0..30 {
        let (client, url) = (lab.snowberry.client(), url.clone());
        clients.spawn(async move { client.get(&url).await.status });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    let asked = lab.upstream.asked(&url);
    assert_eq!(asked, 1, "one question would do");
    assert_eq!(lab.upstream.asked("/nar/"), 0);
}

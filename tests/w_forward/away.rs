//! The cache goes, freezes, comes back; nobody waits for it longer than a second, and nobody sends
//! packets for each question.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::made::Made;
use super::world::{Forward, Netns, Settings, until};
use super::{Lab, made, signal};

/// An answer that waits for nobody.
const AT_ONCE: Duration = Duration::from_millis(100);

/// The second of silence after which a cache is lost, and what a busy machine adds.
const LOST_AFTER: Duration = Duration::from_millis(1_800);

/// How long until a cache that is back is used.
const BACK_AFTER: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_cache_that_never_answers_costs_one_second_once() {
    // Listens and never accepts: packets are answered, questions are not.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = Forward::to(&format!("http://{}", silent.local_addr().unwrap())).await;
    let first = forward.narinfo("00000000000000000000000000000000").await;
    assert_eq!(first.status, 404);
    assert!(first.all_after < LOST_AFTER, "{:?}", first.all_after);
    for _ in 0..20 {
        let next = forward.narinfo("00000000000000000000000000000000").await;
        assert_eq!(next.status, 404);
        assert!(next.all_after < AT_ONCE, "{:?}", next.all_after);
    }
}

#[tokio::test]
async fn questions_while_it_is_away_send_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let forward = Forward::to(&format!("http://{address}")).await;
    assert_eq!(forward.narinfo("0").await.status, 404);
    let began = Instant::now();
    let mut questions = 0;
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(forward.narinfo("0").await.status, 404);
        questions += 1;
    }
    // The first probe, and those after 0.25, 0.75 and 1.75 s.
    let packets = count.load(Ordering::Relaxed);
    assert!(questions > 100 && packets <= 5, "{packets} connections for {questions} questions");
}

#[tokio::test]
async fn what_was_killed_is_404_at_once_and_used_again_without_a_restart() {
    let made = Made::noise("killed", 1000);
    let mut lab = Lab::of(&[&made]).await;
    let forward = Forward::to(&lab.snowberry.url()).await;
    let hash = made.store_path_hash().to_string();
    forward.here(&hash, Duration::from_secs(5)).await;
    lab.snowberry.kill();
    for _ in 0..10 {
        let answer = forward.narinfo(&hash).await;
        assert_eq!(answer.status, 404);
        assert!(answer.all_after < AT_ONCE, "{:?}", answer.all_after);
    }
    let again = Settings::new()
        .upstream(&lab.upstream.url(), &made::public_key())
        .set(&format!("listen=[\"{}\"]", lab.snowberry.address));
    lab.snowberry.restart_with(again).await;
    forward.here(&hash, BACK_AFTER).await;
}

#[tokio::test]
async fn what_is_frozen_costs_one_second_and_is_used_when_it_thaws() {
    let made = Made::noise("frozen", 1000);
    let lab = Lab::of(&[&made]).await;
    let forward = Forward::to(&lab.snowberry.url()).await;
    let hash = made.store_path_hash().to_string();
    forward.here(&hash, Duration::from_secs(5)).await;
    signal("STOP", lab.snowberry.pid());
    // As Nix does: many at once.
    let mut many = JoinSet::new();
    for _ in 0..25 {
        let (client, path) = (forward.client(), made.narinfo_url());
        many.spawn(async move { client.get(&path).await });
    }
    while let Some(answer) = many.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 404);
        assert!(answer.all_after < LOST_AFTER, "{:?}", answer.all_after);
    }
    let next = forward.narinfo(&hash).await;
    assert!(next.status == 404 && next.all_after < AT_ONCE, "{:?}", next.all_after);
    signal("CONT", lab.snowberry.pid());
    forward.here(&hash, BACK_AFTER).await;
}

#[tokio::test]
async fn a_pulled_cable_costs_one_second_and_a_plugged_one_is_used() {
    let made = Made::noise("cable", 1000);
    let cache = made::MadeCache::of([&made]);
    let netns = Netns::new();
    let folder = format!("file://{}", cache.root().display());
    let snowberry = Settings::new()
        .upstream(&folder, &made::public_key())
        .set(&format!("listen=[\"{}:0\"]", netns.inside()))
        .inside(&netns.name)
        .start()
        .await;
    let forward = Forward::to(&snowberry.url()).await;
    let hash = made.store_path_hash().to_string();
    forward.here(&hash, Duration::from_secs(5)).await;
    netns.pull();
    let lost = forward.narinfo(&hash).await;
    assert_eq!(lost.status, 404);
    assert!(lost.all_after < LOST_AFTER, "{:?}", lost.all_after);
    let next = forward.narinfo(&hash).await;
    assert!(next.status == 404 && next.all_after < AT_ONCE, "{:?}", next.all_after);
    netns.plug();
    forward.here(&hash, BACK_AFTER).await;
}

#[tokio::test]
async fn a_changed_address_makes_a_probe_and_no_question_waits() {
    let netns = Netns::new();
    // Another network of this machine that comes and goes is heard of.
    let forward = Forward::to(&format!("http://{}:9", netns.inside())).await;
    assert_eq!(forward.narinfo("0").await.status, 404);
    let other = Netns::new();
    forward.log_line(&["links changed"], Duration::from_secs(5)).await;
    let answer = forward.narinfo("0").await;
    assert!(answer.all_after < AT_ONCE, "{:?}", answer.all_after);
    drop(other);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_absent() {
    let made = Made::noise("half", 1000);
    let cache = made::MadeCache::of([&made]);
    let upstream = super::Scripted::serve(cache.root()).await;
    let forward = Forward::to(&upstream.url()).await;
    forward.here(&made.store_path_hash().to_string(), Duration::from_secs(5)).await;
    for fault in [
        super::world::Fault::Cut(100),
        super::world::Fault::Closed,
        super::world::Fault::Status(503),
        super::world::Fault::Status(429),
        super::world::Fault::Status(202),
    ] {
        upstream.heal();
        upstream.fault(".narinfo", fault);
        let answer = forward.client().get(&made.narinfo_url()).await;
        assert_eq!((answer.status, answer.whole), (404, true), "{fault:?}");
    }
    upstream.heal();
    forward.here(&made.store_path_hash().to_string(), BACK_AFTER).await;
}

#[tokio::test]
async fn joining_while_it_runs_is_enough() {
    let made = Made::noise("joined", 1000);
    let lab = Lab::of(&[&made]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("joined.toml");
    let set = format!("forward.joined-file={:?}", file.display().to_string());
    let forward = Forward::with(&["mdns.enabled=false", &set]).await;
    assert_eq!(forward.client().get(&made.narinfo_url()).await.status, 404);
    let joined = snowberry::forward::Joined {
        name: "snowberry".into(),
        host: "127.0.0.1".into(),
        port: lab.snowberry.address.port(),
        tls_port: None,
        ca_file: None,
        ca_sha256: None,
        public_key: None,
        addresses: vec![lab.snowberry.address.ip()],
    };
    std::fs::write(&file, joined.to_string()).unwrap();
    until("what was joined to be used", BACK_AFTER, || async {
        (forward.client().get(&made.narinfo_url()).await.status == 200).then_some(())
    })
    .await;
}

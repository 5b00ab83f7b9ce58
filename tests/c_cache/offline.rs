//! Without any upstream: what is held is served, the rest is 404 at once, and status says so
//! (promise 9).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::made::Made;
use crate::world::fault::Fault;
use crate::{Lab, NARINFO_LIMIT, SOON, until};

/// "At once": no waiting for anybody, on a loaded machine.
const AT_ONCE: Duration = Duration::from_millis(500);

async fn check_offline(noticed_within: Duration, cut: impl FnOnce(&Lab)) {
    let made = Made::noise("held", 800_000);
    let missing = Made::noise("not-held", 1_000);
    let half_known = Made::noise("narinfo-only", 1_000);
    let lab = Lab::of([&made, &missing, &half_known]).await;
    let body = lab.fetch(&made).await.body;
    lab.until_held(&made).await;
    assert!(lab.narinfo(&half_known).await.is_some());
    assert!(lab.snowberry.status().await["offline_since_s"].is_null());
    cut(&lab);
    let first = lab.snowberry.client().get(&missing.narinfo_url()).await;
    assert!(first.status == 404 && first.all_after <= NARINFO_LIMIT, "{:?}", first.all_after);
    let mut clients = JoinSet::new();
    for n in 0..10 {
        // Other paths, as a client asks for a closure.
        let (client, url) =
            (lab.snowberry.client(), Made::noise(&format!("gone-{n}"), 1).narinfo_url());
        clients.spawn(async move { client.get(&url).await });
    }
    while let Some(answer) = clients.join_next().await {
        let answer = answer.unwrap();
        assert!(
            answer.status == 404 && answer.all_after <= NARINFO_LIMIT,
            "{:?}",
            answer.all_after
        );
    }
    let polls = AtomicUsize::new(0);
    until("404 at once and offline_since_s", noticed_within, || async {
        // Another path each time: a question that runs already is waited for.
        let poll = polls.fetch_add(1, Ordering::Relaxed);
        let other = Made::noise(&format!("poll-{poll}"), 1);
        let answer = lab.snowberry.client().get(&other.narinfo_url()).await;
        assert_eq!(answer.status, 404);
        let since = lab.snowberry.status().await["offline_since_s"].as_u64();
        (answer.all_after < AT_ONCE && since.is_some()).then_some(())
    })
    .await;
    let started = Instant::now();
    assert!(lab.narinfo(&made).await.is_some());
    assert_eq!(lab.nar(&half_known).await.status, 404);
    assert!(started.elapsed() < NARINFO_LIMIT, "{:?}", started.elapsed());
    assert!(lab.fetch(&made).await.body == body);
    let state = lab.snowberry.status().await["upstreams"][0]["state"].clone();
    assert_eq!(state, "down");
    lab.upstream.heal();
    until("the path after the upstream is back", SOON, async || lab.narinfo(&missing).await).await;
    lab.fetch(&missing).await;
    lab.fetch(&half_known).await;
    until("the end of offline", SOON, async || {
        lab.snowberry.status().await["offline_since_s"].is_null().then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_held_is_served_while_the_upstream_refuses() {
    check_offline(SOON, |lab| lab.upstream.refuse()).await;
}

#[tokio::test]
async fn what_is_held_is_served_while_the_upstream_is_silent() {
    check_offline(SOON, |lab| lab.upstream.fault("/", Fault::Silent)).await;
}

#[tokio::test]
async fn what_is_held_is_served_by_a_start_without_any_upstream() {
    let made = Made::noise("before-the-restart", 800_000);
    let mut lab = Lab::of([&made]).await;
    let body = lab.fetch(&made).await.body;
    lab.until_held(&made).await;
    assert!(lab.snowberry.stop().await.success());
    lab.upstream.refuse();
    lab.snowberry.restart().await;
    let what = "the first narinfo after the start";
    until(what, SOON, async || lab.narinfo(&made).await).await;
    assert!(lab.fetch(&made).await.body == body);
    let info = lab.snowberry.client().get("/nix-cache-info").await;
    assert!(info.status == 200 && info.text().contains("StoreDir: /nix/store\n"));
}

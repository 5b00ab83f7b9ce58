//! What is said of store paths, and when.

use std::time::Instant;

use super::*;

/// Less than any wait for an upstream that does not answer.
const UNHURRIED: Duration = Duration::from_secs(1);

const LIMIT: Duration = Duration::from_millis(2500);

#[tokio::test]
async fn a_narinfo_from_upstream_has_our_url_and_gets_the_file_hash_with_its_nar() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(300_000, 1), Compression::Xz);
    let before = world.expect_narinfo(&hello).await;
    assert_eq!(before.file_hash, None);
    assert_eq!(before.file_size, hello.narinfo.file_size, "an estimate for the progress bar");
    world.expect_whole(&hello).await;
    let NarAnswer::Held(held) = world.cache.nar(hello.name(), NarWant::Head).await else {
        panic!("the NAR is held");
    };
    let after = world.expect_held(&hello).await;
    assert_eq!(
        (after.file_hash, after.file_size),
        (Some(held.file_hash()), Some(held.file_size()))
    );
    assert_eq!(world.servers[0].asked(".narinfo"), 1);
    drop(held);
    world.close().await;
}

#[tokio::test]
async fn fifty_who_ask_for_one_narinfo_cause_one_question() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(100, 1), Compression::Xz);
    let many = (0..50).map(|_| world.cache.narinfo(hello.key()));
    for outcome in futures_util::future::join_all(many).await {
        assert!(outcome != Outcome::Absent);
    }
    assert_eq!(world.servers[0].asked(".narinfo"), 1);
    world.close().await;
}

#[tokio::test]
async fn an_upstream_that_never_answers_costs_a_client_less_than_the_limit() {
    let world = World::new(1).await;
    let hello = world.make("hello", noise(100, 1), Compression::Xz, Vec::new());
    world.servers[0].set(&format!("{}.narinfo", hello.key()), Answer::Silent);
    let began = Instant::now();
    assert_eq!(world.cache.narinfo(hello.key()).await, Outcome::Absent);
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    // Trouble is not remembered as absence: the question still runs, and the next client, who
    // asks anew, has the answer of an upstream that is well again.
    assert!(!world.cache.inner.memory.absent.holds(&hello.key()));
    world.put(0, &hello);
    let began = Instant::now();
    world.expect_narinfo(&hello).await;
    assert!(began.elapsed() < UNHURRIED, "{:?}", began.elapsed());
    assert_eq!(world.servers[0].asked(".narinfo"), 2);
    assert!(world.cache.inner.questions.lock().unwrap().is_empty());
    world.close().await;
}

#[tokio::test]
async fn a_slow_upstream_is_overtaken_by_the_next() {
    let world = World::new(2).await;
    let hello = world.publish(1, "hello", noise(100, 1), Compression::Xz);
    world.servers[0].set(&format!("{}.narinfo", hello.key()), Answer::Silent);
    let began = Instant::now();
    world.expect_narinfo(&hello).await;
    assert!(began.elapsed() < LIMIT);
    world.close().await;
}

#[tokio::test]
async fn absence_is_remembered_only_when_all_said_so() {
    let world = World::new(2).await;
    let key = store_path("nothing").hash();
    assert_eq!(world.cache.narinfo(key).await, Outcome::Absent);
    assert_eq!(world.cache.narinfo(key).await, Outcome::Absent);
    assert_eq!((world.servers[0].asked(".narinfo"), world.servers[1].asked(".narinfo")), (1, 1));
    let hello = world.make("hello", noise(100, 1), Compression::Xz, Vec::new());
    world.servers[0].set(&format!("{}.narinfo", hello.key()), Answer::Status(500));
    assert_eq!(world.cache.narinfo(hello.key()).await, Outcome::Absent);
    world.put(0, &hello);
    world.expect_narinfo(&hello).await;
    world.close().await;
}

#[tokio::test]
async fn what_is_not_signed_or_is_another_paths_is_not_believed_and_the_next_is_asked() {
    let world = World::new(2).await;
    let hello = world.publish(1, "hello", noise(100, 1), Compression::Xz);
    let path = format!("{}.narinfo", hello.key());
    let other = world.make("other", noise(100, 2), Compression::Xz, Vec::new());
    let unsigned = NarInfo { signatures: Vec::new(), ..hello.narinfo.clone() };
    for text in [
        other.narinfo.print(&StoreDir::default()),
        unsigned.print(&StoreDir::default()),
        "<html>hello</html>".to_owned(),
    ] {
        world.servers[0].set(&path, Answer::Whole(text.into()));
        world.expect_narinfo(&hello).await;
        world.store.withdraw_narinfo(hello.key()).await.unwrap();
        world.cache.inner.memory.forget_ready(hello.key());
        world.cache.inner.memory.absent.forget(&hello.key());
    }
    world.close().await;
}

#[tokio::test]
async fn references_are_asked_for_ahead_of_the_client() {
    let world = World::new(1).await;
    let leaf = world.publish(0, "leaf", noise(100, 1), Compression::Xz);
    let middle = world.make(
        "middle",
        noise(100, 2),
        Compression::Xz,
        vec![leaf.narinfo.store_path.clone(), store_path("missing")],
    );
    world.put(0, &middle);
    let top = [middle.narinfo.store_path.clone(), store_path("top")];
    let top = world.make("top", noise(100, 3), Compression::Xz, top.to_vec());
    world.put(0, &top);
    world.expect_narinfo(&top).await;
    while world.cache.ready_narinfo(leaf.key()).is_none() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(world.cache.narinfo(leaf.key()).await, Outcome::Hit(_)));
    assert_eq!(world.servers[0].asked(&format!("{}.narinfo", leaf.key())), 1);
    world.close().await;
}

#[tokio::test]
async fn a_promise_whose_nar_is_gone_everywhere_is_withdrawn() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(100, 1), Compression::Xz);
    world.expect_narinfo(&hello).await;
    world.servers[0].clear();
    let cache = world.restarted();
    assert_eq!(cache.narinfo(hello.key()).await, Outcome::Absent);
    assert!(world.store.lookup(hello.key()).await.unwrap().is_none());
    cache.close().await;
    world.close().await;
}

/// Time passes, and nothing happens in it.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_promise_older_than_an_hour_is_confirmed_first() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(100, 1), Compression::Xz);
    let held = world.publish(0, "held", noise(100, 2), Compression::Xz);
    world.expect_narinfo(&hello).await;
    world.expect_narinfo(&held).await;
    world.expect_whole(&held).await;
    world.servers[0].forget_asked();
    later(Duration::from_mins(59)).await;
    world.expect_narinfo(&hello).await;
    assert_eq!(world.servers[0].asked(".narinfo"), 0);
    later(Duration::from_mins(2)).await;
    world.expect_narinfo(&hello).await;
    assert_eq!(world.servers[0].asked(".narinfo"), 1);
    // What upstream said just now is good for another hour; what is held needs nobody's word.
    later(Duration::from_mins(59)).await;
    world.expect_narinfo(&hello).await;
    world.expect_narinfo(&held).await;
    assert_eq!(world.servers[0].asked(".narinfo"), 1);
    world.servers[0].clear();
    later(Duration::from_mins(2)).await;
    assert_eq!(world.cache.narinfo(hello.key()).await, Outcome::Absent);
    assert!(world.store.lookup(hello.key()).await.unwrap().is_none());
    world.expect_narinfo(&held).await;
    world.close().await;
}

#[tokio::test]
async fn a_promise_whose_upstream_is_in_trouble_is_kept_but_not_repeated() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(100, 1), Compression::Xz);
    world.expect_narinfo(&hello).await;
    world.servers[0].set(&format!("{}.narinfo", hello.key()), Answer::Status(503));
    let cache = world.restarted();
    assert_eq!(cache.narinfo(hello.key()).await, Outcome::Absent);
    assert!(world.store.lookup(hello.key()).await.unwrap().is_some());
    world.put(0, &hello);
    expect_narinfo(&cache, &hello).await;
    cache.close().await;
    world.close().await;
}

#[tokio::test]
async fn the_nar_that_was_published_first_stays_while_it_can_be_had() {
    let world = World::new(2).await;
    let first = world.publish(1, "hello", noise(100, 1), Compression::Xz);
    world.expect_narinfo(&first).await;
    let second = world.publish(0, "hello", noise(100, 2), Compression::Xz);
    let cache = world.restarted();
    expect_narinfo(&cache, &first).await;
    cache.close().await;
    world.servers[1].clear();
    let cache = world.restarted();
    expect_narinfo(&cache, &second).await;
    cache.close().await;
    world.close().await;
}

#[tokio::test]
async fn documents_are_passed_through_and_kept() {
    let world = World::new(2).await;
    world.servers[1].set("log/abc.drv", Answer::Whole("built".into()));
    let body = Bytes::from("built");
    assert_eq!(world.cache.document("log/abc.drv").await, Outcome::Miss(body.clone()));
    assert_eq!(world.cache.document("log/abc.drv").await, Outcome::Hit(body));
    assert_eq!(world.cache.document("log/none.drv").await, Outcome::Absent);
    assert_eq!(world.cache.document("log/none.drv").await, Outcome::Absent);
    assert_eq!(world.servers[1].asked("log/abc.drv"), 1);
    assert_eq!(world.servers[1].asked("log/none.drv"), 1);
    let hello = world.publish(0, "hello", noise(100, 1), Compression::Xz);
    world.expect_narinfo(&hello).await;
    world.expect_whole(&hello).await;
    assert!(matches!(world.cache.listing(hello.key()).await, Outcome::Hit(_)));
    world.close().await;
}

#[tokio::test]
async fn long_logs_are_fetched_two_at_a_time_and_what_says_nothing_keeps_no_place() {
    let world = World::new(1).await;
    let server = &world.servers[0];
    let long = Bytes::from(noise(1 << 20, 1));
    server.set("log/long.drv", Answer::Whole(long.clone()));
    server.set("realisations/long.doi", Answer::Whole(long.clone()));
    let silent: Vec<_> = (0..4).map(|n| format!("log/silent-{n}.drv")).collect();
    for path in &silent {
        server.set(path, Answer::Silent);
    }
    assert_eq!(world.cache.document("realisations/long.doi").await, Outcome::Absent);
    let slow = silent.iter().map(|path| world.cache.document(path));
    tokio::select! {
        biased;
        _ = futures_util::future::join_all(slow) => panic!("nobody answers these"),
        found = world.cache.document("log/long.drv") => {
            assert_eq!(found, Outcome::Miss(long.clone()));
        }
    }
    // Once to see that it is long, once for all of it.
    assert_eq!((server.asked("log/long.drv"), server.asked("realisations")), (2, 1));
    assert_eq!(world.cache.document("log/long.drv").await, Outcome::Hit(long));
    world.close().await;
}

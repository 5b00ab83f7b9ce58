//! NARs that come as they should.

use super::*;

#[tokio::test]
async fn fifty_who_miss_one_nar_at_once_cause_one_fetch() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(2_000_000, 1), Compression::Xz);
    let many = (0..50).map(|_| world.whole(&hello));
    for nar in futures_util::future::join_all(many).await {
        assert!(nar.unwrap().unwrap() == hello.nar);
    }
    assert_eq!(world.servers[0].asked("nar/"), 1);
    world.close().await;
}

#[tokio::test]
async fn a_url_answers_where_its_narinfo_was_never_seen() {
    let world = World::new(2).await;
    let hello = world.publish(1, "hello", noise(500_000, 1), Compression::Xz);
    world.expect_whole(&hello).await;
    world.expect_held(&hello).await;
    world.close().await;
}

#[tokio::test]
async fn a_url_whose_nar_hash_upstream_has_not_is_absent() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(1000, 1), Compression::Xz);
    let name = NarName { nar_hash: NarHash::from_bytes([3; 32]), key: hello.key() };
    assert_eq!(whole(&world.cache, name).await, Ok(None));
    world.close().await;
}

#[tokio::test]
async fn a_nar_comes_again_after_it_was_taken_away() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(500_000, 1), Compression::Xz);
    world.expect_whole(&hello).await;
    world.store.withdraw_nar(hello.narinfo.nar_hash).await.unwrap();
    world.expect_whole(&hello).await;
    assert_eq!(world.servers[0].asked("nar/"), 2);
    world.close().await;
}

#[tokio::test]
async fn what_is_held_is_served_without_any_upstream() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(500_000, 1), Compression::Xz);
    world.expect_narinfo(&hello).await;
    world.expect_whole(&hello).await;
    world.servers[0].clear();
    let cache = world.restarted();
    assert!(matches!(cache.narinfo(hello.key()).await, Outcome::Hit(_)));
    assert!(whole(&cache, hello.name()).await.unwrap().unwrap() == hello.nar);
    cache.close().await;
    world.close().await;
}

#[tokio::test]
async fn an_acceptable_zstd_file_is_kept_as_it_is() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(500_000, 1), Compression::Zstd);
    world.expect_whole(&hello).await;
    let NarAnswer::Held(held) = world.cache.nar(hello.name(), NarWant::Head).await else {
        panic!("the NAR is held");
    };
    assert_eq!(Some(held.file_hash()), hello.narinfo.file_hash);
    drop(held);
    world.close().await;
}

#[tokio::test]
async fn two_paths_with_one_nar_are_fetched_once_and_held_both() {
    let world = World::new(1).await;
    let one = world.publish(0, "one", noise(500_000, 1), Compression::Xz);
    let two = world.publish(0, "two", noise(500_000, 1), Compression::Xz);
    assert_eq!(one.narinfo.nar_hash, two.narinfo.nar_hash);
    world.expect_narinfo(&one).await;
    world.expect_narinfo(&two).await;
    world.expect_whole(&one).await;
    for published in [&one, &two] {
        world.expect_held(published).await;
        world.expect_whole(published).await;
    }
    assert_eq!(world.servers[0].asked("nar/"), 1);
    world.close().await;
}

#[tokio::test]
async fn head_and_part_start_no_fill() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(1000, 1), Compression::Xz);
    for want in [NarWant::Head, NarWant::Part] {
        assert!(matches!(world.cache.nar(hello.name(), want).await, NarAnswer::Absent));
    }
    assert_eq!(world.servers[0].asked("nar/"), 0);
    world.close().await;
}

#[tokio::test]
async fn a_fill_goes_on_when_its_client_has_left() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(3_000_000, 1), Compression::Xz);
    let answer = world.cache.nar(hello.name(), NarWant::Whole).await;
    assert!(matches!(answer, NarAnswer::Filling(_)), "{answer:?}");
    drop(answer);
    while world.store.nar(hello.narinfo.nar_hash).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.servers[0].asked("nar/"), 1);
    world.close().await;
}

#[tokio::test]
async fn a_nar_that_finds_no_room_streams_through() {
    let world = World::with_budget(1, 1 << 20).await;
    let hello = world.publish(0, "hello", noise(3_000_000, 1), Compression::Xz);
    for fetches in 1..=2 {
        world.expect_whole(&hello).await;
        assert_eq!(world.servers[0].asked("nar/"), fetches);
    }
    assert!(world.store.nar(hello.narinfo.nar_hash).await.unwrap().is_none());
    world.close().await;
}

//! NARs that go wrong at the upstream.

use super::server::Then;
use super::*;

impl World {
    /// The file behind this path at the first upstream stops so many times after so many bytes.
    fn break_file(&self, hello: &Published, first: usize, then: Then, times: usize) {
        let body = hello.file.clone();
        let answer = Answer::Partly { body, first, then, times };
        self.servers[0].set(&hello.narinfo.url, answer);
    }
}

#[tokio::test]
async fn wrong_bytes_never_end_cleanly_and_stay_nowhere() {
    let world = World::new(1).await;
    for (name, seed, compression) in [("zstd", 1, Compression::Zstd), ("xz", 2, Compression::Xz)] {
        let hello = world.publish(0, name, noise(2_000_000, seed), compression);
        let mut other = noise(2_000_000, seed);
        other[1_999_999] ^= 1;
        let other = world.make("other", other, compression, Vec::new());
        world.servers[0].set(&hello.narinfo.url, Answer::Whole(other.file.clone()));
        assert_eq!(world.whole(&hello).await, Err(Cut), "{name}");
        assert!(world.store.nar(hello.narinfo.nar_hash).await.unwrap().is_none());
        // For a minute it is not asked again.
        let fetches = world.servers[0].asked("nar/");
        assert_eq!(world.whole(&hello).await, Ok(None));
        assert_eq!(world.servers[0].asked("nar/"), fetches);
    }
    world.close().await;
}

#[tokio::test]
async fn wrong_bytes_of_a_small_nar_are_absent_and_come_from_the_next_upstream() {
    let world = World::new(2).await;
    let hello = world.publish(0, "hello", noise(1000, 1), Compression::Xz);
    let other = world.make("other", noise(1000, 2), Compression::Xz, Vec::new());
    world.servers[0].set(&hello.narinfo.url, Answer::Whole(other.file));
    world.put_narinfo(1, &hello.narinfo);
    world.servers[1].set(&hello.narinfo.url, Answer::Whole(hello.file.clone()));
    world.expect_whole(&hello).await;
    world.close().await;
}

#[tokio::test]
async fn a_transfer_that_stalls_goes_on_by_range() {
    let world = World::new(1).await;
    for (seed, compression, then) in [
        (1, Compression::Zstd, Then::Silence),
        (2, Compression::Zstd, Then::Close),
        (3, Compression::Xz, Then::Silence),
        (4, Compression::Xz, Then::Close),
    ] {
        let name = format!("hello-{seed}");
        let hello = world.publish(0, &name, noise(1_000_000, seed), compression);
        world.break_file(&hello, 700_000, then, 1);
        world.expect_whole(&hello).await;
        assert_eq!(world.servers[0].asked("from "), 1, "{compression:?} {then:?}");
        world.servers[0].forget_asked();
    }
    world.close().await;
}

#[tokio::test]
async fn a_transfer_that_stalls_for_good_goes_on_at_another_upstream() {
    let world = World::new(2).await;
    let hello = world.publish(0, "hello", noise(1_000_000, 1), Compression::Xz);
    world.break_file(&hello, 700_000, Then::Close, 2);
    let other = world.publish(1, "hello", noise(1_000_000, 1), Compression::Zstd);
    assert_eq!(other.narinfo.nar_hash, hello.narinfo.nar_hash);
    world.expect_whole(&hello).await;
    assert_eq!(world.servers[1].asked("nar/"), 1);
    world.close().await;
}

#[tokio::test]
async fn a_kept_file_goes_on_only_at_the_same_file_elsewhere() {
    let world = World::new(2).await;
    let hello = world.publish(0, "hello", noise(1_000_000, 1), Compression::Zstd);
    world.break_file(&hello, 600_000, Then::Close, 9);
    world.put(1, &hello);
    world.expect_whole(&hello).await;
    assert_eq!(world.servers[1].asked("from "), 1);
    world.close().await;
}

#[tokio::test]
async fn a_transfer_that_nobody_can_go_on_with_is_cut() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(1_000_000, 1), Compression::Zstd);
    world.break_file(&hello, 400_000, Then::Close, 9);
    assert_eq!(world.whole(&hello).await, Err(Cut));
    assert!(world.store.nar(hello.narinfo.nar_hash).await.unwrap().is_none());
    world.put(0, &hello);
    world.expect_whole(&hello).await;
    world.close().await;
}

#[tokio::test]
async fn a_file_that_moved_is_found_by_asking_for_the_narinfo_again() {
    let world = World::new(1).await;
    let hello = world.publish(0, "hello", noise(100_000, 1), Compression::Xz);
    world.expect_narinfo(&hello).await;
    world.servers[0].clear();
    let mut moved = hello.clone();
    moved.narinfo.url = "nar/elsewhere.nar.xz?x=1".to_owned();
    world.put_narinfo(0, &moved.narinfo);
    world.servers[0].set(&moved.narinfo.url, Answer::Whole(hello.file.clone()));
    world.expect_whole(&hello).await;
    world.close().await;
}

#[tokio::test]
async fn a_file_that_is_missing_stalled_or_no_nar_is_absent_before_any_byte() {
    let world = World::new(1).await;
    let answers = [
        Answer::Status(404),
        Answer::Status(500),
        Answer::Silent,
        Answer::Whole("<html>no</html>".into()),
        Answer::Whole(Bytes::new()),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let name = format!("hello-{number}");
        let hello = world.publish(0, &name, noise(100_000, 40), Compression::Xz);
        world.servers[0].set(&hello.narinfo.url, answer);
        assert_eq!(world.whole(&hello).await, Ok(None), "{name}");
    }
    world.close().await;
}

#[tokio::test]
async fn a_file_that_fails_at_its_head_or_ends_early_is_asked_for_again_at_once() {
    let world = World::new(1).await;
    for (seed, compression) in
        [(1, Compression::Xz), (2, Compression::Zstd), (3, Compression::None)]
    {
        let name = format!("hello-{seed}");
        let hello = world.publish(0, &name, noise(1_000_000, seed), compression);
        let half = hello.file.slice(..hello.file.len() / 2);
        for bad in [Bytes::from("<html>no</html>"), Bytes::new(), half] {
            world.servers[0].set(&hello.narinfo.url, Answer::Whole(bad));
            assert!(!matches!(world.whole(&hello).await, Ok(Some(_))), "{compression:?}");
        }
        world.put(0, &hello);
        world.expect_whole(&hello).await;
    }
    world.close().await;
}

#[tokio::test]
async fn a_promise_whose_file_is_nowhere_is_withdrawn_unless_one_is_in_trouble() {
    let world = World::new(2).await;
    let hello = world.publish(1, "hello", noise(1000, 1), Compression::Xz);
    let nar = hello.narinfo.url.clone();
    let narinfo = format!("{}.narinfo", hello.key());
    world.expect_narinfo(&hello).await;
    let is_promised = async || world.store.lookup(hello.key()).await.unwrap().is_some();
    for (path, trouble) in [(&nar, Answer::Status(500)), (&nar, Answer::Whole(Bytes::new()))] {
        world.servers[1].set(path, trouble);
        assert_eq!(world.whole(&hello).await, Ok(None));
        assert!(is_promised().await);
    }
    world.servers[1].set(&nar, Answer::Status(404));
    world.servers[0].set(&narinfo, Answer::Status(500));
    assert_eq!(world.whole(&hello).await, Ok(None));
    assert!(is_promised().await, "the other one may have it");
    world.servers[0].set(&narinfo, Answer::Status(404));
    let elsewhere = NarName { key: store_path("another").hash(), ..hello.name() };
    assert_eq!(whole(&world.cache, elsewhere).await, Ok(None));
    assert!(is_promised().await, "the question was for another path");
    assert_eq!(world.whole(&hello).await, Ok(None));
    assert!(!is_promised().await);
    assert_eq!(world.cache.narinfo(hello.key()).await, Outcome::Absent);
    world.close().await;
}

#[tokio::test]
async fn a_nar_that_was_replaced_everywhere_gives_way_to_the_new_one() {
    let world = World::new(1).await;
    let old = world.publish(0, "hello", noise(1000, 1), Compression::Xz);
    world.expect_narinfo(&old).await;
    world.servers[0].clear();
    let new = world.publish(0, "hello", noise(1000, 2), Compression::Xz);
    assert_eq!(world.whole(&old).await, Ok(None));
    world.expect_narinfo(&new).await;
    world.expect_whole(&new).await;
    world.close().await;
}

//! The scrub: what is not its NAR is withdrawn, fetched again where somebody has it, and a store that
//! is right is left as it is.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::store::{Finished, Origin, StoredNarInfo};

/// Puts a stream under the name of a path's NAR, whatever it is, with a row checksum that is right.
async fn smuggle(world: &World, published: &Published, stream: Bytes) -> HeldNar {
    let len = stream.len() as u64;
    let reservation = world.store.reserve(len).await.unwrap();
    let mut writer = world.store.begin(reservation).await.unwrap();
    let file_hash = FileHash::from_bytes(sha256(&stream));
    writer.append(stream).await.unwrap();
    let finished = Finished {
        nar_hash: published.narinfo.nar_hash,
        nar_size: published.narinfo.nar_size,
        file_hash,
        origin: Origin::Upstream,
        listing: None,
    };
    let held = writer.finish(finished).await.unwrap();
    let upstream = world.servers[0].url.clone();
    let narinfo = published.narinfo.clone();
    let stored = StoredNarInfo { narinfo, upstream, origin: Origin::Upstream };
    world.store.keep_narinfo(stored).await.unwrap();
    world.store.flush().await.unwrap();
    held
}

async fn scrub(cache: &Cache, repairs: bool) -> ScrubFound {
    cache.scrub(repairs, |_| {}).await.unwrap()
}

#[tokio::test]
async fn a_store_that_is_right_is_left_as_it_is() {
    let world = World::new(1).await;
    for (number, len) in [0, 1, 5000, 300_000, 9_000_000].into_iter().enumerate() {
        let compression = [Compression::Xz, Compression::Zstd, Compression::None][number % 3];
        let path = world.publish(0, &format!("n{number}"), noise(len, 3), compression);
        world.expect_whole(&path).await;
    }
    world.store.flush().await.unwrap();
    let before = world.store.figures();
    let found = scrub(&world.cache, true).await;
    assert_eq!(found, ScrubFound { checked: 5, ..ScrubFound::default() });
    world.store.flush().await.unwrap();
    let after = store::Figures { disk_free_bytes: before.disk_free_bytes, ..world.store.figures() };
    assert_eq!(after, before, "it wrote, or removed");
    let state = world.cache.scrub_state();
    assert_eq!((state.is, state.found, state.repaired), (ScrubIs::Off, 0, 0));
    assert!(state.last_done_s.is_some_and(|since| since < 60));
    assert!(world.cache.inner.metrics.scrubbed_bytes.get() > 9_000_000);
    world.close().await;
}

#[tokio::test]
async fn what_is_another_nar_is_withdrawn_and_fetched_again() {
    let world = World::new(1).await;
    let right = world.publish(0, "right", noise(400_000, 1), Compression::Xz);
    world.expect_whole(&right).await;
    let other = world.make("other", noise(700_000, 2), Compression::Zstd, Vec::new());
    let longer = [&other.file[..], &other.file[..]].concat();
    let streams = [
        // A whole NAR that is another one, one that is longer, one that ends early, and no stream.
        other.file.clone(),
        longer.into(),
        other.file.slice(..400_000),
        Bytes::from_static(b"this is no stream of zstd at all, whatever its checksum says"),
    ];
    for (number, stream) in streams.into_iter().enumerate() {
        let name = format!("wrong-{number}");
        let wrong = world.publish(0, &name, noise(700_000, 5), Compression::Xz);
        let reader = smuggle(&world, &wrong, stream).await;
        assert!(world.expect_narinfo(&wrong).await.file_hash.is_some());
        let found = scrub(&world.cache, true).await;
        assert_eq!((found.found, found.repaired, found.unrepaired), (1, 1, 0), "{name}");
        assert!(matches!(reader.read(0).await, Err(store::Error::Corrupt(_))), "{name}");
        drop(reader);
        // Held anew, and its narinfo says so.
        world.servers[0].set(&wrong.narinfo.url, Answer::Status(404));
        world.expect_whole(&wrong).await;
        let said = world.expect_held(&wrong).await.file_hash;
        let held = world.store.nar(wrong.narinfo.nar_hash).await.unwrap().unwrap();
        assert_eq!(said, Some(held.file_hash()));
        drop(held);
        world.store.withdraw_nar(wrong.narinfo.nar_hash).await.unwrap();
    }
    assert_eq!(world.cache.inner.metrics.corrupt.get(), 4);
    assert_eq!(world.cache.inner.metrics.repaired.get(), 4);
    let state = world.cache.scrub_state();
    assert_eq!((state.found, state.repaired), (4, 4));
    world.expect_whole(&right).await;
    world.close().await;
}

#[tokio::test]
async fn what_nobody_has_is_withdrawn_and_not_promised_any_more() {
    let world = World::new(1).await;
    let lost = world.make("lost", noise(100_000, 1), Compression::Xz, Vec::new());
    let other = world.make("other", noise(100_000, 2), Compression::Zstd, Vec::new());
    drop(smuggle(&world, &lost, other.file.clone()).await);
    let found = scrub(&world.cache, true).await;
    assert_eq!((found.found, found.repaired, found.unrepaired), (1, 0, 1));
    assert_eq!(world.cache.narinfo(lost.key()).await, Outcome::Absent);
    assert!(world.whole(&lost).await.unwrap().is_none());
    // It is not tried for ever, but told by its name until it is here.
    assert_eq!(world.cache.inner.scrub.waiting_repairs(), 0);
    let unrepaired = world.cache.scrub_state().unrepaired;
    assert_eq!(unrepaired.count, 1);
    assert!(unrepaired.named[0].0.ends_with("-lost"), "{unrepaired:?}");
    // As when a minute has passed.
    world.cache.inner.memory.forget_absences();
    world.put(0, &lost);
    world.expect_whole(&lost).await;
    assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default());
    world.close().await;
}

#[tokio::test]
async fn what_a_client_hears_first_is_told_by_its_name_too() {
    let world = World::new(1).await;
    let lost = world.make("lost", noise(100_000, 1), Compression::Xz, Vec::new());
    let other = world.make("other", noise(100_000, 2), Compression::Zstd, Vec::new());
    drop(smuggle(&world, &lost, other.file.clone()).await);
    assert_eq!(scrub(&world.cache, false).await.found, 1);
    assert!(world.whole(&lost).await.unwrap().is_none());
    assert!(world.store.lookup(lost.key()).await.unwrap().is_none());
    assert_eq!(scrub(&world.cache, true).await.unrepaired, 1);
    let unrepaired = world.cache.scrub_state().unrepaired;
    assert_eq!((unrepaired.count, unrepaired.nowhere), (1, 1));
    assert!(unrepaired.named[0].0.ends_with("-lost"), "{unrepaired:?}");
    // Nor is it told any more when it came.
    push(&world, &lost).await;
    assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default());
    world.close().await;
}

#[tokio::test]
async fn what_cannot_be_fetched_now_is_fetched_later() {
    let world = World::new(1).await;
    let wrong = world.publish(0, "wrong", noise(100_000, 1), Compression::Xz);
    let other = world.make("other", noise(100_000, 2), Compression::Zstd, Vec::new());
    drop(smuggle(&world, &wrong, other.file.clone()).await);
    world.servers[0].set(&wrong.narinfo.url, Answer::Status(503));
    let found = scrub(&world.cache, true).await;
    assert_eq!((found.found, found.repaired, found.unrepaired), (1, 0, 1));
    assert_eq!(world.cache.scrub_state().unrepaired.count, 1);
    world.put(0, &wrong);
    // The next one has nothing to find, and this to fetch.
    let cache = &world.cache;
    let repaired = async {
        loop {
            let found = scrub(cache, true).await;
            assert_eq!(found.found, 0);
            if found.repaired == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), repaired).await.unwrap();
    assert_eq!(world.cache.scrub_state().unrepaired.count, 0);
    world.expect_whole(&wrong).await;
    world.close().await;
}

/// A NAR of this content is pushed, as far as the cache hears of it.
async fn push(world: &World, published: &Published) {
    let stream = pack(Compression::Zstd, &published.nar);
    let reservation = world.store.reserve(stream.len() as u64).await.unwrap();
    let mut writer = world.store.begin(reservation).await.unwrap();
    let file_hash = FileHash::from_bytes(sha256(&stream));
    writer.append(stream).await.unwrap();
    let NarInfo { nar_hash, nar_size, .. } = published.narinfo;
    let origin = Origin::Ours;
    let finished = Finished { nar_hash, nar_size, file_hash, origin, listing: None };
    drop(writer.finish(finished).await.unwrap());
    world.cache.nar_came(nar_hash).await;
    let narinfo = published.narinfo.clone();
    let stored = StoredNarInfo { narinfo, upstream: String::new(), origin };
    world.store.keep_narinfo(stored).await.unwrap();
    world.cache.path_came(published.key());
}

/// A path whose NAR is damaged, and which the upstream answers with this; looked for once.
async fn lost(world: &World, name: &str, status: u16) -> Published {
    let lost = world.publish(0, name, noise(100_000, 1), Compression::Xz);
    let other = world.make("other", noise(100_000, 2), Compression::Zstd, Vec::new());
    drop(smuggle(world, &lost, other.file.clone()).await);
    if status == 404 {
        world.servers[0].clear();
    } else {
        world.servers[0].set(&lost.narinfo.url, Answer::Status(status));
    }
    scrub(&world.cache, true).await;
    let unrepaired = world.cache.scrub_state().unrepaired;
    let is_nowhere = status == 404;
    assert_eq!((unrepaired.count, unrepaired.nowhere), (1, u64::from(is_nowhere)), "{status}");
    assert_eq!(unrepaired.named[0].1.is_nowhere, is_nowhere, "{unrepaired:?}");
    lost
}

#[tokio::test]
async fn a_path_that_was_built_again_with_another_nar_is_not_lost() {
    for status in [404, 503] {
        let world = World::new(1).await;
        let path = lost(&world, "not-reproducible", status).await;
        let rebuilt = world.make("not-reproducible", noise(90_000, 7), Compression::Xz, Vec::new());
        assert_eq!(path.key(), rebuilt.key());
        push(&world, &rebuilt).await;
        assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default());
        // Nor is it looked for any more.
        scrub(&world.cache, true).await;
        assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default());
        assert_eq!(world.cache.inner.scrub.waiting_repairs(), 0);
        world.expect_whole(&rebuilt).await;
        world.close().await;
    }
    // The upstream may be who built it again.
    let world = World::new(1).await;
    lost(&world, "not-reproducible", 404).await;
    let rebuilt = world.publish(0, "not-reproducible", noise(90_000, 7), Compression::Xz);
    world.cache.inner.memory.forget_absences();
    world.expect_narinfo(&rebuilt).await;
    world.expect_whole(&rebuilt).await;
    assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default());
    world.close().await;
}

#[tokio::test]
async fn what_an_upstream_in_trouble_may_have_is_nowhere_once_it_says_so() {
    let world = World::new(1).await;
    let path = lost(&world, "wanted", 503).await;
    world.servers[0].clear();
    // A client hears it first.
    let nowhere = async {
        while matches!(world.cache.narinfo(path.key()).await, Outcome::Hit(_) | Outcome::Miss(_))
            || world.store.lookup(path.key()).await.unwrap().is_some()
        {
            world.cache.inner.memory.shed();
            drop(world.whole(&path).await);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), nowhere).await.unwrap();
    assert_eq!(world.cache.scrub_state().unrepaired.nowhere, 0);
    scrub(&world.cache, true).await;
    let unrepaired = world.cache.scrub_state().unrepaired;
    assert_eq!((unrepaired.count, unrepaired.nowhere), (1, 1));
    assert!(unrepaired.named[0].0.ends_with("-wanted"), "{unrepaired:?}");
    world.close().await;
}

#[tokio::test]
async fn a_lost_path_that_its_owner_lets_go_is_not_told_and_not_tried() {
    for status in [404, 503] {
        let world = World::new(1).await;
        let path = lost(&world, "unwanted", status).await;
        assert_eq!(world.cache.evict_path(path.key()).await.unwrap(), EvictedPath::NotHere);
        assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default(), "{status}");
        scrub(&world.cache, true).await;
        assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default(), "{status}");
        assert_eq!(world.cache.inner.scrub.waiting_repairs(), 0, "{status}");
        world.close().await;
    }
}

#[tokio::test]
async fn what_nobody_could_be_asked_for_is_not_called_lost() {
    let world = World::new(1).await;
    let wrong = world.publish(0, "wrong", noise(100_000, 1), Compression::Xz);
    let other = world.make("other", noise(100_000, 2), Compression::Zstd, Vec::new());
    drop(smuggle(&world, &wrong, other.file.clone()).await);
    assert_eq!(scrub(&world.cache, false).await.found, 1);
    // There is no room ...
    world.cache.inner.memory.no_room.note(wrong.narinfo.nar_hash, ());
    assert_eq!(scrub(&world.cache, true).await.unrepaired, 1);
    assert_eq!(world.cache.scrub_state().unrepaired, Unrepaired::default());
    world.cache.inner.memory.no_room.forget(&wrong.narinfo.nar_hash);
    assert_eq!(scrub(&world.cache, true).await.repaired, 1);
    world.close().await;
    // ... or no memory: when that has been so for two days, it is told all the same. Nothing else is
    // held there, whose check would wait for memory.
    let world = World::new(1).await;
    let wrong = world.publish(0, "wrong", noise(100_000, 1), Compression::Xz);
    drop(smuggle(&world, &wrong, other.file.clone()).await);
    let config = super::Config { unpack_bytes_max: 1, ..world.cache.inner.config.clone() };
    let upstreams = world.cache.inner.upstreams().to_vec();
    let poor = Cache::new(config, world.store.clone(), upstreams, Metrics::new());
    assert_eq!(scrub(&world.cache, false).await.found, 1);
    for tried in 1..=48 {
        assert_eq!(scrub(&poor, true).await.unrepaired, 1, "{tried}");
        assert_eq!(poor.scrub_state().unrepaired.count, u64::from(tried == 48), "{tried}");
    }
    assert_eq!(poor.inner.scrub.waiting_repairs(), 0);
    poor.close().await;
    world.close().await;
}

#[tokio::test]
async fn one_that_is_left_is_gone_on_with_and_two_are_not_at_once() {
    let world = World::new(1).await;
    for number in 0..6 {
        let name = format!("n{number}");
        let path = world.publish(0, &name, noise(300_000, number), Compression::Xz);
        world.expect_whole(&path).await;
    }
    world.store.flush().await.unwrap();
    let told = AtomicUsize::new(0);
    let (enough, mut is_enough) = tokio::sync::watch::channel(false);
    let first = world.cache.scrub(false, |progress| {
        if matches!(progress, ScrubProgress::Nars { .. }) {
            // Told before each NAR: two are checked then.
            if told.fetch_add(1, Ordering::Relaxed) == 2 {
                enough.send_replace(true);
            }
        }
    });
    tokio::select! {
        biased;
        _ = is_enough.wait_for(|is| *is) => {}
        _ = first => panic!("it was not left"),
    }
    let state = world.cache.scrub_state();
    assert!(state.checked_bytes > 0 && state.checked_bytes < state.of_bytes, "{state:?}");
    let second = world.cache.scrub(false, |_| {});
    let mut second = Box::pin(second);
    assert!(futures_util::poll!(&mut second).is_pending());
    let third = world.cache.scrub(false, |_| {}).await;
    assert!(matches!(third, Err(ScrubError::UnderWay)));
    assert_eq!(world.cache.scrub_state().is, ScrubIs::Running);
    let found = (&mut second).await.unwrap();
    drop(second);
    assert!(found.resumed);
    assert_eq!(found.checked + 2, 6);
    // Done; the next one reads everything.
    let found = scrub(&world.cache, false).await;
    assert_eq!((found.resumed, found.checked), (false, 6));
    world.close().await;
}

#[tokio::test]
async fn by_itself_it_reads_everything_in_its_time_and_repairs() {
    let world = World::new(1).await;
    let config = super::Config {
        scrub_every: Some(Duration::from_secs(3)),
        ..world.cache.inner.config.clone()
    };
    let upstreams = world.cache.inner.upstreams().to_vec();
    let cache = Cache::new(config, world.store.clone(), upstreams, Metrics::new());
    assert_eq!(cache.scrub_state().is, ScrubIs::Idle);
    let right = world.publish(0, "right", noise(400_000, 1), Compression::Xz);
    world.expect_whole(&right).await;
    let wrong = world.publish(0, "wrong", noise(400_000, 2), Compression::Xz);
    let other = world.make("other", noise(400_000, 3), Compression::Zstd, Vec::new());
    drop(smuggle(&world, &wrong, other.file.clone()).await);
    cache.keep_scrubbing();
    let is_done = || {
        let state = cache.scrub_state();
        state.last_done_s.is_some() && state.repaired == 1
    };
    let done = async {
        while !is_done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), done).await.unwrap();
    assert_eq!(cache.scrub_state().found, 1);
    world.expect_whole(&wrong).await;
    cache.close().await;
    world.close().await;
}

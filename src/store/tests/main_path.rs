//! Keep, look up, fill, follow, read, reopen.

use bytes::Bytes;

use super::kit::*;
use crate::store::layout::ROW_BODY;
use crate::store::{Error, Origin, State};

const BUDGET: u64 = 1 << 30;

#[tokio::test]
async fn a_narinfo_is_visible_at_once_and_after_a_restart() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let stored = narinfo(1, 1);
    let key = stored.narinfo.store_path.hash();
    assert!(store.lookup(key).await.unwrap().is_none());
    store.keep_narinfo(stored.clone()).await.unwrap();
    let (found, held) = store.lookup(key).await.unwrap().unwrap();
    assert_eq!((found, held.is_some()), (stored.clone(), false));
    store.close().await;
    assert!(matches!(store.lookup(key).await, Err(Error::Closing)));

    let store = house.open().await;
    let (found, _) = store.lookup(key).await.unwrap().unwrap();
    assert_eq!(found, stored);
    assert_eq!(store.figures().narinfos, 1);
    assert_eq!(store.paths_of(nar_hash(1), 9).await.unwrap(), [key]);
    store.withdraw_narinfo(key).await.unwrap();
    assert!(store.lookup(key).await.unwrap().is_none());
    assert!(store.paths_of(nar_hash(1), 9).await.unwrap().is_empty());
    assert_eq!(store.figures().narinfos, 0);
    store.close().await;
}

#[tokio::test]
async fn nars_of_all_sizes_come_back_as_they_were() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let row = usize::try_from(ROW_BODY).unwrap();
    let sizes = [0, 1, 100, 4023, 4096, 100_000, row - 1, row, row + 1, 3 * row, 5 * row + 77_777];
    for (seed, len) in (0..).zip(sizes) {
        let held = fill(&store, seed, len).await.unwrap();
        check_whole(&held).await;
        assert_eq!(held.file_size(), u64::try_from(len).unwrap());
    }
    store.flush().await.unwrap();
    let used = store.figures().used_bytes;
    assert_eq!(store.figures().nars, 11);
    for (seed, _) in (0..).zip(sizes) {
        check_whole(&store.nar(nar_hash(seed)).await.unwrap().unwrap()).await;
    }
    store.close().await;
    let store = house.open().await;
    assert_eq!(store.figures().used_bytes, used);
    for (seed, len) in (0..).zip(sizes) {
        let held = store.nar(nar_hash(seed)).await.unwrap().unwrap();
        let read = whole(&held).await;
        assert!(read.is_ok_and(|read| read == stream(seed, len)), "{len}");
        let listing = store.listing(nar_hash(seed)).await.unwrap();
        assert_eq!(listing, Some(Bytes::from(format!("listing of {seed}"))));
    }
    let held = store.nar(nar_hash(10)).await.unwrap().unwrap();
    let from = 2 * row + 5;
    assert!(held.read(from as u64).await.unwrap() == stream(10, sizes[10])[from..3 * row]);
    store.close().await;
}

#[tokio::test]
async fn a_lookup_brings_the_nar_when_it_is_held() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let stored = narinfo(1, 7);
    store.keep_narinfo(stored.clone()).await.unwrap();
    fill(&store, 7, 10_000).await.unwrap();
    let key = stored.narinfo.store_path.hash();
    for _ in 0..2 {
        let (_, held) = store.lookup(key).await.unwrap().unwrap();
        check_whole(&held.unwrap()).await;
        store.flush().await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn followers_see_each_byte_as_it_comes_and_all_of_them() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let len = 30 * usize::try_from(ROW_BODY).unwrap() + 12_345;
    let bytes = stream(3, len);
    let mut writer = begin(&store, len).await.unwrap();
    let mut followers = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let growing = writer.follow();
        let expected = bytes.clone();
        followers.spawn(async move {
            let mut at = 0;
            while let Some(piece) = growing.read(at as u64).await.unwrap() {
                assert!(!piece.is_empty());
                assert!(piece == expected[at..at + piece.len()]);
                at += piece.len();
            }
            assert_eq!(at, expected.len());
        });
    }
    let late = writer.follow();
    for piece in bytes.chunks(77_777) {
        writer.append(bytes.slice_ref(piece)).await.unwrap();
    }
    // The last byte is there before the NAR is finished.
    let last = late.read(len as u64 - 1).await.unwrap().unwrap();
    assert_eq!(last, bytes[len - 1..]);
    let held = writer.finish(finished(3, &bytes, Origin::Upstream)).await.unwrap();
    while let Some(followed) = followers.join_next().await {
        followed.unwrap();
    }
    assert_eq!(late.read(0).await.unwrap().unwrap().len() as u64, ROW_BODY);
    check_whole(&held).await;
    store.close().await;
}

#[tokio::test]
async fn a_dropped_writer_leaves_nothing() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let bytes = stream(4, 5_000_000);
    let mut writer = begin(&store, bytes.len()).await.unwrap();
    let growing = writer.follow();
    writer.append(bytes.clone()).await.unwrap();
    assert!(growing.read(0).await.unwrap().is_some());
    drop(writer);
    assert!(matches!(growing.read(5_000_000).await, Err(Error::Abandoned)));
    drop(growing);
    assert!(store.nar(nar_hash(4)).await.unwrap().is_none());
    until(&store, |store| store.figures().used_bytes == 0).await;
    store.close().await;
}

#[tokio::test]
async fn the_second_of_two_fills_is_adopted() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let bytes = stream(5, 700_000);
    let mut first = begin(&store, bytes.len()).await.unwrap();
    let mut second = begin(&store, bytes.len()).await.unwrap();
    let follower = second.follow();
    first.append(bytes.clone()).await.unwrap();
    second.append(bytes.clone()).await.unwrap();
    let first = first.finish(finished(5, &bytes, Origin::Upstream)).await.unwrap();
    let used = store.figures().used_bytes;
    let second = second.finish(finished(5, &bytes, Origin::Upstream)).await.unwrap();
    assert_eq!(first.id(), second.id());
    let read = follower.read(600_000).await.unwrap().unwrap();
    assert!(bytes[600_000..].starts_with(&read));
    assert!(store.figures().used_bytes >= used);
    drop(follower);
    let takes = crate::store::layout::stream_takes(700_000);
    until(&store, |store| store.figures().used_bytes == takes).await;
    check_whole(&second).await;
    store.close().await;
}

#[tokio::test]
async fn two_paths_share_one_nar_until_the_last_is_withdrawn() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let (one, two) = (narinfo(1, 6), narinfo(2, 6));
    store.keep_narinfo(one.clone()).await.unwrap();
    store.keep_narinfo(two.clone()).await.unwrap();
    drop(fill(&store, 6, 50_000).await.unwrap());
    assert_eq!(store.paths_of(nar_hash(6), 9).await.unwrap().len(), 2);
    store.flush().await.unwrap();
    store.withdraw_narinfo(one.narinfo.store_path.hash()).await.unwrap();
    let (_, held) = store.lookup(two.narinfo.store_path.hash()).await.unwrap().unwrap();
    check_whole(&held.unwrap()).await;
    store.withdraw_narinfo(two.narinfo.store_path.hash()).await.unwrap();
    until(&store, |store| store.figures().used_bytes == 0).await;
    assert!(store.nar(nar_hash(6)).await.unwrap().is_none());
    store.close().await;
}

#[tokio::test]
async fn a_withdrawn_nar_can_be_filled_again_beside_its_readers() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let old = fill(&store, 8, 400_000).await.unwrap();
    store.flush().await.unwrap();
    store.withdraw_nar(nar_hash(8)).await.unwrap();
    assert!(store.nar(nar_hash(8)).await.unwrap().is_none());
    check_whole(&old).await;
    let new = fill(&store, 8, 400_000).await.unwrap();
    assert_ne!(old.id(), new.id());
    assert!(!new.changed_lately());
    drop(old);
    let takes = crate::store::layout::stream_takes(400_000);
    until(&store, |store| store.figures().used_bytes == takes).await;
    check_whole(&new).await;
    drop(new);
    store.withdraw_nar(nar_hash(8)).await.unwrap();
    let bytes = stream(99, 1000);
    let mut writer = begin(&store, 1000).await.unwrap();
    writer.append(bytes.clone()).await.unwrap();
    let other = finished(8, &bytes, Origin::Upstream);
    let changed = writer.finish(other).await.unwrap();
    // Only what was durable once is remembered.
    assert!(changed.changed_lately());
    store.flush().await.unwrap();
    assert!(store.nar(nar_hash(8)).await.unwrap().unwrap().changed_lately());
    store.close().await;
}

#[tokio::test]
async fn documents_are_kept_by_name() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let body = Bytes::from_static(b"built");
    assert!(store.document("log/x.drv").await.unwrap().is_none());
    store.keep_document("log/x.drv", body.clone(), Origin::Ours).await.unwrap();
    store.close().await;
    let store = house.open().await;
    assert_eq!(store.document("log/x.drv").await.unwrap(), Some(body));
    store.close().await;
}

#[tokio::test]
async fn a_folder_is_one_process_s() {
    let house = House::new(BUDGET);
    let store = house.open().await;
    let second =
        house.start(std::sync::Arc::new(crate::store::disk::Folder { path: house.path() }));
    let State::Degraded { reason, .. } = second.first_opened().await else { panic!("opened") };
    assert!(reason.contains("another process"), "{reason}");
    second.close().await;
    store.close().await;
}
